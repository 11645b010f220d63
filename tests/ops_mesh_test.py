"""ops.mesh against analytic solids, and trimesh for the topology."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from gen3d.ops import mesh


def solid(distance, density=60.0, width=0.02):
  """A query whose density falls from `density` to 0 across distance 0."""
  @jax.jit
  def query(points):
    colors = jnp.clip(points + 0.5, 0.0, 1.0)
    return density * jax.nn.sigmoid(-distance(points) / width), colors
  return query


def sphere(center, radius):
  center = jnp.array(center)
  return lambda x: jnp.linalg.norm(x - center, axis=-1) - radius


def union(*distances):
  return lambda x: jnp.min(jnp.stack([d(x) for d in distances]), axis=0)


def check_topology(result):
  shape = trimesh.Trimesh(result.vertices, result.faces, process=False)
  assert shape.is_watertight and shape.is_winding_consistent
  assert shape.volume > 0
  assert (trimesh.triangles.area(shape.triangles) > 0).all()
  return shape


def test_sphere_has_its_radius_place_colors_and_topology():
  center = np.array([0.2, -0.1, 0.3])
  result = mesh.extract(solid(sphere(center, 0.4)), 1.0, 64)
  shape = check_topology(result)
  radii = np.linalg.norm(result.vertices - center, axis=-1)
  # A tangent ray passes through the soft rim along a chord, so that it is
  # half opaque outside 0.4.
  assert np.abs(radii - radii.mean()).max() < 0.005
  assert 0.40 < radii.mean() < 0.47
  assert shape.euler_number == 2
  np.testing.assert_allclose(
      result.colors, np.clip(result.vertices + 0.5, 0, 1), atol=0.02)


def test_inset_moves_the_surface_but_not_where_colors_are_read():
  field = solid(sphere([0.0, 0.0, 0.0], 0.4))
  outer = mesh.extract(field, 1.0, 48)
  inner = mesh.extract(field, 1.0, 48, inset=0.03)
  radius = lambda x: np.linalg.norm(x.vertices, axis=1)
  np.testing.assert_allclose(radius(outer) - radius(inner), 0.03, atol=1e-4)
  np.testing.assert_array_equal(outer.colors, inner.colors)
  check_topology(inner)


def test_box_has_its_extents_along_each_axis():
  box = lambda x: jnp.max(
      jnp.abs(x - jnp.array([0.1, 0.2, 0.3]))
      - jnp.array([0.5, 0.3, 0.15]), -1)
  result = mesh.extract(solid(box, 400.0, 0.001), 1.0, 96)
  np.testing.assert_allclose(
      result.vertices.min(0), [-0.4, -0.1, 0.15], atol=0.015)
  np.testing.assert_allclose(
      result.vertices.max(0), [0.6, 0.5, 0.45], atol=0.015)


def test_object_cut_by_the_bound_is_closed_there():
  result = mesh.extract(solid(sphere([0.9, 0.0, 0.0], 0.5)), 1.0, 48)
  check_topology(result)
  assert result.vertices[:, 0].max() < 1.0 + 1.0 / 40


@pytest.mark.parametrize('seed', range(3))
def test_isosurface_of_noise_is_watertight(seed):
  """Random grids contain every ambiguous case of marching cubes."""
  density = np.random.default_rng(seed).exponential(size=(16, 17, 18))
  vertices, faces = mesh.isosurface(density, 1.2, np.zeros(3), 0.1)
  edges = np.sort(np.concatenate(
      [faces[:, :2], faces[:, 1:], faces[:, [2, 0]]]), axis=-1)
  _, uses = np.unique(edges, axis=0, return_counts=True)
  assert (uses % 2 == 0).all()
  assert mesh.volume(vertices, faces) > 0


def test_keep_share_selects_components_by_volume():
  field = solid(union(sphere([-0.4, 0.0, 0.0], 0.4),
                      sphere([0.6, 0.0, 0.0], 0.2),
                      sphere([0.5, 0.7, 0.0], 0.08)))
  count = lambda m: trimesh.Trimesh(
      m.vertices, m.faces, process=False).body_count
  largest = mesh.extract(field, 1.0, 64)
  assert count(largest) == 1 and largest.vertices[:, 0].max() < 0.1
  assert count(mesh.extract(field, 1.0, 64, keep_share=0.05)) == 2
  assert count(mesh.extract(field, 1.0, 64, keep_share=0.001)) == 3


def test_surfaces_of_cavities_are_removed():
  shell = lambda x: jnp.maximum(
      sphere([0.0, 0.0, 0.0], 0.6)(x), -sphere([0.0, 0.0, 0.0], 0.3)(x))
  result = mesh.extract(solid(shell), 1.0, 64, keep_share=0.0)
  assert check_topology(result).body_count == 1
  assert np.linalg.norm(result.vertices, axis=-1).min() > 0.5

def test_hidden_depth_is_the_least_sum_on_the_way_outside():
  density = np.random.default_rng(0).uniform(
      0, 5, (4, 6, 5)).astype(np.float32)
  shape, expected = np.array(density.shape), np.full(density.shape, np.inf)
  for index in np.ndindex(density.shape):
    for step in set(itertools.product((-1, 0, 1), repeat=3)) - {(0, 0, 0)}:
      point, total = np.array(index) + step, 0.5 * density[index]
      while np.all((point >= 0) & (point < shape)):
        total += density[tuple(point)]
        point = point + step
      expected[index] = min(
          expected[index], total * 0.1 * np.linalg.norm(step))
  np.testing.assert_allclose(
      mesh.hidden_depth(density, 0.1), expected, rtol=1e-5)


@pytest.mark.parametrize('width, density, filled', [
    (0.15, 40.0, True), (0.3, 0.0, False)])
def test_solid_fills_what_cannot_be_seen_from_outside(width, density, filled):
  """A spherical shell with a core, thinner or open at the top."""
  def query(points):
    radius = np.linalg.norm(points, axis=-1)
    shell = (radius < 0.5) & (radius > 0.4)
    top = (points[:, 1] > 0) & (
        np.hypot(points[:, 0], points[:, 2]) < width)
    # 40 is opaque at this thickness, but less than the level of the rest.
    values = np.where(shell, np.where(top, density, 400.0), 0.0)
    return np.where(radius < 0.1, 400.0, values), np.full((len(points), 3), .5)

  ball = 4 / 3 * np.pi * 0.5 ** 3
  for solid in (False, True):
    surface = mesh.extract(query, 1.0, 96, keep_share=0.0, solid=solid)
    volume = mesh.volume(surface.vertices, surface.faces)
    assert (volume > 0.9 * ball) == (solid and filled)


@pytest.mark.parametrize('density, width', [
    (8.0, 0.15), (40.0, 0.05), (400.0, 0.01)])
def test_auto_threshold_agrees_with_the_rendered_silhouette(density, width):
  """The level's radius against that of half opacity on finely sampled rays."""
  query = solid(sphere([0.0, 0.0, 0.0], 0.5), density, width)
  grid, _, spacing = mesh.sample_grid(
      query, np.array([[-1.0] * 3, [1.0] * 3]), 64)
  level = mesh.auto_threshold(grid, spacing)
  steps = np.linspace(-1, 1, 4001)

  def profile(offset):
    points = np.stack([0 * steps + offset, 0 * steps, steps], -1)
    return np.asarray(query(points.astype(np.float32))[0])

  # The offset from the center at which a ray is just half opaque.
  offsets = np.linspace(0.2, 1.0, 161)
  opacity = [1 - np.exp(-profile(o).sum() * 5e-4) for o in offsets]
  silhouette = offsets[np.argmin(np.abs(np.array(opacity) - 0.5))]
  radius = np.interp(-level, -profile(0.0)[2000:], steps[2000:])
  assert abs(radius - silhouette) < 0.03


