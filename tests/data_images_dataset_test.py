"""EG3D's image format: what is read, and in what order."""

import itertools
import os
import threading
import zipfile
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from picture_sets import COUNT, archive, camera_labels, content, folder, png

from gen3d.data import maps
from gen3d.data.images import camera_labels as label_format
from gen3d.data.images import dataset
from gen3d.data.shapes import primitives
from gen3d.data.shapes import render as shapes_render
from gen3d.ops import cameras


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


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


def test_transparent_and_gray_images_become_rgb(tmp_path):
  files = content()
  files['00000/img00000000.png'] = png(np.full((8, 8), 7, np.uint8))
  files['00000/img00000001.png'] = png(np.full((8, 8, 4), 9, np.uint8))
  found = dataset.open_images(archive(tmp_path, files))
  batch = next(dataset.batches(found, COUNT, 0))
  assert batch['image'].shape == (COUNT, 8, 8, 3)
  # Over white: 255 - 9 + 9 * 9 / 255.
  assert {7, 246} <= set(batch['image'][:, 0, 0, 2])
