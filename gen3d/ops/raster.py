"""A differentiable rasterizer of triangle meshes in XLA operations.

Names and meaning follow nvdiffrast (Laine et al., Modular primitives for
high-performance differentiable rendering, 2020). `silhouettes.antialias` gives
gradients at silhouettes, `textures.texture` reads textures.

Vocabulary. Clip positions (x, y, z, w) are OpenGL's: what is visible has
-w <= x, y, z <= w and w > 0; x is to the right and y up in the image; depth is
z / w, -1 at the near plane and 1 at the far one. Row 0 of an image is its top.
A corner is one of the three vertices of a face. Both sides of a face are
visible.

Edge functions. For the pixel center (X, Y), in clip space divided by w, let
d_i = (x_i - X w_i, y_i - Y w_i) for corner i, and e_0 = d_1 x d_2, and so on in
cyclic order. The point of the face that is seen at the center has the
perspective-correct barycentric coordinates e_i / sum(e), without a division by
w: a face that reaches behind the camera needs no clipping (Olano and Greer,
Triangle scan conversion using 2D homogeneous coordinates, 1997). Its depth
sum(e z) / sum(e w) is compared with the near and the far plane at each pixel.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import cameras

WINDOW = 8  # side of the blocks of pixels that faces are tested on
PAIRS = 2**14  # faces times windows tested at a time: bounds the memory
_NONE = np.int32(2**31 - 1)  # the face of an empty pixel while rasterizing


class Fragments(NamedTuple):
  """What is seen at each pixel's center."""
  faces: Any         # [..., H, W] int32, index into the faces; -1: empty
  barycentrics: Any  # [..., H, W, 3], of the face's corners; 0 where empty
  depth: Any         # [..., H, W], z / w; 1 where empty


def rasterize(clip_positions: jax.Array, faces: jax.Array | np.ndarray,
              size: int | tuple[int, int], *, layers: int = 1,
              perspective: bool = True) -> Fragments:
  """Finds the nearest face at every pixel's center, or the nearest few.

  Of several faces at one depth the one with the lowest index counts. Where
  edges are shared, no pixel is missed. Which face is seen has no gradient;
  barycentric coordinates and depth have, to the positions. Faces with
  positions that are not finite are invisible.

  Memory beside the arguments and the result: 300 bytes per face and view, 120
  bytes per pixel and view with the gradient, and PAIRS windows of WINDOW^2
  pixels (10 MB), wherever the faces are and however large. All windows of all
  faces together must be fewer than 2^31.

  Args:
    clip_positions: [..., V, 4], a batch of views.
    faces: [F, 3] int, indices of vertices.
    size: (H, W), or the side of a square, in pixels.
    layers: 1, or the number L of layers, which are then the result's leading
      axis, nearest first, by depth peeling. A layer beyond the last face is
      empty.
    perspective: whether barycentric coordinates are linear on the face;
      otherwise they are linear in the image, as in PyTorch3D with
      perspective_correct=False. Depth is linear in the image in either case.

  Returns:
    Fragments of shape [..., H, W], or [L, ..., H, W].
  """
  height, width = (size, size) if isinstance(size, int) else size
  faces = jnp.asarray(faces, jnp.int32)
  leading = clip_positions.shape[:-2]
  views = jnp.asarray(clip_positions, jnp.float32).reshape(
      -1, *clip_positions.shape[-2:])
  visible = _visible(height, width, layers)(
      jax.lax.stop_gradient(views), faces)
  visible = visible.reshape(layers, *leading, height, width)
  if layers == 1:
    visible = visible[0]
  corners = _corner_rows(clip_positions, faces, visible)
  return Fragments(visible, *_coordinates(
      corners, visible < 0, *_centers(height, width), perspective))


