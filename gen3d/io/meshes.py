"""Mesh files: .glb, .ply and .obj.

All are written in the world's own axes, which are glTF's: y up, front to +z.
Colors in a Mesh are display values (sRGB). glTF 2.0 (section 3.7.2.1) says
that COLOR_0 is linear, so a .glb gets them decoded; .ply and .obj have no
rule, and viewers take their colors as display values, so they get them as
they are (8 bits in .ply).
"""

import pathlib

import numpy as np
import trimesh

from gen3d import files
from gen3d.choices import UserError
from gen3d.ops import mesh as ops_mesh

SUFFIXES = ('.glb', '.ply', '.obj')


def save(path, mesh):
  """Writes an ops.mesh.Mesh; the suffix of `path` names the format.

  Raises:
    UserError: an unknown suffix, or a folder that cannot be written to.
  """
  suffix = _suffix(path)
  shape = trimesh.Trimesh(
      np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces),
      process=False)
  colors = np.clip(np.asarray(mesh.colors), 0, 1)
  if suffix == '.glb':
    # Through an attribute of our own, renamed below: trimesh would round
    # linear colors to 8 bits, too few for the dark ones.
    shape.vertex_attributes['_COLOR'] = to_linear(colors).astype(np.float32)
    data = shape.export(file_type='glb', include_normals=True,
                        tree_postprocessor=_finish_gltf)
  else:
    shape.visual = trimesh.visual.ColorVisuals(
        shape, vertex_colors=np.round(255 * colors).astype(np.uint8))
    data = shape.export(file_type=suffix[1:])
  with files.atomic_write(path) as temporary:
    if isinstance(data, str):
      temporary.write_text(data)
    else:
      temporary.write_bytes(data)


def load(path):
  """Inverse of `save`; .ply and .obj keep 8 bits of color."""
  suffix = _suffix(path)
  shape, = trimesh.load_scene(path, process=False).geometry.values()
  if suffix == '.glb':
    colors = to_srgb(shape.visual.vertex_attributes['color'][:, :3])
  else:
    colors = np.asarray(shape.visual.vertex_colors)[:, :3] / 255
  return ops_mesh.Mesh(np.asarray(shape.vertices, np.float32),
                       np.asarray(shape.faces, np.int32),
                       colors.astype(np.float32))


def to_linear(srgb):
  """Linear light of display values in [0, 1] (IEC 61966-2-1)."""
  return np.where(srgb <= 0.04045, srgb / 12.92,
                  ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear):
  """Inverse of `to_linear`."""
  return np.where(linear <= 0.0031308, linear * 12.92,
                  1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


def _suffix(path):
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in SUFFIXES:
    raise UserError(f'Unknown mesh format {str(path)!r}; choose a name that '
                    f'ends in one of {", ".join(SUFFIXES)}.')
  return suffix


def _finish_gltf(tree):
  """Names the colors and gives a matte material, in place.

  glTF's default is a metal, which viewers without surroundings show black.
  """
  tree['materials'] = [{
      'name': 'matte',
      'pbrMetallicRoughness': {'metallicFactor': 0.0, 'roughnessFactor': 1.0}}]
  for mesh in tree['meshes']:
    for primitive in mesh['primitives']:
      attributes = primitive['attributes']
      attributes['COLOR_0'] = attributes.pop('_COLOR')
      primitive['material'] = 0
