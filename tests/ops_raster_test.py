"""The rasterizer against slow ones in NumPy, PyTorch3D and differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.data import raster as slow
from gen3d.ops import cameras, raster

NEAR, FAR = 0.05, 20.0
rasterize = jax.jit(raster.rasterize,
                    static_argnames=('size', 'layers', 'perspective'))
interpolate = jax.jit(raster.interpolate)


def camera(azimuth=25.0, elevation=20.0, distance=2.5, focal=0.7):
  """(c2w, intrinsics) with axes of different scales and skew."""
  orbit = cameras.orbit(azimuth, elevation, distance, focal)
  c2w, k = (np.asarray(x, np.float64) for x in orbit)
  return c2w, k @ np.array([[1, 0.1, 0.06], [0, 1.3, -0.04], [0, 0, 1]])


def clip_positions(points, c2w, k, near=NEAR, far=FAR):
  """Clip positions [N, 4] of points [N, 3] by OpenGL's projection."""
  local = (points - c2w[:3, 3]) @ c2w[:3, :3]
  depth = -local[:, 2]
  flat = np.stack([local[:, 0], -local[:, 1], depth], -1) @ k.T
  z = ((far + near) * depth - 2 * far * near) / (far - near)
  return np.stack([2 * flat[:, 0] - depth, depth - 2 * flat[:, 1], z, depth],
                  -1).astype(np.float32)


def soup(rng, count, center, scale):
  """Random triangles: corners [count, 3, 3]."""
  return (center + rng.normal(scale=scale, size=(count, 1, 3))
          + rng.normal(scale=0.7, size=(count, 3, 3)))


def separate(corners):
  """(vertices, faces) of triangles that share no vertex."""
  return corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3)


@pytest.mark.parametrize('around_camera', [False, True])
def test_equals_the_numpy_rasterizer(around_camera):
  c2w, k = camera()
  rng = np.random.default_rng(1)
  corners = soup(rng, 40, *((c2w[:3, 3], 1.0) if around_camera
                            else (0.0, 0.4)))
  vertices, faces = separate(corners)
  height, width = 47, 62
  expected, weights, depth = slow.rasterize(c2w, k, height, width, corners)
  clip = clip_positions(vertices, c2w, k)
  got = rasterize(clip, faces, (height, width))
  # The slow one has no near plane.
  far = depth > NEAR
  assert np.mean(far) > 0.9
  covered = far & (expected >= 0)
  assert np.sum(covered) > 1000 and len(np.unique(expected[covered])) > 10
  behind = (vertices - c2w[:3, 3]) @ c2w[:3, 2] > 0
  assert behind[faces[expected[covered]]].any() == around_camera
  np.testing.assert_array_equal(got.faces[far], expected[far])
  np.testing.assert_allclose(got.barycentrics[far], weights[far], atol=1e-5)
  ndc = (FAR + NEAR - 2 * FAR * NEAR / depth[covered]) / (FAR - NEAR)
  np.testing.assert_allclose(got.depth[covered], ndc, atol=1e-5)
  empty = far & (expected < 0)
  np.testing.assert_array_equal(got.depth[empty], 1)
  assert not np.any(got.barycentrics[empty])


def test_near_plane_equals_a_densely_divided_mesh():
  # Two large triangles around the camera, against small ones of which those
  # that reach before the near plane are dropped.
  c2w, k = camera(azimuth=0.0, elevation=0.0, distance=1.0)
  corners = c2w[:3, 3] + np.array([
      [[-3.0, -0.4, 2.0], [3.0, -0.5, 1.0], [0.3, -0.4, -6.0]],
      [[0.5, -3.0, 1.0], [0.6, 0.2, -4.0], [0.6, 4.0, 1.5]]])
  vertices, faces = separate(corners)
  near, size = 0.9, (40, 50)
  got = rasterize(
      clip_positions(vertices, c2w, k, near), faces, size)
  parts = 160
  i, j = np.meshgrid(np.arange(parts), np.arange(parts), indexing='ij')
  i, j = i[i + j < parts], j[i + j < parts]
  upper = np.stack([(i, j), (i + 1, j), (i, j + 1)])
  lower = np.stack([(i + 1, j + 1), (i + 1, j), (i, j + 1)])[
      :, :, i + j < parts - 1]
  small = np.concatenate([upper, lower], -1).transpose(2, 0, 1) / parts
  a, b, c = corners[:, None, None].transpose(3, 0, 1, 2, 4)
  points = (a + small[..., :1] * (b - a) + small[..., 1:] * (c - a))
  source = np.repeat([0, 1], len(small))
  points = points.reshape(-1, 3, 3)
  distance = -(points - c2w[:3, 3]) @ c2w[:3, 2]
  keep = distance.min(1) > near
  expected, _, depth = slow.rasterize(c2w, k, *size, points[keep])
  face = np.where(expected < 0, -1, source[keep][expected])
  differs = np.asarray(got.faces) != face
  # Pixels may differ within one small triangle of the near plane.
  ndc = 2 * FAR * near / (FAR + near - np.asarray(got.depth) * (FAR - near))
  assert np.all(ndc[differs] < near + 8 / parts)
  assert np.mean(differs) < 0.02 and set(np.unique(face)) == {-1, 0, 1}
  same = ~differs & (face >= 0)
  np.testing.assert_allclose(ndc[same], depth[same], rtol=1e-4)
  assert np.min(ndc[same]) < near + 0.05 and np.all(ndc >= near - 1e-5)


