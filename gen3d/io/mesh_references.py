"""Files that mesh files name: material libraries and textures.

trimesh silently reads a mesh without what it does not find, so `check` looks
before it. The options of map_Kd are taken for parts of the name, as by trimesh.
"""

import io
import os
import pathlib
import re
import struct
import urllib.parse
from collections.abc import Iterator

from gen3d import files, notices, pixels
from gen3d.choices import UserError, excerpt, printable

_BUFFER = 'file of vertices and faces'
_MAX_LIBRARIES = 100  # material files of one .obj that are looked for


def check(path: str | os.PathLike) -> None:
  """Checks the material files and textures that a mesh file names.

  Only vertices and what colors a surface count: the buffers of .gltf, the
  libraries and base color textures of .obj, .gltf, .glb and .ply files. Damaged
  files pass; their reader says what is wrong with them.

  Args:
    path: of the mesh file.

  Raises:
    UserError: names a missing file, the file that names it, and a remedy; or a
      texture that is no image that is read, or a damaged material file.
  """
  path = pathlib.Path(path)
  named = {'.obj': _of_obj, '.gltf': _of_gltf, '.glb': _of_gltf,
           '.ply': _of_ply}.get(path.suffix.lower())
  try:
    references = list(named(path)) if named else []
  except UserError:
    raise
  except (OSError, ValueError, LookupError, TypeError, AttributeError,
          struct.error):
    return
  for kind, source, name in references:
    file = find(source, name)
    if file is None:
      without = ('' if kind == _BUFFER else
                 ', or remove that line to read the mesh without it')
      raise UserError(
          f'{source} names the {kind} {name}, which is missing; put it into '
          f'{source.parent}{without}.')
    if kind == 'texture':
      check_texture(str(file), files.read_file(file))


def check_texture(name: str, content: bytes) -> None:
  """Raises UserError where the content of a file is no image that is read.

  trimesh would leave it out.
  """
  try:
    files.open_image(io.BytesIO(content)).close()
  except Exception as error:  # Pillow raises many kinds for one damage.
    raise pixels.unreadable(name, content[:pixels.HEAD], error) from error


def _of_obj(path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, str]]:
  """Yields (kind, file that names it, name) of an .obj file's references."""
  text = path.read_text(errors='replace')
  used = set(_values(text, 'usemtl'))
  libraries = list(dict.fromkeys(_values(text, 'mtllib')))
  for library in libraries[:_MAX_LIBRARIES]:
    yield 'material file', path, library
    file = find(path, library)
    if file is None:
      return
    content = file.read_text(errors='replace')
    if '\0' in content:
      raise UserError(f'{file} is damaged (it has zero bytes); get it again.')
    if used and not _values(content, 'newmtl'):
      notices.message(printable(
          f'{file} has no material, though {path} uses {excerpt(min(used))}; '
          'the mesh is read without it.', 1000))
    # A material file is a sequence of materials.
    for part in re.split(r'(?mi)^(?=[ \t]*newmtl\s)', content):
      if used.intersection(_values(part, 'newmtl')):
        for texture in _values(part, 'map_Kd'):
          yield 'texture', file, texture


def _of_gltf(path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, str]]:
  """As `_of_obj`, of a .gltf or .glb file."""
  content = path.read_bytes()
  if content[:4] == b'glTF':
    size, = struct.unpack_from('<I', content, 12)
    content = content[20:20 + size]
  try:
    tree = files.parse_json(content, path)
  except UserError:
    return  # Its reader says what is wrong with it.
  for buffer in tree.get('buffers', ()):
    if not buffer.get('uri', 'data:').startswith('data:'):
      yield _BUFFER, path, buffer['uri']
  for material in tree.get('materials', ()):
    texture = material.get('pbrMetallicRoughness', {}).get('baseColorTexture')
    if texture and 'source' in tree['textures'][texture['index']]:
      image = tree['images'][tree['textures'][texture['index']]['source']]
      if not image.get('uri', 'data:').startswith('data:'):
        yield 'texture', path, image['uri']


def _of_ply(path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, str]]:
  """As `_of_obj`, of a .ply file."""
  with path.open('rb') as file:
    header = file.read(2 ** 14).partition(b'end_header')[0]
  for name in _values(header.decode(errors='replace'), 'comment TextureFile'):
    yield 'texture', path, name


def _values(text: str, keyword: str) -> list[str]:
  """What follows a keyword at the start of each line of a text."""
  return re.findall(rf'(?mi)^[ \t]*{keyword}[ \t]+(.*\S)', text)


def find(source: pathlib.Path, name: str) -> pathlib.Path | None:
  """The file of a name in a mesh file: within its folder, or None.

  Pipes and devices are found, too, for the message of who reads them.
  """
  folder = source.parent.resolve()
  for option in spellings(name):
    try:
      file = (folder / option).resolve()
    except RuntimeError:  # a loop of links
      continue
    if file.exists() and not file.is_dir() and file.is_relative_to(folder):
      return file
  return None


def spellings(name: str) -> list[str]:
  """The paths that a name may mean, the likeliest first.

  As it is, percent-encoded as in glTF, or with backslashes as Windows writes
  them; from the top or of another machine, of which the last part counts.
  """
  plain = name.strip()
  spelled = [plain, urllib.parse.unquote(plain), plain.replace('\\', '/')]
  return list(dict.fromkeys(
      [*spelled, *(x.lstrip('/') for x in spelled),
       *(pathlib.PurePosixPath(x).name for x in spelled)]))
