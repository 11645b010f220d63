"""metrics.shape against solids whose overlap and distance are known."""

import numpy as np
import pytest
import trimesh

from gen3d.metrics import shape


def ball(radius, center=(0.0, 0.0, 0.0)):
  return lambda x: np.linalg.norm(x - np.array(center), axis=-1) < radius


def box(half, center=(0.0, 0.0, 0.0)):
  return lambda x: np.all(np.abs(x - np.array(center)) < half, axis=-1)


def iou_in_place(a, b, bound=1.0, resolution=96):
  """The IoU without alignment, by counting cells."""
  points = shape.cell_centers(bound, resolution)
  a, b = a(points), b(points)
  return np.sum(a & b) / np.sum(a | b)


def test_best_scale_iou_recovers_scale_and_shift():
  small = box((0.2, 0.3, 0.1), (0.1, -0.2, 0.1))
  large = box((0.4, 0.6, 0.2), (0.0, 0.1, -0.1))
  assert iou_in_place(small, large) < 0.2
  fit = shape.best_scale_iou(small, large, 1.0)
  assert fit.iou > 0.9 and fit.scale == pytest.approx(2.0, rel=0.05)
  np.testing.assert_allclose(
      fit.place(np.array([[0.1, -0.2, 0.1]])), [[0.0, 0.1, -0.1]], atol=0.03)


def test_search_improves_a_start_with_misplaced_centroid():
  """A distant floater changes volume and centroid, not the optimum."""
  body = box(0.3)
  with_floater = lambda x: body(x) | box(0.15, (0.8, 0.8, 0.8))(x)
  fit = shape.best_scale_iou(with_floater, body, 1.0, 80)
  assert fit.iou == pytest.approx(0.3**3 / (0.3**3 + 0.15**3), abs=0.02)


def test_a_solid_is_aligned_with_a_hollow_reference():
  """With equal volumes the search ends within the wall of the tube."""
  size = lambda x: np.hypot(x[:, 0], x[:, 2])
  rod = lambda x: (size(x) < 0.05) & (np.abs(x[:, 1] + 0.4) < 0.4)
  solid = lambda x: (size(x) < 0.3) & (np.abs(x[:, 1] - 0.3) < 0.3) | rod(x)
  tube = lambda x: solid(x) & ~((size(x) < 0.27) & (x[:, 1] > 0))
  fit = shape.best_scale_iou(solid, tube, 1.0)
  assert fit.scale == pytest.approx(1.0, abs=0.05)
  assert fit.iou == pytest.approx(
      iou_in_place(solid, tube), abs=0.03)


@pytest.mark.filterwarnings('error')
def test_a_shape_may_be_one_cell_thick():
  plate = box(np.array([0.4, 0.012, 0.3]), (0.0, 0.01, 0.0))
  points = shape.cell_centers(1.0, 96)
  assert len(np.unique(points[plate(points)][:, 1])) == 1
  assert 0 < shape.best_scale_iou(plate, box(0.3), 1.0).iou < 0.5


def test_iou_of_ball_and_cube_equals_a_fine_search():
  """The IoU of a ball and a cube at the best scale, by a fine search."""
  points = shape.cell_centers(0.6, 72)
  cube = box(0.4)(points)
  best = max(np.sum(cube & b) / np.sum(cube | b) for b in
             (ball(r)(points) for r in np.linspace(0.42, 0.54, 13)))
  fit = shape.best_scale_iou(ball(0.7), box(0.4), 1.0)
  assert fit.iou == pytest.approx(best, abs=0.02)


def test_shapes_are_not_rotated_to_fit():
  """An arm along +z in one and along +x in the other."""
  post = box((0.1, 0.5, 0.1))
  front = lambda x: post(x) | box((0.1, 0.1, 0.3), (0, 0, 0.3))(x)
  side = lambda x: post(x) | box((0.3, 0.1, 0.1), (0.3, 0, 0))(x)
  assert shape.best_scale_iou(front, side, 1.0).iou < 0.8


def test_an_empty_shape_is_refused():
  with pytest.raises(ValueError, match='The shape is empty within 1 of'):
    shape.best_scale_iou(ball(0), ball(0.5), 1.0)


def test_f_score_of_concentric_spheres():
  sphere = trimesh.creation.icosphere(subdivisions=4)
  a = shape.sample_surface(0.5 * sphere.vertices, sphere.faces, 20000)
  b = shape.sample_surface(0.6 * sphere.vertices, sphere.faces, 20000, 1)
  assert shape.f_score(a, b, 0.09) == 0
  assert shape.f_score(a, b, 0.12) == 1
  half = a[a[:, 0] > 0]  # all of it is right, half is missing: 2/3
  assert shape.f_score(half, a, 0.03) == pytest.approx(2 / 3, abs=0.03)
  assert np.linalg.norm(a.mean(0)) < 0.01


def test_surface_samples_are_uniform_by_area():
  vertices = np.array([[0, 0, 0], [3, 0, 0], [3, 1, 0], [0, 1, 0], [4, 0, 0],
                       [4, 1, 0]], float)
  faces = np.array([[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]])
  points = shape.sample_surface(vertices, faces, 8000)
  counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=(8, 2))
  assert np.abs(counts - 500).max() < 120


@pytest.mark.parametrize('name', ['ball', 'torus', 'two'])
def test_inside_mesh_agrees_with_the_solid(name):
  if name == 'ball':
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.7)
    truth = ball(0.7)
  elif name == 'torus':
    mesh = trimesh.creation.torus(0.6, 0.2, 96, 48)
    truth = lambda x: (np.hypot(x[:, 0], x[:, 1]) - 0.6) ** 2 + (
        x[:, 2] ** 2) < 0.04
  else:
    mesh = trimesh.util.concatenate([
        trimesh.creation.box((0.5, 0.5, 0.5)).apply_translation([-.5, 0, 0]),
        trimesh.creation.box((0.4, 1.2, 0.3)).apply_translation([.5, 0, .1])])
    truth = lambda x: box(0.25, (-0.5, 0, 0))(x) | box(
        (0.2, 0.6, 0.15), (0.5, 0, 0.1))(x)
  inside = shape.inside_mesh(mesh.vertices, mesh.faces, 1.0, 96)
  points = np.random.default_rng(0).uniform(-1.2, 1.2, (20000, 3))
  assert np.mean(inside(points) == truth(points)) > 0.985
  assert iou_in_place(inside, truth) > 0.97