def test_peels_layers_like_a_sort_of_all_faces():
  c2w, k = camera()
  rng = np.random.default_rng(3)
  corners = soup(rng, 25, 0.0, 0.2)
  # The last two faces are where earlier ones are.
  corners = np.concatenate([corners, corners[[4, 9]]])
  vertices, faces = separate(corners)
  clip = clip_positions(vertices, c2w, k)
  height, width, layers = 21, 26, 6
  got = rasterize(clip, faces, (height, width), layers=layers)
  every = [slow.rasterize(c2w, k, height, width, corner[None])
           for corner in corners]
  depth = np.stack([depth for _, _, depth in every])
  order = np.argsort(depth, axis=0, kind='stable')[:layers]
  expected = np.where(np.isinf(np.take_along_axis(depth, order, 0)), -1, order)
  np.testing.assert_array_equal(got.faces, expected)
  assert np.mean(expected[5] >= 0) > 0.05
  assert np.any((expected[:-1] == 4) & (expected[1:] == 25))
  first = rasterize(clip, faces, (height, width))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x[0], y, atol=1e-6),
               got, first)


def test_views_at_once_mapped_and_in_turn_are_equal(monkeypatch):
  rng = np.random.default_rng(4)
  vertices, faces = separate(soup(rng, 12, 0.0, 0.4))
  clips = jnp.stack([clip_positions(vertices, *camera(azimuth))
                     for azimuth in (0.0, 70.0, 140.0, 210.0)])
  in_turn = jax.tree.map(lambda *x: jnp.stack(x), *(
      rasterize(clip, faces, size=17) for clip in clips))
  mapped = jax.jit(jax.vmap(partial(raster.rasterize, size=17), (0, None)))
  same = partial(jax.tree.map, partial(np.testing.assert_allclose, atol=1e-6))
  same(mapped(clips.reshape(2, 2, -1, 4), faces), jax.tree.map(
      lambda x: x.reshape(2, 2, *x.shape[1:]), in_turn))
  # More faces on a window than are tested at a time.
  monkeypatch.setattr(raster, 'PAIRS', 16)
  same(jax.jit(partial(raster.rasterize, size=17))(clips, faces), in_turn)


def test_mapped_faces_and_layers_of_views():
  rng = np.random.default_rng(4)
  vertices, faces = separate(soup(rng, 12, 0.0, 0.4))
  clips = jnp.stack([clip_positions(vertices, *camera(azimuth))
                     for azimuth in (0.0, 70.0, 140.0, 210.0)])
  mapped = jax.jit(jax.vmap(partial(raster.rasterize, size=17), (None, 0)))(
      clips[0], jnp.stack([faces, faces[::-1]])).faces
  np.testing.assert_array_equal(mapped[1], jnp.where(
      mapped[0] < 0, -1, len(faces) - 1 - mapped[0]))
  layered = rasterize(clips, faces, size=17, layers=2)
  assert layered.faces.shape == (2, 4, 17, 17)
  np.testing.assert_array_equal(layered.faces[0, 0], mapped[0])
  attributes = jnp.asarray(rng.normal(size=(4, len(vertices), 2)))
  np.testing.assert_allclose(
      interpolate(attributes, layered, faces)[1, 2],
      interpolate(attributes[2], jax.tree.map(
          lambda x: x[1, 2], layered), faces), atol=1e-6)


