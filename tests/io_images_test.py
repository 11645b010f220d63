"""io.images: PNG round trip and labeled sheets."""

import numpy as np
import pytest
from PIL import Image

from gen3d.io import images as image_io


def test_png_round_trip(tmp_path):
  image = np.random.default_rng(0).integers(
      0, 256, (5, 7, 3)).astype(np.uint8)
  image_io.save(tmp_path / 'a.png', image)
  np.testing.assert_array_equal(
      np.asarray(Image.open(tmp_path / 'a.png')), image)


def test_tiles_are_row_by_row_with_labels_below():
  images = np.stack([np.full((20, 30, 3), i / 10) for i in range(5)])
  sheet = image_io.tile(images, 3, gap=2)
  assert sheet.shape == (42, 94, 3)
  for i in range(5):
    y, x = i // 3 * 22, i % 3 * 32
    assert (sheet[y:y + 20, x:x + 30] == round(255 * i / 10)).all()
  assert (sheet[22:, 64:] == 255).all()
  labeled = image_io.tile(images, 3, ['one', 'two three four five', '', '',
                                       'six'])
  assert labeled.shape[0] > 42 and labeled.shape[1] == 94
  assert (labeled[20:36, :30] < 128).any()
  assert (labeled[20:36, 64:] == 255).all()
  with pytest.raises(ValueError, match='5 images cannot have 1 labels'):
    image_io.tile(images, 3, ['one'])