def test_coarse_grid_does_not_lose_thin_parts():
  rod = lambda x: jnp.maximum(
      jnp.linalg.norm(x[:, :2] - 0.012, axis=-1) - 0.02,
      jnp.abs(x[:, 2]) - 0.8)
  result = mesh.extract(
      solid(union(sphere([0.0, 0.0, 0.0], 0.2), rod), 400.0, 0.004), 1.0, 128)
  assert result.vertices[:, 2].max() == pytest.approx(0.8, abs=0.03)


def test_smoothing_preserves_the_volume_and_improves_the_normals():
  query = solid(sphere([0.0, 0.0, 0.0], 0.5), 400.0, 0.001)
  density, origin, spacing = mesh.sample_grid(
      query, np.array([[-0.6] * 3, [0.6] * 3]), 48)
  vertices, faces = mesh.isosurface(density, 200.0, origin, spacing)
  plain = mesh.Mesh(vertices, faces)
  smooth = mesh.Mesh(mesh.smooth(vertices, faces, 4), faces)
  volumes = [mesh.volume(m.vertices, m.faces) for m in (plain, smooth)]
  assert volumes[1] == pytest.approx(volumes[0], rel=0.01)
  error = [np.mean(1 - np.sum(
      mesh.vertex_normals(m.vertices, m.faces)
      * m.vertices / np.linalg.norm(m.vertices, axis=-1, keepdims=True), -1))
           for m in (plain, smooth)]
  assert error[1] < 0.5 * error[0]


