"""GIRAFFE's scenes: what is rendered of them, and their distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import giraffe, giraffe_rendering
from gen3d.models import giraffe_scene as scene


def small(**options):
  """giraffe.Model of scenes of two objects; `options` of the rendering."""
  prior = scene.Prior(
      boxes=2, scale_min=(0.2, 0.15, 0.15), scale_max=(0.3, 0.25, 0.2),
      translation_min=(-0.4, -0.4, 0), translation_max=(0.4, 0.4, 0.1),
      v_range=(0.3, 0.5), fov=40)
  settings = giraffe_rendering.Rendering(16, 1.5, 4.0)
  settings = settings._replace(**{
      'window': giraffe_rendering.window_size(prior, settings), **options})
  decoder = {'width': 16, 'layers': 4, 'skips': (2,), 'octaves': 4}
  generator = giraffe.Generator(
      decoder, {**decoder, 'downscale': 12.0},
      {'width': 8, 'min_width': 4, 'blocks': 1}, 8, settings)
  return giraffe.Model(generator, prior, 4, 3)


@pytest.fixture(scope='module')
def start():
  """(variables, codes, layout, camera) of three scenes of `small`."""
  model = small()

  @jax.jit
  def make(key):
    keys = jax.random.split(key, 3)
    layout, camera = jax.vmap(lambda k: (
        scene.sample_layout(k, model.prior),
        scene.sample_camera(k, model.prior)))(jax.random.split(keys[0], 3))
    z = jax.random.normal(keys[1], (3, model.z_dim))
    return model.init(keys[2]), model.split(z), layout, camera

  return make(jax.random.key(2))


@functools.partial(jax.jit, static_argnames=('options', 'which'))
def rendering_of(inputs, draws=None, options=(), which='all'):
  variables, codes, layout, camera = inputs
  return small(**dict(options)).module.apply(
      variables, codes, layout, camera, 8, draws, which=which, method='render')


def draws_of(count, samples=16):
  return jax.jit(jax.vmap(lambda key: giraffe_rendering.draw(
      key, 8, 2, samples)))(jax.random.split(jax.random.key(4), count))


def test_objects_are_evaluated_only_in_their_boxes_and_in_chunks(start):
  assert 0 < small().module.rendering.window < 16
  draws = draws_of(3)
  expected = rendering_of(start, draws, (('window', 0),))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5),
               rendering_of(start, draws, (('chunk', 24),)), expected)
  assert expected.opacity.max() > 0.2


def test_a_moved_object_moves_its_pixels_only(start):
  variables, codes, layout, camera = start
  scenes = scene.Scene(codes, layout)
  offset = jnp.array([[0.0, 0.0, 0.0], [0.1, -0.2, 0.1]])
  moved = scene.place(scenes, translation=layout.translation + offset)
  without = scene.place(scenes, exists=jnp.array([True, False]))
  alone = lambda scenes: scene.place(scenes, exists=jnp.array([False, True]))
  before, after, other = (
      rendering_of((variables, *scenes, camera)).features
      for scenes in (scenes, moved, without))
  covered = [rendering_of((variables, *alone(scenes), camera),
                          which='objects').opacity > 0
             for scenes in (scenes, moved)]
  outside = ~(covered[0] | covered[1])
  assert outside.any() and (covered[0] != covered[1]).any()
  np.testing.assert_allclose(before[outside], after[outside], atol=1e-6)
  np.testing.assert_allclose(before[~covered[0]], other[~covered[0]], atol=1e-6)
  assert jnp.abs(before - after)[covered[0] | covered[1]].max() > 1e-3


def test_joined_scenes_have_all_objects(start):
  variables, codes, layout, camera = start
  scenes = scene.Scene(codes, layout)
  first, second = (scene.place(scenes, exists=jnp.array(exists))
                   for exists in ([True, False], [False, True]))
  joined = scene.join(first, second)
  assert joined.layout.scale.shape == (3, 4, 3)
  np.testing.assert_allclose(
      rendering_of((variables, *joined, camera)).features,
      rendering_of((variables, *scenes, camera)).features, atol=1e-5)


@pytest.mark.parametrize('composition', ['sum', 'max'])
def test_composition_is_that_of_the_paper(composition):
  rng = np.random.default_rng(0)
  density = np.maximum(rng.normal(size=(2, 3, 4, 5)), 0).astype(np.float32)
  density[0, :, 0, 0] = 0
  features = rng.normal(size=(2, 3, 4, 5, 6))
  total, shares = giraffe_rendering.compose(jnp.asarray(density), composition)
  composed = np.sum(shares[..., None] * features, axis=1)
  for n, p, s in np.ndindex(2, 4, 5):
    sigma, values = density[n, :, p, s], features[n, :, p, s]
    if composition == 'max':
      expected = sigma.max(), values[sigma.argmax()]
    else:
      expected = sigma.sum(), (sigma[:, None] * values).sum(0) / (
          sigma.sum() or 1e-4)
    np.testing.assert_allclose(total[n, p, s], expected[0], rtol=1e-6)
    np.testing.assert_allclose(composed[n, p, s], expected[1], atol=1e-5)


def test_sampled_layouts_have_their_prior():
  prior = scene.Prior(
      boxes=3, scale_min=(0.1, 0.1, 0.1), scale_max=(0.2, 0.3, 0.2),
      translation_min=(-1, -1, 0), translation_max=(1, 1, 0), plane=0.3,
      counts=(0.0, 0.0, 0.25, 0.75), collision_padding=0.05)
  layout = jax.jit(jax.vmap(lambda key: scene.sample_layout(key, prior)))(
      jax.random.split(jax.random.key(0), 400))
  assert scene.boxes_apart(layout.scale, layout.translation, 0.05).all()
  # One number for the three sides.
  part = (layout.scale - 0.1) / jnp.array([0.1, 0.2, 0.1])
  np.testing.assert_allclose(part, part[..., :1].repeat(3, -1), atol=1e-5)
  assert part.min() < 0.05 and part.max() > 0.95
  np.testing.assert_allclose(layout.translation[..., 2], 0.3)
  number = layout.exists.sum(1)
  assert set(np.unique(number)) == {2, 3}
  assert 0.65 < np.mean(number == 3) < 0.85
  assert (layout.exists.sum(0) > 300).all()
  places = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
  given = jax.jit(jax.vmap(lambda key: scene.sample_layout(
      key, prior._replace(locations=places))))(
          jax.random.split(jax.random.key(0), 20)).translation
  assert all(any((x == place).all() for place in places) for x in given)
