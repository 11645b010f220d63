"""Video files: H.264 in .mp4, which browsers and players support."""

import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterable
from typing import Any

import imageio_ffmpeg
import numpy as np

from gen3d import files
from gen3d.choices import UserError


def save(path: str | os.PathLike, frames: np.ndarray | Iterable[np.ndarray],
         fps: int = 30) -> None:
  """Writes a video.

  Odd heights and widths are enlarged by one repeated row or column: yuv420p
  stores color for blocks of 2 x 2 pixels.

  Args:
    path: file to be written.
    frames: uint8 [T, H, W, 3], or an iterable of [H, W, 3], which is consumed
      at the encoder's pace, so that a long video need not fit into memory.
    fps: frames per second.

  Raises:
    UserError: there is no frame, a frame is not uint8 [H, W, 3], or the folder
      cannot be written to.
    OSError: the encoder failed, for instance on a full disk.
  """
  frames = iter(frames)
  first = next(frames, None)
  if first is None:
    raise UserError(f'No frames to write to {path}; give at least one.')
  height, width = _pad_to_even(first).shape[:2]
  command = [
      imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-loglevel', 'error',
      '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', f'{width}x{height}',
      '-r', str(fps), '-i', '-', '-c:v', 'libx264', '-pix_fmt', 'yuv420p',
      # The index goes first, so that playback starts during the download.
      '-crf', '18', '-movflags', '+faststart',
      # Players take untagged colors as BT.601 or BT.709 by the frame's size.
      '-vf', 'scale=out_color_matrix=bt709:out_range=tv,setparams=range=tv:'
      'colorspace=bt709:color_primaries=bt709:color_trc=bt709']
  with files.atomic_write(path) as temporary, tempfile.TemporaryFile() as log:
    # Not imageio_ffmpeg.write_frames, whose fork may deadlock with JAX.
    with subprocess.Popen([*command, str(temporary)], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL, stderr=log) as encoder:
      pipe: Any = encoder.stdin
      ended_early = False
      try:
        for frame in itertools.chain([first], frames):
          pipe.write(_pad_to_even(frame).tobytes())
        pipe.close()
      except BrokenPipeError:
        ended_early = True  # its reason is in the log
      except BaseException:
        encoder.kill()
        raise
    if ended_early or encoder.returncode:
      log.seek(0)
      reason = log.read().decode(errors='replace').strip()
      raise OSError(f'Cannot write {path}: ffmpeg failed with {reason!r}.')


def _pad_to_even(frame):
  """A frame with even sides; UserError where it is not uint8 [H, W, 3]."""
  frame = np.asarray(frame)
  if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
    raise UserError('The frames of a video must be uint8 [H, W, 3], not '
                    f'{frame.dtype} {list(frame.shape)}; convert them by '
                    'io.images.to_uint8.')
  odd = [(0, size % 2) for size in frame.shape[:2]]
  return np.pad(frame, [*odd, (0, 0)], mode='edge')


def load(path: str | os.PathLike) -> tuple[np.ndarray, float]:
  """Reads frames uint8 [T, H, W, 3] and frames per second; lossy."""
  reader: Any = imageio_ffmpeg.read_frames(str(path))
  metadata = next(reader)
  width, height = metadata['size']
  frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3)
            for frame in reader]
  return np.stack(frames), metadata['fps']
