"""Pictures of surfaces by an independent rasterizer, in NumPy.

It makes pictures with known cameras for reconstruction and stands apart from
what it is to test: it shares nothing with the volume renderer. Depths are
along the viewing axis. Faces are seen from both sides.

A point of a triangle with corners V (rows, camera axes with y down and z
ahead) on the ray through a pixel, whose direction at depth 1 is d, is b V with
barycentric weights b, so that b V = depth d: e = b / depth = d V^-1 is linear
in the pixel's place. A pixel is inside where no e is negative; 1 / depth is
their sum and b is e over it, correct in perspective and behind the camera
(Olano and Greer, Triangle scan conversion using 2D homogeneous coordinates,
1997).
"""

from typing import Any, NamedTuple

import numpy as np

_BATCH = 2 ** 16  # samples looked at together: as many as a cache holds
LIGHT = (0.45, 0.75, 0.5)  # where the light comes from: above, front, right


class Triangles(NamedTuple):
  """The faces of all surfaces of an object, corner by corner."""
  corners: Any   # [F, 3, 3]
  normals: Any   # [F, 3, 3]
  colors: Any   # [F, 3, 3]
  uv: Any        # [F, 3, 2]
  texture: Any   # int [F], which of `pyramids`; -1 for none
  pyramids: Any  # tuple of tuples of float32 [H, W, 3] in [0, 1], halved


def gather(surfaces):
  """Triangles of a tuple of ops.surfaces.Surface."""
  pieces, pyramids = [], []
  for surface in surfaces:
    faces = np.asarray(surface.faces)
    textured = surface.texture is not None
    pieces.append((
        surface.vertices[faces], surface.normals[faces],
        surface.colors[faces],
        surface.uv[faces] if textured else np.zeros((*faces.shape, 2)),
        np.full(len(faces), len(pyramids) if textured else -1)))
    if textured:
      pyramids.append(_pyramid(surface.texture))
  return Triangles(*map(np.concatenate, zip(*pieces)), tuple(pyramids))


