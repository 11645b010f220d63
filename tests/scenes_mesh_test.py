"""Mesh scenes: rendering, gradients, penalties, views, the exported mesh."""

import functools

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
SIZE = 32


def _config(**changes):
  """A config with all kinds of parameters."""
  config = clip_mesh_configs.tiny().scene
  config.subdivisions, config.size, config.radius = 2, SIZE, 0.5
  config.texture.update({'size': 16, 'blur_radius': 1})
  with config.unlocked():
    config.background_mlp = {'degree': 2, 'width': 4, 'layers': 1}
  config.normal_consistency, config.layers = 0.1, 1
  config.update(changes)
  return config


@functools.cache
def _scene():
  """One scene, so that its programs are compiled once."""
  return mesh_scene.make(_config())


@functools.cache
def _render():
  return jax.jit(_scene().render, static_argnums=1)


def _params(texel=None):
  """Parameters with what does not change, as the task passes them."""
  scene = _scene()
  params = {**jax.jit(scene.init)(jax.random.key(0)), **scene.running.init}
  if texel is not None:
    params['texture'] = jnp.broadcast_to(
        jnp.array(texel), params['texture'].shape)
  return params


def _view(light=(1.0, 0.0, 0.0), background=BLUE, learned=0.0):
  """A view whose background is an image, of one color if not given."""
  camera = cameras.orbit(30.0, 20.0, 1.8, 1.3)
  ambient, diffuse, textureless = map(jnp.float32, light)
  return View(camera, cameras.rays(camera, SIZE, SIZE),
              shading.Light(jnp.array([1.0, 1.0, 1.0]), ambient, diffuse,
                            textureless),
              jnp.broadcast_to(background, (SIZE, SIZE, 3)),
              jnp.float32(learned))


@functools.cache
def _slopes():
  """The gradient of a mixture of images and penalties, and its value."""
  scene = _scene()

  def loss(params, fixed, view, weights):
    params = {**params, **fixed}
    render = scene.render(params, None, view)
    terms = (jnp.sum(render.opacity), jnp.sum(render.color_only),
             jnp.sum(render.image**2), sum(
                 scene.penalties(params, render, 3).values()))
    return sum(w * term for w, term in zip(weights, terms))

  return jax.jit(jax.value_and_grad(loss))


def _slope(params, view, weights):
  trained = {name: x for name, x in params.items() if name != 'surface'}
  return _slopes()(trained, {'surface': params['surface']}, view,
                   jnp.float32(weights))


def test_a_sphere_has_the_depth_normals_and_area_of_a_sphere():
  view = _view()
  render = _render()(_params([1.0, 0.0, 0.0, 1.0]), None, view)
  # The silhouette is a cone of sine 0.5 / 1.8; the mesh is within the sphere.
  radius = SIZE * 1.3 * np.tan(np.arcsin(0.5 / 1.8))
  np.testing.assert_allclose(
      jnp.sum(render.opacity), np.pi * radius**2, rtol=0.08)
  seen = np.asarray(render.depth) > 0
  points = view.rays.origins + render.depth[..., None] * view.rays.directions
  np.testing.assert_allclose(
      np.linalg.norm(points[seen], axis=-1), 0.49, atol=0.02)
  cosines = np.sum(cameras.normalize(points) * render.normals, -1)[seen]
  assert cosines.min() > 0.9 and np.mean(cosines) > 0.99
  np.testing.assert_allclose(render.image[16, 16], RED, atol=1e-5)
  np.testing.assert_allclose(render.image[0, 0], BLUE, atol=1e-5)
  np.testing.assert_allclose(
      render.image, render.albedo + (1 - render.opacity[..., None]) * BLUE,
      atol=1e-5)


def test_a_view_of_normals_has_their_colors_and_no_gradient_for_texels():
  view = _view()
  view = view._replace(light=view.light._replace(normals=jnp.float32(1.0)))
  params = _params([1.0, 0.0, 0.0, 1.0])
  render = _render()(params, None, view)
  np.testing.assert_allclose(
      render.image[16, 16], 0.5 * (render.normals[16, 16] + 1), atol=1e-5)
  _, gradient = _slope(params, view, (0, 0, 1, 0))
  assert np.abs(gradient['texture'][..., :3]).max() == 0
  assert np.abs(gradient['offsets']).max() > 0