def to_clip(camera: cameras.Camera, points: jax.Array, near: float,
            far: float) -> jax.Array:
  """Clip positions [..., V, 4] of points, by OpenGL's projection.

  Args:
    camera: [...], a batch of views.
    points: [V, 3] or [..., V, 3], world.
    near, far: distances of the planes along the viewing axis.
  """
  offset = points - camera.c2w[..., None, :3, 3]
  local = jnp.sum(camera.c2w[..., None, :3, :3] * offset[..., :, None], -2)
  right, up, depth = local[..., 0], local[..., 1], -local[..., 2]
  k = camera.intrinsics[..., None, :, :]
  x = k[..., 0, 0] * right - k[..., 0, 1] * up + k[..., 0, 2] * depth
  y = -k[..., 1, 1] * up + k[..., 1, 2] * depth
  z = ((far + near) * depth - 2 * far * near) / (far - near)
  return jnp.stack([2 * x - depth, depth - 2 * y, z, depth], axis=-1)


def interpolate(attributes: jax.Array, fragments: Fragments,
                faces: jax.Array | np.ndarray) -> jax.Array:
  """Attributes [..., H, W, C] of the fragments; 0 where empty.

  Args:
    attributes: [V, C], or [..., V, C] whose leading axes are the last ones of
      the fragments'.
    fragments: from `rasterize`.
    faces: [F, 3] int: the attributes of each face's corners. Those given to
      `rasterize`, or of the same order with indices of their own.
  """
  rows = _corner_rows(attributes, faces, fragments.faces)
  # Not one sum over an axis of three, which is slow on a CPU.
  a, b, c = (fragments.barycentrics[..., i, None] * rows[..., i, :]
             for i in range(3))
  return a + b + c


def pixel_derivatives(attributes: jax.Array, fragments: Fragments,
                      clip_positions: jax.Array,
                      faces: jax.Array | np.ndarray,
                      attribute_faces: jax.Array | np.ndarray | None = None
                      ) -> jax.Array:
  """Derivatives [..., H, W, C, 2] of interpolated attributes in the image.

  Per pixel to the right and per pixel down, perspective-correct, analytic: the
  footprint that `textures.texture` takes. 0 where empty.

  Args:
    attributes: as for `interpolate`.
    fragments: from `rasterize`.
    clip_positions: as given to `rasterize`.
    faces: as given to `rasterize`.
    attribute_faces: [F, 3] of the attributes, if they are not `faces`.
  """
  height, width = fragments.faces.shape[-2:]
  corners = _corner_rows(clip_positions, faces, fragments.faces)
  x, y = _centers(height, width)
  if attribute_faces is None:
    attribute_faces = faces

  def along(x_step, y_step):
    _, weights = jax.jvp(
        lambda x, y: _coordinates(
            corners, fragments.faces < 0, x, y, True)[0],
        (x, y), (jnp.full_like(x, x_step), jnp.full_like(y, y_step)))
    return interpolate(attributes, fragments._replace(barycentrics=weights),
                       attribute_faces)

  return jnp.stack([along(2 / width, 0), along(0, -2 / height)], axis=-1)


def _centers(height, width):
  """(X [1, W], Y [H, 1]) of the pixels' centers, in clip space over w."""
  return ((2 * jnp.arange(width) + (1 - width)) / width)[None], (
      ((height - 1) - 2 * jnp.arange(height)) / height)[:, None]


def _corner_rows(values, faces, visible):
  """Values [..., H, W, 3, C] at the corners of visible faces; 0 where empty.

  Args:
    values: [V, C], or [..., V, C] whose leading axes are the last ones of
      `visible`.
    faces: [F, 3] int.
    visible: [..., H, W] int, faces; -1 where empty.
  """
  # One row for all corners of a face: the gradient is then one row of a
  # scatter for each pixel, instead of three.
  leading, channels = values.shape[:-2], values.shape[-1]
  table = jnp.take(values, jnp.asarray(faces), axis=-2, mode='clip')
  # Otherwise XLA would gather from `values` again for every pixel.
  table = jax.lax.optimization_barrier(table.reshape(-1, 3 * channels))
  view = jnp.arange(int(np.prod(leading))).reshape(*leading, 1, 1)
  index = jnp.maximum(visible, 0) + len(faces) * view
  rows = jnp.where(visible[..., None] >= 0,
                   table.at[index].get(mode='promise_in_bounds'), 0)
  return rows.reshape(*visible.shape, 3, channels)


