"""Similarity of solid shapes: IoU at the best scale, and F-score.

Vocabulary. A shape is an indicator function `inside`: points [N, 3] -> bool
[N]. These metrics run on the host, on finished objects. A text determines
neither the size nor the position of its object, so `best_scale_iou` first
aligns the shape with the reference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.optimize
import scipy.spatial

from gen3d.choices import UserError

Inside = Callable[[np.ndarray], Any]  # points [N, 3] -> bool [N]


class Alignment(NamedTuple):
  """The placement of a shape with the largest overlap, and that overlap.

  A point p of the shape is moved to scale * p + shift.
  """
  iou: float
  scale: float
  shift: Any  # [3]

  def place(self, points: np.ndarray) -> np.ndarray:
    """Moves points [N, 3] of the shape into the reference's frame."""
    return self.scale * points + self.shift


def best_scale_iou(inside: Inside, reference: Inside, bound: float,
                   resolution: int = 96) -> Alignment:
  """Finds the scale and shift of a shape that maximize its IoU.

  Nelder-Mead over the scale and the three shifts from two starts: equal
  volumes and centroids, and equal bounding boxes. The first is far from the
  optimum for a solid shape with a hollow reference.

  Args:
    inside: the shape.
    reference: the shape that it is compared with.
    bound: half the side of the cube, around the origin, that holds each.
    resolution: cells along its side.

  Returns:
    The Alignment with the largest IoU of the two searches.

  Raises:
    UserError: a shape is empty within the bound.
  """
  points = cell_centers(bound, resolution)
  cell = 2 * bound / resolution
  # The reference is sampled off the lattice: with both on one lattice, a shape
  # could shrink by half a cell without losing a point.
  jittered = points + np.random.default_rng(0).uniform(
      -0.5 * cell, 0.5 * cell, points.shape).astype(np.float32)
  in_reference = np.asarray(reference(jittered))
  in_shape = np.asarray(inside(points))
  for name, cells in (('shape', in_shape), ('reference', in_reference)):
    if not cells.any():
      raise UserError(
          f'The {name} is empty within {bound:g} of the origin, so that it has '
          'no IoU; train the object for more steps (--config.steps).')
  grid = in_shape.reshape((resolution,) * 3).astype(np.float32)
  target = jittered[in_reference]

  def overlap(scale, shift):
    index = ((target - shift) / scale + bound) / cell - 0.5
    intersection = np.sum(scipy.ndimage.map_coordinates(
        grid, index.T, order=1, mode='constant') > 0.5)
    union = len(target) + in_shape.sum() * scale**3 - intersection
    return float(intersection / union)

  def climb(start):
    scale, shift = start(points[in_shape], target, cell)
    # Unknowns of one magnitude: shifts in units of 3 cells, scale of 10 %.
    decode = lambda x: (scale * np.exp(0.1 * x[3]), shift + 3 * cell * x[:3])
    simplex = np.concatenate([np.zeros((1, 4)), np.eye(4)]) - 0.2
    optimum = scipy.optimize.minimize(
        lambda x: -overlap(*decode(x)), np.zeros(4), method='Nelder-Mead',
        options={'initial_simplex': simplex, 'xatol': 0.02, 'fatol': 1e-4})
    return Alignment(-float(optimum.fun), *decode(optimum.x))

  return max((climb(start) for start in (_equal_volumes, _equal_boxes)),
             key=lambda alignment: alignment.iou)


def f_score(points_a: np.ndarray, points_b: np.ndarray,
            threshold: float) -> float:
  """Harmonic mean of precision and recall of surface points.

  Precision is the fraction of points_a within `threshold` of points_b, recall
  the fraction of points_b within it of points_a (Knapitsch et al., Tanks and
  Temples, 2017).

  Args:
    points_a: [N, 3], of the evaluated surface.
    points_b: [M, 3], of the reference.
    threshold: distance.
  """
  tree_a, tree_b = map(scipy.spatial.KDTree, (points_a, points_b))
  a_to_b, b_to_a = tree_b.query(points_a)[0], tree_a.query(points_b)[0]
  precision, recall = np.mean(a_to_b < threshold), np.mean(b_to_a < threshold)
  return float(2 * precision * recall / max(precision + recall, 1e-12))


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int,
                   seed: int = 0) -> np.ndarray:
  """Samples points [count, 3] uniformly by area on a mesh."""
  return sample_values(vertices, faces, vertices, count, seed)


