"""Pixels of image files of every mode, and names of files that are none."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from gen3d import pixels
from gen3d.choices import UserError
from gen3d.data.images import dataset

VALUES = np.arange(256, dtype=np.uint8).reshape(16, 16)


def stored(image, kind, **options):
  """An image as it is read from a file."""
  content = io.BytesIO()
  image.save(content, kind, **options)
  return Image.open(content)


@pytest.mark.parametrize('image, kind', [
    (Image.fromarray(VALUES.astype(np.uint16) * 257), 'PNG'),
    (Image.fromarray(VALUES.astype(np.uint16) * 257), 'TIFF'),
    (Image.fromarray(VALUES.astype(np.int32) * 257), 'TIFF'),
    (Image.fromarray(VALUES.astype(np.float32) / 255), 'TIFF'),
    (Image.fromarray(VALUES), 'PNG')])
def test_grays_of_all_depths_have_the_same_8_bits(image, kind):
  rgba = pixels.to_rgba(stored(image, kind))
  np.testing.assert_array_equal(rgba[..., :3], np.repeat(
      VALUES[..., None], 3, axis=-1))
  assert rgba[..., 3].min() == 255
  np.testing.assert_array_equal(
      pixels.to_rgb(stored(image, kind)), rgba[..., :3])


def test_palettes_and_cmyk_have_their_colors():
  image = Image.new('RGB', (8, 8), (200, 40, 90))
  for other, kind in ((image.quantize(), 'PNG'),
                      (image.convert('CMYK'), 'TIFF'),
                      (image.convert('CMYK'), 'JPEG')):
    found = pixels.to_rgba(stored(other, kind))
    np.testing.assert_allclose(
        found, np.broadcast_to([200, 40, 90, 255], (8, 8, 4)), atol=4)


@pytest.mark.parametrize('gray', [
    np.full((4, 4), 1.5, np.float32), np.full((4, 4), np.nan, np.float32),
    np.full((4, 4), -0.5, np.float32), np.full((4, 4), 70_000, np.int32)])
def test_values_of_unknown_scale_are_refused(gray):
  with pytest.raises(UserError, match='save it with 8 or 16'):
    pixels.to_rgba(stored(Image.fromarray(gray), 'TIFF'))


def test_transparent_pixels_of_image_sets_are_white(tmp_path):
  # Colors under transparent pixels are what was there before.
  image = np.full((8, 8, 4), (10, 20, 30, 0), np.uint8)
  image[:4] = (10, 20, 30, 255)
  image[2] = (0, 0, 0, 51)
  palette = Image.new('P', (8, 8), 1)
  palette.putpalette([0, 0, 0, 10, 20, 30])
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
    for name, content, options in (
        ('a.png', Image.fromarray(image), {}),
        ('b.png', palette, {'transparency': 1})):
      data = io.BytesIO()
      content.save(data, 'PNG', **options)
      archive.writestr(name, data.getvalue())
  source = dataset.open_images(tmp_path / 'set.zip')
  first, second = source.pixels(0), source.pixels(1)
  np.testing.assert_array_equal(first[[0, 2, 7], 3], [
      [10, 20, 30], [204] * 3, [255] * 3])
  assert second.min() == 255


@pytest.mark.parametrize('head, kind', [
    (b'\0\0\0\x24ftypheic', 'a HEIC photograph; convert it to PNG or JPEG'),
    (b'\0\0\0\x24ftypmif1', 'a HEIC photograph'),
    (b'\0\0\0\x1cftypavif', 'an AVIF picture'),
    (b'version https://git-lfs.github.com/spec/v1', 'a pointer of Git LFS'),
    (b'\0\5\x16\7\0\2\0\0Mac OS X', 'macOS'), (b'', 'it is empty'),
    (b'abc', 'get it again or remove it')])
def test_files_that_are_no_readable_image_are_named(tmp_path, head, kind):
  (tmp_path / 'IMG_1.png').write_bytes(head)
  with pytest.raises(UserError, match=f'IMG_1.png cannot be .*{kind}'):
    dataset.open_images(tmp_path)


@pytest.mark.parametrize('spell', [
    lambda name: name.replace('/', '\\'), lambda name: f'./{name}',
    lambda name: f'my set/{name}'])
def test_sets_that_other_systems_zipped_are_read(tmp_path, spell):
  label = np.concatenate([np.eye(4).ravel(), np.eye(3).ravel()])
  label[[18, 21]] = 0.5
  data = io.BytesIO()
  Image.new('RGB', (8, 8), (200, 40, 90)).save(data, 'PNG')
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
    archive.writestr(spell('0/a.png'), data.getvalue())
    archive.writestr(spell('dataset.json'), json.dumps(
        {'labels': [['0/a.png', label.tolist()]]}))
    for name in ('__MACOSX/0/._a.png', spell('0/._a.png'), spell('Thumbs.db')):
      archive.writestr(name, b'\0\5\x16\7')
  source = dataset.open_images(tmp_path / 'set.zip')
  assert source.names == ('0/a.png',) and source.labels.shape == (1, 25)
  np.testing.assert_array_equal(source.pixels(0)[3, 3], [200, 40, 90])


def test_every_changed_or_missing_byte_of_a_png_is_noticed():
  data = io.BytesIO()
  Image.fromarray(VALUES).convert('P').save(data, 'PNG', dpi=(72, 72))
  content = data.getvalue()
  assert pixels.open_checked(content).size == (16, 16)
  damaged = [content[:at] for at in range(len(content))] + [
      content[:at] + bytes([content[at] ^ 16]) + content[at + 1:]
      for at in range(len(content))]
  for changed in damaged:
    with pytest.raises((ValueError, OSError, SyntaxError)):
      pixels.open_checked(changed)


def test_rgb_pictures_are_not_copied():
  image = stored(Image.new('RGB', (4, 4)), 'PNG')
  assert pixels.to_rgb(image) is image
  keyed = stored(Image.new('RGB', (4, 4)), 'PNG', transparency=(0, 0, 0))
  assert np.asarray(pixels.to_rgb(keyed)).min() == 255
