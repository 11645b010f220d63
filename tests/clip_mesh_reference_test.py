"""Parity with CLIP-Mesh and nvdiffmodeling: their numbers for random inputs.

The data are in the folder $GEN3D_REFERENCE, clipmesh.npz.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import clip_mesh as configs
from gen3d.engine import optim
from gen3d.ops import cameras, images, schedules, shading, surfaces
from gen3d.scenes import mesh, views


@pytest.fixture(scope='module')
def data(reference_data):
  return reference_data('clipmesh')


def _channels_last(x):
  return np.moveaxis(x, -3, -1)


def test_limit_surfaces_and_their_gradient(data):
  vertices, faces = data['loop.vertices'], data['loop.faces']
  count = len(vertices)
  sparse, constant = surfaces.refined_loop_limit(faces, count)
  matrix = np.zeros((count, count))
  np.add.at(matrix, (np.arange(count)[:, None], sparse.index), sparse.weights)
  np.testing.assert_allclose(
      matrix, data['loop.J_reference_package_f64'], atol=1e-7)
  package, pullback = jax.vjp(
      lambda x: surfaces.apply(sparse, x)
      + jax.lax.stop_gradient(surfaces.apply(constant, x)), vertices)
  np.testing.assert_allclose(
      package, data['loop.limit_reference_package_f64'], atol=1e-6)
  np.testing.assert_allclose(
      pullback(data['loop.grad_limit'])[0], data['loop.grad_control_JT'],
      atol=1e-6)
  np.testing.assert_allclose(
      surfaces.apply(surfaces.loop_limit(faces, count), vertices),
      data['loop.limit_standard_loop_f64'], atol=1e-6)
  valence, beta, chi, warren = data['loop.valence_beta_chi'].T
  np.testing.assert_allclose(surfaces.loop_weight(valence), beta, rtol=1e-6)
  np.testing.assert_allclose(surfaces.warren_weight(valence), warren, rtol=1e-6)
  np.testing.assert_allclose(1 / (valence + 3 / (8 * beta)), chi, rtol=1e-6)


def test_laplacian_its_weight_and_the_learning_rate(data):
  vertices, faces = data['loop.vertices'], data['loop.faces']
  surface = surfaces.topology(faces, len(vertices))
  value, slope = jax.value_and_grad(
      lambda x: surfaces.laplacian(surface, x))(vertices)
  np.testing.assert_allclose(value, data['lap.value'], rtol=1e-5)
  np.testing.assert_allclose(slope, data['lap.grad'], atol=1e-7)
  config = configs.paper()
  decay = {key: config.scene.laplacian[key] for key in ('start', 'end', 'rate')}
  steps = data['lap.weight_iterations']
  np.testing.assert_allclose(
      schedules.bell(steps, **decay), data['lap.weight'], rtol=1e-5)
  rate = optim.learning_rate(config.optimizer, config.steps)
  np.testing.assert_allclose(
      [rate(step) / config.optimizer.learning_rate for step in steps],
      data['lr.factor'], rtol=1e-4)


def test_normals_tangents_and_shading(data):
  faces = data['loop.faces']
  points = jnp.float32(data['loop.limit_reference_package_f64'])
  surface = surfaces.topology(faces, len(points))
  normals = surfaces.vertex_normals(surface, points)
  np.testing.assert_allclose(normals, data['normals.vertex'], atol=1e-6)
  np.testing.assert_allclose(
      surfaces.vertex_tangents(
          surface, points, normals, data['tangent.uv'][faces]),
      data['tangent.vertex'], atol=1e-5)
  toward = cameras.normalize(data['shade.view_pos'] - data['shade.pos'])
  normal = shading.visible_normal(
      shading.tangent_space_normal(
          data['shade.normal_map'], data['shade.smooth_normal'],
          data['shade.smooth_tangent']), data['shade.geom_normal'], toward)
  np.testing.assert_allclose(normal, data['shade.shading_normal'], atol=1e-6)
  light = shading.Light(data['shade.light_pos'], 0.0, 5 / np.pi, 0.0)
  np.testing.assert_allclose(
      shading.lambertian(
          data['shade.kd_rgba'][:, :3], normal, data['shade.pos'], light),
      data['shade.shaded_rgb_power5'], atol=1e-6)
  assert configs.paper().scene.light.diffuse == pytest.approx(5 / np.pi)


def test_layers_are_composited_over_the_background(data):
  rgba = [data[f'peel.{name}_rgba'] for name in ('front', 'back')]
  hits = [data[f'peel.hit_{name}'][:, None] for name in ('front', 'back')]
  total = mesh.composite([x[:, :3] for x in rgba],
                         [hit * x[:, 3:] for hit, x in zip(hits, rgba)])
  np.testing.assert_allclose(
      total[:, :3] + (1 - total[:, 3:]) * data['peel.background'],
      data['peel.out'], atol=1e-6)


def test_cameras_and_light(data):
  for (elevation, azimuth, distance, fov, *shift), view, position, mvp in zip(
      data['cam.elev_azim_dist_fov_offx_offy'], data['cam.modelview_f64'],
      data['cam.campos_f64'], data['cam.mvp_f64']):
    camera = views.clip_mesh_camera(
        azimuth, elevation, distance, fov, jnp.float32(shift))
    np.testing.assert_allclose(camera.c2w[:3, 3], position, atol=1e-5)
    # There the image is turned by 180 degrees, and read bottom first.
    turned = np.linalg.inv(camera.c2w) * np.array([-1, -1, 1, 1])[:, None]
    np.testing.assert_allclose(turned, view, atol=1e-5)
    np.testing.assert_allclose(
        2 * camera.intrinsics[0, 0], 1 / np.tan(np.deg2rad(fov) / 2), rtol=1e-5)
    # There 1 / tan(fov / 2) is rounded towards zero, here not.
    rounded = camera._replace(intrinsics=cameras.pinhole(
        np.trunc(2 * camera.intrinsics[0, 0]) / 2))
    clip = cameras.clip_positions(
        rounded, np.float32([[0.3, -0.2, 0.5]]), 1.0, 50.0)[0]
    np.testing.assert_allclose(
        clip[jnp.array([0, 1, 3])],
        (mvp @ [0.3, -0.2, 0.5, 1])[[0, 1, 3]] * [-1, -1, 1], atol=1e-4)
  np.testing.assert_allclose(
      shading.cosine_direction(
          data['cam.cosine_sample_u_phi_u_cos'], data['cam.cosine_sample_N']),
      data['cam.cosine_sample_dir'], atol=1e-6)


@pytest.mark.parametrize('kernel', ['linear', 'cubic', 'lanczos2', 'lanczos3'])
def test_resizing(data, kernel):
  image = jnp.asarray(_channels_last(data['resize.in']))
  np.testing.assert_allclose(
      images.resize_filter(image, 28, kernel, edges='zero'),
      _channels_last(data[f'resize.{kernel}_28']), atol=5e-6)


@pytest.mark.parametrize('size', [5, 7])
def test_blur_of_textures(data, size):
  image = jnp.asarray(_channels_last(data['blur.in']))
  np.testing.assert_allclose(
      images.reflected_blur(image, 3.0, size // 2),
      _channels_last(data[f'blur.k{size}s3']), atol=1e-6)
