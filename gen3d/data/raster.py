"""An independent rasterizer of meshes, in NumPy.

It renders images with known cameras for reconstruction, and shares no code
with the volume renderer that is tested on them. Depths are along the viewing
axis. Both sides of a face are visible.

Notation. V (rows) are a triangle's corners in camera axes with y down and z
forward; d is the direction at depth 1 of the ray through a pixel. A point of
the triangle on that ray is b V = depth d with barycentric coordinates b, so
that e = b / depth = d V^-1 is linear in the pixel's position. A pixel is inside
where no e is negative; 1 / depth is the sum of e, and b is e over that sum:
perspective-correct, and valid for triangles that reach behind the camera (Olano
and Greer, Triangle scan conversion using 2D homogeneous coordinates, 1997).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gen3d.ops.mesh import Mesh, vertex_normals

_BATCH = 2 ** 16  # samples tested at a time: their arrays fit into a cache
LIGHT = (0.45, 0.75, 0.5)  # direction towards the light: above, front, right


class Triangles(NamedTuple):
  """The faces of all meshes of an object, corner by corner."""
  corners: Any   # [F, 3, 3] float, world
  normals: Any   # [F, 3, 3] float
  colors: Any    # [F, 3, 3] float in [0, 1]
  uv: Any        # [F, 3, 2] float
  texture: Any   # [F] int, index into `pyramids`; -1 for none
  pyramids: Any  # per texture a tuple of float32 [H, W, 3] in [0, 1], halved


def gather(meshes: Sequence[Mesh]) -> Triangles:
  """Concatenates the faces of meshes; without colors they are white."""
  pieces, pyramids = [], []
  for mesh in meshes:
    faces = np.asarray(mesh.faces)
    normals, colors = mesh.normals, mesh.colors
    if normals is None:
      normals = vertex_normals(np.asarray(mesh.vertices), faces)
    if colors is None:
      colors = np.ones((len(mesh.vertices), 3))
    textured = mesh.texture is not None
    pieces.append((
        mesh.vertices[faces], normals[faces], colors[faces],
        mesh.uv[faces] if textured else np.zeros((*faces.shape, 2)),
        np.full(len(faces), len(pyramids) if textured else -1)))
    if textured:
      pyramids.append(_texture_pyramid(mesh.texture))
  corners, normals, colors, uv, texture = map(np.concatenate, zip(*pieces))
  return Triangles(corners, normals, colors, uv, texture, tuple(pyramids))


def rasterize(
    c2w: np.ndarray, intrinsics: np.ndarray, height: int, width: int,
    corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Finds the nearest face at every pixel's center.

  Args:
    c2w: [4, 4], OpenGL axes.
    intrinsics: [3, 3], normalized.
    height: of the image, pixels.
    width: of the image, pixels.
    corners: [F, 3, 3] of the triangles, world.

  Returns:
    Index of the nearest face [H, W], -1 where there is none; barycentric
    coordinates [H, W, 3] in that face; depth [H, W], infinite where there is
    no face.
  """
  local = _to_camera(corners, c2w)
  # [column, row, 1] @ pixel_to_ray is the direction d of a pixel.
  pixel_to_ray = (np.linalg.inv(intrinsics)
                  @ np.diag([1 / width, 1 / height, 1])).T
  # V^-1 by the adjugate; triangles seen edge-on have no inverse.
  a, b, c = local[:, 0], local[:, 1], local[:, 2]
  adjugate = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], -1)
  determinant = np.sum(a * adjugate[:, :, 0], -1)
  size = np.abs(local).max((1, 2))
  regular = np.abs(determinant) > 1e-15 * size ** 3
  edges = np.zeros_like(adjugate)
  edges[regular] = pixel_to_ray @ (
      adjugate[regular] / determinant[regular, None, None])
  low, high = _pixel_bounds(local, intrinsics, height, width)
  low[~regular], high[~regular] = 0, -1
  # Depth buffer.
  inverse_depth = np.zeros(height * width)
  nearest = np.full(height * width, -1)
  for faces, window in _windows(low, high):
    _fill(faces, window, low, high, edges, width, inverse_depth, nearest)
  # Barycentric coordinates of the covered pixels.
  covered = np.flatnonzero(nearest >= 0)
  weights = np.zeros((height * width, 3))
  weights[covered] = np.stack(_edge_functions(
      edges[nearest[covered]], covered % width, covered // width), -1)
  weights[covered] /= weights[covered].sum(-1, keepdims=True)
  with np.errstate(divide='ignore'):
    depth = 1 / inverse_depth
  return (nearest.reshape(height, width), weights.reshape(height, width, 3),
          depth.reshape(height, width))


def render(triangles: Triangles, c2w: np.ndarray, intrinsics: np.ndarray,
           height: int, width: int, *, samples: int = 3, ambient: float = 0.5,
           light: Sequence[float] | np.ndarray = LIGHT) -> np.ndarray:
  """Renders an object without background: uint8 [H, W, 4], straight alpha.

  A pixel is the mean of `samples`^2 points. Textures are read from the mipmap
  level whose texels are about as large as the distance between two points. The
  light is directional and fixed in the world, and reflection is diffuse, so
  that a point has the same color from every camera and a radiance field
  without view dependence can represent it.

  Args:
    triangles: the object.
    c2w: [4, 4], see `rasterize`.
    intrinsics: [3, 3], see `rasterize`.
    height: of the image, pixels.
    width: of the image, pixels.
    samples: points along a pixel's side.
    ambient: fraction of ambient light; 1 renders the colors without shading.
    light: direction [3] towards the directional light.
  """
  nearest, weights, _ = rasterize(
      c2w, intrinsics, samples * height, samples * width, triangles.corners)
  covered = nearest >= 0
  faces, weights = nearest[covered], weights[covered]
  interpolate = lambda corners: np.einsum(
      'pk,pkc->pc', weights, corners[faces])
  colors = interpolate(triangles.colors)
  # Texture lookups, one mipmap level at a time.
  levels = _mipmap_levels(triangles, c2w, intrinsics, samples * height,
                          samples * width)[faces]
  uv, texture = interpolate(triangles.uv), triangles.texture[faces]
  for number, pyramid in enumerate(triangles.pyramids):
    for level, image in enumerate(pyramid):
      points = (texture == number) & (
          np.minimum(levels, len(pyramid) - 1) == level)
      colors[points] *= _sample_bilinear(image, uv[points])
  # Shading.
  cosines = _lambert(
      triangles, c2w, faces, interpolate(triangles.normals), light)
  colors *= ambient + (1 - ambient) * cosines[:, None]
  # Box filter of premultiplied colors, then straight alpha.
  rgba = np.zeros((*covered.shape, 4))
  rgba[covered] = np.concatenate([colors, np.ones((len(faces), 1))], -1)
  mean = rgba.reshape(height, samples, width, samples, 4).mean((1, 3))
  mean[..., :3] /= np.maximum(mean[..., 3:], 1e-9)
  return np.round(255 * np.clip(mean, 0, 1)).astype(np.uint8)


def _to_camera(points, c2w):
  """World points [..., 3] in camera axes with y down and z forward."""
  return (points - c2w[:3, 3]) @ c2w[:3, :3] * [1, -1, -1]


def _lambert(triangles, c2w, faces, normals, light):
  """max(0, n . l) [P], with the normals turned towards the camera."""
  # The face's side is decided by its geometric normal: the interpolated one
  # may point away from the camera near the silhouette.
  a, b, c = np.moveaxis(triangles.corners, 1, 0)
  geometric = np.cross(b - a, c - a)
  geometric *= np.where(
      np.sum(geometric * (c2w[:3, 3] - a), -1) < 0, -1, 1)[:, None]
  normals = normals * np.where(
      np.sum(normals * geometric[faces], -1) < 0, -1, 1)[:, None]
  normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
  return np.maximum(normals @ (light / np.linalg.norm(light)), 0)


def _pixel_bounds(local, intrinsics, height, width):
  """First and last (column, row) [F, 2] whose centers a face may cover."""
  last = np.array([width, height]) - 1
  in_front = local[..., 2].min(1) > 1e-9
  flat = local[in_front] @ intrinsics.T
  flat = flat[..., :2] / flat[..., 2:] * [width, height]
  low = np.zeros((len(local), 2), int)
  high = np.tile(last, (len(local), 1))
  # A face that reaches behind the camera may cover any pixel.
  clip = lambda x: np.clip(x, -1, last + 1).astype(int)
  low[in_front] = np.maximum(clip(np.ceil(flat.min(1) - 0.5)), 0)
  high[in_front] = np.minimum(clip(np.floor(flat.max(1) - 0.5)), last)
  high[local[..., 2].max(1) <= 0] = -1
  return low, high


def _windows(
    low: np.ndarray,
    high: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
  """Yields (faces, (rows, columns)): batches that fit windows of one size.

  Consecutive window sides differ by a factor of about sqrt(2), so that few
  of the tested pixels lie outside a face's own bounds.
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


def _edge_functions(edges, columns, rows):
  """e at pixels' centers, of edges [..., 3, 3]: a list of three arrays [...].

  Not one array, since NumPy is slow with a trailing axis of three.
  """
  columns, rows = columns + 0.5, rows + 0.5
  return [edges[..., 0, k] * columns + (edges[..., 1, k] * rows
                                        + edges[..., 2, k]) for k in range(3)]


def _fill(faces, window, low, high, edges, width, inverse_depth, nearest):
  """Writes a batch of faces into the depth buffer, in place."""
  columns = low[faces, 0, None, None] + np.arange(window[1])
  rows = low[faces, 1, None, None] + np.arange(window[0])[:, None]
  a, b, c = _edge_functions(edges[faces, None, None], columns, rows)
  inside = (np.minimum(np.minimum(a, b), c) >= 0) & (
      columns <= high[faces, 0, None, None]) & (
          rows <= high[faces, 1, None, None])
  sample_inverse_depth = (a + b + c)[inside]
  pixel = (rows * width + columns)[inside]
  face = np.broadcast_to(faces[:, None, None], inside.shape)[inside]
  # NumPy stores the last of several values for one pixel: sorted, the nearest.
  order = np.argsort(sample_inverse_depth, kind='stable')
  order = order[
      sample_inverse_depth[order] > inverse_depth[pixel[order]]]
  inverse_depth[pixel[order]] = sample_inverse_depth[order]
  nearest[pixel[order]] = face[order]


def _texture_pyramid(texture):
  """Mipmaps: the texture and its halves by means of 2 x 2 texels."""
  levels = [np.asarray(texture, np.float32) / 255]
  while min(levels[-1].shape[:2]) > 1:
    image = levels[-1]
    height, width = (side // 2 * 2 for side in image.shape[:2])
    image = image[:height, :width]
    levels.append(image.reshape(
        height // 2, 2, width // 2, 2, 3).mean((1, 3)))
  return tuple(levels)


def _mipmap_levels(triangles, c2w, intrinsics, height, width):
  """Level [F] of each face's texture: half the log2 of texels per pixel."""
  if not triangles.pyramids:
    return np.zeros(len(triangles.corners), int)
  area = lambda p: np.abs(
      (p[:, 1, 0] - p[:, 0, 0]) * (p[:, 2, 1] - p[:, 0, 1])
      - (p[:, 1, 1] - p[:, 0, 1]) * (p[:, 2, 0] - p[:, 0, 0]))
  flat = _to_camera(triangles.corners, c2w) @ intrinsics.T
  flat = flat[..., :2] / np.maximum(flat[..., 2:], 1e-9) * [width, height]
  texels = np.array([np.prod(p[0].shape[:2]) for p in triangles.pyramids])
  ratio = area(triangles.uv) * texels[triangles.texture] / np.maximum(
      area(flat), 1e-9)
  return np.clip(np.round(0.5 * np.log2(np.maximum(ratio, 1))), 0, 30
                 ).astype(int)


def _sample_bilinear(image, uv):
  """Bilinear samples [P, 3] at uv [P, 2]; the image is repeated."""
  height, width = image.shape[:2]
  x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
  x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
  fx, fy = (x - x0)[:, None], (y - y0)[:, None]
  texel = lambda dy, dx: image[(y0 + dy) % height, (x0 + dx) % width]
  return ((1 - fy) * ((1 - fx) * texel(0, 0) + fx * texel(0, 1))
          + fy * ((1 - fx) * texel(1, 0) + fx * texel(1, 1)))
