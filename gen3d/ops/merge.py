"""Several meshes as one surface with a common texture atlas.

Vocabulary. An instance is one of the M meshes; its index is that in their
order. Each mesh has uv of its own in [0, 1]; in the atlas its unit square is a
smaller one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gen3d.ops.mesh import Mesh, vertex_normals

MARGIN = 0.004  # between squares of the atlas: 4 texels of 1,024
_STEPS = 40     # of the bisection for the size of the squares


class Merged(NamedTuple):
  """Meshes as one: arrays of all vertices and faces, in their order."""
  vertices: Any   # float32 [V, 3]
  normals: Any    # float32 [V, 3], unit
  uv: Any         # float32 [V, 2], in the atlas
  faces: Any      # int32 [F, 3]
  instances: Any  # int32 [F], of each face


def merge(meshes: Sequence[Mesh]) -> Merged:
  """Meshes as one surface; squares of the atlas are as large as surfaces.

  The uv of a single mesh stay as they are.

  Args:
    meshes: M meshes with uv in [0, 1].
  """
  areas = [face_areas(m.vertices, m.faces).sum() for m in meshes]
  corners, sides = pack_squares(np.sqrt(areas)) if len(meshes) > 1 else (
      np.zeros((1, 2)), np.ones(1))
  offsets = np.cumsum([0, *(len(m.vertices) for m in meshes)])
  normals = [vertex_normals(np.asarray(m.vertices), np.asarray(m.faces))
             if m.normals is None else m.normals for m in meshes]
  join = lambda parts, dtype: np.concatenate(list(parts)).astype(dtype)
  return Merged(
      join((m.vertices for m in meshes), np.float32),
      join(normals, np.float32),
      join((corner + side * np.asarray(m.uv)
            for m, corner, side in zip(meshes, corners, sides)), np.float32),
      join((m.faces + offset for m, offset in zip(meshes, offsets)), np.int32),
      np.repeat(np.arange(len(meshes)), [len(m.faces) for m in meshes]
                ).astype(np.int32))


def pack_squares(sides: Sequence[float] | np.ndarray
                 ) -> tuple[np.ndarray, np.ndarray]:
  """Places squares into the unit square without overlap, on shelves.

  Args:
    sides: [M] positive; ratios of the squares' sides.

  Returns:
    (lower left corners [M, 2], sides [M]): a multiple of the given ones, the
    largest one that fits, less MARGIN between them.
  """
  sides = np.asarray(sides, float)
  # A square of vanishing size would have no texel.
  sides = np.maximum(sides, 0.02 * sides.max())
  low, high = 0.0, 1 / sides.max()
  for _ in range(_STEPS):
    middle = (low + high) / 2
    if _shelves(middle * sides) is None:
      high = middle
    else:
      low = middle
  corners = _shelves(low * sides)
  assert corners is not None  # of sides 0
  margin = min(MARGIN, low * sides.min() / 4)
  return corners + margin / 2, low * sides - margin


def _shelves(sides: np.ndarray) -> np.ndarray | None:
  """Corners [M, 2] of squares in rows from large to small; None if no fit."""
  corners = np.zeros((len(sides), 2))
  left, bottom, height = 0.0, 0.0, 0.0
  for index in np.argsort(-sides, kind='stable'):
    side = sides[index]
    if left + side > 1:
      left, bottom, height = 0.0, bottom + height, 0.0
    if left + side > 1 or bottom + side > 1:
      return None
    corners[index] = left, bottom
    left, height = left + side, max(height, side)
  return corners


def sample_anchors(merged: Merged, count: int, seed: int = 0) -> np.ndarray:
  """uv [M, count, 2] of points on each instance, uniform in its area.

  SceneTex's code samples texels of a map of the instances instead, and reads
  (row, column) as (u, v), which gives points that need not be on them.

  Args:
    merged: of M meshes.
    count: of points on each.
    seed: of the random numbers.
  """
  rng = np.random.default_rng(seed)
  areas = face_areas(merged.vertices, merged.faces)
  chosen = []
  for instance in range(merged.instances[-1] + 1):
    own = np.flatnonzero(merged.instances == instance)
    chosen.append(rng.choice(own, count, p=areas[own] / areas[own].sum()))
  faces = np.stack(chosen)
  # Uniform in a triangle: the sorted pair cuts [0, 1] into three weights.
  cuts = np.sort(rng.random((*faces.shape, 2)), axis=-1)
  weights = np.diff(cuts, axis=-1, prepend=0.0, append=1.0)
  return np.einsum('mak,makc->mac', weights, merged.uv[merged.faces[faces]]
                   ).astype(np.float32)


def face_areas(vertices: Any, faces: Any) -> np.ndarray:
  """Areas [F] of the faces, float64."""
  a, b, c = np.asarray(vertices, float)[np.asarray(faces).T]
  return np.linalg.norm(np.cross(b - a, c - a), axis=-1) / 2


def box_frame(vertices: Any, radius: float) -> tuple[np.ndarray, float]:
  """The center and the scale that bring an object to a standard size.

  (vertices - center) scale has its box within `radius` along every axis and the
  box's corners within 1.25 radius, as objects of the shapes world.

  Args:
    vertices: [V, 3].
    radius: half the largest side of the box, where it is not a cube.

  Returns:
    (center [3], scale).
  """
  low, high = np.min(vertices, axis=0), np.max(vertices, axis=0)
  half = (high - low) / 2
  return (low + high) / 2, float(
      radius / max(half.max(), 0.8 * np.linalg.norm(half)))