def _coordinates(corners, empty, x, y, perspective):
  """(barycentric coordinates [..., 3], depth [...]); 0 and 1 where empty.

  Args:
    corners: [..., 3, 4], clip positions.
    empty: [...] bool, where there are no corners.
    x, y: the pixel's center, broadcast against [...].
    perspective: as in `rasterize`.
  """
  # Component by component: on a CPU, arrays with a short last axis are slow.
  parts = jnp.moveaxis(corners.reshape(*empty.shape, 12), -1, 0)
  parts = [part[0] for part in jax.lax.split(parts, (1,) * 12)]
  a, b, c = (parts[4 * i:4 * i + 4] for i in range(3))
  edges = _edge_functions(a, b, c, x, y)
  total, scale, depth = _totals(edges, a, b, c)
  total, scale = (jnp.where(empty, 1.0, value) for value in (total, scale))
  weights = [e / total for e in edges] if perspective else [
      e * w / scale for e, w in zip(edges, (a[3], b[3], c[3]))]
  return (jnp.stack(weights, axis=-1), jnp.where(empty, 1.0, depth / scale))


def _edge_functions(a, b, c, x, y):
  """The edge functions of corners, lists of x, y, z, w, at the place x, y."""
  (ax, ay), (bx, by), (cx, cy) = (
      (corner[0] - x * corner[3], corner[1] - y * corner[3])
      for corner in (a, b, c))
  # Each product of an edge in the order of its corners: two faces whose
  # corners are sorted get opposite numbers for a common edge, exactly.
  return bx * cy - by * cx, -(ax * cy - ay * cx), ax * by - ay * bx


def _totals(edges, a, b, c):
  """Sums of the edge functions, alone, times w, and times z."""
  return sum(edges), *(
      sum(e * corner[i] for e, corner in zip(edges, (a, b, c)))
      for i in (3, 2))


def _visible(height, width, layers):
  """The function (views [N, V, 4], faces [F, 3]) -> faces [L, N, H, W]."""

  @jax.custom_batching.custom_vmap
  def visible(views, faces):
    return _peel(views[:, faces], height, width, layers)

  @visible.def_vmap
  def of_batch(axis_size, batched, views, faces):
    # One loop over the faces of all views, instead of a batch of loops.
    many, own_faces = batched
    if own_faces:
      views = views if many else jnp.broadcast_to(
          views, (axis_size, *views.shape))
      corners = jax.vmap(lambda v, f: v[:, f])(views, faces)
      result = _peel(corners.reshape(-1, *corners.shape[2:]),
                     height, width, layers)
    else:
      result = visible(views.reshape(-1, *views.shape[2:]), faces)
    return jnp.moveaxis(result.reshape(
        layers, axis_size, -1, height, width), 1, 0), True

  return visible


def _peel(corners, height, width, layers):
  """Faces [L, N, H, W] of each layer, from corners [N, F, 3, 4]."""
  views, count = corners.shape[:2]
  # Rows and columns at the end for the windows that reach over the border.
  shape = views, height + WINDOW, width + WINDOW
  windows = _windows(corners.reshape(-1, 3, 4), height, width)

  def layer(before, _):
    depth, face = _nearest(windows, before, shape, (height, width), count)
    return (depth, face), face

  before = jnp.full(shape, -jnp.inf), jnp.full(shape, -1)
  if layers == 1:
    _, face = _nearest(windows, None, shape, (height, width), count)
    face = face[None]
  else:
    # All layers by the same compiled code, so that depths are equal exactly.
    _, face = jax.lax.scan(layer, before, length=layers)
  face = face[..., :height, :width]
  return jnp.where(face == _NONE, -1, face)