def test_the_gradient_of_the_opacity_moves_silhouettes():
  params, view = _params([1.0, 1.0, 1.0, 1.0]), _view()
  start = params['surface'].start
  of_scale = lambda scale: _slope(
      {**params, 'offsets': scale * start}, view, (1, 0, 0, 0))
  # The mean slope over a pixel: coverage is approximate.
  slopes = [jnp.sum(of_scale(scale)[1]['offsets'] * start)
            for scale in np.linspace(-0.045, 0.045, 10)]
  change = of_scale(0.05)[0] - of_scale(-0.05)[0]
  assert change > 0
  np.testing.assert_allclose(np.mean(slopes), change / 0.1, rtol=0.05)


def test_gradients_are_finite_and_reach_everything():
  _, slopes = _slope(_params(), _view((0.2, 0.8, 0.0), learned=0.5),
                     (0, 0, 1, 1))
  assert set(slopes) == {'offsets', 'texture', 'normal_map', 'background'}
  for leaf in jax.tree.leaves(slopes):
    assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 0


def test_an_outset_enlarges_the_images_of_training_only():
  params, view = _params([1.0, 1.0, 1.0, 1.0]), _view()
  area = jnp.sum(_render()(params, None, view).opacity)
  scene = mesh_scene.make(_config(outset=0.5))
  larger = jnp.sum(jax.jit(scene.render)(params, None, view).opacity)
  radius = np.sqrt(area / np.pi)
  np.testing.assert_allclose(np.sqrt(larger / np.pi), radius + 0.5, atol=0.1)
  np.testing.assert_array_equal(
      scene.mesh(params, 0, 1.0).vertices, _scene().mesh(
          params, 0, 1.0).vertices)


def test_color_only_has_no_gradient_through_silhouettes():
  # Ambient light does not depend on normals, and one color not on uv.
  params, view = _params([0.5, 0.5, 0.5, 1.0]), _view()
  _, colors = _slope(params, view, (0, 1, 0, 0))
  np.testing.assert_allclose(colors['offsets'], 0, atol=1e-4)
  assert colors['texture'].min() >= 0 and colors['texture'].max() > 0
  _, image = _slope(params, view, (0, 0, 1, 0))
  assert np.abs(image['offsets']).max() > 0.1


def test_transparent_texels_show_what_is_behind_them():
  params = _params([1.0, 0.0, 0.0, 0.25])
  # Two layers of the sphere, each of which lets three quarters through.
  render = jax.jit(mesh_scene.make(_config(layers=2)).render)(
      params, None, _view())
  opacity = 1 - 0.75**2
  np.testing.assert_allclose(render.opacity[16, 16], opacity, atol=1e-5)
  np.testing.assert_allclose(
      render.image[16, 16], opacity * RED + (1 - opacity) * BLUE, atol=1e-5)
  gray = _render()(params, None, _view((0.5, 0.0, 1.0)))
  np.testing.assert_allclose(gray.image[16, 16], 0.5, atol=1e-5)
  np.testing.assert_allclose(gray.opacity[16, 16], 1, atol=1e-5)


def test_backgrounds_are_the_learned_one_a_color_or_an_image():
  params = _params()
  image = jax.random.uniform(jax.random.key(1), (SIZE, SIZE, 3))
  corner = lambda **kwargs: np.asarray(
      _render()(params, None, _view(**kwargs)).image[0, 1])
  np.testing.assert_allclose(corner(background=BLUE), BLUE, atol=1e-5)
  np.testing.assert_allclose(corner(background=image), image[0, 1], atol=1e-5)
  learned = corner(learned=1.0)
  assert np.abs(learned - BLUE).max() > 0.1
  np.testing.assert_allclose(
      corner(learned=0.5), 0.5 * learned + 0.5 * BLUE, atol=1e-5)


