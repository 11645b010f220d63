"""TensorFlow datasets as images with cameras, built here without a network."""

import io
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gen3d.data.images import dataset
from gen3d.ops import cameras

COUNT = 4
FACES = tfds.features.FeaturesDict({
    'image': tfds.features.Image(shape=(None, None, None)),
    'label': tfds.features.Tensor(shape=(25,), dtype=np.float32)})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """Folder of the datasets that are built here."""
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / 'cache'))
  # The variable TFDS_DATA_DIR is read when tfds is imported.
  monkeypatch.setattr(
      tfds.core.constants, 'DATA_DIR', str(tmp_path / 'datasets'))
  return tmp_path / 'datasets'


def build(folder, features=FACES, **splits):
  """Prepares 'tiny_faces:1.0.0' of lists of examples; returns its folder."""
  def info(self):
    return tfds.core.DatasetInfo(
        builder=self, features=features, disable_shuffling=True)

  with tfds.core.registered.skip_registration():  # It is found by its files.
    builder = type('TinyFaces', (tfds.core.GeneratorBasedBuilder,), {
        'VERSION': tfds.core.Version('1.0.0'), '_info': info,
        '_split_generators': lambda self, _: {
            name: enumerate(examples) for name, examples in splits.items()},
        '_generate_examples': None})
  builder(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder / 'tiny_faces' / '1.0.0'


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def labels():
  return np.asarray(cameras.to_label(cameras.orbit(
      jnp.linspace(-40., 40., COUNT), jnp.linspace(0., 20., COUNT), 2.7, 4.2)))


def faces():
  """Example i is of color i."""
  return [{'image': png(np.full((8, 8, 3), 10 * i, np.uint8)), 'label': label}
          for i, label in enumerate(labels())]


def test_images_and_cameras_are_read(folder):
  build(folder, train=faces(), test=faces()[:2])
  found = dataset.open_images('tfds:tiny_faces')
  assert found.size == 8 and len(found.names) == COUNT
  np.testing.assert_array_equal(found.labels, labels())
  dataset.check(found)
  batch = next(dataset.batches(found, COUNT, seed=0))
  assert batch['image'].shape == (COUNT, 8, 8, 3)
  colors = batch['image'][:, 0, 0, 0] // 10
  assert sorted(colors) == list(range(COUNT))
  np.testing.assert_array_equal(batch['label'], labels()[colors])


@pytest.mark.parametrize('path, colors', [
    ('tiny_faces:test', [0, 1]),
    ('tiny_faces:train[:3]', [0, 1, 2]),
    ('tiny_faces:train[50%:]', [2, 3]),
    ('tiny_faces:test+train', [0, 1, 0, 1, 2, 3]),
    ('tiny_faces:1.0.0', [0, 1, 2, 3]),
    ('tiny_faces:1.*.*', [0, 1, 2, 3]),
    ('tiny_faces:1.0.0:test', [0, 1]),
    ('tiny_faces:1.0.0:train[1:3]', [1, 2]),
])
def test_version_and_split_are_parsed(folder, path, colors):
  build(folder, train=faces(), test=faces()[:2])
  found = dataset.open_images(f'tfds:{path}')
  assert [found.pixels(i)[0, 0, 0] // 10
          for i in range(len(found.names))] == colors
  np.testing.assert_array_equal(found.labels, labels()[colors])


@pytest.mark.parametrize('path, message', [
    ('tfds:', r'tfds: names no data set; give tfds:NAME'),
    ('tfds::train', r'tfds::train names no data set; give tfds:NAME'),
    ('tfds:no_such', r"tfds:no_such: tfds has no data set 'no_such', and "
                     r'.*/datasets holds none; choose .* TFDS_DATA_DIR'),
    ('tfds:no/small:1.0.0:train[:2]', "has no data set 'no/small:1.0.0', "),
    ('tfds:tiny_faces:2.0.0', "has no data set 'tiny_faces:2.0.0', and"),
    ('tfds:two words', r'tfds:two words cannot be prepared \(Parsing .*\);'),
    ('tfds:tiny_faces:val',
     r"tfds:tiny_faces:val has no split 'val'; choose from train \(of 4\), "
     r'test \(of 2\), or'),
    ('tfds:tiny_faces:', "has no split ''; choose from train"),
    ('tfds:tiny_faces:train[2:9]', r"has no split 'train\[2:9\]'; choose from"),
    ('tfds:tiny_faces:train[2:2]', r"has no split 'train\[2:2\]'; choose from"),
    ('tfds:tiny_faces:1.0.0:train[', r"has no split 'train\['; choose from"),
])
def test_unknown_names_are_refused_in_one_sentence(folder, path, message):
  build(folder, train=faces(), test=faces()[:2])
  with pytest.raises(ValueError, match=message) as error:
    dataset.open_images(path)
  assert '\n' not in str(error.value) and len(str(error.value)) < 400


def test_folder_of_the_environment_variable_is_used(folder):
  build(folder, train=faces())
  error = subprocess.run(
      [sys.executable, '-c', 'from gen3d.data.images import dataset\n'
       'print(dataset.open_images("tfds:tiny_faces").labels[:, 3].tolist())'],
      env={**os.environ, 'TFDS_DATA_DIR': str(folder)}, text=True,
      capture_output=True, cwd=pathlib.Path(__file__).parents[1], check=True)
  assert error.stdout.strip() == str(labels()[:, 3].tolist())


def test_arrays_and_gray_images_without_cameras_are_read(folder):
  build(folder, tfds.features.FeaturesDict({
      'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
      'label': tfds.features.Scalar(np.int64)}),
      train=[{'image': np.full((8, 8, 1), 9, np.uint8), 'label': 3}])
  found = dataset.open_images('tfds:tiny_faces')
  assert found.labels.shape == (1, 0)
  np.testing.assert_array_equal(found.pixels(0), np.full((8, 8, 3), 9))
  dataset.check(found)


def test_gray_and_transparent_images_become_rgb(folder):
  examples = faces()
  examples[1]['image'] = png(np.full((8, 8), 7, np.uint8))
  examples[2]['image'] = png(np.full((8, 8, 4), 9, np.uint8))
  build(folder, train=examples)
  found = dataset.open_images('tfds:tiny_faces')
  dataset.check(found)
  for i, value in ((1, 7), (2, 246)):  # over white: 255 - 9 + 9 * 9 / 255
    np.testing.assert_array_equal(found.pixels(i), np.full((8, 8, 3), value))


@pytest.mark.parametrize('kind', [
    None, tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16),
    tfds.features.Text()])
