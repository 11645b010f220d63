"""io.meshes: what is written is read back, and is right for glTF."""

import json
import struct

import numpy as np
import pytest
import trimesh

from gen3d import files
from gen3d.io import meshes
from gen3d.ops import mesh


@pytest.fixture
def ball():
  shape = trimesh.creation.icosphere(subdivisions=2)
  vertices = np.asarray(shape.vertices) * [0.3, 0.5, 0.7]
  return mesh.Mesh(vertices.astype(np.float32),
                   np.asarray(shape.faces, np.int32),
                   (0.5 * np.asarray(shape.vertices) + 0.5).astype(np.float32))


def gltf(path):
  """The JSON of a .glb, and its buffer, read by the letter of the format."""
  data = path.read_bytes()
  magic, version, length = struct.unpack_from('<4sII', data)
  assert (magic, version, length) == (b'glTF', 2, len(data))
  size, = struct.unpack_from('<I', data, 12)
  return json.loads(data[20:20 + size]), data[20 + size + 8:]


def accessor(tree, buffer, index):
  item = tree['accessors'][index]
  view = tree['bufferViews'][item['bufferView']]
  width = {'VEC3': 3, 'VEC4': 4, 'SCALAR': 1}[item['type']]
  kind = {5126: np.float32, 5121: np.uint8, 5125: np.uint32}
  return np.frombuffer(
      buffer, kind[item['componentType']], item['count'] * width,
      view.get('byteOffset', 0) + item.get('byteOffset', 0)
  ).reshape(-1, width)


@pytest.mark.parametrize('suffix', meshes.SUFFIXES)
def test_round_trip_keeps_axes_orientation_and_colors(
    tmp_path, ball, suffix):
  path = tmp_path / 'new' / f'ball{suffix}'
  meshes.save(path, ball)
  back = meshes.load(path)
  np.testing.assert_allclose(back.vertices, ball.vertices, atol=1e-6)
  np.testing.assert_array_equal(back.faces, ball.faces)
  np.testing.assert_allclose(
      back.colors, ball.colors, atol=1e-5 if suffix == '.glb' else 0.003)
  shape = trimesh.load(path, force='mesh', process=False)
  assert shape.is_watertight and shape.volume > 0
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_glb_has_linear_colors_matte_material_and_unit_normals(
    tmp_path, ball):
  meshes.save(tmp_path / 'ball.glb', ball)
  tree, buffer = gltf(tmp_path / 'ball.glb')
  primitive, = tree['meshes'][0]['primitives']
  assert set(primitive['attributes']) == {'POSITION', 'NORMAL', 'COLOR_0'}
  colors = accessor(tree, buffer, primitive['attributes']['COLOR_0'])
  np.testing.assert_allclose(
      colors, meshes.to_linear(ball.colors), atol=1e-6)
  normals = accessor(tree, buffer, primitive['attributes']['NORMAL'])
  np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
  assert (np.sum(normals * ball.vertices, -1) > 0).all()
  material = tree['materials'][primitive['material']]['pbrMetallicRoughness']
  assert material == {'metallicFactor': 0.0, 'roughnessFactor': 1.0}
  # No node may turn or move what is in the world's axes already.
  for node in tree['nodes']:
    assert np.allclose(np.reshape(node.get('matrix', np.eye(4)), (4, 4)),
                       np.eye(4))
    assert not {'rotation', 'translation', 'scale'} & set(node)


def test_srgb_pair_is_an_inverse_with_the_known_middle():
  x = np.linspace(0, 1, 101)
  np.testing.assert_allclose(meshes.to_srgb(meshes.to_linear(x)), x, atol=1e-6)
  assert meshes.to_linear(np.array(0.5)) == pytest.approx(0.21404, abs=1e-5)


def test_bad_paths_are_told_in_a_sentence(tmp_path, ball):
  with pytest.raises(ValueError, match=r"'ball.stl'; choose .*\.glb"):
    meshes.save('ball.stl', ball)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='Cannot write'):
    meshes.save(tmp_path / 'file' / 'ball.glb', ball)


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:
    temporary.write_text('half')
    raise RuntimeError('full disk')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]
