"""io.gltf: integers that stand for fractions, and compressed files."""

import base64
import json
import struct
import time

import ghostscript
import numpy as np
import pytest
from PIL import Image

from gen3d.choices import UserError
from gen3d.io import meshes

VERTICES = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
FACE = np.array([0, 1, 2], np.uint32)
COLORS = np.array([[0, 0.2, 1, 1], [0.5, 0.5, 0.5, 1], [1, 0.01, 0, 1]])
UV = np.array([[0, 0], [1, 0.25], [0.5, 1]])
FORMATS = {5121: (np.uint8, 255), 5123: (np.uint16, 65535)}


def write(path, attributes, **tree):
  """A mesh of one triangle; attributes are {name: (array, normalized)}."""
  arrays = [(VERTICES, False), (FACE, False), *attributes.values()]
  kinds = {'float32': 5126, 'uint32': 5125, 'uint8': 5121, 'uint16': 5123}
  views, accessors, data = [], [], b''
  for array, normalized in arrays:
    views.append({'buffer': 0, 'byteOffset': len(data),
                  'byteLength': array.nbytes})
    data += array.tobytes() + -array.nbytes % 4 * b'\0'
    accessors.append({
        'bufferView': len(views) - 1, 'count': len(array),
        'componentType': kinds[array.dtype.name], 'normalized': normalized,
        'type': 'SCALAR' if array.ndim == 1 else f'VEC{array.shape[1]}'})
  primitive = {'attributes': {'POSITION': 0, **{
      name: 2 + i for i, name in enumerate(attributes)}}, 'indices': 1}
  if 'materials' in tree:
    primitive['material'] = 0
  tree = {'asset': {'version': '2.0'}, 'scene': 0, 'scenes': [{'nodes': [0]}],
          'nodes': [{'mesh': 0}], 'meshes': [{'primitives': [primitive]}],
          'accessors': accessors, 'bufferViews': views,
          'buffers': [{'byteLength': len(data)}], **tree}
  if path.suffix == '.gltf':
    uri = base64.b64encode(data).decode()
    tree['buffers'][0]['uri'] = f'data:application/octet-stream;base64,{uri}'
    path.write_text(json.dumps(tree))
    return path
  text = json.dumps(tree).encode()
  text += -len(text) % 4 * b' '
  path.write_bytes(
      struct.pack('<4sII', b'glTF', 2, 28 + len(text) + len(data))
      + struct.pack('<I4s', len(text), b'JSON') + text
      + struct.pack('<I4s', len(data), b'BIN\0') + data)
  return path


@pytest.mark.parametrize('suffix', ['.glb', '.gltf'])
@pytest.mark.parametrize('kind', [*FORMATS])
@pytest.mark.parametrize('tree', [
    {}, {'materials': [{'pbrMetallicRoughness': {'metallicFactor': 0.0}}]}])
def test_normalized_vertex_colors_are_those_of_floats(
    tmp_path, suffix, kind, tree):
  dtype, one = FORMATS[kind]
  stored = np.round(COLORS * one).astype(dtype)
  floats = (stored / one).astype(np.float32)
  found, expected = (meshes.load(write(
      tmp_path / f'{name}{suffix}', {'COLOR_0': pair}, **tree))[0].colors
      for name, pair in (('integers', (stored, True)),
                         ('floats', (floats, False))))
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # Linear values become display values; trimesh rounds some to 8 bits.
  np.testing.assert_allclose(
      found, meshes.to_srgb(COLORS[:, :3]), atol=4e-3 if tree and one > 255
      else 0.04)


