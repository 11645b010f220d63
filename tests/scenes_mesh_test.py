"""Mesh scenes: rendering, gradients, penalties, views, the exported mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import clip_mesh as clip_mesh_configs
from configs import refine as refine_configs
from gen3d.choices import UserError
from gen3d.ops import cameras, mesh, shading, surfaces
from gen3d.scenes import View, views
from gen3d.scenes import mesh as mesh_scene

RED, BLUE = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0])


def _config(**changes):
  config = refine_configs.tiny().scene
  config.subdivisions, config.size = 2, 32
  config.update(changes)
  return config


def _params(scene, seed=0):
  """Parameters with what does not change, as the task passes them."""
  return {**jax.jit(scene.init)(jax.random.key(seed)), **scene.running.init}


def _view(light=(1.0, 0.0, 0.0), background=BLUE, size=32, learned=0.0):
  camera = cameras.orbit(30.0, 20.0, 1.8, 1.3)
  ambient, diffuse, textureless = light
  return View(camera, cameras.rays(camera, size, size),
              shading.Light(jnp.array([1.0, 1.0, 1.0]), ambient, diffuse,
                            textureless), background, learned)


def test_a_sphere_has_the_depth_normals_and_area_of_a_sphere():
  scene = mesh_scene.make(_config(radius=0.5, subdivisions=3, size=48))
  params, view = _params(scene), _view(size=48)
  params['texture'] = jnp.broadcast_to(RED, params['texture'].shape)
  render = jax.jit(scene.render)(params, None, view)
  # The silhouette is a cone of sine 0.5 / 1.8.
  radius = 48 * 1.3 * np.tan(np.arcsin(0.5 / 1.8))
  np.testing.assert_allclose(
      jnp.sum(render.opacity), np.pi * radius**2, rtol=0.01)
  seen = np.asarray(render.depth) > 0
  points = view.rays.origins + render.depth[..., None] * view.rays.directions
  np.testing.assert_allclose(
      np.linalg.norm(points[seen], axis=-1), 0.5, atol=0.01)
  assert np.sum(cameras.normalize(points) * render.normals, -1)[seen].min() > (
      0.98)
  np.testing.assert_allclose(render.image[24, 24], RED, atol=1e-5)
  np.testing.assert_allclose(render.image[0, 0], BLUE, atol=1e-5)
  np.testing.assert_allclose(
      render.image, render.albedo + (1 - render.opacity[..., None]) * BLUE,
      atol=1e-5)


def test_the_gradient_of_the_opacity_moves_silhouettes():
  scene = mesh_scene.make(_config())
  params, view = _params(scene), _view()

  def opacity(scale):
    offsets = (scale - 1) * params['surface'].start
    return jnp.sum(scene.render(
        {**params, 'offsets': offsets}, None, view).opacity)

  slope = jax.jit(jax.grad(opacity))(1.0)
  opacity = jax.jit(opacity)
  expected = (opacity(1.02) - opacity(0.98)) / 0.04
  assert 0.7 * expected < slope < 1.3 * expected


def _everything():
  """A config with all kinds of parameters."""
  config = clip_mesh_configs.tiny().scene
  config.subdivisions, config.size, config.texture.size = 2, 24, 16
  with config.unlocked():
    config.background_mlp = {'degree': 2, 'width': 4, 'layers': 1}
  config.normal_consistency = 0.1
  return config


@pytest.mark.parametrize('surface', sorted(mesh_scene.SURFACES))
def test_gradients_are_finite_and_reach_everything(surface):
  config = _everything()
  config.surface = surface
  scene = mesh_scene.make(config)
  params, view = _params(scene), _view((0.2, 0.8, 0.0), size=24, learned=0.5)
  fixed = {'surface': params.pop('surface')}

  def loss(params):
    params = {**params, **fixed}
    render = scene.render(params, None, view)
    return jnp.sum(render.image**2) + sum(
        scene.penalties(params, render, 3).values())

  slopes = jax.jit(jax.grad(loss))(params)
  assert set(slopes) == {'offsets', 'texture', 'normal_map', 'background'}
  for leaf in jax.tree.leaves(slopes):
    assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 0


def test_color_only_has_no_gradient_through_silhouettes():
  scene = mesh_scene.make(_config())
  params, view = _params(scene), _view()
  fixed = {'surface': params.pop('surface')}
  total = lambda params, name: jnp.sum(getattr(
      scene.render({**params, **fixed}, None, view), name))
  slope = jax.jit(jax.grad(total), static_argnums=1)
  # Ambient light does not depend on normals, and one color not on uv.
  params['texture'] = jnp.full_like(params['texture'], 0.5)
  colors, image = slope(params, 'color_only'), slope(params, 'image')
  np.testing.assert_allclose(colors['offsets'], 0, atol=1e-4)
  assert np.abs(image['offsets']).max() > 0.1
  assert colors['texture'].min() >= 0 and colors['texture'].max() > 0


def test_transparent_texels_show_what_is_behind_them():
  config = _everything()
  config.texture.blur_radius, config.layers = 0, 2
  scene = mesh_scene.make(config)
  params = _params(scene)
  texture = params['texture'].at[...].set(jnp.array([1.0, 0.0, 0.0, 0.25]))
  center = lambda texture, light: jax.jit(scene.render)(
      {**params, 'texture': texture}, None, _view(light, size=24))
  # Two layers of the sphere, each of which lets three quarters through.
  render = center(texture, (1.0, 0.0, 0.0))
  np.testing.assert_allclose(render.opacity[12, 12], 1 - 0.75**2, atol=1e-5)
  np.testing.assert_allclose(
      render.image[12, 12], (1 - 0.75**2) * RED + 0.75**2 * BLUE, atol=1e-5)
  gray = center(texture, (0.5, 0.0, 1.0))
  np.testing.assert_allclose(gray.image[12, 12], 0.5, atol=1e-5)
  np.testing.assert_allclose(gray.opacity[12, 12], 1, atol=1e-5)


def test_backgrounds_are_the_learned_one_a_color_or_an_image():
  scene = mesh_scene.make(_everything())
  params = _params(scene)
  render = jax.jit(scene.render)
  image = jax.random.uniform(jax.random.key(1), (24, 24, 3))
  corner = lambda **kwargs: np.asarray(
      render(params, None, _view(size=24, **kwargs)).image[0, 1])
  np.testing.assert_allclose(corner(background=BLUE), BLUE, atol=1e-5)
  np.testing.assert_allclose(corner(background=image), image[0, 1], atol=1e-5)
  learned = corner(learned=1.0)
  assert np.abs(learned - BLUE).max() > 0.1
  np.testing.assert_allclose(
      corner(learned=0.5), 0.5 * learned + 0.5 * BLUE, atol=1e-5)


def test_previews_and_the_mesh_that_is_exported():
  scene = mesh_scene.make(_config())
  params = _params(scene)
  params['texture'] = jnp.broadcast_to(RED, params['texture'].shape)
  show = jax.jit(scene.show, static_argnums=(2, 3))
  shown = show(params, cameras.orbit(0.0, 0.0, 1.8, 1.3), 24, mesh_scene.MODES,
               jnp.ones(3))
  assert set(shown) == set(mesh_scene.MODES)
  np.testing.assert_allclose(shown['albedo'][12, 12], RED, atol=1e-4)
  assert shown['color'][12, 12, 1] < 0.01 < shown['color'][12, 12, 0]
  assert np.ptp(shown['textureless'][12, 12]) < 1e-5
  np.testing.assert_allclose(
      shown['normal'][12, 12], [0.5, 0.5, 1], atol=0.05)
  for image in shown.values():
    np.testing.assert_allclose(image[0, 0], 1, atol=1e-5)
  exported = scene.mesh(params, 0, 1.0)
  assert exported.uv.shape == (len(exported.vertices), 2)
  assert exported.texture.dtype == np.uint8
  np.testing.assert_array_equal(exported.texture[3, 3], [255, 0, 0])
  # Closed once the seams are merged.
  places, index = mesh.weld(exported.vertices)
  pairs = surfaces.adjacent_faces(index[exported.faces])
  assert len(pairs) == 3 * len(exported.faces) / 2
  radial = np.sum(exported.vertices * exported.normals, axis=1)
  assert len(places) == 162 and radial.min() > 0.45
  with pytest.raises(UserError, match="'depths'"):
    scene.show(params, cameras.orbit(0.0, 0.0, 1.8, 1.3), 24, ('depths',))


def test_the_laplacian_of_offsets_does_not_shrink_the_surface():
  for of, zero in (('offsets', True), ('positions', False)):
    config = _config()
    config.laplacian.of = of
    scene = mesh_scene.make(config)
    penalty = scene.penalties(_params(scene), None, 0)['laplacian']
    assert (penalty == 0) == zero


def test_texels_and_normals_stay_in_their_range():
  scene = mesh_scene.make(_everything())
  params = jax.jit(scene.init)(jax.random.key(0))
  outside = {**params, 'texture': params['texture'] * 4 - 2,
             'normal_map': params['normal_map'] * 3 - 1.5,
             'offsets': params['offsets'] + 7}
  inside = scene.project(outside)
  np.testing.assert_array_equal(
      inside['texture'], np.clip(outside['texture'], 0, 1))
  np.testing.assert_array_equal(
      inside['normal_map'], np.clip(outside['normal_map'], -1, 1))
  np.testing.assert_array_equal(inside['offsets'], 7)


def test_half_of_the_views_of_clip_mesh_are_untextured_at_first():
  config = clip_mesh_configs.paper().scene
  config.size = 12
  sample = jax.jit(views.of_config(config))
  for count in (25, 8):
    untextured = [float(sample(
        jax.random.key(i), 2499, (i / count, (i + 1) / count)
        ).light.textureless) for i in range(count)]
    assert untextured == [0] * (count // 2) + [1] * (count - count // 2)
  for i in range(20):
    view = sample(jax.random.key(i), 2500, (0.9, 1.0))
    assert view.light.textureless == 0
    assert view.light.diffuse == pytest.approx(5 / np.pi)
    offset = view.camera.c2w[:3, 3]
    # The object is shifted along x and y, the camera looks horizontally at
    # least, and the light is as far from the origin as the camera.
    distance = np.linalg.norm(view.light.position)
    assert 5 <= distance <= 12 and np.linalg.norm(offset) < distance + 3
    elevation = np.rad2deg(np.arcsin(view.camera.c2w[1, 2]))
    assert -1e-3 < elevation < 90
    assert 0.5 <= view.camera.intrinsics[0, 0] <= 1.87
    assert view.background.shape == (12, 12, 3)
    assert view.background.min() >= 0 and view.background.max() <= 1


def test_a_surface_whose_edges_branch_is_named():
  branching = mesh.Mesh(
      np.random.default_rng(0).normal(size=(5, 3)),
      np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]]), uv=np.zeros((5, 2)))
  mesh_scene.make(_config(), branching)
  with pytest.raises(UserError, match='more than two faces'):
    mesh_scene.make(_config(surface='loop_limit'), branching)
  with pytest.raises(UserError, match="'catmull'"):
    mesh_scene.make(_config(surface='catmull'))