def test_dataset_without_images_is_refused(folder, kind):
  features = {'x': tfds.features.Scalar(np.int64)}
  example = {'x': 1}
  if kind:
    features['image'] = kind
    example['image'] = png(np.zeros((8, 8), np.uint8)) if (
        isinstance(kind, tfds.features.Image)) else 'word'
  build(folder, tfds.features.FeaturesDict(features), train=[example])
  with pytest.raises(ValueError, match="tiny_faces has no feature 'image' of"):
    dataset.open_images('tfds:tiny_faces')


@pytest.mark.parametrize('change, message', [
    ({'image': png(np.zeros((8, 8, 3), np.uint8))[:45]},
     'tfds:tiny_faces: example 2 cannot be read as an image'),
    ({'image': png(np.zeros((8, 9, 3), np.uint8))},
     'tfds:tiny_faces: example 2 has 9 x 8 pixels, but the others have 8 x 8'),
    ({'label': np.ones(25, np.float32)},
     'tfds:tiny_faces: the label of example 2 has a rotation that is not'),
])
def test_damaged_examples_are_named(folder, change, message):
  examples = faces()
  examples[2].update(change)
  build(folder, train=examples)
  with pytest.raises(ValueError, match=message):
    dataset.check(dataset.open_images('tfds:tiny_faces'))


def test_damaged_files_and_other_formats_are_named(folder):
  built = build(folder, train=faces())
  file, = built.glob('*.array_record-*')
  content = file.read_bytes()
  file.write_bytes(content[:100])
  with pytest.raises(
      ValueError, match=r'tiny_faces: example 0 is damaged \(.*\); prepare'):
    dataset.open_images('tfds:tiny_faces')
  file.write_bytes(content)
  info = built / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match=(
      r"tiny_faces cannot be prepared \(.*\['tfrecord'\]\); prepare it with "
      "file_format='array_record'")):
    dataset.open_images('tfds:tiny_faces')


def test_check_is_repeated_when_files_change(folder):
  built = build(folder, train=faces())
  decoded = []

  def check():
    found = dataset.open_images('tfds:tiny_faces')
    dataset.check(found._replace(pixels=lambda index: (
        decoded.append(index), found.pixels(index))[1]))
    return len(decoded)

  assert check() == COUNT
  assert check() == COUNT
  file, = built.glob('*.array_record-*')
  os.utime(file, (0, 0))
  assert check() == 2 * COUNT
