"""io.surfaces and io.mesh_references: files as they should not be."""

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from gen3d.io import meshes, surfaces
from gen3d.ops import atlas
from gen3d.ops.mesh import Mesh

POINTS = 'v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nv 1 1 1\n'
UV = 'vt 0 0\nvt 1 0\nvt 0 1\n'


def write(path, text):
  path.write_text(text)
  return path


def textured(path):
  """A tetrahedron with a red texture, whose faces do not overlap in uv."""
  shape = trimesh.creation.icosphere(0)
  mesh = atlas.unwrap(Mesh(np.asarray(shape.vertices),
                           np.asarray(shape.faces)), 64)
  texture = np.zeros((64, 64, 3), np.uint8) + np.uint8([255, 0, 0])
  meshes.save(path, mesh._replace(texture=texture))
  return mesh


@pytest.mark.parametrize('content, message', [
    (POINTS, r'a\.obj has no triangles; export'),
    (POINTS + 'f 1 1 2\n', r'a\.obj has no triangle with an area; export'),
    (POINTS.replace('v 1 0 0', 'v nan 0 0') + 'f 1 2 3\n',
     r'a\.obj has vertices that are not finite \(1 of 3\); export'),
    (POINTS + 'f 1 2 9\n', r'a\.obj cannot be read as a mesh'),
    ('mtllib b.mtl\n' + POINTS + 'f 1 2 3\n',
     r'a\.obj names the material file b\.mtl, which is missing; put it into')])
