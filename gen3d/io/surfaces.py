"""Any mesh file that trimesh opens, as surfaces that can be rendered.

Read are: the faces of all nodes of a scene, vertex normals, and colors from
a base color texture and factor, vertex or face colors. Colors come as
display values: glTF's factors and vertex colors are linear by its rules
(2.0, section 3.7.2.1 and 3.9.2) and are encoded, all others are taken as they
are. Transparency, other maps and animation are left out.
"""

import pathlib

import numpy as np
import trimesh

from gen3d.choices import UserError
from gen3d.io.meshes import to_srgb
from gen3d.ops.cameras import Z_UP
from gen3d.ops.surfaces import Surface

_PLAIN = 0.7  # the gray of what has no color


def load(path, up='y'):
  """The surfaces of a mesh file, turned so that y is up.

  Args:
    path: of the file.
    up: what is up in it, 'y' or 'z'.

  Returns:
    tuple of ops.surfaces.Surface.

  Raises:
    UserError: the file is missing, of no known format, damaged, or has no
      triangles; the sentence names it.
  """
  path = pathlib.Path(path)
  known = sorted(trimesh.available_formats())
  if path.suffix[1:].lower() not in known:
    raise UserError(f'{path} is no mesh file that can be read; choose one of '
                    f'{", ".join(known)}.')
  if not path.is_file():
    raise UserError(f'{path} is missing.')
  try:
    scene = trimesh.load_scene(path, process=False)
    placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
  except Exception as error:  # each format's parser fails in its own way
    raise UserError(f'{path} cannot be read as a mesh ({error}).') from error
  linear = path.suffix.lower() in ('.glb', '.gltf')
  upright = Z_UP if up == 'z' else np.eye(4)
  surfaces = tuple(
      _placed(_surface(scene.geometry[name], linear), upright @ matrix)
      for matrix, name in placed
      if isinstance(scene.geometry[name], trimesh.Trimesh)
      and len(scene.geometry[name].faces))
  if not surfaces:
    raise UserError(f'{path} holds no triangles.')
  return surfaces


def _placed(surface, matrix):
  """The surface of a node, moved by its matrix [4, 4]."""
  normals = surface.normals @ np.linalg.pinv(matrix[:3, :3])
  length = np.linalg.norm(normals, axis=-1, keepdims=True)
  return surface._replace(
      vertices=surface.vertices @ matrix[:3, :3].T + matrix[:3, 3],
      normals=normals / np.maximum(length, 1e-12))


def _surface(part, linear):
  vertices = np.asarray(part.vertices, np.float64)
  faces, normals = np.asarray(part.faces), np.asarray(part.vertex_normals)
  encode = to_srgb if linear else lambda color: color
  gray = np.full((len(vertices), 3), _PLAIN)
  visual = part.visual
  if visual.kind == 'face':
    corners = np.asarray(visual.face_colors)[:, :3] / 255
    return Surface(vertices[faces].reshape(-1, 3),
                   np.arange(faces.size).reshape(-1, 3),
                   normals[faces].reshape(-1, 3),
                   encode(np.repeat(corners, 3, axis=0)))
  if visual.kind == 'vertex':
    return Surface(vertices, faces, normals,
                   encode(_unit(visual.vertex_colors)))
  if visual.kind != 'texture':
    return Surface(vertices, faces, normals, gray)
  attributes = getattr(visual, 'vertex_attributes', {})
  image, factor = _base_color(visual.material)
  if 'color' in attributes:
    factor = factor * _unit(attributes['color'])
  if image is None or visual.uv is None:
    return Surface(vertices, faces, normals, encode(gray * 0 + factor))
  return Surface(vertices, faces, normals, encode(gray * 0 + factor),
                 np.asarray(visual.uv, np.float64),
                 np.asarray(image.convert('RGB')))


def _base_color(material):
  """(picture or None, factor [3]) of trimesh's material of either kind."""
  if isinstance(material, trimesh.visual.material.PBRMaterial):
    factor = material.baseColorFactor
    return (material.baseColorTexture,
            np.ones(3) if factor is None else _unit(factor))
  image = getattr(material, 'image', None)
  # A picture replaces the diffuse color, which exporters leave at a gray.
  return image, np.ones(3) if image else _unit(material.diffuse)


def _unit(colors):
  """RGB in [0, 1] of 8-bit or float colors, without alpha."""
  colors = np.asarray(colors)
  scale = 255 if colors.dtype.kind in 'ui' else 1
  return colors[..., :3] / scale
