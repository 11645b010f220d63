"""Antialiasing of the silhouettes of rasterized meshes, with gradients.

A rasterized image does not change while a silhouette moves between the centers
of two pixels. `antialias` blends the pixels at silhouettes by their coverage,
which gives gradients to the vertices (Laine et al., Modular primitives for
high-performance differentiable rendering, 2020, section 3.4). Names as in
ops/raster.

Vocabulary. A pair is two neighboring pixels, along a row or a column, whose
faces differ; the face that is nearer is seen at its inner pixel, the other
pixel is the outer one. Edge i of a face is opposite to its corner i and has the
number 3 * face + i; its twin is the same edge of the adjacent face. The face
goes on into its neighbors up to a silhouette: an edge that has no twin, or
whose two faces lie on the same side of it in the image.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import raster

PAIRS = 2**14  # pairs in work at a time: bounds the memory
STEPS = 64  # faces between the centers of two pixels, at most
_SILHOUETTE, _END = -1, -2  # in place of a twin


def antialias(image: jax.Array, fragments: raster.Fragments,
              clip_positions: jax.Array, faces: jax.Array | np.ndarray,
              twins: jax.Array | np.ndarray | None = None) -> jax.Array:
  """Blends the pixels on both sides of silhouettes by their coverage.

  If the silhouette of the inner pixel's face, or of the surface that it is part
  of, crosses the segment between the centers of a pair, the pixel that contains
  the crossing gets the other one's color in proportion to its part beyond the
  silhouette. Pairs along rows meet the edges that are at least as steep as 45
  degrees, pairs along columns the others. Where nvdiffrast tests the edges
  of the inner pixel's face only, this follows the surface to its silhouette:
  faces there are seen at a grazing angle and often cover no center.

  Args:
    image: [..., H, W, C], of the fragments.
    fragments: [..., H, W], from `raster.rasterize`: one layer, or several.
    clip_positions: as given to `rasterize`.
    faces: as given to `rasterize`.
    twins: from `edge_twins`; None: computed on the host. Vertices that are
      repeated, for example at seams of a texture, need those of the merged
      mesh.

  Raises:
    TypeError: twins are missing and faces are traced by JAX.
  """
  if twins is None:
    if isinstance(faces, jax.core.Tracer):
      raise TypeError('With traced faces pass twins too, from edge_twins.')
    twins = edge_twins(np.asarray(faces))
  faces, twins = jnp.asarray(faces), jnp.asarray(twins)
  height, width = image.shape[-3:-1]
  clip = clip_positions.reshape(-1, *clip_positions.shape[-2:])
  leading = clip_positions.shape[:-2]
  view = jnp.broadcast_to(
      jnp.arange(len(clip)).reshape(leading), fragments.faces.shape[:-2])
  face = jnp.where(fragments.faces < 0, -1,
                   fragments.faces + len(faces) * view[..., None, None])
  # [views * F, 3, (x, y)] in pixels from the center of the first one.
  w = clip[..., 3:]
  points = (clip[..., :2] / jnp.where(w > 0, w, 1.0) * np.array([1.0, -1.0])
            + 1) * (np.array([width, height]) / 2) - 0.5
  points = points[:, faces].reshape(-1, 3, 2)
  onward = _onward(clip, faces, twins)
  pairs = _pairs(face.reshape(-1, height, width),
                 fragments.depth.reshape(-1, height, width))
  silhouettes = _find(pairs, jax.lax.stop_gradient(points), onward)
  pixels = image.reshape(-1, image.shape[-1])
  return _blend(pixels, points, silhouettes, pairs).reshape(image.shape)


def edge_twins(faces: np.ndarray, vertices: np.ndarray | None = None
               ) -> np.ndarray:
  """The number of each edge's twin [F, 3] int32; -1 where there is none.

  An edge of more than two faces has none.

  Args:
    faces: [F, 3] int.
    vertices: [V, 3]; if given, vertices at one place count as one.
  """
  faces = np.asarray(faces)
  if vertices is not None:
    _, same = np.unique(vertices, axis=0, return_inverse=True)
    faces = same.ravel()[faces]
  ends = np.sort(faces[:, [[1, 2], [2, 0], [0, 1]]].reshape(-1, 2), axis=1)
  _, edge, uses = np.unique(
      ends, axis=0, return_inverse=True, return_counts=True)
  order = np.argsort(edge.ravel(), kind='stable')
  first = (np.cumsum(uses) - uses)[uses == 2]
  one, other = order[first], order[first + 1]
  twins = np.full(faces.size, -1, np.int32)
  twins[one], twins[other] = other, one
  return twins.reshape(faces.shape)


class _Pairs(NamedTuple):
  """For each pixel the pairs with its right and with its lower neighbor."""
  face: Any   # [2, N, H, W], the nearer face; -1: not a pair
  first: Any  # [2, N, H, W] bool, whether the first pixel is the inner one


def _pairs(face, depth):
  """The _Pairs of faces and depths [N, H, W]."""
  depth = jax.lax.stop_gradient(jnp.where(face < 0, jnp.inf, depth))

  def along(axis):
    count = face.shape[axis]
    here = lambda x: jax.lax.slice_in_dim(x, 0, count - 1, axis=axis)
    there = lambda x: jax.lax.slice_in_dim(x, 1, count, axis=axis)
    first = here(depth) <= there(depth)
    nearer = jnp.where(here(face) == there(face), -1,
                       jnp.where(first, here(face), there(face)))
    pad = [(0, int(i == axis)) for i in range(3)]
    return jnp.pad(nearer, pad, constant_values=-1), jnp.pad(first, pad)

  return _Pairs(*map(jnp.stack, zip(along(2), along(1))))


def _onward(clip, faces, twins):
  """Where a surface goes on beyond each edge [N * F, 3].

  The number of the twin; _SILHOUETTE; _END at faces that reach behind the
  camera, which have no silhouette in the image.
  """
  # The sign of a determinant gives the side, also of what is behind the camera.
  position = jax.lax.stop_gradient(clip)[..., np.array([0, 1, 3])]
  corners = position[:, faces]
  across = position[:, faces.ravel()[jnp.maximum(twins, 0)]]
  starts, ends = (jnp.roll(corners, -i, axis=2) for i in (1, 2))
  normal = jnp.cross(starts, ends)
  side = lambda points: jnp.sum(normal * points, axis=-1) > 0
  silhouette = (twins < 0) | (side(corners) == side(across))
  behind = jnp.any(corners[..., 2] <= 0, axis=2, keepdims=True)
  offset = 3 * len(faces) * jnp.arange(len(clip))[:, None, None]
  return jnp.where(behind, _END, jnp.where(
      silhouette, _SILHOUETTE, twins + offset)).reshape(-1, 3)


class _Segments(NamedTuple):
  """Segments between the centers of K pairs; along and across the segment."""
  inner: Any      # [K] pixels
  outer: Any      # [K] pixels
  along: Any      # [K] coordinate of the inner center
  across: Any     # [K] coordinate of both
  direction: Any  # [K] 1 or -1
  vertical: Any   # [K] bool


def _segments(pairs, index):
  """The _Segments of pairs with the given index [K]."""
  _, views, height, width = pairs.face.shape
  vertical, pixel = jnp.divmod(index, views * height * width)
  vertical = vertical > 0
  other = pixel + jnp.where(vertical, width, 1)
  first = pairs.first.ravel()[index]
  inner, outer = (jnp.where(first, p, q)
                  for p, q in ((pixel, other), (other, pixel)))
  x, y = inner % width, inner // width % height
  return _Segments(
      inner, outer, jnp.where(vertical, y, x).astype(jnp.float32),
      jnp.where(vertical, x, y).astype(jnp.float32),
      jnp.where(first, 1.0, -1.0), vertical)


def _crossing(segments, start, end):
  """Where edges cross the segments' lines: (distance [K], whether [K]).

  Args:
    segments: _Segments.
    start, end: of the edges, [K, 2].

  Returns:
    The distance from the inner center towards the outer one, and whether the
    edge reaches both sides of the line.
  """
  (u, v), (u_end, v_end) = (
      (jnp.where(segments.vertical, p[:, 1], p[:, 0]),
       jnp.where(segments.vertical, p[:, 0], p[:, 1])) for p in (start, end))
  meets = (v <= segments.across) != (v_end <= segments.across)
  share = (segments.across - v) / jnp.where(meets, v_end - v, 1.0)
  crossing = u + share * (u_end - u)
  return segments.direction * (crossing - segments.along), meets


def _chunks(mask, initial, add):
  """Folds add(state, index [K], valid [K]) over the places of a mask.

  K is PAIRS, or the number of all places if that is less.
  """
  ends = jnp.cumsum(mask.ravel())
  count = min(PAIRS, mask.size)

  def step(state):
    number, value = state
    place = number * count + jnp.arange(count)
    index = jnp.searchsorted(ends, place, side='right')
    valid = place < ends[-1]
    return number + 1, add(value, jnp.where(valid, index, 0), valid)

  return jax.lax.while_loop(
      lambda state: state[0] * count < ends[-1], step, (0, initial))[1]


def _find(pairs, points, onward):
  """The silhouette [2, N, H, W] that each pair crosses; -1 if there is none.
  """

  def add(edges, index, valid):
    segments = _segments(pairs, index)

    def step(state):
      number, face, entry, edge = state
      corners = points[jnp.maximum(face, 0)]
      crossings = [
          _crossing(segments, corners[:, (i + 1) % 3], corners[:, (i + 2) % 3])
          for i in range(3)]
      distances = jnp.stack([
          jnp.where(meets & (entry != i), distance, -jnp.inf)
          for i, (distance, meets) in enumerate(crossings)], axis=-1)
      leaves = jnp.argmax(distances, axis=-1)
      beyond = onward[jnp.maximum(face, 0), leaves]
      distance = jnp.max(distances, axis=-1)
      inside = (face >= 0) & (distance > -1) & (distance < 1)
      edge = jnp.where(inside & (beyond == _SILHOUETTE),
                       3 * face + leaves, edge)
      face = jnp.where(inside & (beyond >= 0), beyond // 3, -1)
      return number + 1, face, beyond % 3, edge

    face = jnp.where(valid, pairs.face.ravel()[index], -1)
    nothing = jnp.full_like(face, -1)
    *_, edge = jax.lax.while_loop(
        lambda state: (state[0] < STEPS) & jnp.any(state[1] >= 0), step,
        (0, face, nothing, nothing))
    ends = _ends(points, jnp.maximum(edge, 0))
    run, rise = (jnp.where(segments.vertical, d[:, 1 - i], d[:, i])
                 for d in (jnp.abs(ends[1] - ends[0]),) for i in (0, 1))
    met = (run < rise) | ((run == rise) & ~segments.vertical)
    return edges.at[jnp.where(valid, index, len(edges))].set(
        jnp.where(met, edge, -1), mode='drop')

  edges = jnp.full(pairs.face.size, -1)
  return _chunks(pairs.face >= 0, edges, add).reshape(pairs.face.shape)


def _ends(points, edge):
  """Start and end [K, 2] of edges [K], from corners [T, 3, 2]."""
  face, corner = edge // 3, edge % 3
  return (points[face, (corner + 1) % 3], points[face, (corner + 2) % 3])


@jax.custom_vjp
def _blend(image, points, silhouettes, pairs):
  """The image [P, C] blended where pairs cross silhouettes [2, N, H, W]."""
  def add(total, index, valid):
    return total + _blended(image, points, silhouettes, pairs, index, valid)

  return _chunks(silhouettes >= 0, image, add)


def _blend_backward(saved, cotangent):
  image, points, silhouettes, pairs = saved

  def add(total, index, valid):
    _, pull = jax.vjp(lambda image, points: _blended(
        image, points, silhouettes, pairs, index, valid), image, points)
    return jax.tree.map(jnp.add, total, pull(cotangent))

  return *_chunks(silhouettes >= 0, (cotangent, jnp.zeros_like(points)),
                  add), None, None


_blend.defvjp(lambda *args: (_blend(*args), args), _blend_backward)


def _blended(image, points, silhouettes, pairs, index, valid):
  """What the pairs at index [K] add to the image [P, C]."""
  segments = _segments(pairs, index)
  edge = jnp.maximum(silhouettes.ravel()[index], 0)
  distance, _ = _crossing(segments, *_ends(points, edge))
  # Beyond the middle the outer pixel is partly covered by the face, before it
  # the inner one by what is behind.
  excess = jnp.where(valid, distance - 0.5, 0.0)[:, None]
  difference = image[segments.inner] - image[segments.outer]
  return jnp.zeros_like(image).at[segments.outer].add(
      jnp.maximum(excess, 0.0) * difference).at[segments.inner].add(
          jnp.minimum(excess, 0.0) * difference)
