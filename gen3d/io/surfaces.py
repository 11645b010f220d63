"""Mesh files as one surface that is textured or refined.

io/meshes.py reads what a file has. `load` also checks that a texture or a
refinement can be computed on it, before any heavy work.
"""

import os
import sys

import numpy as np

from gen3d.choices import UserError
from gen3d.io import meshes
from gen3d.ops import atlas, atlas_process, bake
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh


def load(path: str | os.PathLike, up: str = 'y', *, manifold: bool = False,
         uv_size: int = 0) -> Mesh:
  """Reads a mesh file as one surface.

  Parts of the file are concatenated; of several textured parts the textures
  become vertex colors. Faces without area are removed. Changes are printed
  on stderr, in one sentence each.

  Args:
    path: file of any format that trimesh opens.
    up: the file's upward axis, 'y' or 'z'; the mesh has y up.
    manifold: whether edges of more than two faces are an error. Penalties on
      pairs of neighboring faces and subdivision need a manifold.
    uv_size: pixels per side of a texture that the surface is to get, else 0.
      The mesh then has uv in [0, 1] without overlap: the file's where they
      are so, else by ops.atlas.unwrap; a texture of the file that no longer
      fits becomes vertex colors.

  Returns:
    Mesh with normals, and colors or a texture. Vertices are split where
    normals or uv differ; see ops.mesh.weld.

  Raises:
    UserError: the file or what it names is missing or damaged, it has no
      triangles with area, vertices that are not finite, is too irregular for
      an atlas, or, if that matters, has edges of more than two faces.
  """
  parts = meshes.load(path, up)
  surface = parts[0] if len(parts) == 1 else _concatenate(parts, path)
  surface = _without_degenerate_faces(surface, path)
  edges = count_branching_edges(surface)
  if edges and manifold:
    raise UserError(
        f'{path} has edges of more than two faces ({edges}), which cannot be '
        "refined; remesh it, for instance with Blender's voxel remesh.")
  return _with_uv(surface, path, uv_size) if uv_size else surface


def load_parts(path: str | os.PathLike, up: str = 'y', *,
               uv_size: int) -> tuple[Mesh, ...]:
  """Reads a mesh file as one surface for each of its materials and nodes.

  Arguments, messages and errors are those of `load`, except that a part's uv
  may overlap only those of other parts.
  """
  parts = meshes.load(path, up)
  name = (lambda index: f'{path}, part {index + 1},') if len(parts) > 1 else (
      lambda index: path)
  return tuple(
      _with_uv(_without_degenerate_faces(part, name(index)), name(index),
               uv_size)
      for index, part in enumerate(parts))


def count_branching_edges(mesh: Mesh) -> int:
  """Number of edges of more than two faces, seams ignored."""
  _, index = mesh_ops.weld(mesh.vertices)
  faces = index[np.asarray(mesh.faces)]
  edges = np.sort(np.concatenate(
      [faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=-1)
  _, uses = np.unique(edges @ [len(index), 1], return_counts=True)
  return int(np.sum(uses > 2))


def _concatenate(parts, path):
  """One Mesh of several, with vertex colors and without uv."""
  if any(part.texture is not None for part in parts):
    _say(f'{path} has {len(parts)} parts: their textures become vertex '
         'colors; join their materials to keep the texture.')
  offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
  join = lambda arrays: np.concatenate(list(arrays))
  return Mesh(join(part.vertices for part in parts),
              join(part.faces + offset for part, offset in zip(parts, offsets)),
              join(part.normals for part in parts),
              join(bake.vertex_colors(part) for part in parts))


def _without_degenerate_faces(mesh, path):
  """The mesh without faces that have no area."""
  points, index = mesh_ops.weld(np.asarray(mesh.vertices))
  faces = index[np.asarray(mesh.faces)]
  a, b, c = points[faces.T]
  areas = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
  # Rounding of float32 coordinates: far below the area of any real face.
  good = areas > 1e-13 * np.ptp(points, axis=0).max() ** 2
  if not good.any():
    raise UserError(f'{path} has no triangle with an area; export its surface '
                    'as triangles.')
  if not good.all():
    _say(f'{path} has faces without area ({np.sum(~good)} of {len(good)}), '
         'which are left out; merge its vertices by distance to remove them.')
  return mesh._replace(faces=np.asarray(mesh.faces)[good])


def _with_uv(mesh, path, size):
  """The mesh with uv for a texture; see `load`."""
  if mesh.uv is None:
    reason = 'has no texture coordinates (uv)'
  elif np.abs(mesh.uv - 0.5).max() > 0.5 + 1e-6:
    reason = 'repeats its texture outside of [0, 1]'
  elif atlas.overlap(mesh.uv, mesh.faces, size) > 0.01:
    reason = 'has texture coordinates that overlap'
  else:
    return mesh
  _say(f'{path} {reason}: it is unwrapped anew; unwrap it in a modeling '
       'program to choose the seams.')
  try:
    return atlas.unwrap(mesh._replace(
        colors=bake.vertex_colors(mesh), uv=None, texture=None), size)
  except atlas_process.TooSlow as error:
    raise UserError(f'{path}: {error}; reduce them, or unwrap the mesh in a '
                    'modeling program.') from error


def _say(sentence):
  print(sentence, file=sys.stderr)
