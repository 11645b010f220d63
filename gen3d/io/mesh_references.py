"""Files that mesh files name: material libraries and textures.

trimesh silently reads a mesh without what it does not find, so `check` looks
before it.
"""

import json
import os
import pathlib
import re
import struct
import urllib.parse
from collections.abc import Iterator

from gen3d.choices import UserError


def check(path: str | os.PathLike) -> None:
  """Raises UserError where a mesh file names a material or texture not there.

  Only what colors a surface counts: the libraries and base color textures of
  .obj, .gltf, .glb and .ply files. Damaged files pass; their reader says what
  is wrong with them.

  Args:
    path: of the mesh file.

  Raises:
    UserError: names the missing file, the file that names it, and a remedy.
  """
  path = pathlib.Path(path)
  named = {'.obj': _of_obj, '.gltf': _of_gltf, '.glb': _of_gltf,
           '.ply': _of_ply}.get(path.suffix.lower())
  try:
    references = list(named(path)) if named else []
  except (OSError, ValueError, LookupError, TypeError, AttributeError,
          struct.error):
    return
  for kind, source, name in references:
    if not _is_beside(source, name):
      raise UserError(
          f'{source} names the {kind} {name}, which is missing; put it into '
          f'{source.parent}, or remove that line to read the mesh without it.')


def _of_obj(path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, str]]:
  """Yields (kind, file that names it, name) of an .obj file's references."""
  lines = path.read_text(errors='replace').splitlines()
  used = set(_values(lines, 'usemtl'))
  for library in _values(lines, 'mtllib'):
    yield 'material file', path, library
    if not _is_beside(path, library):
      return
    file, material = path.parent / library, None
    for line in file.read_text(errors='replace').splitlines():
      material = next(_values([line], 'newmtl'), material)
      for texture in _values([line], 'map_Kd'):
        if material in used:
          yield 'texture', file, _without_options(texture)


def _of_gltf(path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, str]]:
  """As `_of_obj`, of a .gltf or .glb file."""
  content = path.read_bytes()
  if content[:4] == b'glTF':
    size, = struct.unpack_from('<I', content, 12)
    content = content[20:20 + size]
  tree = json.loads(content)
  for material in tree.get('materials', ()):
    texture = material.get('pbrMetallicRoughness', {}).get('baseColorTexture')
    if texture and 'source' in tree['textures'][texture['index']]:
      image = tree['images'][tree['textures'][texture['index']]['source']]
      if not image.get('uri', 'data:').startswith('data:'):
        yield 'texture', path, urllib.parse.unquote(image['uri'])


def _of_ply(path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, str]]:
  """As `_of_obj`, of a .ply file."""
  with path.open('rb') as file:
    header = file.read(2 ** 14).partition(b'end_header')[0]
  for name in _values(header.decode(errors='replace').splitlines(),
                      'comment TextureFile'):
    yield 'texture', path, name


def _values(lines: list[str], keyword: str) -> Iterator[str]:
  """Yields what follows a keyword, with / between folders."""
  for line in lines:
    match = re.match(rf'\s*{keyword}\s+(.*\S)', line, re.IGNORECASE)
    if match:
      yield match[1].replace('\\', '/')


def _without_options(value: str) -> str:
  """The file name of a 'map_Kd' value such as '-s 1 1 1 wood.png'."""
  return value.split()[-1] if value.startswith('-') else value


def _is_beside(source: pathlib.Path, name: str) -> bool:
  """Whether trimesh finds a file: within the folder, else by its last name."""
  folder = source.parent.resolve()
  return any((folder / option).is_file()
             and (folder / option).resolve().is_relative_to(folder)
             for option in (name, name.lstrip('/'), pathlib.Path(name).name))
