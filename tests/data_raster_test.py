"""data.raster against single ray casts and analytic shapes."""

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from gen3d.data import raster
from gen3d.ops import cameras
from gen3d.ops.mesh import Mesh


def camera(azimuth=25.0, elevation=20.0, distance=3.0, focal=1.2):
  orbit = cameras.orbit(azimuth, elevation, distance, focal)
  return tuple(np.asarray(x, np.float64) for x in orbit)


def pixel_rays(c2w, intrinsics, height, width):
  """Origins [3] and unit directions [H, W, 3], by the library's cameras."""
  rays = cameras.rays(cameras.Camera(
      jnp.float32(c2w), jnp.float32(intrinsics)), height, width)
  return c2w[:3, 3], np.asarray(rays.directions, np.float64)


def cast(origin, direction, corners):
  """(face, depth along the ray) of one ray: Cramer's rule, face by face."""
  best = -1, np.inf
  for number, (a, b, c) in enumerate(corners):
    system = np.stack([b - a, c - a, -direction], -1)
    if abs(np.linalg.det(system)) < 1e-12:
      continue
    u, v, t = np.linalg.solve(system, origin - a)
    if u >= 0 and v >= 0 and u + v <= 1 and 0 < t < best[1]:
      best = number, t
  return best


@pytest.mark.parametrize('depth_offset, scale', [(0.0, 0.4), (2.5, 1.0)])
def test_rasterize_equals_ray_casting(depth_offset, scale):
  # The second soup surrounds the camera: faces reach behind it.
  rng = np.random.default_rng(1)
  corners = (rng.normal(scale=scale, size=(25, 1, 3)) + [0, 0, depth_offset]
             + rng.normal(scale=0.7, size=(25, 3, 3)))
  c2w, k = camera(azimuth=0.0, elevation=0.0, distance=2.5, focal=0.6)
  k = k @ np.array([[1, 0, 0.06], [0, 1.3, -0.04], [0, 0, 1]])
  height, width = 11, 14
  nearest, weights, depth = raster.rasterize(c2w, k, height, width, corners)
  origin, directions = pixel_rays(c2w, k, height, width)
  for i in range(height):
    for j in range(width):
      face, t = cast(origin, directions[i, j], corners)
      assert nearest[i, j] == face
      if face >= 0:
        hit = origin + t * directions[i, j]
        np.testing.assert_allclose(weights[i, j] @ corners[face], hit,
                                   atol=1e-5)
        assert depth[i, j] == pytest.approx(
            -((hit - origin) @ c2w[:3, :3])[2], rel=1e-5)
      else:
        assert np.isinf(depth[i, j]) and not weights[i, j].any()
  visible = np.unique(nearest[nearest >= 0])
  assert np.sum(nearest >= 0) > 40 and len(visible) > 5
  behind = (corners[visible] - origin) @ c2w[:3, 2] > 0
  assert behind.any() == (depth_offset > 0)


def test_faces_of_different_sizes_leave_no_gaps():
  # A plane of fans whose triangles are of every size.
  rng = np.random.default_rng(2)
  x = np.sort(np.concatenate([[-9, 9], rng.normal(scale=0.1, size=40)]))
  y = np.sort(np.concatenate([[-9, 9], rng.normal(scale=0.1, size=40)]))
  grid = np.stack([*np.meshgrid(x, y), np.zeros((42, 42))], -1).reshape(-1, 3)
  index = np.arange(42 * 42).reshape(42, 42)
  a, b, c, d = (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1])
  faces = np.concatenate([np.stack(t, -1).reshape(-1, 3)
                          for t in ((a, b, c), (a, c, d))])
  c2w, k = camera(azimuth=10.0, elevation=5.0)
  nearest, weights, _ = raster.rasterize(c2w, k, 60, 60, grid[faces])
  assert np.all(nearest >= 0)
  np.testing.assert_allclose(weights.sum(-1), 1)
  assert weights.min() >= 0


def sphere(subdivisions=5, radius=1.0):
  ball = trimesh.creation.icosphere(subdivisions, radius)
  vertices = np.asarray(ball.vertices)
  return Mesh(vertices, np.asarray(ball.faces), vertices / radius,
                 0.5 + 0.5 * vertices / radius)


