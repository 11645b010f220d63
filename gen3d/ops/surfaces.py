"""Triangle surfaces that are optimized: subdivision, normals, penalties.

Vocabulary. V, F, E are numbers of vertices, faces and edges. `faces` [F, 3]
index vertices; corner c of face f has the number 3 f + c. A boundary edge
belongs to one face. The topology of a surface does not change while it is
optimized, so that whatever is linear in its vertices is a SparseMap that is
computed once, on the host; `apply` and what uses it run on the accelerator.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from gen3d.choices import UserError
from gen3d.ops import cameras
from gen3d.ops.mesh import Mesh


class SparseMap(NamedTuple):
  """A constant linear map from M rows to N rows, and its transpose.

  Rows are padded with zero weights to the longest one, so that both directions
  are gathers: XLA's scatter takes 50 to 90 ns a row on a CPU. A mesh with a
  vertex of valence K therefore takes memory for K neighbors of each vertex.
  """
  index: Any         # int32 [N, K], of the M rows
  weights: Any       # float32 [N, K]
  back_index: Any    # int32 [M, L], of the N rows
  back_weights: Any  # float32 [M, L]


class Topology(NamedTuple):
  """The maps of a surface's faces, from vertices or from faces."""
  corners: Any      # SparseMap from vertices to the 3 F corners
  around: Any       # SparseMap from faces to the sum around each vertex
  umbrella: Any     # SparseMap from vertices: the mean of neighbors - vertex
  differences: Any  # SparseMap from faces to the difference across each edge


def sparse_map(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray,
               shape: tuple[int, int]) -> SparseMap:
  """The SparseMap y[rows] += weights x[columns], of NumPy arrays.

  Args:
    rows, columns, weights: [nonzeros]; weights at one place are added.
    shape: (N, M).
  """
  matrix = scipy.sparse.coo_array(
      (np.asarray(weights, np.float64), (rows, columns)), shape=shape).tocsr()
  return SparseMap(*_padded(matrix), *_padded(matrix.T.tocsr()))


def apply(sparse: SparseMap, x: jax.Array) -> jax.Array:
  """The rows [N, C] of a SparseMap applied to x [M, C]."""
  return _apply(x, *sparse)


@jax.custom_vjp
def _apply(x, index, weights, back_index, back_weights):
  del back_index, back_weights
  return jnp.sum(weights[..., None] * x[index], axis=1)


def _apply_forward(x, *maps):
  return _apply(x, *maps), maps


def _apply_backward(maps, gradient):
  index, weights, back_index, back_weights = maps
  back = _apply(gradient, back_index, back_weights, index, weights)
  return back, None, None, None, None


_apply.defvjp(_apply_forward, _apply_backward)


def topology(faces: np.ndarray, count: int) -> Topology:
  """The Topology of faces [F, 3] of `count` vertices."""
  corners, ones = faces.reshape(-1), np.ones(faces.size)
  # The neighbors of a vertex along the directed edges that start there: each
  # one once where the surface is closed, as in CLIP-Mesh.
  start, end = corners, np.roll(faces, -1, axis=1).reshape(-1)
  degree = np.bincount(start, minlength=count)
  every = np.flatnonzero(degree)
  pairs = adjacent_faces(faces)
  edge = np.arange(len(pairs))
  return Topology(
      sparse_map(np.arange(faces.size), corners, ones, (faces.size, count)),
      sparse_map(corners, np.arange(faces.size) // 3, ones,
                 (count, len(faces))),
      sparse_map(np.concatenate([start, every]), np.concatenate([end, every]),
                 np.concatenate([1 / degree[start], -np.ones(len(every))]),
                 (count, count)),
      sparse_map(np.concatenate([edge, edge]), pairs.T.reshape(-1),
                 np.repeat([1.0, -1.0], len(pairs)),
                 (len(pairs), len(faces))))


def adjacent_faces(faces: np.ndarray) -> np.ndarray:
  """Pairs [E, 2] of faces with a common edge.

  Of an edge of more than two faces the first is paired with each other one.
  """
  _, face_edges, counts = _edges(faces)
  edge = face_edges.reshape(-1)
  order = np.argsort(edge, kind='stable')
  first = np.concatenate([[0], np.cumsum(counts)[:-1]])
  others = np.delete(np.arange(len(order)), first)
  return np.stack([order[first[edge[order[others]]]], order[others]], 1) // 3


