"""What trimesh does not read of glTF, and bounds on what a file declares.

Blender writes vertex colors, and other programs texture coordinates, as
integers that stand for fractions ("normalized"); trimesh takes them as they
are. `readable` gives it floats instead.
"""

import base64
import json
import pathlib
import struct
from typing import Any

import numpy as np

from gen3d import files
from gen3d.choices import UserError
from gen3d.io import mesh_references

SUFFIXES = ('.glb', '.gltf')
_COMPRESSION = {'KHR_draco_mesh_compression': 'Draco',
                'EXT_meshopt_compression': 'meshopt',
                'KHR_meshopt_compression': 'meshopt',
                'KHR_texture_basisu': 'Basis Universal'}
# Nodes, and primitives with those of every node that repeats them: trimesh
# takes a millisecond and more for each.
_MAX_PARTS = 10_000
# A few bytes may declare any number of vertices, or the same ones again and
# again. Arrays that several primitives share are counted for each of them.
_DECLARED_BYTES, _DECLARED_RATIO = 2 ** 27, 20
_FLOAT, _JSON, _BIN = 5126, b'JSON', b'BIN\0'
# Types of integers by glTF's number, and what stands for 1.
_INTEGERS = {5120: (np.int8, 127), 5121: (np.uint8, 255),
             5122: (np.int16, 32767), 5123: (np.uint16, 65535)}
_ARITY = {'SCALAR': 1, 'VEC2': 2, 'VEC3': 3, 'VEC4': 4}


def readable(path: pathlib.Path) -> bytes | None:
  """A .glb or .gltf file with floats for normalized integers.

  Args:
    path: of a mesh file.

  Returns:
    The content for trimesh; None where it can read the file as it is, or the
    file is damaged, which trimesh reports, or of another format.

  Raises:
    UserError: the file needs a compression that cannot be read, declares far
      more than it holds, or has a texture that is no image that is read.
  """
  if path.suffix.lower() not in SUFFIXES:
    return None
  try:
    tree, binary = _parse(path)
    required = tree.get('extensionsRequired', ())
    for name in required:
      if name in _COMPRESSION:
        raise UserError(
            f'{path} is compressed by {_COMPRESSION[name]} ({name}), which is '
            'not read; export it without compression.')
    _check_bounds(path, tree, binary)
    _check_textures(path, tree, binary)
    normalized = [a for a in tree.get('accessors', ())
                  if a.get('normalized') and a['componentType'] in _INTEGERS
                  and 'bufferView' in a and 'sparse' not in a]
    if not normalized:
      return None
    buffers = [_content(path, buffer, binary) for buffer in tree['buffers']]
    # The floats follow the binary chunk of a .glb; a .gltf gets a new buffer.
    added, is_glb = b'', path.suffix.lower() == '.glb'
    start, index = ((len(binary) + -len(binary) % 4, 0) if is_glb
                    else (0, len(buffers)))
    for accessor in normalized:
      view = tree['bufferViews'][accessor['bufferView']]
      values = _floats(accessor, view, buffers[view['buffer']]).tobytes()
      tree['bufferViews'].append({
          'buffer': index, 'byteOffset': start + len(added),
          'byteLength': len(values)})
      accessor.update(bufferView=len(tree['bufferViews']) - 1, byteOffset=0,
                      componentType=_FLOAT, normalized=False)
      for bound in ('min', 'max'):
        accessor.pop(bound, None)
      added += values
  except UserError:
    raise
  except (OSError, ValueError, LookupError, TypeError, AttributeError,
          struct.error):
    return None
  if not is_glb:
    data = base64.b64encode(added).decode()
    tree['buffers'].append({
        'byteLength': len(added),
        'uri': f'data:application/octet-stream;base64,{data}'})
    return json.dumps(tree).encode()
  binary = binary.ljust(start, b'\0') + added
  tree['buffers'][0]['byteLength'] = len(binary)
  return _glb(json.dumps(tree).encode(), binary)


