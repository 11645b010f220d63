"""How close a shape is to another one: IoU, F-score, chamfer distance.

Vocabulary. A shape is `inside`: points [N, 3] -> bool [N]. Host-side NumPy:
these judge finished objects. A text does not say how large its object is or
where it stands, so `best_scale_iou` first lays the shape over the reference.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.optimize
import scipy.spatial

from gen3d.choices import UserError


class Fit(NamedTuple):
  """The best placement of a shape over a reference, and its overlap.

  A point p of the shape comes to scale * (yaw @ p) + shift.
  """
  iou: float
  scale: float
  shift: Any  # [3]
  yaw: int    # quarter turns about y that were given to the shape

  def place(self, points):
    """Points [N, 3] of the shape in the reference's frame."""
    return self.scale * _turn(points, self.yaw) + self.shift


def volumetric_iou(inside_a, inside_b, bound, resolution=64):
  """Volume of the intersection over that of the union, by counting cells.

  Args:
    inside_a, inside_b: points [N, 3] -> bool [N].
    bound: half the side of the cube, around the origin, that holds both.
    resolution: cells along its side.

  Raises:
    UserError: both shapes are empty.
  """
  points = cell_centers(bound, resolution)
  a, b = np.asarray(inside_a(points)), np.asarray(inside_b(points))
  union = np.sum(a | b)
  if not union:
    raise UserError('Both shapes are empty, which leaves no IoU to tell.')
  return float(np.sum(a & b) / union)


def best_scale_iou(inside, reference, bound, resolution=96, yaws=(0,)):
  """The placement of `inside` over `reference` with the largest IoU.

  Begins with equal volumes and centroids, and again with equal boxes, for a
  solid laid over what is hollow is far from its size by the first; then climbs
  in scale and the three shifts (Nelder and Mead).

  Args:
    inside, reference: points [N, 3] -> bool [N].
    bound: half the side of the cube, around the origin, that holds each.
    resolution: cells along its side.
    yaws: the quarter turns about y to try, such as range(4) where the front
      is not known.

  Returns:
    A Fit.

  Raises:
    UserError: a shape is empty within the bound.
  """
  points = cell_centers(bound, resolution)
  cell = 2 * bound / resolution
  # The reference is looked at off the lattice: where both lie on one, a shape
  # can shrink by half a cell without losing a point.
  off = points + np.random.default_rng(0).uniform(
      -0.5 * cell, 0.5 * cell, points.shape).astype(np.float32)
  target = np.asarray(reference(off))
  occupied = np.asarray(inside(points))
  for name, cells in (('shape', occupied), ('reference', target)):
    if not cells.any():
      raise UserError(f'The {name} is empty within {bound:g} of the origin.')
  soft = occupied.reshape((resolution,) * 3).astype(np.float32)
  around = off[target]

  def overlap(yaw, scale, shift):
    back = _turn((around - shift) / scale, -yaw)
    where = (back + bound) / cell - 0.5
    shared = np.sum(scipy.ndimage.map_coordinates(
        soft, where.T, order=1, mode='constant') > 0.5)
    union = len(around) + occupied.sum() * scale**3 - shared
    return float(shared / union)

  def climb(yaw, start):
    scale, shift = start(_turn(points[occupied], yaw), around, cell)
    # Unknowns of one size: shifts in steps of 3 cells, scale in steps of 10 %.
    placed = lambda x: (scale * np.exp(0.1 * x[3]), shift + 3 * cell * x[:3])
    simplex = np.concatenate([np.zeros((1, 4)), np.eye(4)]) - 0.2
    found = scipy.optimize.minimize(
        lambda x: -overlap(yaw, *placed(x)), np.zeros(4), method='Nelder-Mead',
        options={'initial_simplex': simplex, 'xatol': 0.02, 'fatol': 1e-4})
    return Fit(-float(found.fun), *placed(found.x), yaw)

  return max((climb(yaw, start) for yaw in yaws
              for start in (_equal_volumes, _equal_boxes)),
             key=lambda fit: fit.iou)


def chamfer(points_a, points_b):
  """Mean distance to the nearest point of the other set, both ways added."""
  a_to_b, b_to_a = _nearest(points_a, points_b)
  return float(a_to_b.mean() + b_to_a.mean())


def f_score(points_a, points_b, threshold):
  """Harmonic mean of the shares that lie within `threshold` of the other.

  Knapitsch et al., Tanks and Temples, 2017: precision is the share of
  points_a near points_b, recall the other way.
  """
  a_to_b, b_to_a = _nearest(points_a, points_b)
  precision, recall = np.mean(a_to_b < threshold), np.mean(b_to_a < threshold)
  return float(2 * precision * recall / max(precision + recall, 1e-12))