def laplacian(surface: Topology, vertices: jax.Array) -> jax.Array:
  """Mean square [] of the umbrella Laplacian (Desbrun et al., 1999).

  Args:
    surface: Topology.
    vertices: [V, 3]: positions, or offsets from a base surface.
  """
  return jnp.mean(jnp.square(apply(surface.umbrella, vertices)))


def normal_consistency(surface: Topology, vertices: jax.Array) -> jax.Array:
  """Mean [] of 1 - cosine between the normals of adjacent faces.

  Args:
    surface: Topology.
    vertices: [V, 3].
  """
  # Of unit vectors |a - b|^2 / 2 is 1 - a . b.
  difference = _normal_differences(surface, vertices)
  return jnp.sum(jnp.square(difference)) / (2 * max(len(difference), 1))


def normal_variation(surface: Topology, vertices: jax.Array,
                     epsilon: float = 1e-3) -> jax.Array:
  """Mean [] of the distances between the unit normals of adjacent faces.

  As total variation does in images, it prefers a few sharp edges between flat
  sides to many soft ones, which `normal_consistency` prefers.

  Args:
    surface: Topology.
    vertices: [V, 3].
    epsilon: added to squared distances, where the root has no gradient.
  """
  squared = jnp.sum(jnp.square(_normal_differences(surface, vertices)), axis=-1)
  return jnp.sum(jnp.sqrt(squared + epsilon) - epsilon**0.5) / max(
      len(squared), 1)


def face_corners(surface: Topology, x: jax.Array) -> jax.Array:
  """The values [F, 3, C] at the corners of faces, of x [V, C]."""
  return apply(surface.corners, x).reshape(-1, 3, x.shape[-1])


def face_normals(surface: Topology, vertices: jax.Array) -> jax.Array:
  """Normals [F, 3] of faces, as long as twice their area."""
  a, b, c = jnp.moveaxis(face_corners(surface, vertices), 1, 0)
  return jnp.cross(b - a, c - a)


def vertex_normals(surface: Topology, vertices: jax.Array) -> jax.Array:
  """Unit normals [V, 3]: means over the faces around, weighted by area.

  Where the mean is zero the normal is +z.
  """
  total = apply(surface.around, face_normals(surface, vertices))
  # The area of a face may be small in the square: 1e-30 is still a number.
  zero = jnp.sum(total * total, axis=-1, keepdims=True) <= 1e-30
  return cameras.normalize(
      jnp.where(zero, jnp.array([0.0, 0.0, 1.0]), total), 1e-30)


def vertex_tangents(surface: Topology, vertices: jax.Array,
                    normals: jax.Array, uv_corners: jax.Array) -> jax.Array:
  """Unit tangents [V, 3], towards increasing u, perpendicular to normals.

  The mean of the tangents dp / du of the faces around a vertex, without
  weights (nvdiffmodeling, used by CLIP-Mesh), made perpendicular by
  Gram-Schmidt.

  Args:
    surface: Topology.
    vertices: [V, 3].
    normals: [V, 3], unit.
    uv_corners: [F, 3, 2], at the corners of faces, so that a vertex on a seam
      may have several.
  """
  a, b, c = jnp.moveaxis(face_corners(surface, vertices), 1, 0)
  u, v = jnp.moveaxis(uv_corners[:, 1:] - uv_corners[:, :1], -1, 0)
  area = u[:, 0] * v[:, 1] - v[:, 0] * u[:, 1]
  # Faces without area in the texture.
  area = jnp.where(area > 0, jnp.maximum(area, 1e-6), jnp.minimum(area, -1e-6))
  tangents = ((b - a) * v[:, 1:] - (c - a) * v[:, :1]) / area[:, None]
  mean = cameras.normalize(apply(surface.around, tangents), 1e-30)
  along = jnp.sum(mean * normals, axis=-1, keepdims=True)
  return cameras.normalize(mean - along * normals)


