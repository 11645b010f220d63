"""io.video: round trips, streaming and errors of the encoder."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from gen3d.io import video


@pytest.mark.parametrize('height, width', [(32, 48), (31, 33)])
def test_video_round_trip(tmp_path, height, width):
  """Frames in order, colors in place, odd sizes made even."""
  frames = np.zeros((8, height, width, 3), np.uint8)
  frames[:, :, width // 2:, 0] = 200
  frames[..., 2] = 30 * np.arange(8)[:, None, None]
  path = tmp_path / 'new' / 'clip.mp4'
  video.save(path, frames, fps=10)
  back, fps = video.load(path)
  assert fps == 10 and len(back) == 8
  assert back.shape[1] % 2 == 0 and back.shape[2] % 2 == 0
  error = np.abs(back[:, :height, :width].astype(int) - frames)
  assert error[:, :, :width // 2 - 4].mean() < 4
  assert error.mean() < 8
  assert [p.name for p in path.parent.iterdir()] == ['clip.mp4']
  # The index comes before the pictures.
  data = path.read_bytes()
  assert data.index(b'moov') < data.index(b'mdat') and b'avc1' in data


def test_colors_are_of_bt709_and_tagged(tmp_path):
  colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 40]],
                    np.uint8)
  frames = np.broadcast_to(
      np.repeat(colors, 16, axis=0), (4, 64, 64, 3))
  video.save(tmp_path / 'a.mp4', frames)
  told = subprocess.run(
      [imageio_ffmpeg.get_ffmpeg_exe(), '-i', str(tmp_path / 'a.mp4')],
      capture_output=True, text=True).stderr
  assert 'yuv420p(tv, bt709, ' in told
  back, _ = video.load(tmp_path / 'a.mp4')
  np.testing.assert_allclose(back[2, 32, 8::16], colors, atol=6)
  # The luma of BT.709 for green: 16 + 219 * 0.7152.
  raw = subprocess.run(
      [imageio_ffmpeg.get_ffmpeg_exe(), '-loglevel', 'error', '-i',
       str(tmp_path / 'a.mp4'), '-f', 'rawvideo', '-pix_fmt', 'yuv420p', '-'],
      capture_output=True).stdout
  luma = np.frombuffer(raw, np.uint8)[:64 * 64].reshape(64, 64)
  assert abs(int(luma[32, 24]) - 173) < 4


def test_frames_of_another_type_or_number_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'not float64 \[4, 4, 3\]'):
    video.save(tmp_path / 'a.mp4', np.zeros((2, 4, 4, 3)))
  with pytest.raises(ValueError, match='No frames'):
    video.save(tmp_path / 'a.mp4', np.zeros((0, 4, 4, 3), np.uint8))
  assert not list(tmp_path.iterdir())


def test_frames_of_an_iterator_are_streamed(tmp_path):
  def frames(fail):
    for shade in range(4):
      yield np.full((16, 16, 3), 60 * shade, np.uint8)
    if fail:
      raise RuntimeError('no more')

  video.save(tmp_path / 'a.mp4', frames(False), fps=5)
  back, _ = video.load(tmp_path / 'a.mp4')
  np.testing.assert_allclose(
      back.mean((1, 2, 3)), [0, 60, 120, 180], atol=3)
  with pytest.raises(RuntimeError, match='no more'):
    video.save(tmp_path / 'b.mp4', frames(True), fps=5)
  assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']


def test_an_encoder_error_is_reported(tmp_path):
  with pytest.raises(OSError, match='a.mp4: ffmpeg failed'):
    video.save(tmp_path / 'a.mp4', np.zeros((2, 4, 4, 3), np.uint8), fps=-1)
  assert not list(tmp_path.iterdir())


def test_an_encoder_that_ends_early_is_an_error(
    tmp_path, monkeypatch):
  lazy = tmp_path / 'lazy'
  lazy.write_text('#!/bin/sh\nexit 0\n')
  lazy.chmod(0o755)
  monkeypatch.setattr(
      video.imageio_ffmpeg, 'get_ffmpeg_exe', lambda: str(lazy))
  with pytest.raises(OSError, match='a.mp4: ffmpeg failed'):
    video.save(tmp_path / 'a.mp4', np.zeros((4, 512, 512, 3), np.uint8))
  assert [p.name for p in tmp_path.iterdir()] == ['lazy']
