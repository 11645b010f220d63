"""Mesh files.

Written are .glb, .ply and .obj (with .mtl and .png), in the world's own axes,
which are glTF's (y up, front to +z). Read is every format that trimesh opens:
the faces of all nodes of a scene, vertex normals, and colors from a base color
texture and factor, vertex colors or face colors. Transparency, other texture
maps and animations are ignored.

Color space. The colors and textures of an ops.mesh.Mesh are display values
(sRGB). glTF 2.0 (sections 3.7.2.1 and 3.9.2) defines vertex colors and color
factors as linear and textures as sRGB, so for .glb and .gltf the former two
are converted in both directions. (trimesh shows a texture as such, and vertex
colors as `visual.vertex_attributes['color']` of a scene's geometry, linear:
they come with a material, since viewers show metal without one.) The other
formats define no color space; viewers take their colors as display values, so
they are stored unchanged (with 8 bits).
"""

import io
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from gen3d import files
from gen3d.choices import UserError, excerpt
from gen3d.io import gltf, mesh_references
from gen3d.ops import bake
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.cameras import Z_UP
from gen3d.ops.mesh import Mesh

FORMATS = ('glb', 'ply', 'obj')
SUFFIXES = tuple(f'.{name}' for name in FORMATS)
DEFAULT_GRAY = 0.7  # display value of meshes without any color
# Unlike a zip, they do not declare the size of their content.
_COMPRESSED = {'bz2', 'tar.bz2', 'tar.gz'}
_MAX_MEMBERS = 1000  # files of a zip
_MAX_NAME = 2 ** 12  # bytes at the end of an .stl that may name the solid
_FARTHEST = 1e30  # coordinate whose square is a finite float64
_VERTICES, _INDICES = 34962, 34963  # glTF: kinds of buffers