def test_edges_through_pixel_centers_leave_no_gap():
  # A grid whose vertices, edges and diagonals go through centers, with
  # vertices repeated for each face and listed in every order.
  size = 24
  line = (np.arange(0, size + 1, 3) + 0.5) * 2 / size - 1
  x, y = np.meshgrid(line, line)
  index = np.arange(x.size).reshape(x.shape)
  a, b, c, d = (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1])
  faces = np.concatenate([np.stack(t, -1).reshape(-1, 3)
                          for t in ((a, b, c), (a, c, d))])
  rng = np.random.default_rng(5)
  faces = rng.permuted(faces, axis=1)
  vertices = np.stack([x, y, 0 * x, 0 * x + 1], -1).reshape(-1, 4)
  # Perspective: the same places at different depths.
  vertices = vertices * rng.uniform(0.5, 2.0, size=(len(vertices), 1))
  got = rasterize(
      np.float32(vertices[faces].reshape(-1, 4)), separate(faces)[1], size)
  # The last row and the first column are on the border of the grid.
  assert np.all(np.asarray(got.faces)[:-1, 1:] >= 0)
  np.testing.assert_allclose(
      got.barycentrics[:-1, 1:].sum(-1), 1, atol=1e-6)


def test_invisible_faces():
  triangle = np.array([[-1, -1, 0, 1], [1, -1, 0, 1], [0, 1, 0, 1.0]])
  others = np.array([
      triangle + [0, 0, np.nan, 0], triangle + [np.inf, 0, 0, 0],
      triangle - [0, 0, 1.1, 0], triangle + [0, 0, 1.1, 0],
      -triangle, triangle[[0, 0, 1]], triangle + [2.5, 0, 0, 0]])
  vertices = jnp.float32(np.concatenate([others, triangle[None]]))
  vertices, faces = vertices.reshape(-1, 4), np.arange(24).reshape(8, 3)


  @partial(jax.grad, has_aux=True)
  def depth(vertices):
    fragments = raster.rasterize(vertices, faces, 9)
    return jnp.sum(fragments.depth), fragments.faces

  gradient, got = jax.jit(depth)(vertices)
  assert set(np.unique(got)) == {-1, 7}
  # Nor do they and empty pixels spoil gradients.
  assert np.all(np.isfinite(gradient[np.isfinite(vertices).all(1)]))
  outside = vertices.at[-3:].add(np.float32([3, 0, 0, 0]))
  gradient, got = jax.jit(depth)(outside)
  assert np.all(got == -1) and not np.any(gradient[-3:])


@pytest.mark.parametrize('perspective', [True, False])
def test_gradients_equal_differences_on_moved_vertices(perspective):
  c2w, k = camera()
  rng = np.random.default_rng(6)
  vertices, faces = separate(soup(rng, 6, 0.0, 0.3))
  clip = jnp.asarray(clip_positions(vertices, c2w, k))
  attributes = jnp.asarray(rng.normal(size=(len(vertices), 2)), jnp.float32)
  visible = rasterize(clip, faces, 31).faces
  inner = visible >= 0
  for axis in (0, 1):  # away from edges, where coverage changes
    for step in (1, -1):
      inner &= visible == jnp.roll(visible, step, axis)
  assert inner.sum() > 20
  cotangent = jnp.asarray(rng.normal(size=(31, 31, 3)), jnp.float32)

  @jax.jit
  @partial(jax.value_and_grad, argnums=(0, 1))
  def loss(clip, attributes):
    fragments = raster.rasterize(clip, faces, 31, perspective=perspective)
    values = jnp.concatenate([
        raster.interpolate(attributes, fragments, faces),
        fragments.depth[..., None]], -1)
    return jnp.sum(jnp.where(inner[..., None], values * cotangent, 0))

  _, gradients = loss(clip, attributes)
  for argument in (0, 1):
    for _ in range(3):
      value = (clip, attributes)[argument]
      step = 2e-3 * rng.normal(size=value.shape).astype(np.float32)
      moved = [[clip, attributes] for _ in range(2)]
      moved[0][argument] += step
      moved[1][argument] -= step
      difference = (loss(*moved[0])[0] - loss(*moved[1])[0]) / 2
      np.testing.assert_allclose(
          jnp.sum(gradients[argument] * step), difference,
          rtol=0.02, atol=2e-4)