def test_previews_show_colors_normals_and_shape():
  scene, params = _scene(), _params([1.0, 0.0, 0.0, 1.0])
  camera = cameras.orbit(0.0, 0.0, 1.8, 1.3)
  shown = jax.jit(scene.show, static_argnums=(2, 3))(
      params, camera, 24, scene.modes, jnp.ones(3))
  assert set(shown) == set(scene.modes) > {'color', 'depth'}
  np.testing.assert_allclose(shown['albedo'][12, 12], RED, atol=1e-4)
  assert shown['color'][12, 12, 1] < 0.01 < shown['color'][12, 12, 0]
  assert np.ptp(shown['textureless'][12, 12]) < 1e-5
  np.testing.assert_allclose(shown['normal'][12, 12], [0.5, 0.5, 1], atol=0.1)
  # The front is nearer than the origin, which is in the middle of the range.
  depth = shown.pop('depth')
  assert 0.5 < depth[12, 12, 0] < 1 and np.ptp(depth[12, 12]) == 0
  np.testing.assert_array_equal(depth[0, 0], 0)
  for image in shown.values():
    np.testing.assert_allclose(image[0, 0], 1, atol=1e-5)
  with pytest.raises(UserError, match="'depths'"):
    scene.show(params, camera, 24, ('depths',))


def test_the_mesh_is_closed_and_textured():
  exported = _scene().mesh(_params([1.0, 0.0, 0.0, 1.0]), 0, 1.0)
  assert exported.uv.shape == (len(exported.vertices), 2)
  assert exported.texture.dtype == np.uint8
  np.testing.assert_array_equal(exported.texture[3, 3], [255, 0, 0])
  # Closed once the seams are merged.
  places, index = mesh.weld(exported.vertices)
  pairs = surfaces.adjacent_faces(index[exported.faces])
  assert len(pairs) == 3 * len(exported.faces) / 2
  radial = np.sum(exported.vertices * exported.normals, axis=1)
  assert len(places) == 162 and radial.min() > 0.45


@pytest.mark.parametrize('kind', sorted(mesh_scene.SURFACES))
def test_vertices_are_points_or_control_points_of_the_surface(kind):
  scene = mesh_scene.make(_config(surface=kind))
  fixed = scene.running.init
  offsets = 0.1 * np.random.default_rng(0).normal(
      size=fixed['surface'].start.shape).astype(np.float32)
  points, pullback = jax.vjp(lambda x: mesh_scene.positions(
      {**fixed, 'offsets': x})[1].points, offsets)
  moved = fixed['surface'].start + offsets
  assert (np.abs(points - moved).max() < 1e-6) == (kind == 'vertices')
  # The surface is smoother than its control points, and moves with them.
  np.testing.assert_allclose(np.mean(points, 0), np.mean(moved, 0), atol=0.01)
  along_x = np.zeros_like(offsets)
  along_x[:, 0] = 1
  np.testing.assert_allclose(pullback(jnp.asarray(along_x))[0].sum(0)[0],
                             len(offsets), rtol=1e-5)


def test_the_laplacian_of_offsets_does_not_shrink_the_surface():
  for of, zero in (('offsets', True), ('positions', False)):
    config = _config()
    config.laplacian.of = of
    penalty = mesh_scene.make(config).penalties(_params(), None, 0)
    assert (penalty['laplacian'] == 0) == zero


def test_texels_and_normals_stay_in_their_range():
  params = _params()
  outside = {'texture': params['texture'] * 4 - 2,
             'normal_map': params['normal_map'] * 3 - 1.5,
             'offsets': params['offsets'] + 7}
  inside = _scene().project(outside)
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
    # The light is as far from the origin as the camera was before the shift.
    distance = np.linalg.norm(view.light.position)
    shift = view.camera.c2w[:3, 3] - distance * view.camera.c2w[:3, 2]
    assert 5 <= distance <= 12 and np.abs(shift).max() <= 2.001
    elevation = np.rad2deg(np.arcsin(view.camera.c2w[1, 2]))
    assert -1e-3 < elevation < 90
    assert 0.499 <= view.camera.intrinsics[0, 0] <= 1.87
    assert view.background.shape == (12, 12, 3)
    assert view.background.min() >= 0 and view.background.max() <= 1


def test_unusable_surfaces_are_named():
  branching = mesh.Mesh(
      0.1 * np.random.default_rng(0).normal(size=(5, 3)),
      np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]]), uv=np.zeros((5, 2)))
  config = refine_configs.tiny().scene
  mesh_scene.make(config, branching)
  with pytest.raises(UserError, match='beyond the range'):
    mesh_scene.make(config, branching._replace(vertices=branching.vertices + 1))
  config.surface = 'loop_limit'
  with pytest.raises(UserError, match='more than two faces'):
    mesh_scene.make(config, branching)
  config.surface = 'catmull'
  with pytest.raises(UserError, match="'catmull'"):
    mesh_scene.make(config)