def save(path: str | os.PathLike, mesh: Mesh) -> None:
  """Writes a mesh.

  A texture becomes a part of a .glb; for an .obj, a .png of the same name that
  an .mtl of the same name refers to; in a .ply vertex colors, with its seams
  merged.

  Args:
    path: file to be written; its suffix, one of SUFFIXES, names the format.
    mesh: with colors, or with uv and texture, or both. Normals are written,
      too, computed from the faces where the mesh has none.

  Raises:
    UserError: an unknown suffix, both colors and a texture for an .obj, or a
      folder that cannot be written to.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    raise UserError(f'Unknown mesh format {str(path)!r}; choose a name that '
                    f'ends in one of {", ".join(SUFFIXES)}.')
  if mesh.texture is not None and suffix == '.ply':
    mesh = bake.without_texture(mesh)
  exported, colors = _to_trimesh(mesh)
  if suffix == '.glb':
    files.write_bytes(path, _export_glb(exported, mesh, colors))
  elif mesh.texture is not None:
    if colors is not None:
      raise UserError(f'{path}: an .obj has either vertex colors or a texture; '
                      'choose a name that ends in .glb.')
    _save_textured_obj(path, exported, mesh)
  else:
    if colors is not None:
      exported.visual = trimesh.visual.ColorVisuals(
          exported, vertex_colors=np.round(255 * colors).astype(np.uint8))
    options: dict[str, Any] = {
        {'.ply': 'vertex_normal', '.obj': 'include_normals'}[suffix]: True}
    data: Any = exported.export(  # .obj is text
        file_type=suffix[1:], **options)
    files.write_bytes(path, data.encode() if isinstance(data, str) else data)


def save_formats(stem: pathlib.Path, formats: Sequence[str], plain: Mesh,
                 textured: Mesh) -> list[pathlib.Path]:
  """Writes a mesh in several formats.

  Args:
    stem: path of the files without a suffix.
    formats: of FORMATS.
    plain: with vertex colors and closed, for .ply.
    textured: the same with a texture, or `plain` again, for the others.

  Returns:
    The paths written, without those of .mtl and .png files.

  Raises:
    UserError: as `save`.
  """
  written = [stem.with_name(f'{stem.name}.{name}') for name in formats]
  for path in written:
    save(path, plain if path.suffix == '.ply' else textured)
  return written


def load(path: str | os.PathLike, up: str = 'y') -> tuple[Mesh, ...]:
  """Reads a mesh file: one Mesh per material and node of its scene.

  Textures are of the formats of files.IMAGE_FORMATS.

  Args:
    path: file of any format that trimesh opens.
    up: the file's upward axis, 'y' or 'z'; the meshes have y up.

  Returns:
    Meshes in the scene's common frame, each with normals and colors.

  Raises:
    UserError: the file, or a material file or texture that it names, is
      missing or cannot be read; it is of an unknown format, damaged, has no
      triangles, or vertices that are not finite.
  """
  path = pathlib.Path(path).expanduser()
  formats = sorted(trimesh.available_formats() - _COMPRESSED)
  if path.suffix[1:].lower() not in formats:
    raise UserError(f'{path} is not a mesh file that can be read; choose one '
                    f'of {", ".join(formats)}.')
  if not path.is_file():
    raise UserError(f'{path} is missing; give the path of a mesh file.')
  try:
    parts = _read_all_parts(path)
  except UserError:
    raise
  except Exception as error:  # each format's parser has its own exceptions
    raise UserError(f'{path} cannot be read as a mesh ({excerpt(error)}); '
                    'export it again, for instance as .glb.') from error
  is_linear = path.suffix.lower() in gltf.SUFFIXES
  upright = Z_UP if up == 'z' else np.eye(4)
  parts = [(part, matrix) for part, matrix in parts
           if isinstance(part, trimesh.Trimesh) and len(part.faces)]
  for part, _ in parts:
    # Comparison is false for NaN.
    bad = np.sum(~(np.abs(part.vertices) < _FARTHEST).all(-1))
    if bad:
      raise UserError(f'{path} has vertices that are not finite ({bad} of '
                      f'{len(part.vertices)}); export it again.')
  meshes = tuple(
      mesh_ops.transform(_to_mesh(part, is_linear), upright @ matrix)
      for part, matrix in parts)
  if not meshes:
    raise UserError(f'{path} has no triangles; export the surface as '
                    'triangles.')
  return meshes


def to_linear(srgb: np.ndarray) -> np.ndarray:
  """Linear intensities of sRGB values in [0, 1] (IEC 61966-2-1)."""
  return np.where(srgb <= 0.04045, srgb / 12.92,
                  ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
  """Inverse of `to_linear`."""
  return np.where(linear <= 0.0031308, linear * 12.92,
                  1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


def _to_trimesh(mesh: Mesh) -> tuple[trimesh.Trimesh, np.ndarray | None]:
  """trimesh's mesh of the geometry, and the colors [V, 3], clipped."""
  normals = None if mesh.normals is None else np.asarray(mesh.normals)
  exported = trimesh.Trimesh(
      np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces),
      vertex_normals=normals, process=False)
  colors = None if mesh.colors is None else np.clip(
      np.asarray(mesh.colors), 0, 1)
  return exported, colors


def _export_glb(exported: trimesh.Trimesh, mesh: Mesh,
                colors: np.ndarray | None) -> bytes:
  """The content of a .glb file; `colors` [V, 3] are those of `mesh`."""
  if mesh.texture is not None:
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(np.asarray(mesh.texture)))
    exported.visual = trimesh.visual.TextureVisuals(
        np.asarray(mesh.uv, np.float64), material)
  # glTF has unit normals only, also where no face decides one.
  normals = np.array(exported.vertex_normals)
  normals[np.linalg.norm(normals, axis=-1) < 1e-12] = [0, 1, 0]
  exported.vertex_normals = normals
  if colors is not None:
    # As an attribute of another name, which _complete renames: trimesh
    # rounds vertex colors to 8 bits, too coarse for dark linear values.
    exported.vertex_attributes['_COLOR'] = to_linear(colors).astype(np.float32)
  content: Any = exported.export(file_type='glb', include_normals=True,
                                 tree_postprocessor=_complete)
  return content