def test_derivatives_in_the_image_equal_differences():
  clip = np.float32([[-2, -2, 0, 1], [6, -5, 0, 3], [-1, 5, 0, 2.5]])
  faces, attribute_faces = np.array([[0, 1, 2]]), np.array([[2, 0, 1]])
  uv = jnp.asarray(np.random.default_rng(7).normal(size=(3, 2)), jnp.float32)
  height, width = 200, 300
  fragments = rasterize(clip, faces, (height, width))
  values = interpolate(uv, fragments, attribute_faces)
  got = jax.jit(raster.pixel_derivatives)(
      uv, fragments, clip, faces, attribute_faces)
  covered = np.asarray(fragments.faces) == 0
  for axis in (0, 1):
    step = [(0, 2), (2, 0)][axis]
    ahead = values[step[0]:, step[1]:]
    behind = values[:height - step[0], :width - step[1]]
    inside = (covered[step[0]:, step[1]:]
              & covered[:height - step[0], :width - step[1]])
    center = got[step[0] // 2:, step[1] // 2:, :, axis][
        :inside.shape[0], :inside.shape[1]]
    np.testing.assert_allclose(
        center[inside], ((ahead - behind) / 2)[inside], rtol=0.02, atol=1e-4)
  assert not np.any(got[~covered])


def pytorch3d_clip(view, scale, near=0.1, far=100.0):
  """Clip positions of points in PyTorch3D's view axes (x to the left)."""
  z = view[..., 2]
  return jnp.asarray(np.stack([
      -scale * view[..., 0], scale * view[..., 1],
      ((far + near) * z - 2 * far * near) / (far - near), z], -1), jnp.float32)


def test_depth_maps_of_lifted_gan_equal_pytorch3d(reference_data):
  data = reference_data('lifted_tiny')
  size = data['render.verts'].shape[1]
  vertices = data['render.verts'].reshape(2, -1, 3)
  index = np.arange(size**2).reshape(size, size)
  a, b, c, d = (x.ravel() for x in (
      index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
  faces = np.concatenate([np.stack(t, -1) for t in ((a, c, b), (b, c, d))])
  colors = np.moveaxis(data['render.canon_im'], 1, -1).reshape(2, -1, 3)
  scale = float(data['camera.projection'][0, 0, 0])
  clip = pytorch3d_clip(vertices * [-1, -1, 1], scale)
  face = data['render.pix_to_face']
  face = np.where(face < 0, -1, face % len(faces))
  for key, perspective in (('render', False), ('render_pc', True)):
    got = rasterize(clip, faces, size, perspective=perspective)
    # PyTorch3D interpolates depth instead of its inverse: another face may be
    # nearer where two meet.
    inner = np.min(got.barycentrics, axis=-1) > 1e-3
    np.testing.assert_array_equal((got.faces < 0), face < 0)
    np.testing.assert_array_equal(got.faces[inner], face[inner])
    image = jnp.where(got.faces[..., None] < 0, 1.0, interpolate(
        jnp.asarray(colors), got, faces))
    expected = np.moveaxis(data[f'{key}.image'], 1, -1)
    np.testing.assert_allclose(image, expected, atol=5e-4)
    if not perspective:
      depth = interpolate(
          jnp.asarray(vertices[..., 2:]), got, faces)[..., 0]
      inner &= face >= 0
      np.testing.assert_allclose(
          depth[inner], data['render.depth'][inner], atol=1e-4)
      row = got.barycentrics[:, size // 2]
      inner = inner[:, size // 2]
      np.testing.assert_allclose(
          row[inner], data['render.bary_row_mid'][inner], atol=1e-4)


def test_uv_map_of_scenetex_equals_pytorch3d(reference_data):
  data = reference_data('scenetex')
  view = data['uv.verts'] @ data['uv.R'][0] + data['uv.T']
  faces, face = data['uv.faces'], data['uv.pix_to_face'][0, ..., 0]
  clip = pytorch3d_clip(view, 1 / np.tan(np.pi / 6))
  got = rasterize(clip, faces, face.shape)
  np.testing.assert_array_equal(got.faces, face)
  covered = face >= 0
  np.testing.assert_allclose(
      got.barycentrics[covered], data['uv.bary'][0, ..., 0, :][covered],
      atol=1e-5)
  for values, expected in ((view[:, 2:], data['uv.zbuf'][0]),
                           (data['uv.verts_uvs'], data['uv.coords'][0])):
    np.testing.assert_allclose(
        interpolate(jnp.asarray(values), got, faces)[covered],
        expected[covered], atol=1e-5)
