"""Collections of pictures that are damaged, incomplete or no such thing."""

import io
import json
import os
import pathlib
import re
import struct
import zipfile

import numpy as np
import pytest
from picture_sets import COUNT, archive, camera_labels, content, folder, png
from PIL import Image

from gen3d.data.images import dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def enormous():
  """A file whose header promises more pixels than anyone has."""
  file = io.BytesIO()
  Image.new('RGB', (8, 8)).save(file, 'BMP')
  data = bytearray(file.getvalue())
  data[18:26] = struct.pack('<ii', 2 ** 20, 2 ** 20)
  return bytes(data)


def broken(change):
  """Labels of which the third is changed."""
  labels = camera_labels().copy()
  labels[2] = change(labels[2].copy())
  return labels


def broken_listing(value):
  """Labels as lists of which the third is something else."""
  return [value if i == 2 else row
          for i, row in enumerate(camera_labels().tolist())]


def put(index, value):
  def change(label):
    label[index] = value
    return label
  return change


@pytest.mark.parametrize('labels, message', [
    (broken(put(0, 2.)), 'img00000002.png has a rotation that is not ortho'),
    (broken(lambda x: x * np.r_[-1., 1, 1, 1, -1, 1, 1, 1, -1, np.ones(16)]),
     'img00000002.png has a rotation that mirrors'),
    (broken(put(12, 1.)), 'img00000002.png has a matrix whose last row'),
    (broken(put(16, -1.)), 'img00000002.png has a focal length'),
    (broken(put(18, 256.)), r'in pixels\? Divide them'),
    (broken(put(3, np.nan)), 'img00000002.png has numbers that are not'),
    ([*camera_labels()[:5], np.zeros(16)], 'img00000005.png has 16 numbers'),
    (broken_listing('front'), 'img00000002.png is not a list of 25 numbers'),
    (broken_listing(['a'] * 25), 'img00000002.png is not a list of 25 num'),
    (broken_listing([[1, 2], [3]]), 'img00000002.png is not a list of 25 num'),
    (broken_listing({'fov': 18}), 'img00000002.png is not a list of 25 num'),
    (broken_listing([10 ** 400] * 25), 'img00000002.png has numbers that'),
])
def test_labels_that_are_not_cameras_are_named(tmp_path, labels, message):
  path = folder(tmp_path, content(labels))
  with pytest.raises(ValueError, match=message):
    dataset.check(dataset.open_images(path))


@pytest.mark.parametrize('change, message', [
    ({'00000/img00000003.png': b'text'}, 'img00000003.png cannot be read'),
    ({'00000/img00000003.png': content()['00000/img00000003.png'][:45]},
     'img00000003.png cannot be read'),
    ({'00000/img00000003.png': png(np.zeros((8, 9, 3), np.uint8))},
     'img00000003.png has 9 x 8 pixels, but the others have 8 x 8'),
    ({'00000/img00000003.png': enormous()}, 'img00000003.png cannot be read'),
    ({'00000/one_more.png': png(np.zeros((8, 8, 3), np.uint8))},
     'no label for 00000/one_more.png'),
    ({'dataset.json': b'{'}, 'dataset.json is not JSON'),
    ({'dataset.json': b'{"labels": [1]}'}, 'must be a list of'),
])
@pytest.mark.parametrize('pack', [folder, archive])
def test_damaged_files_are_named(tmp_path, pack, change, message):
  path = pack(tmp_path, content() | change)
  with pytest.raises(ValueError, match=message):
    dataset.check(dataset.open_images(path))


def in_member(path, name, change):
  """Writes a zip of deflated files anew, one of them changed.

  Args:
    path: of the zip.
    name: of the file.
    change: (bytearray of the zip, where the file's entry in the directory at
      the end is, where its data are).
  """
  with zipfile.ZipFile(path) as archive:
    files = {n: archive.read(n) for n in archive.namelist()}
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for each, data in files.items():
      archive.writestr(each, data)
    start = archive.getinfo(name).header_offset
  data = bytearray(path.read_bytes())
  change(data, data.rindex(name.encode()) - 46, start + 30 + len(name))
  path.write_bytes(data)


def garbled(data, entry, start):
  data[start] = 255  # A kind of block that deflate does not have.


def wrong_sum(data, entry, start):
  data[entry + 16] ^= 1


def encrypted(data, entry, start):
  data[entry + 8] |= 1


def unknown_compression(data, entry, start):
  data[entry + 10] = 99


@pytest.mark.parametrize(
    'change', [garbled, wrong_sum, encrypted, unknown_compression])
