"""The captured scene: looks, bounds, backgrounds, chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nerf, triplanes
from gen3d.ops import cameras
from gen3d.scenes import View, radiance

FRAME = radiance.Frame(np.eye(4), np.array([1.0, 5.0]), cameras.Camera(
    np.zeros((2, 4, 4)), np.zeros((2, 3, 3))))


def _scene(module=nerf, **changes):
  config = module.get_config('tiny').scene
  config.update_from_flattened_dict(changes)
  scene = radiance.make(config, FRAME)
  scene = scene._replace(
      render=jax.jit(scene.render),
      show=jax.jit(scene.show, static_argnames=('size', 'modes')))
  return scene, jax.jit(scene.init)(jax.random.key(0))


def _view(background=(1.0, 1.0, 1.0), learned=1.0, size=6):
  camera = cameras.orbit(30.0, 20.0, 3.0, 1.3)
  return View(camera, cameras.rays(camera, size, size), None,
              jnp.asarray(background), jnp.float32(learned))


def _keys(shape, seed=0):
  return jax.random.split(jax.random.key(seed), shape)


def test_chunks_do_not_show():
  view = _view()
  for keys in (None, _keys((6, 6))):
    whole, chunked = (scene.render(params, keys, view) for scene, params in (
        _scene(chunk=36), _scene(chunk=7)))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked)):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5)


def test_a_rays_chance_is_its_keys():
  scene, params = _scene()
  view = _view()
  keys = _keys((6, 6))
  first = scene.render(params, keys, view).image
  other = scene.render(params, keys.at[2, 3].set(jax.random.key(9)), view).image
  changed = np.abs(np.asarray(first - other)).max(-1) > 0
  assert changed[2, 3] and changed.sum() == 1


def test_which_looks_are_judged_and_which_network_answers():
  view = _view()
  scene, params = _scene()
  seen = scene.render(params, None, view)
  assert {'coarse', 'fine'} <= set(params) and len(seen.aux['colors']) == 2
  np.testing.assert_array_equal(seen.aux['colors'][1], seen.image)
  one, shared = _scene(**{'coarse.separate': False, 'coarse.loss': 0.0})
  assert 'coarse' not in shared
  assert len(one.render(shared, None, view).aux['colors']) == 1

  def pull(params):
    return jnp.sum(scene.render(params, None, view).image)

  gradient = jax.grad(pull)(params)
  size = lambda tree: max(np.abs(x).max() for x in jax.tree.leaves(tree))
  # The first look says where, which is not to be learned from; the frame
  # never is.
  assert size(gradient['fine']) > 0
  assert size(gradient['coarse']) == size(gradient['frame']) == 0


def test_the_fine_look_goes_where_the_coarse_one_saw_something():
  config = nerf.get_config('tiny').scene.fine
  edges = jnp.linspace(0.0, 8.0, 9)
  weights = jnp.zeros(8).at[3].set(1.0)
  config.merge, config.samples, config.padding = False, 16, 0.0
  found = radiance._resample(None, edges, weights, config)
  assert found.shape == (17,)
  assert found.min() >= 3.0 and found.max() <= 4.0
  config.merge = True
  merged = radiance._resample(None, edges, weights, config)
  assert merged.shape == (9 + 16,) and np.all(np.diff(merged) >= 0)
  assert set(np.asarray(edges)) <= set(np.asarray(merged))
  config.merge, config.padding = False, 0.01
  widened = np.asarray(radiance._resample(None, edges, weights, config))
  assert widened.min() < 3 and widened.max() > 4


def test_bounds_and_spacing():
  rays = _view().rays
  config = nerf.get_config('tiny').scene
  config.coarse.samples, config.extent = 4, 'range'
  bounds = jnp.array([1.0, 5.0])
  ranged = radiance._stratified(rays, None, bounds, config)
  np.testing.assert_allclose(ranged[0, 0], [1, 2, 3, 4, 5], rtol=1e-6)
  config.spacing = 'disparity'
  farther = radiance._stratified(rays, None, bounds, config)
  np.testing.assert_allclose(
      1 / np.asarray(farther[0, 0]), np.linspace(1, 0.2, 5), rtol=1e-5)
  config.extent, config.spacing = 'box', 'distance'
  boxed = radiance._stratified(rays, None, bounds, config)
  middle = rays.origins[3, 3] + boxed[3, 3][:, None] * rays.directions[3, 3]
  np.testing.assert_allclose(np.abs(middle).max(-1)[[0, -1]], 1, atol=1e-5)
  assert np.all(np.abs(middle[1:-1]).max(-1) < 1)


def test_contracted_space_has_no_end():
  smooth = {'field.encode.degree': 1, 'field.activation': 'softplus'}
  scene, params = _scene(contract=True, spacing='disparity', **smooth)
  points = jnp.array([[0.3, 0.2, 0.1], [30.0, 20.0, 10.0], [3e4, 2e4, 1e4]])
  density, _ = scene.query(params, points)
  plain, _ = _scene(**smooth)[0].query(params, points[:1])
  np.testing.assert_allclose(density[0], plain[0], rtol=1e-5)
  # Close to the same place on the sphere of radius 2.
  np.testing.assert_allclose(density[1], density[2], rtol=0.05)


def test_a_grid_spans_all_of_contracted_space():
  scene, params = _scene(triplanes, contract=True, spacing='disparity')
  far = jnp.array([[3.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
  planes = lambda at: jax.grad(lambda p: scene.query(p, at)[0].sum())(
      params)['fine']['params']['encode']['planes']
  first, second = (np.abs(planes(far[i:i + 1])).sum(-1) for i in (0, 1))
  # |x| = 3 and 9 land at 1.67 and 1.89 of 2: in different texels of 8.
  assert np.any((first > 0) != (second > 0))


def test_backgrounds():
  empty = {'field.activation': 'relu'}
  scene, params = _scene(**empty)
  params = jax.tree.map(jnp.zeros_like, params) | {'frame': params['frame']}
  seen = scene.render(params, None, _view((0.2, 0.4, 0.6)))
  np.testing.assert_allclose(
      seen.image, np.broadcast_to([0.2, 0.4, 0.6], (6, 6, 3)), atol=1e-6)
  np.testing.assert_allclose(seen.opacity, 0, atol=1e-6)
  scene, params = _scene(background='learned', **empty)
  blank = {**params, 'fine': jax.tree.map(jnp.zeros_like, params['fine'])}
  sky = scene.render(blank, None, _view((0.2, 0.4, 0.6), learned=1.0)).image
  assert np.ptp(np.asarray(sky), axis=(0, 1)).max() > 1e-4
  np.testing.assert_allclose(
      scene.render(blank, None, _view((0.2, 0.4, 0.6), learned=0.0)).image,
      np.broadcast_to([0.2, 0.4, 0.6], (6, 6, 3)), atol=1e-6)
  key = jax.random.key(0)
  config = nerf.get_config('tiny').scene
  np.testing.assert_array_equal(radiance.backdrop(config, key), 1)
  config.background = 'black'
  np.testing.assert_array_equal(radiance.backdrop(config, key), 0)
  config.background = 'random'
  assert np.ptp(radiance.backdrop(config, key, (5,))) > 0.1


def test_grids_are_kept_smooth_by_a_penalty():
  scene, params = _scene(triplanes, total_variation=2.0)
  value = scene.penalties(params, None, 0)['total_variation']
  planes = np.asarray(params['fine']['params']['encode']['planes'])
  np.testing.assert_allclose(value, np.mean(
      [np.mean(np.diff(planes, axis=a)**2) for a in (1, 2)]) * 2, rtol=1e-5)
  assert _scene(triplanes, total_variation=0.0)[0].penalties(
      params, None, 0) == {}


def test_what_is_shown():
  scene, params = _scene(triplanes)
  camera = cameras.orbit(0.0, 0.0, 3.0, 1.3)
  shown = scene.show(params, camera, (4, 6), radiance.MODES)
  assert set(shown) == set(radiance.MODES)
  for image in shown.values():
    assert image.shape == (4, 6, 3) and np.all(np.isfinite(image))
  square = scene.show(params, camera, 5, ('color',), jnp.zeros(3))
  assert square['color'].shape == (5, 5, 3)


@pytest.mark.parametrize('change, words', [
    ({'extent': 'ball'}, "'ball'.*'box'"),
    ({'background': 'wite'}, "'wite'.*'white'"),
    ({'spacing': 'log'}, "'log'.*'disparity'"),
    ({'field.activation': 'tanh'}, "'tanh'.*'softplus'"),
    ({'field.encode.name': 'hash'}, "'hash'.*'planes'")])
def test_unknown_names_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    _scene(**change)
  scene, params = _scene()
  with pytest.raises(ValueError, match="'albedo'.*'normal'"):
    scene.show(params, _view().camera, 4, ('albedo',))
