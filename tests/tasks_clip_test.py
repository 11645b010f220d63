"""The judge's training and its protocol, on the tiny configuration."""

import functools

import jax
import numpy as np
import pytest

from configs import clip as clip_config
from gen3d.data.shapes import captions
from gen3d.engine import sharding
from gen3d.metrics import text as metrics_text
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
def compiled(step, chips):
  mesh = jax.make_mesh((chips,), ('devices',), devices=jax.devices()[:chips],
                       axis_types=(jax.sharding.AxisType.Auto,))
  return sharding.pmap(step, mesh), mesh


def after_a_step(task, state, batch, chips):
  step, mesh = compiled(task.step, chips)
  state, metrics = step(
      sharding.replicate(state, mesh), sharding.to_devices(batch, mesh),
      sharding.replicate(jax.random.key(1), mesh))
  return sharding.unreplicate(state), {k: float(v) for k, v in metrics.items()}


def test_a_step_does_not_depend_on_the_spreading(task, first_state):
  batch = next(task.batches(0, 0))
  one, metrics = after_a_step(task, first_state, batch, 1)
  two, metrics_two = after_a_step(task, first_state, batch, 2)
  for name, value in metrics.items():
    np.testing.assert_allclose(metrics_two[name], value, rtol=1e-5)
  # Adam's first step is the gradient's sign: compare its first moment, too.
  for a, b in zip(jax.tree.leaves(one.opt_state),
                  jax.tree.leaves(two.opt_state)):
    np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()),
                       one.params, first_state.params)
  assert min(jax.tree.leaves(moved)) >= 0
  assert max(jax.tree.leaves(moved)) > 1e-4


def test_true_captions_are_no_counterexamples(task, first_state):
  batch = next(task.batches(0, 0))
  _, metrics = after_a_step(task, first_state, batch, 2)
  assert metrics['loss/contrastive'] > 0.5
  vague = {**batch, 'said': np.full_like(batch['said'], -1)}
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
  # Nothing false is said, and of white pictures no color is a fact.
  assert clip_task.fits(second['said'], second['facts']).all()


def test_what_a_caption_states():
  said = clip_task.stated('a photo of a red car with blue wheels, side view')
  names = [captions.CATEGORIES, list(captions.COLORS),
           list(captions.COLORS), captions.VIEWS]
  assert [n[i] for n, i in zip(names, said)] == ['car', 'red', 'blue', 'side']
  truth = said.copy()
  for text, expected in (
      ('a car', True), ('an automobile, side view', True),
      ('a car with blue wheels', True), ('a blue car', False),
      ('a red truck', False), ('a red car, front view', False)):
    assert clip_task.fits(clip_task.stated(text), truth) == expected, text


class Knowing:
  """A judge who sees in a picture its facts, as far as `sees` goes."""

  def __init__(self, facts, sees):
    self.facts, self.sees = facts, np.array(sees)

  def image_features(self, images):
    return self._unit(self.facts[images[:, 0, 0, 0].astype(int)])

  def text_features(self, texts):
    return self._unit(np.stack([clip_task.stated(t) for t in texts]))

  def _unit(self, facts):
    features = np.concatenate([
        np.eye(27)[f] * weight for f, weight in zip(facts.T, self.sees)], 1)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_r_precision_tells_a_knowing_judge_from_others():
  rng = np.random.default_rng(0)
  specs = [captions.sample_spec(rng, 'seen') for _ in range(150)]
  own = [captions.plain(s) + ', back view' for s in specs]
  facts = np.stack([clip_task.stated(t) for t in own])
  images = np.tile(np.arange(150)[:, None, None, None], (1, 2, 2, 3))
  rates = [clip_task.r_precision(Knowing(facts, sees), images, own)
           for sees in ((1, 1, 1, 1), (1, 0, 0, 0), (0, 0, 0, 1))]
  assert rates[0]['64'].rate == 1
  assert rates[0]['all'].rate == 1
  # Among 64 captions of 26 categories there is nearly always one's own.
  assert 0.02 < rates[1]['64'].rate < 0.2
  assert rates[2]['64'].rate == 0
  # Of white pictures no color is asked.
  no_colors = Knowing(facts, (1, 0, 0, 1))
  white = clip_task.r_precision(no_colors, images, own, textureless=True)
  assert white['64'].rate == white['all'].rate == 1
  assert rates[0]['64'].n == 150


def test_a_caption_of_no_known_object_is_an_error():
  judge = Knowing(np.zeros((1, 4), int), (1, 1, 1, 1))
  with pytest.raises(captions.Unknown, match='a red zeppelin'):
    clip_task.r_precision(judge, np.zeros((1, 2, 2, 3)), ['a red zeppelin'])


def test_the_written_asset_judges_like_the_state(task, first_state, tmp_path,
                                                 config):
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


def test_augmented_pictures_are_pictures_and_differ(task):
  batch = next(task.batches(0, 0))
  draw = jax.jit(jax.vmap(
      functools.partial(clip_task.augmented, resolution=12),
      (0, None, None)))
  view = jax.tree.map(lambda x: x[0], batch['views'])
  images = np.asarray(draw(jax.random.split(jax.random.key(0), 6), view, 0.0))
  assert images.shape == (6, 12, 12, 3)
  assert images.min() >= 0
  assert images.max() <= 1
  assert np.ptp(images, axis=0).mean() > 0.1
  rate = metrics_text.rate(images.std((1, 2, 3)) > 0.02)
  assert rate.rate == 1