def icosphere(subdivisions: int) -> Mesh:
  """A unit sphere of 20 * 4^subdivisions faces, with a texture's coordinates.

  The icosahedron is unfolded into a net of equilateral triangles of the width
  of the texture: 22 corners, whose seams are vertices of their own.
  Subdivided three times, 642 places and 729 vertices, as in CLIP-Mesh.
  """
  # Five strips of four triangles: two poles, rings of five at z = +-1/sqrt 5.
  ring = np.arange(5) * 2 * np.pi / 5
  height = 1 / np.sqrt(5)
  circle = lambda angle, y: np.stack([
      2 * height * np.sin(angle), np.full(5, y), 2 * height * np.cos(angle)], 1)
  places = np.concatenate([
      [[0, 1, 0]], circle(ring, height), circle(ring + np.pi / 5, -height),
      [[0, -1, 0]]])
  net, corners = [], []  # (place, column, row) of the net; its triangles

  def corner(place, column, row):
    net.append((place, column, row))
    return len(net) - 1

  top = [corner(0, i + 0.5, 3) for i in range(5)]
  upper = [corner(1 + i % 5, i, 2) for i in range(6)]
  lower = [corner(6 + i % 5, i + 0.5, 1) for i in range(6)]
  bottom = [corner(11, i + 1, 0) for i in range(5)]
  for i in range(5):
    corners += [(top[i], upper[i], upper[i + 1]),
                (upper[i], lower[i], upper[i + 1]),
                (lower[i], lower[i + 1], upper[i + 1]),
                (lower[i], bottom[i], lower[i + 1])]
  place, column, row = np.array(net).T
  faces, vertices = np.array(corners), places[place.astype(int)]
  uv = np.stack([column, row * np.sqrt(0.75)], axis=-1) / 5.5
  for _ in range(subdivisions):
    edges, face_edges, _ = _edges(faces)
    faces = _split(faces, face_edges + len(vertices))
    uv = np.concatenate([uv, uv[edges].mean(1)])
    vertices = np.concatenate([vertices, vertices[edges].mean(1)])
    vertices /= np.linalg.norm(vertices, axis=-1, keepdims=True)
  return Mesh(vertices.astype(np.float32), faces.astype(np.int32), uv=uv)


def loop_weight(valence: np.ndarray) -> np.ndarray:
  """Loop's weight beta of each neighbor of a vertex (Loop, 1987)."""
  n = np.asarray(valence, np.float64)
  return (5 / 8 - (3 / 8 + np.cos(2 * np.pi / n) / 4) ** 2) / n


def warren_weight(valence: np.ndarray) -> np.ndarray:
  """Warren's weight beta, 3/16 at valence 3 and 3 / (8 n) elsewhere."""
  n = np.asarray(valence, np.float64)
  return np.where(n == 3, 3 / 16, 3 / (8 * n))


def loop_step(faces: np.ndarray, count: int, weight: Any = loop_weight
              ) -> tuple[SparseMap, np.ndarray]:
  """One step of Loop subdivision, with cubic splines along boundaries.

  Args:
    faces: [F, 3] of a surface in which no edge has more than two faces.
    count: V.
    weight: valences -> beta; loop_weight or warren_weight.

  Returns:
    (SparseMap from V vertices to V + E: the vertices, then one on each edge;
    faces [4 F, 3] of them).

  Raises:
    UserError: an edge has more than two faces.
  """
  edges, face_edges, ring = _rings(faces, count)
  interior = ~ring.boundary_edge
  edge = count + np.arange(len(edges))
  # The corner across each edge, for every face at the edge.
  across, across_edge = np.roll(faces, 1, 1).reshape(-1), face_edges.reshape(-1)
  across, across_edge = (
      x[interior[across_edge]] for x in (across, across_edge))
  vertex_rows = _vertex_rows(edges, ring, weight(ring.valence),
                             boundary_weight=1 / 8)
  ends = np.repeat(np.where(interior, 3 / 8, 1 / 2), 2)
  rows, columns, weights = (np.concatenate(x) for x in zip(
      vertex_rows, (np.repeat(edge, 2), edges.reshape(-1), ends),
      (count + across_edge, across, np.full(len(across), 1 / 8))))
  return (sparse_map(rows, columns, weights, (count + len(edges), count)),
          _split(faces, face_edges + count))


def loop_limit(faces: np.ndarray, count: int) -> SparseMap:
  """The limit positions of vertices under Loop subdivision.

  (1 - n chi) v + chi sum of its n neighbors, chi = 1 / (n + 3 / (8 beta))
  (Loop, 1987). On a boundary the limit of its cubic spline, 2/3 and 1/6.

  Args:
    faces: [F, 3] of a surface in which no edge has more than two faces.
    count: V.

  Raises:
    UserError: an edge has more than two faces.
  """
  edges, _, ring = _rings(faces, count)
  rows = _vertex_rows(edges, ring, _limit_weight(ring.valence),
                      boundary_weight=1 / 6)
  return sparse_map(*rows, (count, count))