def test_coverage_and_shading_of_a_sphere_equal_ray_tracing():
  c2w, k = camera(azimuth=-40.0, elevation=35.0)
  size, ambient, light = 48, 0.3, np.array([0.3, 0.9, -0.2])
  image = raster.render(
      raster.gather((sphere(),)), c2w, k, size, size, samples=4,
      ambient=ambient, light=light)
  origin, directions = pixel_rays(c2w, k, 4 * size, 4 * size)
  along = -directions @ origin
  inside = along ** 2 - origin @ origin + 1
  hit = inside > 0
  points = origin + (along - np.sqrt(np.maximum(inside, 0)))[
      ..., None] * directions
  shade = ambient + (1 - ambient) * np.maximum(
      points @ light / np.linalg.norm(light), 0)
  colors = (0.5 + 0.5 * points) * shade[..., None] * hit[..., None]
  block = lambda x: x.reshape(size, 4, size, 4, -1).mean((1, 3))
  alpha, colors = block(hit.astype(float)), block(colors)
  assert np.abs(image[..., 3] / 255 - alpha[..., 0]).max() < 0.13
  assert np.abs(image[..., 3] / 255 - alpha[..., 0]).mean() < 2e-3
  assert 0.03 < np.mean((alpha > 0) & (alpha < 1)) < 0.1
  full = alpha[..., 0] == 1
  # An icosphere is a little inside the sphere; the rest is rounding.
  np.testing.assert_allclose(image[full][:, :3] / 255, colors[full],
                             atol=0.02)
  partly = (alpha[..., 0] > 0.3) & ~full
  straight = colors[partly] / alpha[partly]
  assert np.abs(image[partly][:, :3] / 255 - straight).mean() < 0.02


def quad(texture, repeat=1.0):
  """A square in the plane z = 0; from the front its texture is upright."""
  vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.0]])
  return Mesh(
      vertices, np.array([[0, 1, 2], [0, 2, 3]]),
      np.tile([[0, 0, 1.0]], (4, 1)), np.ones((4, 3)),
      (vertices[:, :2] + 1) / 2 * repeat, texture)


def test_texture_lookup_is_perspective_correct():
  texture = np.random.default_rng(3).integers(
      40, 256, size=(4, 6, 3), dtype=np.uint8)
  c2w, k = camera(azimuth=50.0, elevation=30.0)
  size = 40
  image = raster.render(raster.gather((quad(texture),)), c2w, k, size, size,
                        samples=1, ambient=1.0)
  origin, directions = pixel_rays(c2w, k, size, size)
  hit = origin - directions * (origin[2] / directions[..., 2:])
  inside = np.abs(hit[..., :2]).max(-1) < 1
  assert np.array_equal(image[..., 3] == 255, inside) and inside.sum() > 300
  for i, j in np.argwhere(inside):
    column = (hit[i, j, 0] + 1) / 2 * 6 - 0.5
    row = (1 - hit[i, j, 1]) / 2 * 4 - 0.5
    value = 0.0
    for r in (int(np.floor(row)), int(np.floor(row)) + 1):
      for c in (int(np.floor(column)), int(np.floor(column)) + 1):
        weight = (1 - abs(row - r)) * (1 - abs(column - c))
        value = value + weight * texture[r % 4, c % 6]
    np.testing.assert_allclose(image[i, j, :3], value, atol=0.6)


def test_fine_textures_are_averaged_by_mipmaps():
  texture = np.where(np.indices((256, 256)).sum(0)[..., None] % 2, 255, 0
                     ).astype(np.uint8).repeat(3, -1)
  c2w, k = camera(azimuth=0.0, elevation=0.0)
  image = raster.render(
      raster.gather((quad(texture, repeat=3.0),)), c2w, k, 40, 40, samples=2,
      ambient=1.0)
  colors = image[image[..., 3] == 255][:, :3]
  assert len(colors) > 500
  np.testing.assert_allclose(colors, 127.5, atol=2)


def test_shading_uses_the_side_towards_the_camera():
  white = np.full((1, 1, 3), 255, np.uint8)
  front, back = (raster.render(
      raster.gather((quad(white),)), *camera(azimuth, 0.0), 8, 8, samples=1,
      ambient=0.25, light=(0.0, 0.0, 1.0))[4, 4] for azimuth in (0.0, 180.0))
  assert tuple(front) == (255, 255, 255, 255)
  assert tuple(back) == (64, 64, 64, 255)


def test_meshes_with_different_materials_occlude_each_other():
  red = np.zeros((1, 1, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
  green = np.full((2, 2, 3), 0, np.uint8)
  green[..., 1] = 255
  near = quad(red)._replace(vertices=quad(red).vertices * 0.5 + [0, 0, 1.0])
  plain = quad(None)._replace(
      vertices=quad(None).vertices * 3 - [0, 0, 1.0],
      colors=np.tile([[0, 0, 1.0]], (4, 1)))
  image = raster.render(
      raster.gather((plain, near, quad(green))), *camera(0.0, 0.0), 31, 31,
      samples=1, ambient=1.0)
  assert tuple(image[15, 15]) == (255, 0, 0, 255)
  assert tuple(image[15, 5]) == (0, 255, 0, 255)
  assert tuple(image[15, 1]) == (0, 0, 255, 255)


def test_a_mesh_without_normals_and_colors_is_white_with_computed_normals():
  ball = sphere()
  white = ball._replace(colors=np.ones_like(ball.vertices))
  bare = Mesh(ball.vertices, ball.faces)
  images = [raster.render(raster.gather((mesh,)), *camera(), 24, 24)
            for mesh in (white, bare)]
  np.testing.assert_allclose(*map(np.float64, images), atol=2)