def sample_values(vertices: np.ndarray, faces: np.ndarray, values: np.ndarray,
                  count: int, seed: int = 0) -> np.ndarray:
  """Values [count, C] of vertices [V, C] at the points of `sample_surface`."""
  rng = np.random.default_rng(seed)
  a, b, c = np.asarray(vertices, np.float64)[np.asarray(faces).T]
  area = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
  face = rng.choice(len(area), count, p=area / area.sum())
  # Uniform in the parallelogram; its far half is reflected into the triangle.
  u, v = rng.random((2, count, 1))
  u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
  a, b, c = np.asarray(values, np.float64)[np.asarray(faces).T]
  return a[face] + u * (b - a)[face] + v * (c - a)[face]


def inside_mesh(vertices: np.ndarray, faces: np.ndarray, bound: float,
                resolution: int = 128) -> Inside:
  """Returns the indicator function of a closed mesh, by winding numbers.

  In every column of the grid along z, the winding number of a cell is the sum
  over the faces below it: +1 where the column enters the solid, -1 where it
  leaves.

  Args:
    vertices: [V, 3].
    faces: [F, 3], counter-clockwise from outside.
    bound: half the side of the cube, around the origin, that is covered;
      points outside are not inside.
    resolution: cells along its side.
  """
  cell = 2 * bound / resolution
  # A small shift against columns that pass exactly through an edge, which
  # would count it twice.
  corner = np.asarray(vertices, np.float64) + cell * np.array(
      [1.37e-4, 2.91e-4, 0])
  a, b, c = ((corner + bound) / cell - 0.5)[np.asarray(faces).T]
  # All pairs (face, column) of the faces' bounding boxes, flattened.
  low = np.ceil(np.minimum(np.minimum(a, b), c)[:, :2]).astype(int)
  high = np.floor(np.maximum(np.maximum(a, b), c)[:, :2]).astype(int)
  low, high = np.clip(low, 0, resolution), np.clip(high, -1, resolution - 1)
  width, height = np.maximum(high - low + 1, 0).T
  face = np.repeat(np.arange(len(a)), width * height)
  first = np.cumsum(width * height) - width * height
  inner = np.arange(len(face)) - first[face]
  x = low[face, 0] + inner // height[face]
  y = low[face, 1] + inner % height[face]
  # Of these, the columns that pierce the face, and at which z they do.
  a, b, c = a[face], b[face], c[face]
  edge = lambda p, q: ((q[:, 0] - p[:, 0]) * (y - p[:, 1])
                       - (q[:, 1] - p[:, 1]) * (x - p[:, 0]))
  at_a, at_b, at_c = edge(b, c), edge(c, a), edge(a, b)
  doubled_area = at_a + at_b + at_c  # signed, of the projection along z
  pierced = (np.sign(at_a) == np.sign(at_b)) & (
      np.sign(at_b) == np.sign(at_c)) & (doubled_area != 0)
  x, y, doubled_area = x[pierced], y[pierced], doubled_area[pierced]
  z = np.sum([w[pierced] * p[pierced, 2] for w, p in
              ((at_a, a), (at_b, b), (at_c, c))], axis=0) / doubled_area
  z = np.clip(np.ceil(z), 0, resolution).astype(int)
  winding = np.zeros((resolution, resolution, resolution + 1), np.int32)
  # A face oriented towards +z, with positive area, is left upwards.
  np.add.at(winding, (x, y, z), -np.sign(doubled_area).astype(np.int32))
  solid = np.cumsum(winding, axis=-1)[..., :-1] > 0

  def inside(points):
    index = np.floor((np.asarray(points) + bound) / cell).astype(int)
    within = np.all((index >= 0) & (index < resolution), axis=-1)
    index = np.clip(index, 0, resolution - 1)
    return within & solid[tuple(index.T)]

  return inside


def cell_centers(bound: float, resolution: int) -> np.ndarray:
  """Centers [resolution^3, 3] of the cells of the cube, z fastest."""
  line = (np.arange(resolution) + 0.5) * (2 * bound / resolution) - bound
  return np.stack(np.meshgrid(line, line, line, indexing='ij'), -1).reshape(
      -1, 3).astype(np.float32)


def _equal_volumes(cells, target, cell):
  """(scale, shift) that maps cells [N, 3] to the volume and centroid [M, 3]."""
  del cell
  scale = np.cbrt(len(target) / len(cells))
  return scale, target.mean(0) - scale * cells.mean(0)


def _equal_boxes(cells, target, cell):
  """The same by volumes and centers of bounding boxes, enlarged by `cell`."""
  size = lambda x: np.prod(np.ptp(x, 0) + cell)
  scale = np.cbrt(size(target) / size(cells))
  center = lambda x: 0.5 * (x.min(0) + x.max(0))
  return scale, center(target) - scale * center(cells)
