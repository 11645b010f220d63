"""ops.bake: textures of known color functions, and gutters."""

import numpy as np
import pytest
import trimesh

from gen3d.ops import atlas_process, bake, textures
from gen3d.ops import mesh as mesh_ops

SIZE = 128


def color(points):
  """Smooth, and different on all sides."""
  return 0.5 + 0.45 * np.sin(2 * points + [0, 1, 2])


def ball():
  shape = trimesh.creation.icosphere(3)
  return mesh_ops.Mesh(np.asarray(shape.vertices, np.float32),
                       np.asarray(shape.faces), colors=np.zeros((642, 3)))


@pytest.fixture(scope='module')
def baked():
  return bake.bake(color, ball(), SIZE)


def test_a_mesh_too_irregular_for_an_atlas_keeps_its_vertex_colors(
    monkeypatch, capsys):
  monkeypatch.setattr(atlas_process, '_SECONDS', 1)
  monkeypatch.setattr(atlas_process, '_SECONDS_PER_FACE', 0)
  density = np.random.default_rng(0).exponential(size=(40, 40, 40))
  vertices, faces = mesh_ops.isosurface(density, 1.2, np.zeros(3), 0.02)
  noisy = mesh_ops.Mesh(vertices.astype(np.float32), faces,
                        colors=np.zeros((len(vertices), 3), np.float32))
  assert bake.bake(color, noisy, SIZE) is noisy
  assert (f'no texture atlas of its {len(faces):,} triangles was found in 1 '
          'seconds') in capsys.readouterr().err


def surface_points(mesh, count=4000):
  """Random points [N, 3] of the faces and their uv [N, 2]."""
  rng = np.random.default_rng(0)
  corners = mesh.faces[rng.integers(len(mesh.faces), size=count)]
  weights = rng.dirichlet(np.ones(3), count)
  at = lambda x: np.einsum('nk,nkc->nc', weights, x[corners])
  return at(mesh.vertices), at(mesh.uv)


def test_lookups_give_the_color_of_the_place_on_the_surface(baked):
  assert baked.texture.shape == (SIZE, SIZE, 3)
  assert baked.texture.dtype == np.uint8 and baked.colors is None
  points, uv = surface_points(baked)
  looked_up = textures.texture(np.float32(baked.texture) / 255, uv)
  # Half an edge below the surface, and a texel's width.
  np.testing.assert_allclose(looked_up, color(points), atol=0.09)
  assert np.sqrt(np.mean((looked_up - color(points)) ** 2)) < 0.03


def test_colors_are_read_half_an_edge_below_the_surface():
  radii = []

  def record(points):
    radii.append(np.linalg.norm(points, axis=-1))
    return points

  surface = bake.bake(record, ball(), SIZE)
  a, b = surface.vertices[surface.faces[:, :2]].transpose(1, 0, 2)
  edge = np.linalg.norm(a - b, axis=-1).mean()
  np.testing.assert_allclose(radii[0], 1 - edge / 2, atol=0.02)
  assert len(radii[0]) == mesh_ops.CHUNK


def test_neither_the_gutter_nor_mipmaps_mix_in_another_color():
  red = np.array([0.8, 0.2, 0.4])
  baked = bake.bake(lambda points: 0 * points + red, ball(), SIZE)
  np.testing.assert_array_equal(
      baked.texture, np.broadcast_to(np.round(255 * red), (SIZE, SIZE, 3)))


def test_mipmaps_a_quarter_as_wide_as_the_gutter_do_not_mix_charts(
    monkeypatch):
  """Two cubes, black and white: in the means of 2 x 2 texels, too."""
  monkeypatch.setattr(bake.atlas, 'gutter_width', lambda size: 8)
  shape = trimesh.creation.box()
  vertices, faces = np.asarray(shape.vertices), np.asarray(shape.faces)
  mesh = mesh_ops.Mesh(np.concatenate([vertices, vertices + 3]).astype(
      np.float32), np.concatenate([faces, faces + 8]))
  baked = bake.bake(lambda points: 0 * points + (points > 1.5), mesh, SIZE)
  points, uv = surface_points(baked)
  half = textures.build_mips(np.float32(baked.texture) / 255)[1]
  np.testing.assert_allclose(
      textures.texture(half, uv)[:, 0], points[:, 0] > 1.5, atol=1e-6)


def test_dilation_takes_the_nearest_texel():
  rng = np.random.default_rng(2)
  image = rng.integers(1, 255, size=(9, 11, 3)).astype(np.uint8)
  covered = rng.uniform(size=(9, 11)) < 0.1
  filled = bake.dilate(image, covered)
  where = np.argwhere(covered)
  for row in range(9):
    for column in range(11):
      distance = np.sum((where - [row, column]) ** 2, -1)
      nearest = where[distance == distance.min()]
      assert (filled[row, column] == image[tuple(nearest.T)]).all(-1).any()
  np.testing.assert_array_equal(
      bake.dilate(image, np.zeros_like(covered)), image)


def test_vertex_colors_are_the_product_and_none_without_colors(baked):
  colors = bake.vertex_colors(baked)
  np.testing.assert_allclose(colors, color(baked.vertices), atol=0.09)
  factor = np.linspace(0, 1, 3 * len(colors)).reshape(-1, 3)
  np.testing.assert_allclose(
      bake.vertex_colors(baked._replace(colors=factor)), factor * colors)
  assert bake.vertex_colors(baked._replace(texture=None)) is None


def test_without_texture_the_seams_are_merged(baked):
  merged = bake.without_texture(baked)
  assert len(merged.vertices) == 642 < len(baked.vertices)
  assert trimesh.Trimesh(
      merged.vertices, merged.faces, process=False).is_watertight
  np.testing.assert_allclose(merged.colors, color(merged.vertices), atol=0.09)
  assert merged.uv is None and merged.texture is None


@pytest.mark.parametrize('size', [-1, 15, 8193])
def test_sizes_that_are_not_possible_are_refused(size):
  with pytest.raises(ValueError, match=f'have {size} texels.*16 to 8192'):
    bake.check_size(size)
  for possible in (0, 16, 8192):
    bake.check_size(possible)


def test_unseen_points_get_the_nearest_color_of_their_group():
  colors = np.eye(5)[:, :3]
  points = np.array([[0.0, 0, 0], [1, 0, 0], [0.9, 0, 0], [0.1, 0, 0],
                     [0.8, 0, 0]])
  seen = np.array([True, True, False, False, False])
  groups = np.array([0, 0, 0, 0, 1])
  filled = bake.fill_unseen(colors, points, seen, groups)
  # The last one's group has no seen point.
  np.testing.assert_array_equal(filled, colors[[0, 1, 1, 0, 4]])
