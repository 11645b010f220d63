"""EG3D's image format: what is read, in what order, and what is refused."""

import io
import itertools
import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen3d.data import images
from gen3d.ops import cameras

COUNT = 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def camera_labels(count=COUNT):
  return np.asarray(cameras.to_label(cameras.orbit(
      jnp.linspace(-40., 40., count), jnp.linspace(0., 20., count), 2.7, 4.2)))


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def content(labels=None, size=8):
  """{file name: bytes} of a small collection; image i is of colour i."""
  labels = camera_labels() if labels is None else labels
  names = [f'00000/img{i:08d}.png' for i in range(COUNT)]
  files = {name: png(np.full((size, size, 3), 10 * i, np.uint8))
           for i, name in enumerate(names)}
  listing = [[n, label if label is None else [float(x) for x in label]]
             for n, label in zip(names, labels)]
  files['dataset.json'] = json.dumps({'labels': listing[::-1]}).encode()
  return files


def folder(tmp_path, files):
  for name, data in files.items():
    path = tmp_path / 'set' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return tmp_path / 'set'


def archive(tmp_path, files):
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as out:
    for name, data in files.items():
      out.writestr(name, data)
  return tmp_path / 'set.zip'


@pytest.mark.parametrize('pack', [folder, archive])
def test_folder_and_zip_read_alike(tmp_path, pack):
  found = images.open_images(pack(tmp_path, content()))
  assert found.size == 8 and len(found.names) == COUNT
  np.testing.assert_allclose(found.labels, camera_labels(), atol=1e-6)
  batch = next(images.batches(found, COUNT, seed=0))
  colours = batch['image'][:, 0, 0, 0] // 10
  assert sorted(colours) == list(range(COUNT))
  np.testing.assert_allclose(
      batch['label'], camera_labels()[colours], atol=1e-6)
  images.check(found)


def test_images_without_cameras_have_empty_labels(tmp_path):
  files = content()
  del files['dataset.json']
  found = images.open_images(folder(tmp_path, files))
  assert found.labels.shape == (COUNT, 0)
  assert next(images.batches(found, 2, 0, mirror=True))['label'].shape == (2, 0)
  images.check(found)
  with pytest.raises(ValueError, match='no cameras to draw'):
    images.map_of_cameras(found)


