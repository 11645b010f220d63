"""Training of the CLIP pair, on the tiny variant."""

import functools

import jax
import numpy as np
import pytest

from configs import clip as clip_config
from gen3d import assets
from gen3d.choices import UserError
from gen3d.engine import sharding
from gen3d.metrics import text as text_metrics
from gen3d.models import clip_pair
from gen3d.tasks import clip as clip_task


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('GEN3D_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield clip_config.get_config('tiny')


@pytest.fixture(scope='module')
def task(config):
  return clip_task.make(config)


@pytest.fixture(scope='module')
def first_state(task):
  return jax.jit(task.init)(jax.random.key(0))


@functools.cache
def compiled(step, count):
  mesh = jax.make_mesh((count,), ('devices',), devices=jax.devices()[:count],
                       axis_types=(jax.sharding.AxisType.Auto,))
  return sharding.pmap(step, mesh), mesh


def after_a_step(task, state, batch, count):
  step, mesh = compiled(task.step, count)
  state, metrics = step(
      sharding.replicate(state, mesh), sharding.to_devices(batch, mesh),
      sharding.replicate(jax.random.key(1), mesh))
  return sharding.unreplicate(state), {k: float(v) for k, v in metrics.items()}


def test_weights_to_start_from_are_those_of_the_config(config, first_state,
                                                       tmp_path):
  config = config.copy_and_resolve_references()
  path, _ = assets.save(tmp_path / 'w.safetensors', first_state.params,
                        {'config': config.to_dict()})
  config.start_from = str(path)
  state = clip_task.make(config).init(jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, state.params, first_state.params)
  config.start_from = str(assets.CLIP)
  with pytest.raises(UserError, match='clip_shapes.* is of another model'):
    clip_task.make(config).init(jax.random.key(1))
  config.start_from = str(assets.TEXT_TO_IMAGE)
  with pytest.raises(UserError, match="of the task 'text_to_image'"):
    clip_task.make(config)


def test_step_does_not_depend_on_the_number_of_devices(task, first_state):
  batch = next(task.batches(0, 0))
  alone, metrics = after_a_step(task, first_state, batch, 1)
  two, metrics_two = after_a_step(task, first_state, batch, 2)
  for name, value in metrics.items():
    np.testing.assert_allclose(metrics_two[name], value, rtol=1e-5)
  # Adam's first step is the gradient's sign: compare its first moment, too.
  for a, b in zip(jax.tree.leaves(alone.opt_state),
                  jax.tree.leaves(two.opt_state)):
    np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()),
                       alone.params, first_state.params)
  assert min(jax.tree.leaves(moved)) >= 0
  assert max(jax.tree.leaves(moved)) > 1e-4


def test_captions_consistent_with_an_image_are_not_negatives(
    task, first_state):
  batch = next(task.batches(0, 0))
  _, metrics = after_a_step(task, first_state, batch, 2)
  assert metrics['loss/contrastive'] > 0.5
  # Captions that state nothing are consistent with every image.
  vague = {**batch, 'stated': np.full_like(batch['stated'], -1)}
  _, metrics = after_a_step(task, first_state, vague, 2)
  assert metrics['loss/contrastive'] == pytest.approx(0, abs=1e-6)


def test_batches_are_functions_of_seed_and_step(task):
  batches = task.batches(3, 0)
  next(batches)
  second = next(batches)
  for a, b in zip(jax.tree.leaves(second),
                  jax.tree.leaves(next(task.batches(3, 1)))):
    np.testing.assert_array_equal(a, b)
  other = next(task.batches(4, 1))
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(second),
                                            jax.tree.leaves(other)))


def test_captions_are_consistent_with_their_images(task):
  batch = next(task.batches(3, 1))
  assert text_metrics.consistent(batch['stated'], batch['attributes']).all()
  # Textureless images have no colors, all others have both.
  colors = batch['attributes'][:, 1:3]
  assert (colors[batch['textureless'] == 1] == -1).all()
  assert (colors[batch['textureless'] == 0] >= 0).all()


def test_released_weights_encode_like_the_state(
    task, first_state, tmp_path, config):
  paths = task.finish(first_state, tmp_path)
  assert [p.name for p in paths] == ['clip_shapes.safetensors',
                                     'clip_shapes.json']
  images = np.random.default_rng(0).random((3, 32, 32, 3))
  texts = ['a red chair', 'a blue duck, front view']
  written = clip_pair.load(paths[0])
  direct = clip_pair.make(first_state.ema, clip_pair.pair_config(config))
  np.testing.assert_allclose(written.image_features(images),
                             direct.image_features(images), atol=5e-3)
  np.testing.assert_allclose(written.text_features(texts),
                             direct.text_features(texts), atol=5e-3)
  paths[0].write_bytes(paths[0].read_bytes()[:-1])
  with pytest.raises(ValueError, match='SHA-256'):
    clip_pair.load(paths[0])


def test_costs_are_the_image_size_and_the_batch(task):
  assert task.costs().sizes == {'image': 16, 'batch': 8}


def test_training_images_are_in_range_and_differ_by_key(task):
  batch = next(task.batches(0, 0))
  draw = jax.jit(jax.vmap(
      functools.partial(clip_task.training_image, resolution=12),
      (0, None, None)))
  view = jax.tree.map(lambda x: x[0], batch['views'])
  images = np.asarray(draw(jax.random.split(jax.random.key(0), 6), view, 0.0))
  assert images.shape == (6, 12, 12, 3)
  assert images.min() >= 0
  assert images.max() <= 1
  assert np.ptp(images, axis=0).mean() > 0.1
  rate = text_metrics.rate(images.std((1, 2, 3)) > 0.02)
  assert rate.rate == 1


def test_perturbed_images_move_along_the_slope_within_the_radius():
  image, slope = np.full((4, 4, 3), 0.5), np.random.default_rng(0).normal(
      size=(4, 4, 3))
  change = np.stack([
      np.asarray(clip_task.perturb(jax.random.key(i), image, slope, 0.6))
      for i in range(8)]) - image
  length = np.sqrt(np.sum(change**2, axis=(1, 2, 3)))
  assert 0 < length.min() < 0.2 < 0.4 < length.max() <= 0.6
  np.testing.assert_allclose(
      change / length[:, None, None, None],
      np.broadcast_to(slope / np.linalg.norm(slope), change.shape), atol=1e-4)
  # At a slope of zero and at the ends of the range.
  zero = clip_task.perturb(jax.random.key(0), image, 0 * slope, 0.6)
  np.testing.assert_array_equal(zero, image)
  white = clip_task.perturb(jax.random.key(0), image + 0.5, slope, 0.6)
  assert white.max() == 1


def test_an_adversary_raises_the_loss(config, task, first_state):
  config = config.copy_and_resolve_references()
  config.adversary = 4.0
  hard = clip_task.make(config)
  batch = next(task.batches(0, 0))
  _, before = after_a_step(task, first_state, batch, 1)
  _, after = after_a_step(hard, first_state, batch, 1)
  assert after['loss/contrastive'] > before['loss/contrastive'] + 0.01
