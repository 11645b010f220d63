"""Video files: H.264 in .mp4, which every browser and player shows."""

import subprocess

import imageio_ffmpeg
import numpy as np

from gen3d.io import files


def save(path, frames, fps=30):
  """Writes frames uint8 [T, H, W, 3] at `fps` frames per second.

  Odd heights and widths grow by one repeated row or column: yuv420p stores
  colour for 2x2 pixels.

  Raises:
    ValueError: frames of another kind, or a folder that cannot be written to.
    OSError: the encoder failed, as on a full disk.
  """
  frames = np.asarray(frames)
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
    raise ValueError('A video wants frames uint8 [T, H, W, 3], not '
                     f'{frames.dtype} {list(frames.shape)}.')
  if not len(frames):
    raise ValueError(f'No frames to write to {path}.')
  odd = [(0, size % 2) for size in frames.shape[1:3]]
  frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode='edge')
  height, width = frames.shape[1:3]
  command = [
      imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-loglevel', 'error',
      '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', f'{width}x{height}',
      '-r', str(fps), '-i', '-', '-c:v', 'libx264', '-pix_fmt', 'yuv420p',
      # The index first, so that a browser starts before the end is there.
      '-crf', '18', '-movflags', '+faststart']
  with files.replacing(path) as temporary:
    # Not imageio_ffmpeg.write_frames, whose fork may deadlock beside JAX.
    done = subprocess.run([*command, str(temporary)], input=frames.tobytes(),
                          capture_output=True)
    if done.returncode:
      reason = done.stderr.decode(errors='replace').strip()
      raise OSError(f'Cannot write {path}: ffmpeg says {reason!r}.')


def load(path):
  """Frames uint8 [T, H, W, 3] and their rate, up to the codec's loss."""
  reader = imageio_ffmpeg.read_frames(str(path))
  about = next(reader)
  width, height = about['size']
  frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3)
            for frame in reader]
  return np.stack(frames), about['fps']