def refined_loop_limit(faces: np.ndarray, count: int
                       ) -> tuple[SparseMap, SparseMap]:
  """Limit positions as the package of CLIP-Mesh computes them.

  It subdivides once with Warren's weight, then takes the exact limit by Loop's
  weight (Stam, 1998). Where the valence is not six this is not the limit of
  either. It leaves the vertices of the refined surface's faces at a boundary
  where they are, and without gradient.

  Args:
    faces: [F, 3] of a surface in which no edge has more than two faces.
    count: V.

  Returns:
    (map, constant): positions are apply(map, v) + stop_gradient(apply(
    constant, v)).

  Raises:
    UserError: an edge has more than two faces.
  """
  edges, _, ring = _rings(faces, count)
  n, chi, beta = (ring.valence, _limit_weight(ring.valence),
                  warren_weight(ring.valence))
  # The refined neighbors of v are 3/8 (v + a) + 1/8 (b + c), so that their sum
  # is 3/8 n v + 5/8 of the sum of its neighbors.
  rows = _vertex_rows(edges, ring, (1 - n * chi) * beta + 5 / 8 * chi,
                      boundary_weight=1 / 8)
  start, end, weights = rows
  fixed = ring.boundary[start]
  part = lambda chosen: sparse_map(
      start[chosen], end[chosen], weights[chosen], (count, count))
  return part(~fixed), part(fixed)


def _normal_differences(surface, vertices):
  """Differences [E, 3] between the unit normals of adjacent faces."""
  normals = cameras.normalize(face_normals(surface, vertices), 1e-30)
  return apply(surface.differences, normals)


class _Rings(NamedTuple):
  """What is around the vertices and edges of a surface."""
  valence: Any        # [V] number of neighbors, at least 1
  boundary: Any       # [V] whether a vertex is on the boundary
  boundary_edge: Any  # [E]
  used: Any           # [V] whether a vertex has neighbors


def _rings(faces, count):
  """(edges [E, 2], edges of faces [F, 3], _Rings)."""
  edges, face_edges, faces_of_edge = _edges(faces)
  if len(edges) and faces_of_edge.max() > 2:
    raise UserError(
        'An edge of the mesh belongs to more than two faces, so that it has no '
        'Loop surface; repair the mesh, or set '
        "--config.scene.surface='vertices'.")
  boundary_edge = faces_of_edge == 1
  boundary = np.zeros(count, bool)
  boundary[edges[boundary_edge]] = True
  degree = np.bincount(edges.reshape(-1), minlength=count)
  return edges, face_edges, _Rings(
      np.maximum(degree, 1), boundary, boundary_edge, degree > 0)


def _vertex_rows(edges, ring, neighbor_weight, boundary_weight):
  """(rows, columns, weights) of new vertices, whose weights add up to one.

  Neighbors have the weight `neighbor_weight` [V]; at the boundary those along
  the boundary have `boundary_weight`, and no others count.
  """
  start = np.concatenate([edges[:, 0], edges[:, 1]])
  end = np.concatenate([edges[:, 1], edges[:, 0]])
  along = np.tile(ring.boundary_edge, 2)
  weights = np.where(ring.boundary[start], boundary_weight * along,
                     neighbor_weight[start])
  every = np.arange(len(ring.valence))
  own = 1 - np.bincount(start, weights, minlength=len(every))
  return (np.concatenate([start, every]), np.concatenate([end, every]),
          np.concatenate([weights, own]))


def _limit_weight(valence):
  """chi of the limit mask."""
  return 1 / (valence + 3 / (8 * loop_weight(valence)))


def _edges(faces):
  """(edges [E, 2], of each face [F, 3] from corner c to c + 1, faces [E])."""
  ends = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1)
  edges, index, counts = np.unique(
      np.sort(ends.reshape(-1, 2), axis=1), axis=0, return_inverse=True,
      return_counts=True)
  return edges, index.reshape(-1, 3), counts


def _split(faces, middle):
  """Faces [4 F, 3] of split ones, with `middle` [F, 3] on their edges."""
  a, b, c = faces.T
  ab, bc, ca = middle.T
  return np.stack([np.stack(x, axis=-1) for x in (
      (a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))],
                  axis=1).reshape(-1, 3)


def _padded(matrix):
  """(index, weights) [N, K] of the rows of a CSR matrix."""
  counts = np.diff(matrix.indptr)
  width = max(int(counts.max(initial=0)), 1)
  row = np.repeat(np.arange(len(counts)), counts)
  slot = np.arange(matrix.nnz) - matrix.indptr[row]
  index = np.zeros((len(counts), width), np.int32)
  weights = np.zeros((len(counts), width), np.float32)
  index[row, slot], weights[row, slot] = matrix.indices, matrix.data
  return index, weights