def test_batches_resume_anywhere_and_cover_every_epoch(tmp_path):
  found = images.open_images(folder(tmp_path, content()))
  take = lambda first, n, **kwargs: list(itertools.islice(
      images.batches(found, 4, 3, first, mirror=True, **kwargs), n))
  whole, later = take(0, 6), take(4, 2, threads=1)
  for a, b in zip(whole[4:], later):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  colours = np.concatenate([b['image'][:, 0, 0, 0] // 10 for b in whole])
  for epoch in colours.reshape(-1, COUNT):
    assert sorted(epoch) == list(range(COUNT))
  assert list(colours[:COUNT]) != list(colours[COUNT:2 * COUNT])


def test_a_mirrored_image_comes_with_the_camera_that_sees_it(tmp_path):
  rng = np.random.default_rng(0)
  files = content()
  for name in files:
    if name.endswith('.png'):
      files[name] = png(rng.integers(255, size=(8, 8, 3), dtype=np.uint8))
  found = images.open_images(folder(tmp_path, files))
  plain = next(images.batches(found, 64, 0))
  mixed = next(images.batches(found, 64, 0, mirror=True))
  turned = ~(mixed['label'] == plain['label']).all(1)
  assert 16 < turned.sum() < 48
  np.testing.assert_array_equal(
      mixed['image'][turned], plain['image'][turned][:, :, ::-1])
  np.testing.assert_array_equal(
      mixed['image'][~turned], plain['image'][~turned])
  # A point and its mirror image are seen at mirrored places.
  points = jnp.array(rng.normal(scale=.3, size=(64, 5, 3)), jnp.float32)
  seen, depth = cameras.project(
      cameras.from_label(jnp.array(plain['label'])), points)
  again, depth_again = cameras.project(
      cameras.from_label(jnp.array(images.mirror_label(plain['label']))),
      points * jnp.array([-1., 1., 1.]))
  np.testing.assert_allclose(again[..., 0], 1 - seen[..., 0], atol=1e-5)
  np.testing.assert_allclose(again[..., 1], seen[..., 1], atol=1e-5)
  np.testing.assert_allclose(depth_again, depth, atol=1e-5)


def broken(change):
  """Labels of which the third is changed."""
  labels = camera_labels().copy()
  labels[2] = change(labels[2].copy())
  return labels


def put(index, value):
  def change(label):
    label[index] = value
    return label
  return change


@pytest.mark.parametrize('labels, said', [
    (broken(put(0, 2.)), 'img00000002.png has a rotation that is not ortho'),
    (broken(lambda x: x * np.r_[-1., 1, 1, 1, -1, 1, 1, 1, -1, np.ones(16)]),
     'img00000002.png has a rotation that mirrors'),
    (broken(put(12, 1.)), 'img00000002.png has a matrix whose last row'),
    (broken(put(16, -1.)), 'img00000002.png has a focal length'),
    (broken(put(18, 256.)), r'in pixels\? Divide them'),
    (broken(put(3, np.nan)), 'img00000002.png has numbers that are not'),
    ([*camera_labels()[:5], np.zeros(16)], 'img00000005.png has 16 numbers'),
])
def test_a_label_that_is_no_camera_is_named(tmp_path, labels, said):
  path = folder(tmp_path, content(labels))
  with pytest.raises(ValueError, match=said):
    images.check(images.open_images(path))


@pytest.mark.parametrize('change, said', [
    ({'00000/img00000003.png': b'text'}, 'img00000003.png cannot be read'),
    ({'00000/img00000003.png': content()['00000/img00000003.png'][:45]},
     'img00000003.png cannot be read'),
    ({'00000/img00000003.png': png(np.zeros((8, 9, 3), np.uint8))},
     'img00000003.png has 9 x 8 pixels, but the others have 8 x 8'),
    ({'00000/one_more.png': png(np.zeros((8, 8, 3), np.uint8))},
     'no label for 00000/one_more.png'),
    ({'dataset.json': b'{'}, 'dataset.json is not valid JSON'),
    ({'dataset.json': b'{"labels": [1]}'}, 'must be a list of'),
])
@pytest.mark.parametrize('pack', [folder, archive])
def test_a_bad_file_is_named(tmp_path, pack, change, said):
  path = pack(tmp_path, content() | change)
  with pytest.raises(ValueError, match=said):
    images.check(images.open_images(path))


def test_what_was_found_good_is_not_looked_at_again(tmp_path, cache):
  path = folder(tmp_path, content())
  images.check(images.open_images(path))
  assert len(list((cache / 'checked').iterdir())) == 1
  refuse = images.open_images(path)._replace(pixels=None)
  images.check(refuse)
  (path / '00000/img00000001.png').write_bytes(b'changed')
  with pytest.raises(ValueError, match='img00000001.png cannot be read'):
    images.check(images.open_images(path))


@pytest.mark.parametrize('name', ['missing', 'empty', 'text.zip'])
def test_other_places_are_refused(tmp_path, name):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'text.zip').write_text('no zip')
  with pytest.raises(ValueError, match=f'{name} (is neither|holds no)'):
    images.open_images(tmp_path / name)


def test_transparent_and_grey_images_become_colour(tmp_path):
  files = content()
  files['00000/img00000000.png'] = png(np.full((8, 8), 7, np.uint8))
  files['00000/img00000001.png'] = png(np.full((8, 8, 4), 9, np.uint8))
  found = images.open_images(archive(tmp_path, files))
  batch = next(images.batches(found, COUNT, 0))
  assert batch['image'].shape == (COUNT, 8, 8, 3)
  assert {7, 9} <= set(batch['image'][:, 0, 0, 2])


def test_the_map_is_darkest_where_cameras_are(tmp_path):
  labels = np.asarray(cameras.to_label(cameras.orbit(
      jnp.full(COUNT, 93.), jnp.full(COUNT, 43.), 2.7, 4.2)))
  drawn = images.map_of_cameras(
      images.open_images(folder(tmp_path, content(labels))), width=240)
  row, column = np.unravel_index(
      np.argmin(drawn.sum(-1)[20:-20, 20:-20]), (80, 200))
  assert abs((column + 20) / 240 * 360 - 180 - 93) < 4
  assert abs(90 - (row + 20) / 120 * 180 - 43) < 4
