"""Video files: H.264 in .mp4, which every browser and player shows."""

import itertools
import subprocess
import tempfile

import imageio_ffmpeg
import numpy as np

from gen3d import files
from gen3d.choices import UserError


def save(path, frames, fps=30):
  """Writes a film of `fps` frames per second.

  Odd heights and widths grow by one repeated row or column: yuv420p stores
  color for 2x2 pixels.

  Args:
    path: file to be written.
    frames: uint8 [T, H, W, 3], or an iterator of [H, W, 3]: it is read as
      the encoder goes, so that a film need not fit into memory.
    fps: frames per second.

  Raises:
    UserError: frames of another kind, or a folder that cannot be written to.
    OSError: the encoder failed, as on a full disk.
  """
  frames = iter(frames)
  first = next(frames, None)
  if first is None:
    raise UserError(f'No frames to write to {path}.')
  height, width = _evened(first).shape[:2]
  command = [
      imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-loglevel', 'error',
      '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', f'{width}x{height}',
      '-r', str(fps), '-i', '-', '-c:v', 'libx264', '-pix_fmt', 'yuv420p',
      # The index first, so that a browser starts before the end is there.
      '-crf', '18', '-movflags', '+faststart']
  with files.atomic_write(path) as temporary, tempfile.TemporaryFile() as said:
    # Not imageio_ffmpeg.write_frames, whose fork may deadlock beside JAX.
    with subprocess.Popen([*command, str(temporary)], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL, stderr=said) as encoder:
      cut = False
      try:
        for frame in itertools.chain([first], frames):
          encoder.stdin.write(_evened(frame).tobytes())
        encoder.stdin.close()
      except BrokenPipeError:
        cut = True  # It has ended early, and said why.
      except BaseException:
        encoder.kill()
        raise
    if cut or encoder.returncode:
      said.seek(0)
      reason = said.read().decode(errors='replace').strip()
      raise OSError(f'Cannot write {path}: ffmpeg says {reason!r}.')


def _evened(frame):
  frame = np.asarray(frame)
  if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
    raise UserError('A video wants frames uint8 [H, W, 3], not '
                    f'{frame.dtype} {list(frame.shape)}.')
  odd = [(0, size % 2) for size in frame.shape[:2]]
  return np.pad(frame, [*odd, (0, 0)], mode='edge')


def load(path):
  """Frames uint8 [T, H, W, 3] and their rate, up to the codec's loss."""
  reader = imageio_ffmpeg.read_frames(str(path))
  about = next(reader)
  width, height = about['size']
  frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3)
            for frame in reader]
  return np.stack(frames), about['fps']
