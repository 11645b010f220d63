"""EG3D's image format: what is read, in what order, and what is refused."""

import io
import itertools
import json
import os
import pathlib
import re
import struct
import threading
import zipfile
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen3d.data import maps
from gen3d.data.images import camera_labels as label_format
from gen3d.data.images import dataset
from gen3d.data.shapes import primitives
from gen3d.data.shapes import render as shapes_render
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


def enormous():
  """A file whose header promises more pixels than anyone has."""
  file = io.BytesIO()
  Image.new('RGB', (8, 8)).save(file, 'BMP')
  data = bytearray(file.getvalue())
  data[18:26] = struct.pack('<ii', 2 ** 20, 2 ** 20)
  return bytes(data)


def content(labels=None, size=8):
  """{file name: bytes} of a small collection; image i is of color i."""
  labels = camera_labels() if labels is None else labels
  names = [f'00000/img{i:08d}.png' for i in range(COUNT)]
  files = {name: png(np.full((size, size, 3), 10 * i, np.uint8))
           for i, name in enumerate(names)}
  listing = [[n, np.asarray(label, float).tolist()
              if isinstance(label, np.ndarray) else label]
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
def test_folder_and_zip_give_the_same_images_and_labels(tmp_path, pack):
  found = dataset.open_images(pack(tmp_path, content()))
  assert found.size == 8 and len(found.names) == COUNT
  np.testing.assert_allclose(found.labels, camera_labels(), atol=1e-6)
  batch = next(dataset.batches(found, COUNT, seed=0))
  colors = batch['image'][:, 0, 0, 0] // 10
  assert sorted(colors) == list(range(COUNT))
  np.testing.assert_allclose(batch['label'], camera_labels()[colors], atol=1e-6)
  dataset.check(found)


def test_images_without_cameras_have_empty_labels(tmp_path):
  files = content()
  del files['dataset.json']
  found = dataset.open_images(folder(tmp_path, files))
  assert found.labels.shape == (COUNT, 0)
  batch = next(dataset.batches(found, 2, 0, mirror=True))
  assert batch['label'].shape == (2, 0)
  dataset.check(found)
  with pytest.raises(ValueError, match='no cameras to draw'):
    maps.map_of_images(found)


def test_batches_resume_at_any_step_and_cover_every_epoch(tmp_path):
  found = dataset.open_images(folder(tmp_path, content()))
  take = lambda first, n, **kwargs: list(itertools.islice(
      dataset.batches(found, 4, 3, first, mirror=True, **kwargs), n))
  whole, later = take(0, 6), take(4, 2, threads=1)
  for a, b in zip(whole[4:], later):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  colors = np.concatenate([b['image'][:, 0, 0, 0] // 10 for b in whole])
  for epoch in colors.reshape(-1, COUNT):
    assert sorted(epoch) == list(range(COUNT))
  assert list(colors[:COUNT]) != list(colors[COUNT:2 * COUNT])


def test_mirrored_images_have_mirrored_cameras(tmp_path):
  rng, files = np.random.default_rng(0), content()
  for name in files:
    if name.endswith('.png'):
      files[name] = png(rng.integers(255, size=(8, 8, 3), dtype=np.uint8))
  found = dataset.open_images(folder(tmp_path, files))
  plain = next(dataset.batches(found, 64, 0))
  mixed = next(dataset.batches(found, 64, 0, mirror=True))
  turned = ~(mixed['label'] == plain['label']).all(1)
  assert 16 < turned.sum() < 48
  np.testing.assert_array_equal(
      mixed['image'][turned], plain['image'][turned][:, :, ::-1])
  np.testing.assert_array_equal(
      mixed['image'][~turned], plain['image'][~turned])
  sees_mirrored_places(plain['label'])


def off_center():
  """Labels of cameras with a principal point aside and skewed pixels."""
  labels = camera_labels().copy()
  labels[:, 17], labels[:, 18] = .02, .4
  return labels


def test_mirrored_label_has_mirrored_principal_point_and_skew():
  labels = off_center()
  mirrored = label_format.mirror_label(labels)
  assert mirrored.dtype == np.float32
  np.testing.assert_allclose(mirrored[:, 17], -.02, atol=1e-7)
  np.testing.assert_allclose(mirrored[:, 18], .6, atol=1e-7)
  np.testing.assert_allclose(
      label_format.mirror_label(mirrored), labels, atol=1e-7)
  sees_mirrored_places(labels)


def sees_mirrored_places(labels):
  """Asserts that a point and its mirror image are at mirrored places."""
  points = jnp.array(np.random.default_rng(1).normal(
      scale=.3, size=(len(labels), 5, 3)), jnp.float32)
  seen, depth = cameras.project(cameras.from_label(jnp.array(labels)), points)
  again, depth_again = cameras.project(
      cameras.from_label(jnp.array(label_format.mirror_label(labels))),
      points * jnp.array([-1., 1., 1.]))
  np.testing.assert_allclose(again[..., 0], 1 - seen[..., 0], atol=1e-5)
  np.testing.assert_allclose(again[..., 1], seen[..., 1], atol=1e-5)
  np.testing.assert_allclose(depth_again, depth, atol=1e-5)


@pytest.mark.parametrize('labels', [camera_labels(), off_center()])
def test_mirrored_label_renders_the_mirrored_scene(labels):
  # The mirror image of a ball is the ball at the mirrored place.
  balls = [((.35, .1, 0.), .3, (.9, .1, .1)),
           ((-.3, -.2, .2), .2, (.1, .8, .2)),
           ((-.1, .3, -.2), (.15, .3, .1), (.2, .3, .9))]
  scene = np.stack([primitives.ball(*ball) for ball in balls])
  twin = np.stack([primitives.ball((-x, y, z), *rest)
                   for (x, y, z), *rest in balls])
  trace = jax.jit(shapes_render.trace, static_argnums=2)
  see = lambda parts, label: jax.tree.map(np.asarray, trace(
      parts, cameras.from_label(jnp.array(label)), 32))
  seen = see(scene, labels[1])
  mirrored = see(twin, label_format.mirror_label(labels[1]))
  covered = seen.coverage > 0
  assert 100 < covered.sum() < 900
  picture = lambda view: view.albedo * (view.coverage[..., None] / 255.)
  # Rounding may tip a pixel between two balls, or at the rim, not a second.
  off = abs(picture(mirrored)[:, ::-1] - picture(seen)).max(-1) > 2
  assert off.sum() <= 1
  assert (abs(picture(mirrored) - picture(seen)).max(-1) > 2).sum() > 100
  same = covered & ~off
  np.testing.assert_allclose(
      mirrored.depth[:, ::-1][same], seen.depth[same], atol=4e-3)


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


def flipped(data, entry, start):
  data[entry + 16] ^= 1  # The check sum.


def encrypted(data, entry, start):
  data[entry + 8] |= 1


def unknown_compression(data, entry, start):
  data[entry + 10] = 99


@pytest.mark.parametrize(
    'change', [garbled, flipped, encrypted, unknown_compression])
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


@pytest.mark.parametrize(
    'compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_threads_share_one_handle_of_a_zip(tmp_path, monkeypatch, compression):
  rng = np.random.default_rng(0)
  truth = [rng.integers(255, size=(16, 16, 3), dtype=np.uint8)
           for _ in range(64)]
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w', compression) as out:
    for i, pixels in enumerate(truth):
      out.writestr(f'{i:03d}.png', png(pixels))
  opened, begin = [], zipfile.ZipFile.__init__
  monkeypatch.setattr(zipfile.ZipFile, '__init__', lambda self, *args, **kw: (
      opened.append(args), begin(self, *args, **kw))[1])
  found = dataset.open_images(tmp_path / 'set.zip')
  start = threading.Barrier(16)

  def read(seed):
    start.wait(timeout=60)
    picked = np.random.default_rng(seed).permutation(len(truth))
    return all(np.array_equal(found.pixels(i), truth[i]) for i in picked)

  with futures.ThreadPoolExecutor(16) as pool:
    assert all(pool.map(read, range(16)))
  assert len(opened) == 1


def test_number_of_threads_is_between_2_and_16(monkeypatch):
  for cores, threads in ((1, 2), (8, 8), (96, 16)):
    monkeypatch.setattr(os, 'cpu_count', lambda cores=cores: cores)
    assert dataset._threads() == threads


def in_memory(pixels, count=4):
  return dataset.Images('memory', tuple(map(str, range(count))),
                       np.zeros((count, 0), np.float32), pixels, 8)


def test_threads_decode_batches_in_advance():
  together, done = threading.Barrier(2), threading.Semaphore(0)
  threads = set()

  def pixels(index):
    together.wait(timeout=20)  # Until another thread is in here, too.
    threads.add(threading.get_ident())
    done.release()
    return np.full((8, 8, 3), index, np.uint8)

  feed = dataset.batches(in_memory(pixels), 2, 0, threads=2, ahead=2)
  next(feed)
  # One batch was asked for; those of the two after it come by themselves.
  assert all(done.acquire(timeout=20) for _ in range(6))
  assert not done.acquire(timeout=.1)
  assert len(threads) == 2 and threading.get_ident() not in threads
  feed.close()


@pytest.mark.parametrize('rows', [slice(2, 4), np.array([5, 1])])
def test_only_given_rows_are_decoded(tmp_path, rows):
  found = dataset.open_images(folder(tmp_path, content()))
  read = []
  counting = found._replace(
      pixels=lambda index: (read.append(index), found.pixels(index))[1])
  take = lambda source, **kwargs: list(itertools.islice(
      dataset.batches(source, COUNT, 7, 1, mirror=True, ahead=0, **kwargs), 3))
  for whole, part in zip(take(found), take(counting, rows=rows)):
    assert part.keys() == whole.keys()
    for name in ('label', 'index'):
      np.testing.assert_array_equal(part[name], whole[name])
    expected = np.zeros_like(whole['image'])
    expected[rows] = whole['image'][rows]
    assert part['image'].dtype == np.uint8
    np.testing.assert_array_equal(part['image'], expected)
  assert len(read) == 3 * 2


def test_check_passes_with_a_cache_that_cannot_be_written(
    tmp_path, monkeypatch, capsys):
  (tmp_path / 'file').write_text('not a folder')
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / 'file'))
  path = folder(tmp_path, content())
  dataset.check(dataset.open_images(path))
  assert (f'Nothing is kept for the next run, because {tmp_path / "file"} '
          'cannot be written') in capsys.readouterr().err
  dataset.check(dataset.open_images(path))
  assert 'Nothing is kept' not in capsys.readouterr().err


def test_a_successful_check_is_not_repeated(tmp_path, cache):
  path = folder(tmp_path, content())
  dataset.check(dataset.open_images(path))
  assert len(list((cache / 'checked').iterdir())) == 1
  refuse = dataset.open_images(path)._replace(pixels=None)
  dataset.check(refuse)
  (path / '00000/img00000001.png').write_bytes(b'changed')
  with pytest.raises(ValueError, match='img00000001.png cannot be read'):
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


def test_transparent_and_gray_images_become_rgb(tmp_path):
  files = content()
  files['00000/img00000000.png'] = png(np.full((8, 8), 7, np.uint8))
  files['00000/img00000001.png'] = png(np.full((8, 8, 4), 9, np.uint8))
  found = dataset.open_images(archive(tmp_path, files))
  batch = next(dataset.batches(found, COUNT, 0))
  assert batch['image'].shape == (COUNT, 8, 8, 3)
  # Over white: 255 - 9 + 9 * 9 / 255.
  assert {7, 246} <= set(batch['image'][:, 0, 0, 2])


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