def test_empty_field_is_an_error_with_a_remedy():
  fog = lambda x: (jnp.full(len(x), 0.01), jnp.zeros((len(x), 3)))
  with pytest.raises(
      mesh.EmptyField, match=r'largest density 0\.01, .*0\.02.*config\.steps'):
    mesh.extract(fog, 1.0, 32)


def test_normalizing_to_a_ball_centers_the_used_vertices():
  shape = trimesh.creation.icosphere(2, 3.0)
  # Vertices without a face do not count.
  ball = mesh.Mesh(np.asarray(shape.vertices), np.asarray(shape.faces)[:40])
  moved = ball._replace(vertices=ball.vertices + [5.0, 0, 0])
  scaled, = mesh.normalize_to_ball((moved,), 0.5)
  used = scaled.vertices[np.unique(scaled.faces)]
  assert np.linalg.norm(used, axis=-1).max() == pytest.approx(0.5)
  np.testing.assert_allclose(used.min(0), -used.max(0), atol=1e-12)
  with pytest.raises(ValueError, match='no triangles'):
    mesh.normalize_to_ball(())
  with pytest.raises(ValueError, match='at one place'):
    mesh.normalize_to_ball((ball._replace(vertices=ball.vertices * 0),))
  with pytest.raises(ValueError, match='not finite'):
    mesh.normalize_to_ball((ball._replace(vertices=ball.vertices * np.nan),))


def test_normals_stay_perpendicular_under_an_affine_map():
  shape = trimesh.creation.icosphere(3)
  vertices, faces = np.asarray(shape.vertices), np.asarray(shape.faces)
  matrix = np.array([[2, 0.5, 0, 1], [0, 1, 0, 2], [0.3, 0, 0.5, 3],
                     [0, 0, 0, 1.0]])
  moved = mesh.transform(mesh.Mesh(vertices, faces, vertices), matrix)
  np.testing.assert_allclose(
      moved.vertices, vertices @ matrix[:3, :3].T + [1, 2, 3])
  np.testing.assert_allclose(np.linalg.norm(moved.normals, axis=-1), 1)
  agreement = np.sum(
      moved.normals * mesh.vertex_normals(moved.vertices, faces), -1)
  assert agreement.min() > 0.99