def test_meshes_that_cannot_be_used_are_errors(tmp_path, content, message):
  path = write(tmp_path / 'a.obj', content)
  with pytest.raises(ValueError, match=message) as error:
    surfaces.load(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize('line', ['map_Kd sub/c.png', 'map_kd /d/c.png'])
def test_missing_textures_and_damaged_materials_are_errors_where_used(
    tmp_path, line):
  write(tmp_path / 'b.mtl', f'newmtl other\nKd 1 0 0\nnewmtl m\n{line}\n')
  obj = 'mtllib b.mtl\n' + POINTS + UV + 'usemtl {}\nf 1/1 2/2 3/3\n'
  with pytest.raises(ValueError, match=r'b\.mtl names the texture .*c\.png, '
                     'which is missing; put it into'):
    surfaces.load(write(tmp_path / 'a.obj', obj.format('m')))
  surfaces.load(write(tmp_path / 'a.obj', obj.format('other')))
  with (tmp_path / 'b.mtl').open('a') as file:
    file.write('\0' * 9)
  with pytest.raises(ValueError, match=r'b\.mtl is damaged \(it has zero byt'):
    surfaces.load(tmp_path / 'a.obj')
  write(tmp_path / 'b.mtl', f'newmtl other\nKd 1 0 0\nnewmtl m\n{line}\n')
  # trimesh also finds it by its last name, in the folder of the mesh only.
  Image.new('RGB', (2, 2), 'blue').save(tmp_path / 'c.png')
  mesh = surfaces.load(write(tmp_path / 'a.obj', obj.format('m')))
  np.testing.assert_array_equal(mesh.texture[0, 0], [0, 0, 255])


def test_a_missing_texture_of_gltf_and_ply_is_an_error(tmp_path):
  textured(tmp_path / 'a.glb')
  scene = trimesh.load_scene(tmp_path / 'a.glb')
  for name, data in trimesh.exchange.gltf.export_gltf(scene).items():
    (tmp_path / name).write_bytes(data)
  path = tmp_path / 'model.gltf'
  surfaces.load(path)
  tree = json.loads(path.read_text())
  tree['images'] = [{'uri': 'my image.png'}]
  path.write_text(json.dumps(tree))
  with pytest.raises(ValueError, match=r'model\.gltf names the texture my'):
    surfaces.load(path)
  Image.new('RGB', (2, 2)).save(tmp_path / 'my image.png')
  assert surfaces.load(path).texture.shape == (2, 2, 3)
  ply = trimesh.creation.box().export(file_type='ply', encoding='ascii')
  path = tmp_path / 'a.ply'
  path.write_bytes(ply.replace(b'\n', b'\ncomment TextureFile none.png\n', 1))
  with pytest.raises(ValueError, match=r'a\.ply names the texture none\.png'):
    surfaces.load(path)


def test_degenerate_faces_are_left_out_with_a_message(tmp_path, capsys):
  path = write(tmp_path / 'a.obj', POINTS + 'v 0 0 0\nv 0.5 0 0\n'
               'f 1 2 3\nf 1 6 2\nf 1 7 2\nf 1 2 4\n')
  mesh = surfaces.load(path)
  assert len(mesh.faces) == 2
  assert capsys.readouterr().err == (
      f'{path} has faces without area (2 of 4), which are left out; merge its '
      'vertices by distance to remove them.\n')


def test_edges_of_three_faces_are_an_error_for_refinement_only(tmp_path):
  # The third face has vertices of its own at the same places.
  path = write(tmp_path / 'a.obj', POINTS + 'v 0 0 0\nv 1 0 0\n'
               'f 1 2 3\nf 2 1 4\nf 6 7 5\n')
  assert len(surfaces.load(path).faces) == 3
  with pytest.raises(ValueError, match=r'a\.obj has edges of more than two '
                     r'faces \(1\), which cannot be refined; remesh it'):
    surfaces.load(path, manifold=True)


@pytest.mark.parametrize('uv, faces, reason', [
    ('', 'f 1 2 3\nf 2 1 4\n', 'has no texture coordinates'),
    ('vt 0 0\nvt 2 0\nvt 0 1\nvt 2 1\n', 'f 1/1 2/2 3/3\nf 2/2 3/3 4/4\n',
     'repeats its texture'),
    (UV, 'f 1/1 2/2 3/3\nf 2/2 1/1 4/3\n', 'has texture coordinates that')])
def test_surfaces_that_are_textured_get_uv_with_a_message(
    tmp_path, capsys, uv, faces, reason):
  path = write(tmp_path / 'a.obj', POINTS + uv + faces)
  mesh = surfaces.load(path, uv_size=64)
  assert f'{path} {reason}' in capsys.readouterr().err
  assert mesh.texture is None and len(mesh.faces) == 2
  assert atlas.overlap(mesh.uv, mesh.faces, 512) == 0
  surfaces.load(path)
  assert capsys.readouterr().err == ''


def test_uv_of_a_file_are_kept(tmp_path, capsys):
  original = textured(tmp_path / 'a.obj')
  mesh = surfaces.load(tmp_path / 'a.obj', uv_size=64)
  np.testing.assert_allclose(mesh.uv, original.uv, atol=1e-6)
  np.testing.assert_array_equal(mesh.texture[5, 5], [255, 0, 0])
  assert capsys.readouterr().err == ''


def test_parts_are_joined_with_their_textures_as_vertex_colors(
    tmp_path, capsys):
  textured(tmp_path / 'red.glb')
  scene = trimesh.load_scene(tmp_path / 'red.glb')
  scene.add_geometry(trimesh.creation.box(), transform=np.diag([2., 2, 2, 1]))
  scene.export(tmp_path / 'a.glb')
  mesh = surfaces.load(tmp_path / 'a.glb')
  assert 'a.glb has 2 parts: their textures become vertex colors' in (
      capsys.readouterr().err)
  assert len(mesh.faces) == 20 + 12 and mesh.faces.max() < len(mesh.vertices)
  red = (mesh.colors == [1, 0, 0]).all(-1)
  np.testing.assert_allclose(np.ptp(mesh.vertices[~red], axis=0), 2)
  np.testing.assert_allclose(
      np.linalg.norm(mesh.vertices[red], axis=-1), 1, atol=1e-5)
