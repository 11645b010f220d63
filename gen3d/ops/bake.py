"""Textures of surfaces from color functions, and vertex colors from textures.

`bake` evaluates a color function where the centers of the texels lie on the
surface. See ops/atlas.py for the vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.spatial

from gen3d import notices
from gen3d.choices import UserError
from gen3d.ops import atlas, atlas_process, textures
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh

SIZES = (16, 8192)  # texels per side: the smallest and the largest

# points [CHUNK, 3] -> colors [CHUNK, 3] in [0, 1]; see ops.mesh.Query.
Color = Callable[[np.ndarray], Any]


def check_size(size: int,
               flag: str = '--texture, or --config.export.texture') -> None:
  """Raises UserError where a texture cannot have `size` texels per side.

  Args:
    size: texels per side; 0 for vertex colors.
    flag: that sets it.
  """
  if size and not SIZES[0] <= size <= SIZES[1]:
    raise UserError(
        f'A texture cannot have {size} texels per side ({flag}); give '
        f'{SIZES[0]} to {SIZES[1]}, or 0 for vertex colors.')


def bake(color: Color, mesh: Mesh, size: int,
         depth: float | None = None) -> Mesh:
  """Unwraps a mesh and bakes a color function into its texture.

  Args:
    color: of points within the object.
    mesh: as ops.mesh.extract returns it.
    size: texels per side.
    depth: below the surface at which colors are read; `inner_depth(mesh)` if
      not given.

  Returns:
    Mesh with uv, texture [size, size, 3] and normals, without vertex colors;
    see atlas.unwrap. The mesh itself, with a notice, where it is too irregular.
  """
  try:
    unwrapped = atlas.unwrap(mesh._replace(colors=None), size)
  except atlas_process.TooSlow as error:
    notices.message(f'A mesh has colors at its vertices instead of a texture: '
                    f'{error}. gen3d export --faces=50000 reduces them.')
    return mesh
  return unwrapped._replace(texture=texture(color, unwrapped, size, depth))


def texture(color: Color, mesh: Mesh, size: int,
            depth: float | None = None) -> np.ndarray:
  """The texture uint8 [size, size, 3] of a color function on a surface.

  The gutter has the colors of the nearest charts, so that neither bilinear
  interpolation nor mipmaps mix charts with a background.

  Args:
    color: of points within the object.
    mesh: with normals, and uv in [0, 1] without overlap.
    size: texels per side.
    depth: as for `bake`.
  """
  found = atlas.texels(mesh.uv, mesh.faces, size)
  interpolate = partial(atlas.interpolate, found, mesh.faces)
  points = inner_points(
      interpolate(mesh.vertices), interpolate(mesh.normals),
      inner_depth(mesh) if depth is None else depth)
  colors = mesh_ops.map_chunks(color, points.astype(np.float32))
  return fill(found, colors, size)


def texture_of_colors(mesh: Mesh, size: int) -> np.ndarray:
  """The texture uint8 [size, size, 3] of vertex colors; see `texture`.

  Args:
    mesh: with colors, and uv in [0, 1] without overlap. Its texture, if it has
      one, is multiplied.
    size: texels per side.
  """
  found = atlas.texels(mesh.uv, mesh.faces, size)
  interpolate = partial(atlas.interpolate, found, mesh.faces)
  colors = interpolate(mesh.colors)
  if mesh.texture is not None:
    colors = colors * texture_colors(mesh.texture, interpolate(mesh.uv))
  return fill(found, colors, size)


def inner_depth(mesh: Mesh) -> float:
  """Half a typical edge of a mesh.

  A field's color is trained only where there is density. The edges of an
  extracted mesh are about as long as the cells of its grid; see
  ops.mesh.extract.
  """
  a, b, c = np.asarray(mesh.vertices, np.float64)[np.asarray(mesh.faces).T]
  return 0.5 * float(np.median(np.linalg.norm(
      np.concatenate([b - a, c - b, a - c]), axis=-1)))


def inner_points(points: np.ndarray, normals: np.ndarray,
                 depth: float) -> np.ndarray:
  """Points [N, 3] below a surface.

  Args:
    points: [N, 3] on the surface.
    normals: [N, 3] there, of any length.
    depth: distance from the surface.
  """
  length = np.linalg.norm(normals, axis=-1, keepdims=True)
  return points - depth * normals / np.maximum(length, 1e-12)


def nearest_color(mesh: Mesh) -> Color:
  """A color function: that of the nearest texel or vertex of a mesh.

  Args:
    mesh: with a texture and uv in [0, 1] without overlap, or with colors.
  """
  points, colors = mesh.vertices, mesh.colors
  if mesh.texture is not None:
    size = max(mesh.texture.shape[:2])
    found = atlas.texels(mesh.uv, mesh.faces, size)
    points, uv = (atlas.interpolate(found, mesh.faces, x)
                  for x in (mesh.vertices, mesh.uv))
    factor = 1.0 if colors is None else atlas.interpolate(
        found, mesh.faces, colors)
    colors = texture_colors(mesh.texture, uv) * factor
  tree = scipy.spatial.KDTree(points)
  return lambda x: colors[tree.query(x)[1]]


def fill(found: atlas.Texels, colors: np.ndarray, size: int) -> np.ndarray:
  """A texture uint8 [size, size, 3] of the colors of texels, with a gutter.

  Args:
    found: T texels.
    colors: [T, 3], those beyond [0, 1] are clipped.
    size: texels per side.
  """
  image = np.zeros((size, size, 3), np.uint8)
  image[found.rows, found.columns] = np.round(255 * np.clip(colors, 0, 1))
  covered = np.zeros((size, size), bool)
  covered[found.rows, found.columns] = True
  return dilate(image, covered)


def fill_unseen(colors: np.ndarray, points: np.ndarray, seen: np.ndarray,
                groups: np.ndarray) -> np.ndarray:
  """Colors [N, 3], with those of unseen points replaced.

  Each gets the color of the nearest seen point of its group. A group without
  seen points keeps its colors.

  Args:
    colors: [N, 3].
    points: [N, 3].
    seen: bool [N].
    groups: int [N].
  """
  filled = colors.copy()
  for group in np.unique(groups[~seen]):
    known, unknown = (np.flatnonzero((groups == group) & which)
                      for which in (seen, ~seen))
    if len(known):
      _, nearest = scipy.spatial.KDTree(points[known]).query(points[unknown])
      filled[unknown] = colors[known[nearest]]
  return filled


def dilate(image: np.ndarray, covered: np.ndarray) -> np.ndarray:
  """Gives the texels that are not `covered` [H, W] the nearest one's color."""
  if not covered.any():
    return image
  nearest: Any = scipy.ndimage.distance_transform_edt(
      ~covered, return_distances=False, return_indices=True)
  return image[tuple(nearest)]


def texture_colors(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
  """Colors [N, 3] in [0, 1] of a texture uint8 [S, S, 3] at uv [N, 2]."""
  return np.asarray(jax.jit(textures.texture)(
      jnp.float32(texture) / 255, jnp.float32(uv)))


def vertex_colors(mesh: Mesh) -> np.ndarray | None:
  """Colors [V, 3] of the vertices: their own times the texture's, or None."""
  if mesh.texture is None:
    return mesh.colors
  colors = texture_colors(mesh.texture, mesh.uv)
  return colors if mesh.colors is None else colors * mesh.colors


def without_texture(mesh: Mesh) -> Mesh:
  """The mesh with vertex colors for its texture, and its seams merged.

  At a seam the color is that of one of the vertices there, and normals are
  left out, since a merged vertex may have several.
  """
  vertices, index = mesh_ops.weld(mesh.vertices)
  colors = vertex_colors(mesh)
  if colors is not None:
    _, first = np.unique(index, return_index=True)
    colors = colors[first]
  return Mesh(vertices, index[np.asarray(mesh.faces)].astype(np.int32),
              colors=colors)
