"""Objects of a tiny generator, and of a ball, recovered from an image."""

import functools

import blob_generator
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_eg3d
from jax.experimental.compilation_cache import compilation_cache

from gen3d.gan import inference, projector

CAMERA = tiny_eg3d.CAMERA
PIXEL_LOSS = tiny_eg3d.PIXEL_LOSS


@pytest.fixture(scope='module')
def trained():
  return tiny_eg3d.with_noise(tiny_eg3d.trained())


@pytest.fixture(scope='module')
def target(trained):
  ws = inference.map_seed(trained, 5)
  camera = inference.camera_at(CAMERA, 30.0)
  render = jax.jit(functools.partial(projector.render_image, trained))
  return projector.Target(render(trained.variables, ws, camera), camera)


def test_the_differentiable_image_is_the_rendered_image(trained, target):
  rendered = inference.make_renderer(trained, ('image',))(
      inference.map_seed(trained, 5),
      jax.tree.map(lambda x: x[None], target.camera))
  expected = 255 * np.clip(np.asarray(target.image) / 2 + 0.5, 0, 1)
  np.testing.assert_allclose(rendered[0], expected, atol=0.51)


def test_an_object_of_the_generator_is_projected_and_then_tuned(
    trained, target):
  ws, variables, losses = projector.project(
      trained, target, PIXEL_LOSS, steps=150, seed=1)
  assert ws.shape == (4, 8)
  np.testing.assert_array_equal(ws, ws[:1].repeat(4, 0))
  assert losses[-1] < losses[0] / 10
  after = projector.render_image(trained, variables, ws, target.camera)
  mean, _ = projector.w_statistics(trained)
  before = float(np.mean((projector.render_image(
      trained, trained.variables, jnp.tile(mean, (4, 1)), target.camera)
                          - target.image) ** 2))
  assert np.mean((after - target.image) ** 2) < before / 10
  noise = trained.generator.noise_buffers(variables)
  assert noise
  for x in noise.values():
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-4)

  projected = trained._replace(variables=variables)
  tuned, losses = projector.pivotal_tuning(
      projected, target, PIXEL_LOSS, ws, steps=60)
  assert losses[-1] < losses[0] / 3
  np.testing.assert_allclose(
      losses[0], projector.image_loss(
          PIXEL_LOSS, (), after, target.image,
          projector.embed_target(PIXEL_LOSS, target)), rtol=1e-3)
  # Weights without influence on the image at the pivot stay.
  mapping = lambda v: v['params']['backbone']['mapping']
  jax.tree.map(np.testing.assert_array_equal, mapping(tuned),
               mapping(variables))
  jax.tree.map(np.testing.assert_array_equal, tuned['buffers'],
               variables['buffers'])


@pytest.mark.parametrize('w_plus', [False, True])
def test_a_ball_is_projected_and_then_tuned(w_plus):
  """Without Flax, noise buffers or other collections than 'params'."""
  ball = blob_generator.trained()
  camera = inference.camera_at(ball.camera, 40.0)
  ws = inference.map_seed(ball, 1)
  image = projector.render_image(ball, ball.variables, ws, camera)
  target = projector.Target(image, camera)
  ws_fit, variables, losses = projector.project(
      ball, target, PIXEL_LOSS, steps=200, w_plus=w_plus)
  assert losses[-1] < losses[0] / 20
  assert variables.keys() == {'params'}
  position = lambda ws: ball.generator.synthesize(
      ball.variables, ws[None], 'const', None)
  # One view: the depth is determined by the size and perspective only.
  np.testing.assert_allclose(position(ws_fit)[1], position(ws)[1], rtol=0.1)

  other = projector.Target(jnp.clip(image + 0.1, -1, 1), camera)
  tuned, losses = projector.pivotal_tuning(
      ball._replace(variables=variables), other, PIXEL_LOSS, ws_fit, steps=40)
  assert losses[-1] < losses[0]
  assert not np.array_equal(tuned['params']['center'],
                            ball.variables['params']['center'])


@pytest.fixture
def compiled(tmp_path):
  """() -> the names of the programs compiled since, from an empty cache."""
  usual = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'programs'))
  compilation_cache.reset_cache()
  yield lambda: {p.name for p in (tmp_path / 'programs').glob('*-cache')}
  jax.config.update('jax_compilation_cache_dir', usual)
  compilation_cache.reset_cache()


def test_other_targets_are_inverted_by_the_same_programs(
    trained, target, compiled):
  def invert(target, steps):
    ws, variables, _ = projector.project(
        trained, target, PIXEL_LOSS, steps=steps)
    projected = trained._replace(variables=variables)
    projector.pivotal_tuning(projected, target, PIXEL_LOSS, ws, steps=steps)
    return compiled()

  other = projector.Target(-target.image, inference.camera_at(CAMERA, 70.0))
  first = invert(target, 1)
  assert sum(name.startswith('jit_step') for name in first) == 2
  assert invert(other, 2) - first == set()


def test_the_learning_rate_rises_and_falls():
  t = jnp.array([0, .025, .05, .5, .75, .875, 1])
  np.testing.assert_allclose(
      projector.lr_schedule(t), [0, .5, 1, 1, 1, .5, 0], atol=1e-6)


def test_noise_regularization_against_loops():
  rng = np.random.default_rng(0)
  noise, total = rng.normal(size=(16, 16)), 0.0
  levels = [noise, np.array([[noise[2 * i:2 * i + 2, 2 * j:2 * j + 2].mean()
                              for j in range(8)] for i in range(8)])]
  for x in levels:
    n = len(x)
    total += np.mean([[x[i, j] * x[i - 1, j] for j in range(n)]
                      for i in range(n)]) ** 2
    total += np.mean([[x[i, j] * x[i, j - 1] for j in range(n)]
                      for i in range(n)]) ** 2
  np.testing.assert_allclose(
      projector.noise_regularization(jnp.array(noise)), total, rtol=1e-4)


def test_w_has_its_mean_and_deviation(trained):
  mean, deviation = projector.w_statistics(trained, count=50, seed=3)
  z = jax.random.normal(
      jax.random.key(3), (50, trained.generator.z_dim))
  w = np.stack([inference.map_latent(trained, row)[0] for row in z])
  np.testing.assert_allclose(mean, w.mean(0), atol=1e-5)
  np.testing.assert_allclose(
      deviation, np.sqrt(np.sum((w - w.mean(0)) ** 2) / 50), rtol=1e-4)