def sample_surface(vertices, faces, count, seed=0):
  """Points [count, 3] spread evenly over a mesh's surface."""
  rng = np.random.default_rng(seed)
  a, b, c = np.asarray(vertices, np.float64)[np.asarray(faces).T]
  area = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
  face = rng.choice(len(area), count, p=area / area.sum())
  u, v = rng.random((2, count, 1))
  u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
  return a[face] + u * (b - a)[face] + v * (c - a)[face]


def inside_mesh(vertices, faces, bound, resolution=128):
  """The `inside` of a closed mesh, read off a grid of winding numbers.

  Each column of the grid along z adds up the faces below a point: +1 where
  it is entered, -1 where it is left.

  Args:
    vertices: [V, 3].
    faces: [F, 3], counter-clockwise from outside.
    bound: half the side of the cube, around the origin, that is looked at.
    resolution: cells along its side.
  """
  cell = 2 * bound / resolution
  # A shift that no mesh shares: a column through an edge would count it twice.
  corner = np.asarray(vertices, np.float64) + cell * np.array(
      [1.37e-4, 2.91e-4, 0])
  a, b, c = ((corner + bound) / cell - 0.5)[np.asarray(faces).T]
  low = np.ceil(np.minimum(np.minimum(a, b), c)[:, :2]).astype(int)
  high = np.floor(np.maximum(np.maximum(a, b), c)[:, :2]).astype(int)
  low, high = np.clip(low, 0, resolution), np.clip(high, -1, resolution - 1)
  wide, tall = np.maximum(high - low + 1, 0).T
  face = np.repeat(np.arange(len(a)), wide * tall)
  first = np.cumsum(wide * tall) - wide * tall
  inner = np.arange(len(face)) - first[face]
  x = low[face, 0] + inner // tall[face]
  y = low[face, 1] + inner % tall[face]
  a, b, c = a[face], b[face], c[face]
  side = lambda p, q: ((q[:, 0] - p[:, 0]) * (y - p[:, 1])
                       - (q[:, 1] - p[:, 1]) * (x - p[:, 0]))
  at_a, at_b, at_c = side(b, c), side(c, a), side(a, b)
  double = at_a + at_b + at_c  # twice the face's area as seen along z
  crossed = (np.sign(at_a) == np.sign(at_b)) & (
      np.sign(at_b) == np.sign(at_c)) & (double != 0)
  x, y, double = x[crossed], y[crossed], double[crossed]
  z = np.sum([w[crossed] * p[crossed, 2] for w, p in
              ((at_a, a), (at_b, b), (at_c, c))], axis=0) / double
  z = np.clip(np.ceil(z), 0, resolution).astype(int)
  winding = np.zeros((resolution, resolution, resolution + 1), np.int32)
  # A face that looks up, counter-clockwise from above, is where we leave.
  np.add.at(winding, (x, y, z), -np.sign(double).astype(np.int32))
  solid = np.cumsum(winding, axis=-1)[..., :-1] > 0

  def inside(points):
    index = np.floor((np.asarray(points) + bound) / cell).astype(int)
    within = np.all((index >= 0) & (index < resolution), axis=-1)
    index = np.clip(index, 0, resolution - 1)
    return within & solid[tuple(index.T)]

  return inside


def cell_centers(bound, resolution):
  """Centers [resolution^3, 3] of the cells of the cube, z fastest."""
  line = (np.arange(resolution) + 0.5) * (2 * bound / resolution) - bound
  return np.stack(np.meshgrid(line, line, line, indexing='ij'), -1).reshape(
      -1, 3).astype(np.float32)


def _equal_volumes(cells, around, cell):
  """(scale, shift) that lays cells [N, 3] on as much of their like [M, 3]."""
  del cell
  scale = np.cbrt(len(around) / len(cells))
  return scale, around.mean(0) - scale * cells.mean(0)


def _equal_boxes(cells, around, cell):
  """The same by volumes and centers of the boxes, a `cell` thick or more."""
  size = lambda x: np.prod(np.ptp(x, 0) + cell)
  scale = np.cbrt(size(around) / size(cells))
  middle = lambda x: 0.5 * (x.min(0) + x.max(0))
  return scale, middle(around) - scale * middle(cells)


def _turn(points, quarters):
  """Points [N, 3] turned about y by quarters of a turn (+z to +x)."""
  x, y, z = np.moveaxis(points, -1, 0)
  for _ in range(quarters % 4):
    x, z = z, -x
  return np.stack([x, y, z], axis=-1)


def _nearest(points_a, points_b):
  tree_a, tree_b = map(scipy.spatial.cKDTree, (points_a, points_b))
  return tree_b.query(points_a)[0], tree_a.query(points_b)[0]