def _save_textured_obj(path: pathlib.Path, exported: trimesh.Trimesh,
                       mesh: Mesh) -> None:
  """Writes .png, .mtl and, last, the .obj that names them."""
  # Programs read names up to a space.
  stem = re.sub(r'\s', '_', path.stem)
  exported.visual = trimesh.visual.TextureVisuals(
      np.asarray(mesh.uv, np.float64), trimesh.visual.material.SimpleMaterial(
          image=Image.fromarray(np.asarray(mesh.texture)), name=stem,
          diffuse=[255] * 3, ambient=[255] * 3, specular=[0] * 3))
  content: Any = trimesh.exchange.obj.export_obj(
      exported, include_normals=True, return_texture=True,
      mtl_name=f'{stem}.mtl', header=None)
  text, beside = content
  for name, data in beside.items():
    files.write_bytes(path.with_name(name), data)
  files.write_bytes(path, text.encode())


def _complete(tree: dict[str, Any]) -> None:
  """Completes the JSON of a .glb in place.

  Renames the color attribute, names the use of each buffer, and sets a matte
  material: glTF's default is metallic, which renderers without an environment
  map show black.
  """
  materials = tree.setdefault('materials', [{}])
  for material in materials:
    material['name'] = 'matte'
    material.setdefault('pbrMetallicRoughness', {}).update(
        metallicFactor=0.0, roughnessFactor=1.0)
  for mesh in tree['meshes']:
    for primitive in mesh['primitives']:
      attributes = primitive['attributes']
      if '_COLOR' in attributes:
        attributes['COLOR_0'] = attributes.pop('_COLOR')
      primitive['material'] = 0
      for index, target in [*((i, _VERTICES) for i in attributes.values()),
                            (primitive['indices'], _INDICES)]:
        view = tree['accessors'][index]['bufferView']
        tree['bufferViews'][view]['target'] = target


class _Resolver(trimesh.resolvers.FilePathResolver):
  """Finds the files that a mesh file names; refuses pipes and devices."""

  def __init__(self, source: pathlib.Path) -> None:
    super().__init__(str(source))
    self._source = source

  def get(self, name: str) -> bytes:
    path = mesh_references.find(self._source, name)
    if path is None:
      raise FileNotFoundError(name)
    return files.read_file(path)


def _read_all_parts(path: pathlib.Path) -> list[tuple[Any, np.ndarray]]:
  """As `_read_parts`; of a zip, those of the mesh files in it."""
  if path.suffix.lower() != '.zip':
    return _read_parts(path)
  with (zipfile.ZipFile(path) as archive,
        tempfile.TemporaryDirectory() as folder):
    files.check_zip(archive, path)
    if len(archive.namelist()) > _MAX_MEMBERS:
      raise UserError(f'{path} has more than {_MAX_MEMBERS:,} files; give the '
                      'mesh file itself.')
    archive.extractall(folder)
    found = [file for file in sorted(pathlib.Path(folder).rglob('*'))
             if file.suffix[1:].lower() in (
                 trimesh.available_formats() - _COMPRESSED - {'zip'})
             and not files.is_system_file(file)]
    try:
      return [part for file in found for part in _read_parts(file)]
    except UserError as error:  # It names files of the folder.
      raise UserError(str(error).replace(folder, str(path))) from error


