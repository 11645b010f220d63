"""The captured scene: passes, bounds, backgrounds, chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nerf, triplanes
from gen3d.ops import cameras
from gen3d.scenes import View, radiance

FRAME = radiance.Frame(np.eye(4), np.array([1.0, 5.0]), cameras.Camera(
    np.zeros((2, 4, 4)), np.zeros((2, 3, 3))))


def _config(module=nerf, **changes):
  config = module.get_config('tiny').scene
  config.update_from_flattened_dict(changes)
  return config


def _scene(module=nerf, **changes):
  scene = radiance.make(_config(module, **changes), FRAME)
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


def test_chunks_do_not_change_the_image():
  view = _view()
  for keys in (None, _keys((6, 6))):
    whole, chunked = (scene.render(params, keys, view) for scene, params in (
        _scene(chunk=36), _scene(chunk=7)))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked)):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5)


def test_jitter_of_a_ray_depends_on_its_key_only():
  scene, params = _scene()
  view = _view()
  keys = _keys((6, 6))
  first = scene.render(params, keys, view).image
  other = scene.render(params, keys.at[2, 3].set(jax.random.key(9)), view).image
  changed = np.abs(np.asarray(first - other)).max(-1) > 0
  assert changed[2, 3] and changed.sum() == 1


def test_one_key_gives_every_ray_a_key_of_its_own():
  scene, params = _scene()
  key = jax.random.key(5)
  one, many = (scene.render(params, keys, _view()).image
               for keys in (key, jax.random.split(key, (6, 6))))
  np.testing.assert_array_equal(one, many)


def test_passes_with_a_loss_and_networks_of_the_passes():
  view = _view()
  scene, params = _scene()
  rendered = scene.render(params, None, view)
  assert {'coarse', 'fine'} <= set(params) and len(rendered.passes) == 1
  assert rendered.passes[0].shape == rendered.image.shape
  assert np.abs(rendered.passes[0] - rendered.image).max() > 0
  one, shared = _scene(**{'coarse.separate': False, 'coarse.loss_weight': 0.0})
  assert 'coarse' not in shared
  assert one.render(shared, None, view).passes == ()

  def pull(params):
    return jnp.sum(scene.render(params, None, view).image)

  gradient = jax.grad(pull)(params)
  size = lambda tree: max(np.abs(x).max() for x in jax.tree.leaves(tree))
  # No gradient flows through importance sampling; the frame has none at all.
  assert size(gradient['fine']) > 0
  assert size(gradient['coarse']) == size(gradient['frame']) == 0


def _sampling(**changes):
  return radiance.Sampling(**{
      'extent': 'range', 'spacing': 'distance', 'coarse_samples': 8,
      'fine_samples': 16, 'include_coarse': False, 'resample_padding': 0.0,
      **changes})


def test_fine_edges_are_where_the_coarse_weights_are():
  edges = jnp.linspace(0.0, 8.0, 9)
  weights = jnp.zeros(8).at[3].set(1.0)
  fine = lambda **changes: np.asarray(radiance.fine_edges(
      None, edges, weights, config=_sampling(**changes)))
  drawn = fine()
  assert drawn.shape == (17,)
  assert drawn.min() >= 3.0 and drawn.max() <= 4.0
  union = fine(include_coarse=True)
  assert union.shape == (9 + 16,) and np.all(np.diff(union) >= 0)
  assert set(np.asarray(edges)) <= set(union)
  blurred = fine(resample_padding=0.01)
  assert blurred.min() < 3 and blurred.max() > 4


def test_bounds_and_spacing():
  rays = _view().rays
  coarse = lambda **changes: radiance.coarse_edges(
      rays, None, jnp.array([1.0, 5.0]), _sampling(
          coarse_samples=4, **changes))
  np.testing.assert_allclose(coarse()[0, 0], [1, 2, 3, 4, 5], rtol=1e-6)
  disparity = coarse(spacing='disparity')
  np.testing.assert_allclose(
      1 / np.asarray(disparity[0, 0]), np.linspace(1, 0.2, 5), rtol=1e-5)
  boxed = coarse(extent='box')
  middle = rays.origins[3, 3] + boxed[3, 3][:, None] * rays.directions[3, 3]
  np.testing.assert_allclose(np.abs(middle).max(-1)[[0, -1]], 1, atol=1e-5)
  assert np.all(np.abs(middle[1:-1]).max(-1) < 1)


def test_contracted_space_is_unbounded():
  smooth = {'field.encode.degree': 1, 'field.activation': 'softplus'}
  changes = {'contract': True, 'spacing': 'disparity', **smooth}
  _, params = _scene(**changes)
  points = jnp.array([[0.3, 0.2, 0.1], [30.0, 20.0, 10.0], [3e4, 2e4, 1e4]])
  density, _ = radiance.make_query(_config(**changes))(params, points)
  plain, _ = radiance.make_query(_config(**smooth))(params, points[:1])
  np.testing.assert_allclose(density[0], plain[0], rtol=1e-5)
  # Close to the same place on the sphere of radius 2.
  np.testing.assert_allclose(density[1], density[2], rtol=0.05)


def test_a_grid_spans_all_of_contracted_space():
  changes = {'contract': True, 'spacing': 'disparity'}
  _, params = _scene(triplanes, **changes)
  query = radiance.make_query(_config(triplanes, **changes))
  far = jnp.array([[3.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
  planes = lambda at: jax.grad(lambda p: query(p, at)[0].sum())(
      params)['fine']['params']['encode']['planes']
  first, second = (np.abs(planes(far[i:i + 1])).sum(-1) for i in (0, 1))
  # |x| = 3 and 9 land at 1.67 and 1.89 of 2: in different texels of 8.
  assert np.any((first > 0) != (second > 0))


def test_backgrounds():
  empty = {'field.activation': 'relu'}
  scene, params = _scene(**empty)
  params = jax.tree.map(jnp.zeros_like, params) | {'frame': params['frame']}
  rendered = scene.render(params, None, _view((0.2, 0.4, 0.6)))
  np.testing.assert_allclose(
      rendered.image, np.broadcast_to([0.2, 0.4, 0.6], (6, 6, 3)), atol=1e-6)
  np.testing.assert_allclose(rendered.opacity, 0, atol=1e-6)
  scene, params = _scene(background='learned', **empty)
  blank = {**params, 'fine': jax.tree.map(jnp.zeros_like, params['fine'])}
  sky = scene.render(blank, None, _view((0.2, 0.4, 0.6), learned=1.0)).image
  assert np.ptp(np.asarray(sky), axis=(0, 1)).max() > 1e-4
  np.testing.assert_allclose(
      scene.render(blank, None, _view((0.2, 0.4, 0.6), learned=0.0)).image,
      np.broadcast_to([0.2, 0.4, 0.6], (6, 6, 3)), atol=1e-6)
  key = jax.random.key(0)
  color = radiance.background_color
  np.testing.assert_array_equal(color('white', key), 1)
  np.testing.assert_array_equal(color('black', key), 0)
  assert np.ptp(color('random', key, (5,))) > 0.1


def test_total_variation_penalty_of_grids():
  scene, params = _scene(triplanes, total_variation=2.0)
  value = scene.penalties(params, None, 0)['total_variation']
  planes = np.asarray(params['fine']['params']['encode']['planes'])
  np.testing.assert_allclose(value, np.mean(
      [np.mean(np.diff(planes, axis=a)**2) for a in (1, 2)]) * 2, rtol=1e-5)
  assert _scene(triplanes, total_variation=0.0)[0].penalties(
      params, None, 0) == {}


def test_views_are_from_cameras_of_the_path():
  path = cameras.orbit(np.linspace(0.0, 315.0, 8), 10.0, 3.0, 1.3)
  scene = radiance.make(_config(background='random'), FRAME._replace(
      path=path), view_size=5)
  draw = jax.jit(jax.vmap(lambda key: scene.sample_view(key, 0, (0.25, 0.5))))
  views = draw(jax.random.split(jax.random.key(0), 100))
  assert views.rays.origins.shape == (100, 5, 5, 3)
  azimuth, _, _ = cameras.angles(views.camera.c2w[:, :3, 3])
  assert set(np.round(np.asarray(azimuth))) == {90, 135}
  assert np.ptp(views.background) > 0.1


def test_mesh_is_the_surface_of_a_field_that_is_solid_in_parts():
  config = _config(triplanes)
  scene = radiance.make(config, FRAME)
  params = jax.jit(scene.init)(jax.random.key(0))
  encode = params['fine']['params']['encode']
  inside = np.zeros_like(encode['planes'])
  inside[:, 2:6, 2:6] = 10.0
  for name in ('layer_0', 'layer_1', 'density'):
    layer = params['fine']['params'][name]
    layer['kernel'] = jnp.abs(layer['kernel'])
    layer['bias'] = jnp.full_like(
        layer['bias'], -30.0 if name == 'density' else 0.0)
  encode['planes'] = jnp.asarray(inside)
  surface = scene.mesh(params, 16, 1.0)
  # Closed beyond the cube, within one cell of it.
  assert len(surface.faces) > 10 and np.abs(surface.vertices).max() < 1 + 2 / 15
  density, _ = radiance.make_query(config)(params, jnp.asarray(
      [[0.0, 0.0, 0.0], [0.9, 0.9, 0.9]]))
  assert density[0] > 100 * density[1]


def test_previews_have_all_modes():
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