class _Windows(NamedTuple):
  """Faces of all views and the windows that cover their bounding boxes."""
  corners: Any  # [T, 3, 4], sorted
  first: Any    # [T, 2] int, the first (column, row)
  columns: Any  # [T] int, windows side by side
  ends: Any     # [T] int, the cumulative number of windows


def _windows(corners, height, width):
  """The _Windows of corners [T, 3, 4]."""
  low, high = _bounds(corners, height, width)
  across = jnp.maximum((high - low) // WINDOW + 1, 0)
  ends = jnp.cumsum(across[:, 0] * across[:, 1])
  return _Windows(_sorted(corners), low, across[:, 0], ends)


def _bounds(corners, height, width):
  """First and last (column, row) [T, 2] whose centers a face may cover."""
  near = corners[..., 2] + corners[..., 3]  # distance to the near plane
  following = jnp.roll(corners, -1, axis=1)
  near_following = jnp.roll(near, -1, axis=1)
  # The corners and the edges' intersections with the near plane.
  crosses = (near < 0) != (near_following < 0)
  share = near / jnp.where(crosses, near - near_following, 1.0)
  points = jnp.concatenate([
      corners, corners + share[..., None] * (following - corners)], axis=1)
  used = jnp.concatenate([near >= 0, crosses], axis=1)
  w = points[..., 3]
  flat = points[..., :2] / jnp.where(w > 0, w, 1.0)[..., None]
  # A tolerance of the rounding errors, larger at the near plane.
  slack = jnp.where(crosses.any(1), 1.0, 0.05)[:, None]
  size = np.array([width, height])
  pixels = (flat * np.array([1, -1]) + 1) * (size / 2) - 0.5
  low = jnp.min(jnp.where(used[..., None], pixels, jnp.inf), axis=1)
  high = jnp.max(jnp.where(used[..., None], pixels, -jnp.inf), axis=1)
  low = jnp.clip(jnp.ceil(low - slack), 0, size)
  high = jnp.clip(jnp.floor(high + slack), -1, size - 1)
  # A point at infinity: the face may cover any pixel.
  everywhere = jnp.any(used & (w <= 0), axis=1, keepdims=True)
  low, high = jnp.where(everywhere, 0, low), jnp.where(
      everywhere, size - 1, high)
  same = lambda p, q: jnp.all(p == q, axis=-1)
  a, b, c = jnp.moveaxis(corners, 1, 0)
  hidden = ((near < 0).all(1) | (high < low).any(1)
            | ~jnp.isfinite(corners).all((1, 2))
            | same(a, b) | same(b, c) | same(c, a))[:, None]
  return (jnp.where(hidden, 0, low).astype(jnp.int32),
          jnp.where(hidden, -1, high).astype(jnp.int32))


def _sorted(corners):
  """Corners [T, 3, 4] in lexicographic order of x, y, w, z."""
  a, b, c = jnp.moveaxis(corners, 1, 0)

  def swapped(p, q):
    less = jnp.zeros(p.shape[:-1], bool)
    for i in (2, 3, 1, 0):
      less = (p[..., i] < q[..., i]) | ((p[..., i] == q[..., i]) & less)
    less = less[..., None]
    return jnp.where(less, p, q), jnp.where(less, q, p)

  a, b = swapped(a, b)
  b, c = swapped(b, c)
  a, b = swapped(a, b)
  return jnp.stack([a, b, c], axis=1)


def _nearest(windows, before, shape, size, count):
  """(depth, face) [N, H + WINDOW, W + WINDOW] of the nearest faces.

  Args:
    windows: _Windows.
    before: (depth, face) of the layer before, or None.
    shape: of the result.
    size: (H, W).
    count: faces per view.
  """
  total = windows.ends[-1]
  # Not more than there can be, for small images.
  pairs = min(PAIRS, len(windows.ends) * int(np.prod(
      [-(-side // WINDOW) for side in size])))

  def step(state):
    number, depth, face = state
    pair = number * pairs + jnp.arange(pairs)
    index = jnp.minimum(
        jnp.searchsorted(windows.ends, pair, side='right'),
        len(windows.ends) - 1)
    start, z = _window_depths(windows, index, pair, size, count)
    if before is not None:
      z = jnp.where(_behind(z, index % count, start, *before), z, jnp.inf)
    nearer = _scatter_min(depth, start, z)
    face = jnp.where(nearer < depth, _NONE, face)
    wins = (z == _gather(nearer, start)) & (z < jnp.inf)
    face = _scatter_min(face, start, jnp.where(
        wins, (index % count)[:, None, None], _NONE))
    return number + 1, nearer, face

  _, depth, face = jax.lax.while_loop(
      lambda state: state[0] * pairs < total, step,
      (0, jnp.full(shape, jnp.inf), jnp.full(shape, _NONE)))
  return depth, face


def _window_depths(windows, index, pair, size, count):
  """Places [P, 3] of windows and depths [P, WINDOW, WINDOW] in them.

  Infinite where the face does not cover the pixel's center.
  """
  height, width = size
  corners, first = windows.corners[index], windows.first[index]
  columns = windows.columns[index]
  before = jnp.where(index > 0, windows.ends[index - 1], 0)
  valid = pair < windows.ends[-1]
  number = pair - before
  columns = jnp.maximum(columns, 1)
  column = first[:, 0] + WINDOW * (number % columns)
  row = first[:, 1] + WINDOW * (number // columns)
  place = jnp.where(valid[:, None], jnp.stack(
      [index // count, row, column], axis=-1), 0)
  steps = jnp.arange(WINDOW)
  x = (2 * (column[:, None, None] + steps) + (1 - width)) / width
  y = ((height - 1) - 2 * (row[:, None, None] + steps[:, None])) / height
  a, b, c = jnp.moveaxis(corners, 0, -1)[..., None, None]
  edges = _edge_functions(a, b, c, x, y)
  total, scale, depth = _totals(edges, a, b, c)
  least = jnp.minimum(jnp.minimum(*edges[:2]), edges[2])
  greatest = jnp.maximum(jnp.maximum(*edges[:2]), edges[2])
  # In front of the camera w = scale / total is positive.
  in_front = ((total > 0) == (scale > 0)) & (total != 0) & (scale != 0)
  inside = ((least >= 0) | (greatest <= 0)) & in_front & (
      jnp.abs(depth) <= jnp.abs(scale)) & valid[:, None, None]
  return place, jnp.where(inside, depth / scale, jnp.inf)


def _behind(depth, face, place, depth_before, face_before):
  """Whether windows' depths [P, ...] come after those of the layer before."""
  before, other = _gather(depth_before, place), _gather(face_before, place)
  face = face[:, None, None]
  return (face != other) & (
      (depth > before) | ((depth == before) & (face > other)))


_DIMENSIONS = jax.lax.ScatterDimensionNumbers((1, 2), (0,), (0, 1, 2))


def _scatter_min(buffer, place, values):
  """Minima of a buffer [N, H, W] and of windows of values at places [P, 3]."""
  return jax.lax.scatter_min(
      buffer, place, values, _DIMENSIONS, mode='promise_in_bounds')


def _gather(buffer, place):
  """Windows [P, WINDOW, WINDOW] of a buffer [N, H, W] at places [P, 3]."""
  return jax.lax.gather(
      buffer, place, jax.lax.GatherDimensionNumbers((1, 2), (0,), (0, 1, 2)),
      (1, WINDOW, WINDOW), mode='promise_in_bounds')