def _read_parts(path: pathlib.Path) -> list[tuple[Any, np.ndarray]]:
  """(geometry, pose [4, 4]) of all nodes of a file, with textures decoded."""
  mesh_references.check(path)
  if path.suffix.lower() in ('.ply', '.stl'):
    _check_complete(path)
  # trimesh opens textures itself, in any format that Pillow supports.
  content = gltf.readable(path)
  with files.restricted_image_formats():
    scene = (
        trimesh.load_scene(path, process=False, resolver=_Resolver(path))
        if content is None else trimesh.load_scene(
            io.BytesIO(content), path.suffix[1:].lower(), _Resolver(path),
            process=False))
  for part in scene.geometry.values():
    visual = getattr(part, 'visual', None)  # drawings have none
    if visual is not None and visual.kind == 'texture':
      image, _ = _base_color(visual.material)
      if image is not None:
        image.load()
  nodes = [scene.graph[node] for node in scene.graph.nodes_geometry]
  return [(scene.geometry[name], matrix) for matrix, name in nodes]


def _check_complete(path: pathlib.Path) -> None:
  """Raises UserError where a text file ends before what it announces.

  trimesh reads the part that is there. It checks binary files itself.
  """
  content = files.read_file(path)
  head, end, body = content.partition(b'end_header')
  if path.suffix.lower() == '.ply' and end and b'format ascii' in head:
    rows = sum(map(int, re.findall(rb'(?m)^element \S+ (\d{1,18})\s*$', head)))
    # Blank lines are no rows.
    present = sum(bool(line.strip()) for line in body.splitlines()[1:])
    if present < rows:
      raise UserError(f'{path} ends too early: its header announces {rows:,} '
                      f'rows, but it has {present:,}; export it again.')
  is_text = content.lstrip()[:5] == b'solid' and b'\0' not in content[:80]
  if path.suffix.lower() == '.stl' and is_text and (
      b'endsolid' not in content[-_MAX_NAME:]):
    raise UserError(f'{path} ends too early: it has no endsolid; export it '
                    'again.')


def _to_mesh(part: trimesh.Trimesh, is_linear: bool) -> Mesh:
  """Mesh of one geometry; `is_linear`: its vertex colors and factors are."""
  vertices = np.asarray(part.vertices, np.float64)
  faces, normals = np.asarray(part.faces), np.asarray(part.vertex_normals)
  encode = to_srgb if is_linear else lambda color: color
  visual: Any = part.visual
  if visual.kind == 'face':
    # One color per face: every face gets its own three vertices.
    face_colors = _to_unit(visual.face_colors)
    return Mesh(vertices[faces].reshape(-1, 3),
                np.arange(faces.size).reshape(-1, 3),
                normals[faces].reshape(-1, 3),
                encode(np.repeat(face_colors, 3, axis=0)))
  if visual.kind == 'vertex':
    return Mesh(vertices, faces, normals,
                encode(_to_unit(visual.vertex_colors)))
  if visual.kind != 'texture':
    return Mesh(vertices, faces, normals,
                np.full((len(vertices), 3), DEFAULT_GRAY))
  image, factor = _base_color(visual.material)
  attributes = getattr(visual, 'vertex_attributes', {})
  if 'color' in attributes:
    factor = factor * _to_unit(attributes['color'])
  colors = encode(np.zeros((len(vertices), 3)) + factor)
  if image is None or visual.uv is None:
    return Mesh(vertices, faces, normals, colors)
  return Mesh(vertices, faces, normals, colors,
              np.asarray(visual.uv, np.float64),
              np.asarray(image.convert('RGB')))


def _base_color(material: Any) -> tuple[Image.Image | None, np.ndarray]:
  """(image or None, factor [3]) of either kind of material of trimesh."""
  if isinstance(material, trimesh.visual.material.PBRMaterial):
    factor = material.baseColorFactor
    return (material.baseColorTexture,
            np.ones(3) if factor is None else _to_unit(factor))
  image = getattr(material, 'image', None)
  # An image replaces the diffuse color, which exporters leave at some gray.
  return image, np.ones(3) if image else _to_unit(material.diffuse)


def _to_unit(colors: Any) -> np.ndarray:
  """RGB in [0, 1] of integer or float colors, without alpha."""
  colors = np.asarray(colors)
  scale = np.iinfo(colors.dtype).max if colors.dtype.kind in 'ui' else 1
  return colors[..., :3] / scale