def _check_bounds(path: pathlib.Path, tree: dict[str, Any],
                  binary: bytes) -> None:
  """Raises UserError where a file is far smaller than what it declares."""
  sizes, accessors = [], tree.get('accessors', [])
  parts = len(tree.get('nodes', ())), sum(
      len(mesh['primitives']) for mesh in tree.get('meshes', ()))
  for node in tree.get('nodes', ()) if max(parts) <= _MAX_PARTS else ():
    for primitive in (tree['meshes'][node['mesh']]['primitives']
                      if 'mesh' in node else ()):
      used = [*primitive['attributes'].values()]
      used += [primitive['indices']] if 'indices' in primitive else []
      sizes.append(sum(_declared(accessors[index]) for index in used))
      if any('sparse' in accessors[index] for index in used):
        raise UserError(f'{path} has sparse accessors, which are not read; '
                        'export it without them.')
      if len(sizes) > _MAX_PARTS:
        break
  if max(*parts, len(sizes)) > _MAX_PARTS:
    raise UserError(f'{path} has more than {_MAX_PARTS:,} nodes or primitives; '
                    'join the objects and export it again.')
  # Also of accessors that no primitive uses, which trimesh reads.
  declared = max(sum(sizes), sum(map(_declared, accessors)))
  if declared > _DECLARED_BYTES:
    held = sum(len(_content(path, buffer, binary))
               for buffer in tree.get('buffers', ()))
    if declared > _DECLARED_RATIO * held:
      raise UserError(
          f'{path} declares {declared:,} bytes of vertices and faces, but '
          f'holds {held:,}; export it again.')


def _check_textures(path: pathlib.Path, tree: dict[str, Any],
                    binary: bytes) -> None:
  """Raises UserError where a base color within the file is no image."""
  for material in tree.get('materials', ()):
    color = material.get('pbrMetallicRoughness', {}).get('baseColorTexture')
    source = color and tree['textures'][color['index']].get('source')
    image = {} if source is None else tree['images'][source]
    if 'bufferView' in image:
      view = tree['bufferViews'][image['bufferView']]
      start = view.get('byteOffset', 0)
      mesh_references.check_texture(
          f'{path}: image {source}',
          _content(path, tree['buffers'][view['buffer']], binary)[
              start:start + view['byteLength']])


def _declared(accessor: dict[str, Any]) -> int:
  """Bytes of the values of an accessor, as floats."""
  return 4 * accessor['count'] * _ARITY.get(accessor['type'], 16)


def _parse(path: pathlib.Path) -> tuple[dict[str, Any], bytes]:
  """The JSON and, of a .glb, the binary chunk."""
  content = files.read_file(path)
  if content[:4] != b'glTF':
    return _json(content), b''
  size, = struct.unpack_from('<I', content, 12)
  at = 20 + size
  length, kind = struct.unpack_from('<I4s', content.ljust(at + 8, b'\0'), at)
  return _json(content[20:at]), (
      content[at + 8:at + 8 + length] if kind == _BIN else b'')


def _json(content: bytes) -> dict[str, Any]:
  try:
    return files.parse_json(content, 'the file')
  except UserError as error:
    raise ValueError(str(error)) from error


def _content(path: pathlib.Path, buffer: dict[str, Any],
             binary: bytes) -> bytes:
  """The bytes of a buffer."""
  uri = buffer.get('uri')
  if uri is None:
    return binary
  if uri.startswith('data:'):
    return base64.b64decode(uri.partition(',')[2])
  file = mesh_references.find(path, uri)
  if file is None:
    raise FileNotFoundError(uri)
  return files.read_file(file)


def _floats(accessor: dict[str, Any], view: dict[str, Any],
            buffer: bytes) -> np.ndarray:
  """The values of a normalized accessor, float32 [count, arity]."""
  kind, one = _INTEGERS[accessor['componentType']]
  arity, count = _ARITY[accessor['type']], accessor['count']
  item = arity * np.dtype(kind).itemsize
  # Rows may have other attributes between them.
  start = view.get('byteOffset', 0) + accessor.get('byteOffset', 0)
  rows = np.ndarray((count, arity), kind, buffer, start, (
      view.get('byteStride') or item, np.dtype(kind).itemsize))
  return np.maximum(rows.astype(np.float32) / one, -1)


def _glb(text: bytes, binary: bytes) -> bytes:
  """A .glb file of two chunks."""
  text, binary = text + -len(text) % 4 * b' ', binary + -len(binary) % 4 * b'\0'
  chunks = [struct.pack('<I4s', len(chunk), kind) + chunk
            for kind, chunk in ((_JSON, text), (_BIN, binary))]
  return struct.pack('<4sII', b'glTF', 2, 12 + sum(map(len, chunks))
                     ) + b''.join(chunks)
