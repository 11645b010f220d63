"""Texture atlases: charts of a surface in the unit square, and their texels.

Vocabulary. An atlas cuts a surface along seams into charts, each flat in the
unit square; vertices on a seam are split, one for each chart. A texel is a
pixel of a texture [S, S]; row 0 is at v = 1, the top. The gutter is what no
chart covers. All functions run on the host in NumPy.
"""

from typing import Any, NamedTuple

import numpy as np

from gen3d.ops import atlas_process
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh

_CHART_FACES = 2000  # largest number in a chart, where all are equally large
_PACKED = 1024  # texels per side that charts are packed at
_CANDIDATES = 2 ** 22  # texels tested at a time: bounds the memory


class Texels(NamedTuple):
  """Texels whose centers are inside of faces, in uv space."""
  rows: Any     # [T] int
  columns: Any  # [T] int
  faces: Any    # [T] int
  weights: Any  # [T, 3] float, barycentric coordinates


def unwrap(mesh: Mesh, size: int) -> Mesh:
  """Gives a mesh texture coordinates without overlap, by xatlas.

  Args:
    mesh: every face has an area. Its own uv and texture are dropped.
    size: texels per side of the texture that it is to get; charts are about
      `gutter_width(size)` texels apart.

  Returns:
    Mesh with uv. Vertices are split at the seams; faces are in their order.
    The normals are the mesh's own, or else the smooth ones of the unsplit
    mesh.

  Raises:
    atlas_process.TooSlow: the mesh is too irregular.
  """
  vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
  normals = mesh.normals
  if normals is None:
    normals = mesh_ops.vertex_normals(vertices, faces).astype(vertices.dtype)
  # The atlas is somewhat larger than asked for, and scaled by `_fit`; charts
  # are placed no more precisely than at _PACKED texels, which takes long.
  side = min(size, _PACKED)
  origin, faces, uv = atlas_process.generate(
      vertices.astype(np.float32), faces.astype(np.uint32),
      # The time that a chart takes grows faster than its number of faces, and
      # a chart that is nearly flat is projected instead of solved for.
      max_cost=0.5,
      max_chart_area=_area(vertices, faces) * _CHART_FACES / len(faces),
      resolution=side, padding=3 * gutter_width(side) // 2)
  split = lambda x: None if x is None else np.asarray(x)[origin]
  return Mesh(split(vertices), faces.astype(np.int32), split(normals),
              split(mesh.colors), _fit(uv, size).astype(np.float32))


def gutter_width(size: int) -> int:
  """Texels between the charts of a texture of `size` texels per side.

  A bilinear lookup reads up to two texels beyond a chart, and half the gutter
  has the chart's colors: so levels of mipmaps whose texels are a quarter of the
  gutter wide do not mix charts.
  """
  return max(2, size // 128)


def texels(uv: np.ndarray, faces: np.ndarray, size: int) -> Texels:
  """Finds the texels that each face covers.

  Where faces overlap, the texel is listed for each of them.

  Args:
    uv: [V, 2] in [0, 1].
    faces: [F, 3].
    size: texels per side.
  """
  # In units of texels, from the upper left corner, so that the center of a
  # texel is at its index plus one half.
  corners = (np.asarray(uv, np.float64) * [1, -1] + [0, 1])[faces] * size
  low = np.clip(np.ceil(corners.min(1) - 0.5), 0, size).astype(int)
  high = np.clip(np.floor(corners.max(1) - 0.5), -1, size - 1).astype(int)
  spans = np.maximum(high - low + 1, 0)
  counts = spans.prod(-1)
  total, ends = counts.sum(), np.cumsum(counts)
  edges = _edge_functions(corners)
  found = []
  # The texels of all bounding boxes in one list, row by row.
  for start in range(0, max(1, total), _CANDIDATES):
    index = np.arange(start, min(start + _CANDIDATES, total))
    face = np.searchsorted(ends, index, 'right')
    row, column = np.divmod(
        index - (ends - counts)[face], spans[face, 0])
    columns, rows = low[face, 0] + column, low[face, 1] + row
    weights = (edges[face, 0] * (columns + 0.5)[:, None]
               + edges[face, 1] * (rows + 0.5)[:, None] + edges[face, 2])
    covered = weights.min(-1) >= 0
    found.append((rows[covered], columns[covered], face[covered],
                  weights[covered]))
  return Texels(*map(np.concatenate, zip(*found)))


def interpolate(found: Texels, faces: np.ndarray,
                values: np.ndarray) -> np.ndarray:
  """Values [T, C] at the centers of texels, of values [V, C] of vertices."""
  corners = np.asarray(faces)[found.faces]
  return np.einsum('tk,tkc->tc', found.weights, np.asarray(values)[corners])


def overlap(uv: np.ndarray, faces: np.ndarray, size: int) -> float:
  """Fraction of the covered texels that more than one face covers.

  Texels whose centers are on a common edge of two faces do not count.
  """
  found = texels(uv, faces, size)
  # An edge through a center gives both of its faces a weight of zero.
  interior = found.weights.min(-1) > 1e-6
  count = np.bincount((found.rows * size + found.columns)[interior],
                      minlength=1)
  return float(np.sum(count > 1) / max(1, np.sum(count > 0)))


def _area(vertices, faces):
  """Area of a surface."""
  a, b, c = vertices[faces.T]
  return float(np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum() / 2)


def _fit(points, size):
  """Points [V, 2] in texels, scaled into the unit square of `size` texels.

  xatlas only comes near the size that is asked for. The margin keeps lookups
  at the border, where a texture is repeated, from reaching the other side.
  """
  margin = 0.5 * gutter_width(size)
  extent = np.ptp(points, axis=0).max()
  return (margin + (points - points.min(0))
          * ((size - 2 * margin) / extent)) / size


def _edge_functions(corners):
  """[F, 3, 3]: barycentric coordinates of (x, y) are x e0 + y e1 + e2.

  Faces without an area in uv get NaN, which covers no texel.
  """
  x, y = np.moveaxis(corners, -1, 0)
  ahead, behind = [1, 2, 0], [2, 0, 1]
  edges = np.stack([
      y[:, ahead] - y[:, behind], x[:, behind] - x[:, ahead],
      x[:, ahead] * y[:, behind] - x[:, behind] * y[:, ahead]], axis=1)
  area = edges[:, 2].sum(-1)
  with np.errstate(divide='ignore', invalid='ignore'):
    return edges / np.where(area == 0, np.nan, area)[:, None, None]