@pytest.mark.parametrize('name', ['00000/img00000003.png', 'dataset.json'])
def test_damaged_members_of_a_zip_are_named(tmp_path, name, change):
  path = archive(tmp_path, content())
  in_member(path, name, change)
  with pytest.raises(ValueError, match=rf'set.zip: {name} is damaged \(.*\);'):
    dataset.check(dataset.open_images(path))


def test_zip_with_a_damaged_directory_is_named(tmp_path):
  path = archive(tmp_path, content())
  data = path.read_bytes()
  path.write_bytes(data.replace(b'PK\1\2', b'PK\1\1'))
  with pytest.raises(ValueError, match=r'set.zip is damaged \(.*\); get the'):
    dataset.open_images(path)


def test_files_that_cannot_be_opened_are_named(tmp_path):
  path = folder(tmp_path, content())
  (path / '00000/img00000003.png').unlink()
  (path / '00000/img00000003.png').symlink_to(path / 'gone')
  with pytest.raises(ValueError, match=r'img00000003.png cannot be read \(No'):
    dataset.check(dataset.open_images(path))


@pytest.mark.parametrize('name', ['missing', 'empty', 'text.zip'])
def test_paths_without_images_are_refused(tmp_path, name):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'text.zip').write_text('no zip')
  with pytest.raises(
      ValueError, match=f'{name} (is neither|holds no)') as error:
    dataset.open_images(tmp_path / name)
  # What the sentence points to is there.
  root = pathlib.Path(__file__).parents[1]
  readme = (root / 'gen3d/data/README.md').read_text()
  for words in re.findall('data/README.md, "(.*?)"', str(error.value)):
    assert words in readme


def flipped(file):
  """The content of a PNG with another bit in its pixels."""
  at = file.index(b'IDAT') + 20
  return file[:at] + bytes([file[at] ^ 1]) + file[at + 1:]


@pytest.mark.parametrize('pack', [folder, archive])
def test_a_flipped_bit_in_the_pixels_of_a_png_is_named(tmp_path, pack):
  """Pillow alone decodes some of them to other pixels."""
  rng = np.random.default_rng(0)
  files = content(labels=camera_labels())
  files['00000/img00000002.png'] = flipped(
      png(rng.integers(0, 255, (8, 8, 3), np.uint8)))
  images = dataset.open_images(pack(tmp_path, files))
  with pytest.raises(ValueError, match='img00000002.png cannot be read'):
    dataset.check(images)


def test_missing_images_are_told_and_the_others_are_used(tmp_path, capsys):
  files = content()
  del files['00000/img00000003.png']
  images = dataset.open_images(folder(tmp_path, files))
  assert len(images.names) == COUNT - 1
  assert re.search(r"lists 6 images, of which 1 are not there, such as "
                   r"'00000/img00000003.png'", capsys.readouterr().err)


def test_labels_of_another_folder_are_told(tmp_path, capsys):
  files = content()
  files['00000/dataset.json'] = files.pop('dataset.json')
  files['other/a.png'] = files['00000/img00000000.png']
  assert dataset.open_images(folder(tmp_path, files)).labels.shape == (7, 0)
  assert 'has no dataset.json beside its folders' in capsys.readouterr().err


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('twice, spelled', [
    ('00000/img00000001.png', '00000/img00000001.png'),
    ('00000/img00000001.png', './00000/img00000001.png'),
    ('dataset.json', 'dataset.json')])
def test_a_name_that_is_twice_in_a_zip_is_refused(tmp_path, twice, spelled):
  files = content()
  path = archive(tmp_path, files)
  with zipfile.ZipFile(path, 'a') as more:
    more.writestr(spelled, files[twice])
  with pytest.raises(ValueError, match=f"has '{twice}' more than once"):
    dataset.open_images(path)


def test_an_image_with_two_labels_is_refused(tmp_path):
  files = content()
  listing = json.loads(files['dataset.json'])['labels']
  files['dataset.json'] = json.dumps({'labels': listing + listing[:1]}).encode()
  with pytest.raises(ValueError, match='lists an image more than once'):
    dataset.open_images(folder(tmp_path, files))


def test_a_pipe_is_no_zip(tmp_path):
  os.mkfifo(tmp_path / 'set.zip')
  with pytest.raises(ValueError, match='neither a folder nor a zip'):
    dataset.open_images(tmp_path / 'set.zip')


def test_a_zip_that_is_cut_off_is_named_as_one(tmp_path):
  path = archive(tmp_path, content())
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(ValueError, match='set.zip is a zip that is cut off'):
    dataset.open_images(path)
