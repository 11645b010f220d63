"""Antialiasing of the silhouettes of rasterized meshes, with gradients.

A rasterized image is constant while a silhouette moves between two pixels'
centers. `antialias` blends pixels at silhouettes by their coverage, which gives
gradients to the vertices (Laine et al., Modular primitives for high-performance
differentiable rendering, 2020, section 3.4). Names as in ops/raster.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import raster


def antialias(image: jax.Array, fragments: raster.Fragments,
              clip_positions: jax.Array, faces: jax.Array | np.ndarray,
              opposites: jax.Array | np.ndarray | None = None) -> jax.Array:
  """Blends pixels on both sides of silhouettes by their coverage.

  Of two neighboring pixels with different faces the nearer face counts. Where
  an edge of it that is a silhouette crosses the segment between the centers,
  the pixel that contains the crossing gets a part of the other one's color. A
  segment along rows meets the edges that are steeper than 45 degrees, one along
  columns the others. An edge is a silhouette if it has no second face, or if
  the second face is on the same side of it in the image.

  Args:
    image: [..., H, W, C], of the fragments.
    fragments: [..., H, W], from `raster.rasterize`: one layer, or several.
    clip_positions: as given to `rasterize`.
    faces: as given to `rasterize`.
    opposites: from `opposite_vertices`; None: computed on the host.

  Raises:
    TypeError: opposites are missing and faces are traced by JAX.
  """
  if opposites is None:
    if isinstance(faces, jax.core.Tracer):
      raise TypeError('With traced faces pass opposites, from '
                      'opposite_vertices on the host.')
    opposites = opposite_vertices(np.asarray(faces))
  height, width = fragments.faces.shape[-2:]
  edges = _silhouettes(clip_positions, jnp.asarray(faces),
                       jnp.asarray(opposites), height, width)
  along_rows = _blend(image, fragments, edges, steep=True)
  turned = lambda x: jnp.swapaxes(x, -1, -2)
  along_columns = _blend(
      jnp.swapaxes(image, -2, -3),
      raster.Fragments(turned(fragments.faces), None, turned(fragments.depth)),
      edges[..., ::-1], steep=False)
  return image + along_rows + jnp.swapaxes(along_columns, -2, -3)


def opposite_vertices(faces: np.ndarray) -> np.ndarray:
  """For each face the vertex across each of its edges [F, 3] int32, or -1.

  Edge i is the one opposite to corner i. Its vertex across is the third corner
  of the other face with the edge. -1: no face or more than one shares it.

  Args:
    faces: [F, 3] int.
  """
  faces = np.asarray(faces)
  ends = np.stack([faces[:, [1, 2]], faces[:, [2, 0]], faces[:, [0, 1]]], 1)
  ends = np.sort(ends.reshape(-1, 2), axis=1)
  _, edge, uses = np.unique(ends, axis=0, return_inverse=True,
                            return_counts=True)
  order = np.argsort(edge.ravel(), kind='stable')
  first = np.cumsum(uses) - uses
  pairs = np.stack([order[first[uses == 2]], order[first[uses == 2] + 1]])
  opposites = np.full(faces.size, -1, np.int32)
  opposites[pairs] = faces.ravel()[pairs[::-1]]
  return opposites.reshape(faces.shape)




def _silhouettes(clip_positions, faces, opposites, height, width):
  """Ends in the image [..., F, 3 edges, 2 ends, (x, y)], NaN: no silhouette.

  In pixels from the center of the first pixel, y downwards.
  """
  w = clip_positions[..., 3:]
  flat = clip_positions[..., :2] / jnp.where(w > 0, w, 1.0)
  points = (flat * jnp.array([1.0, -1.0]) + 1) * (
      jnp.array([width, height]) / 2) - 0.5
  # The sign of a determinant tells the side of an edge, also behind the
  # camera.
  position = jax.lax.stop_gradient(clip_positions)[
      ..., jnp.array([0, 1, 3])]
  corner = lambda values, i: values[..., faces[:, i % 3], :]
  ends, silhouettes = [], []
  for i in range(3):
    start, end = corner(position, i + 1), corner(position, i + 2)
    side = lambda point: jnp.sum(jnp.cross(start, end) * point, axis=-1)
    own = side(corner(position, i))
    other = side(position[..., jnp.maximum(opposites[:, i], 0), :])
    in_front = (start[..., 2] > 0) & (end[..., 2] > 0)
    silhouettes.append(in_front & (
        (opposites[:, i] < 0) | ((own > 0) == (other > 0))))
    ends.append(jnp.stack([corner(points, i + 1), corner(points, i + 2)], -2))
  return jnp.where(jnp.stack(silhouettes, -1)[..., None, None],
                   jnp.stack(ends, -3), jnp.nan)


def _blend(image, fragments, edges, steep):
  """What the pairs of neighbors along the rows add to an image.

  Args:
    image: [..., H, W, C].
    fragments: faces and depths [..., H, W].
    edges: [..., F, 3, 2, 2], from _silhouettes, (x, y) along and across rows.
    steep: whether edges at 45 degrees count.
  """
  left, right = fragments.faces[..., :-1], fragments.faces[..., 1:]
  depth = jax.lax.stop_gradient(fragments.depth)
  depth = jnp.where(fragments.faces < 0, jnp.inf, depth)
  left_nearer = depth[..., :-1] <= depth[..., 1:]
  face = jnp.where(left != right, jnp.where(left_nearer, left, right), -1)
  ends = _rows(edges, face)
  height, width = face.shape[-2:]
  x = jnp.arange(width) + jnp.where(left_nearer, 0, 1)
  y = jnp.arange(height)[:, None]
  direction = jnp.where(left_nearer, 1.0, -1.0)
  found = jnp.zeros(face.shape, bool)
  offset = jnp.zeros(face.shape)
  for i in range(3):
    (ax, ay), (bx, by) = ((ends[..., i, k, 0], ends[..., i, k, 1])
                          for k in range(2))
    run, rise = bx - ax, by - ay
    steeper = jnp.abs(run) <= jnp.abs(rise) if steep else (
        jnp.abs(run) < jnp.abs(rise))
    # NaN is on no side.
    meets = (((ay <= y) & (by > y)) | ((by <= y) & (ay > y))) & steeper
    share = (y - jnp.where(meets, ay, 0)) / jnp.where(meets, rise, 1.0)
    crossing = jnp.where(meets, ax, 0) + share * jnp.where(meets, run, 0)
    # From the center of the face's pixel towards the other one.
    distance = direction * (crossing - x)
    meets &= (distance >= 0) & (distance < 1) & ~found
    offset = jnp.where(meets, distance - 0.5, offset)
    found |= meets
  # Beyond the middle the other pixel is partly covered by the face, before it
  # the face's own one by what is behind.
  outer, inner = jnp.maximum(offset, 0), jnp.maximum(-offset, 0)
  step = image[..., 1:, :] - image[..., :-1, :]
  to_left = jnp.where(left_nearer, inner, outer)[..., None] * step
  to_right = -jnp.where(left_nearer, outer, inner)[..., None] * step
  pad = lambda x, *sides: jnp.pad(
      x, [(0, 0)] * (x.ndim - 2) + [sides, (0, 0)])
  return pad(to_left, 0, 1) + pad(to_right, 1, 0)


def _rows(edges, face):
  """Edges [..., H, W, 3, 2, 2] of faces [..., H, W]; NaN where it is -1."""
  leading = edges.shape[:-4]
  table = edges.reshape(-1, 12)
  view = jnp.arange(int(np.prod(leading))).reshape(*leading, 1, 1)
  rows = table.at[jnp.maximum(face, 0) + edges.shape[-4] * view].get(
      mode='promise_in_bounds')
  rows = jnp.where(face[..., None] >= 0, rows, jnp.nan)
  return rows.reshape(*face.shape, 3, 2, 2)
