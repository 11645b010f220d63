"""DreamFusion's scene: normals, light, sampling, previews."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import dreamfusion as configs
from gen3d import legacy
from gen3d.ops import cameras, shading, volume
from gen3d.scenes import View, dreamfusion


def _config(**changes):
  config = configs.get_config('tiny').scene
  # A hard ball of radius 0.3.
  config.density_bias.update(
      {'name': 'magic3d', 'strength': 400.0, 'radius': 0.3})
  config.field.resolution, config.bound, config.field.bound = 4, 0.65, 0.65
  config.samples, config.importance.samples = 64, 0
  config.update(changes)
  return config


def _view(light=(1.0, 0.0, 0.0), size=12, azimuth=0.0, learned=0.0):
  camera = cameras.orbit(azimuth, 20.0, 1.6, 1.3)
  ambient, diffuse, textureless = light
  return View(camera, cameras.rays(camera, size, size),
              shading.Light(jnp.array([1.0, 1.0, 1.0]), ambient, diffuse,
                            textureless),
              jnp.array([0.2, 0.4, 0.6]), learned)


@pytest.mark.parametrize('kind', dreamfusion.NORMALS)
def test_normals_of_a_ball_point_outwards(kind):
  scene = dreamfusion.make(_config(normals=kind))
  params = jax.jit(scene.init)(jax.random.key(0))
  view = _view()
  rendered = jax.jit(scene.render)(params, None, view)
  solid = np.asarray(rendered.opacity) > 0.99
  assert 10 < solid.sum() < 100
  points = view.rays.origins + rendered.depth[..., None] * view.rays.directions
  radius = np.linalg.norm(points, axis=-1)[solid]
  np.testing.assert_allclose(radius, 0.3, atol=0.04)
  cosine = np.sum(cameras.normalize(points) * rendered.normals, -1)[solid]
  assert cosine.min() > 0.97
  assert np.abs(rendered.normals[0, 0]).max() < 1e-3


@pytest.mark.parametrize('kind', dreamfusion.NORMALS)
def test_a_view_of_normals_has_their_colors(kind):
  scene = dreamfusion.make(_config(normals=kind))
  params = jax.jit(scene.init)(jax.random.key(0))
  view = _view()
  view = view._replace(light=view.light._replace(normals=1.0))
  rendered = jax.jit(scene.render)(params, None, view)
  solid = np.asarray(rendered.opacity) > 0.995
  assert solid.sum() > 10
  np.testing.assert_allclose(
      rendered.image[solid], 0.5 * (rendered.normals[solid] + 1), atol=0.01)


def test_analytic_normals_agree_with_finite_differences():
  config = configs.get_config('paper').scene
  config.field.width, config.field.blocks, config.field.degree = 16, 1, 4
  config.epsilon = 1e-3
  scene, query = dreamfusion.make(config), dreamfusion.make_query(config)
  params = jax.jit(scene.init)(jax.random.key(1))
  points = jax.random.normal(jax.random.key(2), (50, 3)) * 0.3
  step = 1e-3
  gradient = np.stack([
      (query(params, points + step * axis)[0]
       - query(params, points - step * axis)[0]) / (2 * step)
      for axis in jnp.eye(3)], axis=-1)
  expected = -gradient / np.linalg.norm(gradient, axis=-1, keepdims=True)
  field = lambda samples, directions: query(params, samples.mean)
  samples = dreamfusion.encodings.Gaussian(points, jnp.zeros_like(points))
  for kind in ('analytic', 'finite'):
    _, _, normals = dreamfusion.sample_normals(
        field, samples, points, dreamfusion.Normals(kind, config.epsilon))
    assert np.sum(normals * expected, -1).min() > 0.995


@pytest.mark.parametrize('kind', dreamfusion.NORMALS)
def test_gradients_are_finite_and_reach_everything(kind):
  scene = dreamfusion.make(_config(normals=kind, samples=12))
  params = jax.jit(scene.init)(jax.random.key(0))
  view = _view(light=(0.1, 0.9, 0.0), size=8, learned=0.5)

  def loss(params):
    rendered = scene.render(params, jax.random.key(1), view)
    return jnp.sum(rendered.image**2) + sum(
        scene.penalties(params, rendered, 500).values())

  for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 0


@pytest.mark.parametrize('kind', dreamfusion.NORMALS)
def test_color_only_has_no_gradient_through_opacity(kind):
  scene = dreamfusion.make(_config(normals=kind, samples=12))
  params = jax.jit(scene.init)(jax.random.key(0))

  def total(params, light, field):
    rendered = scene.render(params, None, _view(light, size=8))
    return jnp.sum(getattr(rendered, field) ** 2), rendered

  grad = jax.jit(jax.grad(total, has_aux=True), static_argnums=(1, 2))
  for light in ((1.0, 0.0, 0.0), (0.3, 0.6, 0.0), (0.3, 0.6, 1.0)):
    slope, rendered = grad(params, light, 'color_only')
    behind = (1 - rendered.opacity[..., None]) * jnp.array([0.2, 0.4, 0.6])
    np.testing.assert_allclose(
        rendered.color_only, rendered.image - behind, atol=1e-5)
  # Ambient light does not depend on normals, and so not on density.
  bias = lambda name: grad(params, (1.0, 0.0, 0.0), name)[0][
      'field']['params']['out']['bias']
  assert bias('color_only')[0] == 0 and bias('image')[0] != 0
  np.testing.assert_array_less(0.01, np.abs(bias('color_only')[1:]))


def test_light_and_background():
  scene = dreamfusion.make(_config())
  params = jax.jit(scene.init)(jax.random.key(0))
  render = jax.jit(scene.render)
  plain = render(params, None, _view())
  behind = (1 - plain.opacity[..., None]) * jnp.array([0.2, 0.4, 0.6])
  np.testing.assert_allclose(plain.image, plain.albedo + behind, atol=1e-6)
  assert np.abs(plain.image[0, 0] - jnp.array([0.2, 0.4, 0.6])).max() < 1e-3
  lit = render(params, None, _view(light=(0.1, 0.9, 0.0)))
  white = render(params, None, _view(light=(0.1, 0.9, 1.0)))
  shade = np.asarray(white.image - behind)
  # Without texture it is gray; albedo times that gray is the shaded image.
  np.testing.assert_allclose(shade, shade[..., :1].repeat(3, -1), atol=1e-5)
  np.testing.assert_allclose(
      (lit.image - behind) * lit.opacity[..., None], shade * lit.albedo,
      atol=1e-4)
  own = render(params, None, _view(learned=1.0))
  assert np.abs(own.image[0, 0] - plain.image[0, 0]).max() > 1e-2


def test_chunks_do_not_change_the_image():
  whole, chunked = (dreamfusion.make(_config(
      chunk=chunk, importance={'samples': 8, 'stride': 2}))
                    for chunk in (1000, 30))
  params = jax.jit(whole.init)(jax.random.key(0))
  a, b = (jax.jit(s.render)(params, jax.random.key(1), _view())
          for s in (whole, chunked))
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_importance_sampling_needs_fewer_samples():
  config = _config(samples=256)
  fine = dreamfusion.make(config)
  params = jax.jit(fine.init)(jax.random.key(0))
  # A stride needs pixels that are smaller than the surfaces.
  for size, strides in ((12, (1,)), (48, (1, 2, 3))):
    errors = []
    truth = jax.jit(fine.render)(params, None, _view(size=size)).image
    for importance, stride in ((0, 1), *((16, s) for s in strides)):
      scene = dreamfusion.make(_config(samples=16, importance={
          'samples': importance, 'stride': stride}))
      image = jax.jit(scene.render)(params, None, _view(size=size)).image
      errors.append(float(jnp.abs(image - truth).mean()))
    assert max(errors[1:]) < 0.7 * errors[0]


def test_coarse_pass_detects_objects_as_wide_as_its_stride():
  # An upright rod two pixels wide, over columns 9 and 10. The coarse pass has
  # a ray in the latter only: the former gets the weights of its square's other
  # corner.
  rays = _view(size=17).rays
  pixel = 1.6 / 1.3 / 17
  edges = jnp.broadcast_to(jnp.linspace(1.0, 2.2, 33), (17, 17, 33))

  def rod(samples, directions):
    x, _, z = jnp.moveaxis(samples.mean, -1, 0)
    return 400.0 * (jnp.hypot(x - 1.9 * pixel, z) < 1.05 * pixel), directions

  opacity = lambda edges: volume.march(rod, rays, edges).weights.sum(-1)
  truth = opacity(jnp.broadcast_to(
      jnp.linspace(1.0, 2.2, 2001), (17, 17, 2001))) > 0.9
  assert truth[:, 9:11].sum() > 16 and not truth[:, 8].any()
  weights = dreamfusion.subsampled_weights(rod, 2, 4096, rays, edges)
  rendered = opacity(
      dreamfusion.importance_edges(edges, weights, count=8)) > 0.9
  assert rendered[truth].mean() > 0.97


def test_lights_follow_the_schedule_of_the_paper():
  config = configs.get_config('paper').scene
  config.size = 2
  scene = dreamfusion.make(config)
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = jax.jit(jax.vmap(scene.sample_view, (0, None)))
  early, late = (draw(keys, step) for step in (999, 1000))
  assert np.all(early.light.ambient == 1) and np.all(early.light.diffuse == 0)
  assert np.all(early.light.textureless == 0)
  shaded = late.light.diffuse > 0
  np.testing.assert_allclose(shaded.mean(), 0.75, atol=0.03)
  np.testing.assert_allclose(late.light.ambient[shaded], 0.1, rtol=1e-6)
  np.testing.assert_allclose(
      late.light.textureless.mean(), 0.375, atol=0.03)
  assert np.all(late.light.textureless[~shaded] == 0)
  assert np.all(late.learned == 1)


def test_views_of_normals_follow_their_schedule():
  config = _config(size=2)
  keys = jax.random.split(jax.random.key(0), 2000)
  draw = lambda scene, step: jax.jit(jax.vmap(scene.sample_view, (0, None)))(
      keys, step)
  without = draw(dreamfusion.make(config), 6)
  assert without.light.normals is None
  config.light.normals_prob = ((5, 0.0), (6, 0.5))
  scene = dreamfusion.make(config)
  assert np.all(draw(scene, 5).light.normals == 0)
  with_normals = draw(scene, 6)
  np.testing.assert_allclose(
      with_normals.light.normals.mean(), 0.5, atol=0.04)
  # The rest of the random stream is the same.
  np.testing.assert_array_equal(with_normals.camera.c2w, without.camera.c2w)
  np.testing.assert_array_equal(with_normals.background, without.background)


def test_background_range_goes_from_gray_to_all_colors():
  config = _config(size=2)
  config.random_background_prob = 1.0
  with config.ignore_type():
    config.background_range = ((10, 0.0), (20, 1.0))
  scene = dreamfusion.make(config)
  keys = jax.random.split(jax.random.key(0), 500)
  draw = jax.jit(jax.vmap(scene.sample_view, (0, None)))
  for step, low, high in ((10, 0.5, 0.5), (15, 0.25, 0.75), (20, 0.0, 1.0)):
    colors = draw(keys, step).background
    assert low <= colors.min() <= low + 0.02
    assert high - 0.02 <= colors.max() <= high
    np.testing.assert_allclose(colors.mean(0), 0.5, atol=0.05)


def test_part_of_the_views_is_a_range_of_azimuths():
  config = _config(size=2)
  config.camera.jitter_position = config.camera.jitter_target = 0.0
  scene = dreamfusion.make(config)
  draw = jax.jit(jax.vmap(lambda key: scene.sample_view(key, 0, (0.25, 0.5))))
  views = draw(jax.random.split(jax.random.key(0), 200))
  azimuth, _, _ = cameras.angles(views.camera.c2w[:, :3, 3])
  assert azimuth.min() >= -90.1 and azimuth.max() <= 0.1
  assert azimuth.min() < -80 and azimuth.max() > -10


def test_previews_have_all_modes():
  scene = dreamfusion.make(_config())
  params = jax.jit(scene.init)(jax.random.key(0))
  modes = ('color', 'albedo', 'normal', 'textureless')
  camera = cameras.orbit(0.0, 0.0, 1.6, 1.3)
  images = jax.jit(scene.show, static_argnums=(2, 3))(
      params, camera, 12, modes, jnp.ones(3))
  assert set(images) == set(modes)
  for image in images.values():
    assert image.shape == (12, 12, 3)
    np.testing.assert_allclose(image[0, 0], 1, atol=1e-3)
  # The middle of the ball faces the camera, along +z.
  np.testing.assert_allclose(
      images['normal'][5:7, 5:7].mean((0, 1)), [0.5, 0.5, 1.0], atol=0.03)
  assert float(jnp.ptp(images['textureless'], axis=-1).max()) < 1e-5


def test_unknown_names_are_refused():
  for path, value in (('normals', 'smooth'), ('boundary', 'cone')):
    with pytest.raises(ValueError, match=value):
      dreamfusion.make(_config(**{path: value}))
  config = _config()
  config.field.name = 'voxels'
  with pytest.raises(ValueError, match="'voxels'.*'triplane'"):
    dreamfusion.make(config)


@pytest.mark.parametrize('boundary, corner', [('sphere', False),
                                              ('box', True)])
def test_density_is_zero_beyond_the_boundary(boundary, corner):
  config = _config(boundary=boundary)
  config.density_bias.radius = 5.0  # solid everywhere
  params = jax.jit(dreamfusion.make(config).init)(jax.random.key(0))
  density, _ = dreamfusion.make_query(config)(params, jnp.array([
      [0.64, 0.0, 0.0], [0.4, 0.4, 0.4], [0.66, 0.0, 0.0]]))
  assert list(np.asarray(density) > 100) == [True, corner, False]


def test_mesh_is_the_initial_ball():
  scene = dreamfusion.make(_config())
  params = jax.jit(scene.init)(jax.random.key(0))
  surface = scene.mesh(params, 24, 1.0)
  radius = np.linalg.norm(surface.vertices, axis=-1)
  np.testing.assert_allclose(radius, 0.3, atol=0.05)


def test_every_penalty_is_weighted_and_summed_over_rays():
  weights = {'orientation': 2.0, 'sparsity': ((0, 0.0), (10, 1.0)),
             'opacity_entropy': 1.0, 'depth_variance': 1.0,
             'normal_smoothness': 1.0}
  config = _config(samples=12)
  config.penalties = ml_collections.ConfigDict(weights)
  scene = dreamfusion.make(config)
  params = jax.jit(scene.init)(jax.random.key(0))
  render = jax.jit(scene.render)(params, None, _view())
  penalties = scene.penalties(params, render, 5)
  assert set(penalties) == set(weights)
  np.testing.assert_allclose(
      penalties['orientation'], 2 * render.aux['orientation'].sum(), rtol=1e-6)
  np.testing.assert_allclose(
      penalties['sparsity'], 0.5 * np.sqrt(
          np.asarray(render.opacity)**2 + 0.01).sum(), rtol=1e-5)
  config.penalties.roughness = 1.0
  with pytest.raises(ValueError, match="'roughness'"):
    dreamfusion.make(config)


def test_config_keys_of_version_1_are_upgraded():
  config = {'scene': {
      'blob': {'strength': 1.0}, 'field': {'gain': 5.0},
      'random_background': 0.5, 'background_spread': 1.0,
      'light': {'norm': (1.0, 2.0), 'shaded': 1.0, 'textureless': 0.0},
      'penalties': {'opacity': 1.0, 'entropy': 1.0, 'spread': 1.0,
                    'roughness': 1.0, 'orientation': 1.0}}}
  upgraded = legacy.upgrade(config)['scene']
  current = configs.get_config('shapes').scene.to_dict()

  def check(old, new):
    assert set(old) <= set(new)
    for key, value in old.items():
      if isinstance(value, dict):
        check(value, new[key])

  check(upgraded, current)