def test_normalized_texture_coordinates_are_fractions(tmp_path):
  texture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  Image.fromarray(texture).save(tmp_path / 'a.png')
  tree = {'materials': [{'pbrMetallicRoughness': {
              'baseColorTexture': {'index': 0}}}],
          'textures': [{'source': 0}], 'images': [{'uri': 'a.png'}]}
  mesh, = meshes.load(write(tmp_path / 'a.gltf', {'TEXCOORD_0': (
      np.round(UV * 65535).astype(np.uint16), True)}, **tree))
  np.testing.assert_allclose(mesh.uv, [[0, 1], [1, 0.75], [0.5, 0]], atol=1e-4)
  np.testing.assert_array_equal(mesh.texture, texture)


@pytest.mark.parametrize('extension, words', [
    ('KHR_draco_mesh_compression', 'compressed by Draco'),
    ('EXT_meshopt_compression', 'compressed by meshopt')])
def test_compressed_files_are_refused_by_name(tmp_path, extension, words):
  write(tmp_path / 'a.glb', {}, extensionsRequired=[extension])
  with pytest.raises(UserError, match=f'a.glb is {words}.*without compression'):
    meshes.load(tmp_path / 'a.glb')


def declared(count, **more):
  return {'componentType': 5126, 'count': count, 'type': 'VEC3', **more}


@pytest.mark.parametrize('tree, words', [
    ({'accessors': [declared(5 * 10 ** 7), declared(3)]}, 'bytes of vertices'),
    ({'accessors': [declared(10 ** 6, bufferView=0)] * 20}, 'holds 48; export'),
    ({'nodes': [{'mesh': 0}] * 10_001}, 'more than 10,000 nodes'),
    ({'nodes': [{'mesh': 0}] * 200, 'meshes': [{'primitives': [
        {'attributes': {'POSITION': 0}, 'indices': 1}] * 200}]}, 'join the'),
    ({'accessors': [declared(3, sparse={}), declared(3)]}, 'sparse accessors')])
def test_files_that_declare_far_more_than_they_hold_are_refused(
    tmp_path, tree, words):
  write(tmp_path / 'a.glb', {})
  assert len(meshes.load(tmp_path / 'a.glb')) == 1
  begin = time.process_time()
  with pytest.raises(UserError, match=words):
    meshes.load(write(tmp_path / 'a.glb', {}, **tree))
  assert time.process_time() - begin < 5


@pytest.mark.parametrize('content', [ghostscript.POSTSCRIPT, b'GIF89a' * 9])
def test_base_colors_that_are_no_images_are_named(tmp_path, content):
  uri = 'data:x;base64,' + base64.b64encode(content.ljust(120)).decode()
  write(tmp_path / 'a.glb', {}, images=[{'bufferView': 2}],
        textures=[{'source': 0}], materials=[{
            'pbrMetallicRoughness': {'baseColorTexture': {'index': 0}}}],
        bufferViews=[
            {'buffer': 0, 'byteLength': 36},
            {'buffer': 0, 'byteOffset': 36, 'byteLength': 12},
            {'buffer': 1, 'byteLength': 120}],
        buffers=[{'byteLength': 48}, {'byteLength': 120, 'uri': uri}])
  with pytest.raises(UserError, match='image 0 cannot be read as an image'):
    meshes.load(tmp_path / 'a.glb')


@pytest.mark.parametrize('uri', ['my%20mesh.bin', 'my mesh.bin',
                                 'C:\\meshes\\my mesh.bin'])
def test_buffers_in_files_are_found_under_names_of_others(tmp_path, uri):
  path = write(tmp_path / 'a.gltf', {'COLOR_0': (
      np.uint8(COLORS * 255), True)})
  expected = meshes.load(path)[0].colors
  tree = json.loads(path.read_text())
  data = tree['buffers'][0]['uri'].partition(',')[2]
  tree['buffers'][0]['uri'] = uri
  path.write_text(json.dumps(tree))
  with pytest.raises(UserError, match='names the file of vertices .*missing'):
    meshes.load(path)
  (tmp_path / 'my mesh.bin').write_bytes(base64.b64decode(data))
  np.testing.assert_array_equal(meshes.load(path)[0].colors, expected)