def rasterize(c2w, intrinsics, height, width, corners):
  """What is seen at every pixel's center.

  Args:
    c2w: [4, 4], OpenGL axes.
    intrinsics: [3, 3], normalized.
    height, width: of the picture.
    corners: [F, 3, 3] of triangles, world.

  Returns:
    (index of the nearest face int [H, W], -1 where there is none; barycentric
    weights [H, W, 3] in the face; depth [H, W], infinite where there is
    none).
  """
  local = (corners - c2w[:3, 3]) @ c2w[:3, :3] * [1, -1, -1]
  # [column, row, 1] @ rays is a pixel's direction at depth 1.
  rays = (np.linalg.inv(intrinsics) @ np.diag([1 / width, 1 / height, 1])).T
  a, b, c = local[:, 0], local[:, 1], local[:, 2]
  adjugate = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], -1)
  volume = np.sum(a * adjugate[:, :, 0], -1)
  size = np.abs(local).max((1, 2))
  solid = np.abs(volume) > 1e-15 * size ** 3  # not seen edge on
  edges = np.zeros_like(adjugate)
  edges[solid] = rays @ (adjugate[solid] / volume[solid, None, None])
  low, high = _bounds(local, intrinsics, height, width)
  low[~solid], high[~solid] = 0, -1
  best = np.zeros(height * width)  # 1 / depth
  owner = np.full(height * width, -1)
  for faces, window in _by_size(low, high):
    _fill(faces, window, low, high, edges, width, best, owner)
  seen = np.flatnonzero(owner >= 0)
  weights = np.zeros((height * width, 3))
  weights[seen] = np.stack(
      _at(edges[owner[seen]], seen % width, seen // width), -1)
  weights[seen] /= weights[seen].sum(-1, keepdims=True)
  with np.errstate(divide='ignore'):
    depth = 1 / best
  shape = height, width
  return owner.reshape(shape), weights.reshape(*shape, 3), depth.reshape(shape)


def render(triangles, c2w, intrinsics, height, width, *, samples=3,
           ambient=0.5, light=LIGHT):
  """A picture of an object over nothing: uint8 [H, W, 4], straight alpha.

  Each pixel is the mean of `samples` squared points; textures are read from
  the level at which a texel is about as large as the distance of two points.
  The light is far away and fixed in the world, so that a point has one color
  from everywhere, which is what a radiance field without views can be.

  Args:
    triangles: Triangles.
    c2w, intrinsics: the camera, as for `rasterize`.
    height, width: of the picture.
    samples: points a side of a pixel.
    ambient: share of light that comes from everywhere; 1 shows the colors.
    light: direction [3] that the rest comes from.
  """
  owner, weights, _ = rasterize(
      c2w, intrinsics, samples * height, samples * width, triangles.corners)
  seen = owner >= 0
  faces, weights = owner[seen], weights[seen]
  mix = lambda corners: np.einsum('pk,pkc->pc', weights, corners[faces])
  colors = mix(triangles.colors)
  levels = _levels(triangles, c2w, intrinsics, samples * height,
                   samples * width)[faces]
  uv, texture = mix(triangles.uv), triangles.texture[faces]
  for number, pyramid in enumerate(triangles.pyramids):
    for level, image in enumerate(pyramid):
      here = (texture == number) & (
          np.minimum(levels, len(pyramid) - 1) == level)
      colors[here] *= _look_up(image, uv[here])
  shade = _lambert(triangles, c2w, faces, mix(triangles.normals), light)
  colors *= ambient + (1 - ambient) * shade[:, None]
  full = np.zeros((*seen.shape, 4))
  full[seen] = np.concatenate([colors, np.ones((len(faces), 1))], -1)
  mean = full.reshape(height, samples, width, samples, 4).mean((1, 3))
  mean[..., :3] /= np.maximum(mean[..., 3:], 1e-9)
  return np.round(255 * np.clip(mean, 0, 1)).astype(np.uint8)


def _lambert(triangles, c2w, faces, normals, light):
  """max(0, n . l) [P] with normals turned to the side that is seen."""
  a, b, c = np.moveaxis(triangles.corners, 1, 0)
  flat = np.cross(b - a, c - a)
  flat *= np.where(np.sum(flat * (c2w[:3, 3] - a), -1) < 0, -1, 1)[:, None]
  normals = normals * np.where(
      np.sum(normals * flat[faces], -1) < 0, -1, 1)[:, None]
  normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
  return np.maximum(normals @ (light / np.linalg.norm(light)), 0)


def _bounds(local, intrinsics, height, width):
  """First and last (column, row) [F, 2] whose centers a face may cover."""
  last = np.array([width, height]) - 1
  ahead = local[..., 2].min(1) > 1e-9
  flat = local[ahead] @ intrinsics.T
  flat = flat[..., :2] / flat[..., 2:] * [width, height]
  low = np.zeros((len(local), 2), int)
  high = np.tile(last, (len(local), 1))
  # A face that reaches behind the camera may show anywhere.
  clip = lambda x: np.clip(x, -1, last + 1).astype(int)
  low[ahead] = np.maximum(clip(np.ceil(flat.min(1) - 0.5)), 0)
  high[ahead] = np.minimum(clip(np.floor(flat.max(1) - 0.5)), last)
  high[local[..., 2].max(1) <= 0] = -1
  return low, high


def _by_size(low, high):
  """Yields (faces, (rows, columns)): those that such a window covers.

  Sides go up by a half at most, so that little of a window is waste.
  """
  sides = np.unique(np.round(2 ** (np.arange(28) / 2)).astype(int))
  visible = np.flatnonzero(np.all(high >= low, axis=1))
  kind = np.searchsorted(sides, (high - low)[visible] + 1)
  for columns, rows in np.unique(kind, axis=0):
    faces = visible[np.all(kind == (columns, rows), axis=1)]
    window = sides[rows], sides[columns]
    step = max(1, _BATCH // (window[0] * window[1]))
    for start in range(0, len(faces), step):
      yield faces[start:start + step], window


def _at(edges, columns, rows):
  """e: three arrays [...] of faces at pixels' centers; edges [..., 3, 3].

  Apart, since a trailing axis of three is slow.
  """
  columns, rows = columns + 0.5, rows + 0.5
  return [edges[..., 0, k] * columns + (edges[..., 1, k] * rows
                                        + edges[..., 2, k]) for k in range(3)]


def _fill(faces, window, low, high, edges, width, best, owner):
  """Enters the samples of some faces into the depth buffer, in place."""
  columns = low[faces, 0, None, None] + np.arange(window[1])
  rows = low[faces, 1, None, None] + np.arange(window[0])[:, None]
  a, b, c = _at(edges[faces, None, None], columns, rows)
  inside = (np.minimum(np.minimum(a, b), c) >= 0) & (
      columns <= high[faces, 0, None, None]) & (
          rows <= high[faces, 1, None, None])
  nearness = (a + b + c)[inside]
  place = (rows * width + columns)[inside]
  face = np.broadcast_to(faces[:, None, None], inside.shape)[inside]
  # Of several values for one place, NumPy keeps the last: the nearest.
  order = np.argsort(nearness, kind='stable')
  order = order[nearness[order] > best[place[order]]]
  best[place[order]], owner[place[order]] = nearness[order], face[order]


def _pyramid(texture):
  """The texture and its halves, quarters ... by averages of 2 x 2 texels."""
  levels = [np.asarray(texture, np.float32) / 255]
  while min(levels[-1].shape[:2]) > 1:
    image = levels[-1]
    height, width = (side // 2 * 2 for side in image.shape[:2])
    image = image[:height, :width]
    levels.append(image.reshape(
        height // 2, 2, width // 2, 2, 3).mean((1, 3)))
  return tuple(levels)


def _levels(triangles, c2w, intrinsics, height, width):
  """The level [F] of its texture that each face is read from."""
  if not triangles.pyramids:
    return np.zeros(len(triangles.corners), int)
  area = lambda p: np.abs(
      (p[:, 1, 0] - p[:, 0, 0]) * (p[:, 2, 1] - p[:, 0, 1])
      - (p[:, 1, 1] - p[:, 0, 1]) * (p[:, 2, 0] - p[:, 0, 0]))
  local = (triangles.corners - c2w[:3, 3]) @ c2w[:3, :3] * [1, -1, -1]
  flat = local @ intrinsics.T
  flat = flat[..., :2] / np.maximum(flat[..., 2:], 1e-9) * [width, height]
  texels = np.array([np.prod(p[0].shape[:2]) for p in triangles.pyramids])
  ratio = area(triangles.uv) * texels[triangles.texture] / np.maximum(
      area(flat), 1e-9)
  return np.clip(np.round(0.5 * np.log2(np.maximum(ratio, 1))), 0, 30
                 ).astype(int)


def _look_up(image, uv):
  """Bilinear colors [P, 3] at uv [P, 2]; the image is repeated."""
  height, width = image.shape[:2]
  x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
  x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
  fx, fy = (x - x0)[:, None], (y - y0)[:, None]
  texel = lambda dy, dx: image[(y0 + dy) % height, (x0 + dx) % width]
  return ((1 - fy) * ((1 - fx) * texel(0, 0) + fx * texel(0, 1))
          + fy * ((1 - fx) * texel(1, 0) + fx * texel(1, 1)))
