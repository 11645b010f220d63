"""io.meshes: round trips, conformance to glTF, files of other programs."""

import json
import struct
import time
import zipfile

import ghostscript
import numpy as np
import pytest
import trimesh
from PIL import Image

from gen3d.choices import UserError
from gen3d.io import meshes
from gen3d.ops.mesh import Mesh

COLORS = np.array([[255, 0, 0, 255], [0, 128, 0, 255], [0, 0, 64, 255],
                   [255, 255, 255, 255]], np.uint8)
UV = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.5]])


def tetrahedron():
  return trimesh.Trimesh(
      [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]],
      [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], process=False)


def random_texture(height=4, width=4):
  return np.random.default_rng(0).integers(
      256, size=(height, width, 3), dtype=np.uint8)


@pytest.fixture
def ball():
  shape = trimesh.creation.icosphere(subdivisions=2)
  vertices = np.asarray(shape.vertices) * [0.3, 0.5, 0.7]
  return Mesh(
      vertices.astype(np.float32), np.asarray(shape.faces, np.int32),
      colors=(0.5 * np.asarray(shape.vertices) + 0.5).astype(np.float32))


def gltf(path):
  """The JSON of a .glb and its buffer, parsed without trimesh."""
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
  back, = meshes.load(path)
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
  # Vertices are in world axes, so that no node may have a transform.
  for node in tree['nodes']:
    assert np.allclose(np.reshape(node.get('matrix', np.eye(4)), (4, 4)),
                       np.eye(4))
    assert not {'rotation', 'translation', 'scale'} & set(node)


def test_srgb_conversions_are_inverse_and_match_a_known_value():
  x = np.linspace(0, 1, 101)
  np.testing.assert_allclose(meshes.to_srgb(meshes.to_linear(x)), x, atol=1e-6)
  assert meshes.to_linear(np.array(0.5)) == pytest.approx(0.21404, abs=1e-5)


def test_paths_that_cannot_be_written_are_refused(tmp_path, ball):
  with pytest.raises(ValueError, match=r"'ball.stl'; choose .*\.glb"):
    meshes.save('ball.stl', ball)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='Cannot write'):
    meshes.save(tmp_path / 'file' / 'ball.glb', ball)


@pytest.mark.parametrize('suffix', ['.ply', '.obj'])
def test_vertex_colors_are_read_unchanged(tmp_path, suffix):
  mesh = tetrahedron()
  mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=COLORS)
  mesh.export(tmp_path / f'a{suffix}')
  loaded, = meshes.load(tmp_path / f'a{suffix}')
  np.testing.assert_allclose(loaded.vertices, mesh.vertices)
  np.testing.assert_allclose(loaded.colors, COLORS[:, :3] / 255, atol=1e-6)
  assert loaded.texture is None


def test_linear_colors_of_glb_are_read_as_display_values(tmp_path):
  colors = np.array([[0.1, 0.5, 0.9]] * 4, np.float32)
  mesh = tetrahedron()
  meshes.save(tmp_path / 'a.glb', Mesh(
      mesh.vertices, mesh.faces, colors=colors))
  loaded, = meshes.load(tmp_path / 'a.glb')
  np.testing.assert_allclose(loaded.colors, colors, atol=1e-3)


def test_textures_of_obj_and_glb_and_transforms_of_nodes(tmp_path):
  pixels, mesh, uv = random_texture(), tetrahedron(), UV
  image, materials = Image.fromarray(pixels), trimesh.visual.material
  mesh.visual = trimesh.visual.TextureVisuals(
      uv, materials.PBRMaterial(baseColorTexture=image))
  scene = trimesh.Scene()
  move = np.eye(4)
  move[:3, 3] = [1, 2, 3]
  scene.add_geometry(mesh, transform=move)
  scene.export(tmp_path / 'a.glb')
  mesh.visual = trimesh.visual.TextureVisuals(
      uv, materials.SimpleMaterial(image))
  (tmp_path / 'obj').mkdir()
  mesh.export(tmp_path / 'obj' / 'a.obj')
  moved, = meshes.load(tmp_path / 'a.glb')
  plain, = meshes.load(tmp_path / 'obj' / 'a.obj')
  np.testing.assert_allclose(moved.vertices, mesh.vertices + [1, 2, 3])
  for loaded in (moved, plain):
    np.testing.assert_array_equal(loaded.texture, pixels)
    np.testing.assert_allclose(loaded.colors, 1)
    np.testing.assert_allclose(loaded.uv, uv, atol=1e-6)


def test_face_colors_and_default_gray(tmp_path):
  mesh = tetrahedron()
  mesh.export(tmp_path / 'gray.stl')
  gray, = meshes.load(tmp_path / 'gray.stl')
  np.testing.assert_allclose(gray.colors, 0.7, atol=0.01)
  mesh.visual = trimesh.visual.ColorVisuals(mesh, face_colors=COLORS)
  mesh.export(tmp_path / 'a.ply')
  loaded, = meshes.load(tmp_path / 'a.ply')
  np.testing.assert_allclose(
      loaded.colors[loaded.faces][:, 1], COLORS[:, :3] / 255)


@pytest.mark.parametrize('name, content, message', [
    ('a.txt', b'', 'a.txt is not a mesh file that can be read; choose one'),
    ('a.obj', None, 'a.obj is missing'),
    ('a.ply', b'nonsense', 'a.ply cannot be read as a mesh'),
    ('a.obj', b'v 0 0 0\n', 'a.obj')])
def test_unreadable_files_are_refused_by_name(tmp_path, name, content, message):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    meshes.load(tmp_path / name)


def test_a_mesh_with_z_up_is_rotated(tmp_path):
  path = tmp_path / 'part.ply'
  trimesh.creation.icosphere(1).apply_scale((1, 2, 3)).export(path)
  same, = meshes.load(path)
  upright, = meshes.load(path, up='z')
  x, y, z = same.vertices.T
  np.testing.assert_allclose(upright.vertices, np.stack([x, z, -y], -1))
  x, y, z = same.normals.T
  np.testing.assert_allclose(
      upright.normals, np.stack([x, z, -y], -1), atol=1e-6)


@pytest.mark.parametrize('colored', [False, True])
def test_glb_keeps_texture_uv_and_normals(tmp_path, colored):
  shape = tetrahedron()
  colors = np.linspace(0.1, 1, 12).reshape(4, 3) if colored else None
  normals = np.roll(np.eye(4, 3), 1, 0) + [[0, 0, 1]] * np.eye(4)[:, :1]
  normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
  mesh = Mesh(np.asarray(shape.vertices), np.asarray(shape.faces), normals,
              colors, UV, random_texture(8, 6))
  meshes.save(tmp_path / 'a.glb', mesh)
  back, = meshes.load(tmp_path / 'a.glb')
  np.testing.assert_array_equal(back.texture, mesh.texture)
  np.testing.assert_allclose(back.uv, UV, atol=1e-6)
  np.testing.assert_allclose(back.vertices, mesh.vertices)
  np.testing.assert_array_equal(back.faces, mesh.faces)
  np.testing.assert_allclose(back.normals, normals, atol=1e-6)
  np.testing.assert_allclose(
      back.colors, 1 if colors is None else colors, atol=1e-5)
  tree, buffer = gltf(tmp_path / 'a.glb')
  primitive, = tree['meshes'][0]['primitives']
  assert set(primitive['attributes']) == {
      'POSITION', 'NORMAL', 'TEXCOORD_0', *['COLOR_0'] * colored}
  material = tree['materials'][primitive['material']]['pbrMetallicRoughness']
  assert material['metallicFactor'] == 0 and material['roughnessFactor'] == 1
  # glTF's uv have their origin at the upper left.
  uv = np.frombuffer(buffer, np.float32, 8, tree['bufferViews'][
      tree['accessors'][primitive['attributes']['TEXCOORD_0']]['bufferView']
      ]['byteOffset']).reshape(4, 2)
  np.testing.assert_allclose(uv, UV * [1, -1] + [0, 1], atol=1e-6)


def test_obj_keeps_texture_uv_and_normals_in_files_of_its_name(tmp_path):
  shape = tetrahedron()
  normals = np.eye(4, 3) + [[0, 0, 1]] * (np.arange(4) > 2)[:, None]
  mesh = Mesh(np.asarray(shape.vertices), np.asarray(shape.faces), normals,
              None, UV, random_texture(8, 6))
  path = tmp_path / 'new' / 'my mesh.obj'
  meshes.save(path, mesh)
  assert {p.name for p in path.parent.iterdir()} == {
      'my mesh.obj', 'my_mesh.mtl', 'my_mesh.png'}
  back, = meshes.load(path)
  np.testing.assert_array_equal(back.texture, mesh.texture)
  np.testing.assert_allclose(back.uv, UV, atol=1e-6)
  np.testing.assert_allclose(back.vertices, mesh.vertices)
  np.testing.assert_array_equal(back.faces, mesh.faces)
  np.testing.assert_allclose(back.normals, normals, atol=1e-6)
  np.testing.assert_allclose(back.colors, 1)
  with pytest.raises(ValueError, match='either vertex colors or a texture'):
    meshes.save(path, mesh._replace(colors=np.ones((4, 3))))


def test_ply_has_the_textures_colors_and_no_seams(tmp_path):
  shape = tetrahedron()
  # Four faces with vertices of their own.
  faces = np.arange(12).reshape(4, 3)
  texture = np.full((4, 4, 3), 51, np.uint8)
  mesh = Mesh(np.asarray(shape.vertices)[shape.faces].reshape(-1, 3), faces,
              colors=np.full((12, 3), 0.5), uv=np.tile(UV[:3], (4, 1)),
              texture=texture)
  meshes.save(tmp_path / 'a.ply', mesh)
  back, = meshes.load(tmp_path / 'a.ply')
  assert len(back.vertices) == 4
  assert trimesh.load(tmp_path / 'a.ply', process=False).is_watertight
  np.testing.assert_allclose(back.colors, 0.1, atol=0.003)


def test_formats_get_the_textured_or_the_plain_mesh(tmp_path, ball):
  textured = ball._replace(
      colors=None, uv=np.asarray(ball.vertices[:, :2]) % 1,
      texture=random_texture())
  written = meshes.save_formats(
      tmp_path / 'a.b', ('obj', 'ply', 'glb'), ball, textured)
  assert [p.name for p in written] == ['a.b.obj', 'a.b.ply', 'a.b.glb']
  obj, ply, glb = (meshes.load(path)[0] for path in written)
  assert obj.texture is not None and glb.texture is not None
  np.testing.assert_allclose(ply.colors, ball.colors, atol=0.003)
  # trimesh reads each of them with its texture or colors.
  for path in written:
    part, = trimesh.load_scene(path).geometry.values()
    assert part.visual.kind == (
        'vertex' if path.suffix == '.ply' else 'texture')


def test_glb_has_unit_normals_at_vertices_without_faces(tmp_path, ball):
  meshes.save(tmp_path / 'a.glb', ball._replace(faces=ball.faces[:9]))
  tree, buffer = gltf(tmp_path / 'a.glb')
  primitive, = tree['meshes'][0]['primitives']
  normals = accessor(tree, buffer, primitive['attributes']['NORMAL'])
  np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize('content', [
    ghostscript.POSTSCRIPT, ghostscript.DOS], ids=['plain', 'dos'])
def test_postscript_as_a_texture_starts_no_program(
    tmp_path, monkeypatch, content):
  started = ghostscript.plant(tmp_path, monkeypatch)
  mesh = tetrahedron()
  mesh.visual = trimesh.visual.TextureVisuals(
      UV, trimesh.visual.material.SimpleMaterial(
          Image.fromarray(random_texture())))
  mesh.export(tmp_path / 'a.obj')
  texture, = tmp_path.glob('*.png')
  texture.write_bytes(content)
  with pytest.raises(UserError, match='png cannot be read as an image'):
    meshes.load(tmp_path / 'a.obj')
  assert not started.exists()
  # Without the restriction the same file would start it.
  part, = trimesh.load_scene(tmp_path / 'a.obj').geometry.values()
  with pytest.raises(OSError):
    part.visual.material.image.load()
  assert started.exists()


def test_a_damaged_texture_is_an_error_that_names_the_file(tmp_path):
  mesh = tetrahedron()
  mesh.visual = trimesh.visual.TextureVisuals(
      UV, trimesh.visual.material.SimpleMaterial(
          Image.fromarray(random_texture(64, 64))))
  mesh.export(tmp_path / 'a.obj')
  texture, = tmp_path.glob('*.png')
  texture.write_bytes(texture.read_bytes()[:2000])
  with pytest.raises(ValueError, match='a.obj cannot be read as a mesh'):
    meshes.load(tmp_path / 'a.obj')


@pytest.mark.parametrize('name, property', [
    ('a.ply', b'property float nz'), ('a.obj', b'\nvn ')])
def test_files_with_vertex_colors_have_normals(tmp_path, name, property):
  meshes.save(tmp_path / name, Mesh(
      np.eye(3), np.array([[0, 1, 2]]), colors=np.ones((3, 3))))
  assert property in (tmp_path / name).read_bytes()


def test_trimesh_shows_the_colors_of_our_files(tmp_path, ball):
  texture = random_texture()
  textured = ball._replace(colors=None, uv=np.random.default_rng(0).random(
      (len(ball.vertices), 2)), texture=texture)
  meshes.save(tmp_path / 'textured.glb', textured)
  meshes.save(tmp_path / 'plain.glb', ball)
  meshes.save(tmp_path / 'plain.ply', ball)
  read = lambda name: trimesh.load_mesh(tmp_path / name, process=False).visual
  visual = read('textured.glb')
  assert isinstance(visual, trimesh.visual.TextureVisuals)
  np.testing.assert_array_equal(
      np.asarray(visual.material.baseColorTexture.convert('RGB')), texture)
  # Beside a material, without which viewers would show metal, trimesh has
  # vertex colors as an attribute, linear as in the file.
  part, = trimesh.load_scene(tmp_path / 'plain.glb').geometry.values()
  np.testing.assert_allclose(
      meshes.to_srgb(part.visual.vertex_attributes['color'][:, :3]),
      ball.colors, atol=1e-3)
  visual = read('plain.ply')
  assert isinstance(visual, trimesh.visual.ColorVisuals)
  np.testing.assert_allclose(visual.vertex_colors[:, :3] / 255, ball.colors,
                             atol=0.003)


PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 2
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
0 1 0
3 0 1 2
3 0 2 1
"""


def test_text_that_ends_too_early_is_an_error(tmp_path):
  (tmp_path / 'a.ply').write_text(PLY)
  assert len(meshes.load(tmp_path / 'a.ply')[0].faces) == 2
  (tmp_path / 'a.ply').write_text(PLY.removesuffix('3 0 2 1\n'))
  with pytest.raises(UserError, match='announces 5 rows, but it has 4'):
    meshes.load(tmp_path / 'a.ply')
  text = tetrahedron().export(file_type='stl_ascii')
  (tmp_path / 'a.stl').write_text(text)
  assert len(meshes.load(tmp_path / 'a.stl')[0].faces) == 4
  (tmp_path / 'a.stl').write_text(text[:len(text) // 2])
  with pytest.raises(UserError, match='has no endsolid'):
    meshes.load(tmp_path / 'a.stl')


def test_mesh_files_of_a_zip_are_read_as_others(tmp_path):
  tetrahedron().export(tmp_path / 'a.glb')
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
    archive.write(tmp_path / 'a.glb', 'folder/a.glb')
    archive.writestr('__MACOSX/folder/._a.glb', b'x')
  assert len(meshes.load(tmp_path / 'a.zip')) == 1
  with zipfile.ZipFile(tmp_path / 'b.zip', 'w') as archive:
    archive.writestr('b.obj', 'mtllib x.mtl\nusemtl m\nv 0 0 0\nf 1 1 1\n')
  with pytest.raises(UserError, match='b.zip/b.obj names the material file'):
    meshes.load(tmp_path / 'b.zip')
  with zipfile.ZipFile(tmp_path / 'c.zip', 'w') as archive:
    for i in range(1001):
      archive.writestr(f'{i}.obj', '')
  with pytest.raises(UserError, match='more than 1,000 files'):
    meshes.load(tmp_path / 'c.zip')


def test_material_files_that_are_named_again_are_read_once(tmp_path):
  (tmp_path / 'a.obj').write_text(
      'mtllib a.obj\n' * 20_000 + 'v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n')
  begin = time.process_time()
  assert len(meshes.load(tmp_path / 'a.obj')) == 1
  assert time.process_time() - begin < 10


@pytest.mark.parametrize('name', [r'maps\wood.png', r'D:\x\maps\wood.png',
                                  '/home/me/maps/wood.png'])
def test_textures_under_names_of_other_machines_are_found(tmp_path, name):
  mesh, texture = tetrahedron(), random_texture()
  mesh.visual = trimesh.visual.TextureVisuals(
      UV, trimesh.visual.material.SimpleMaterial(Image.fromarray(texture)))
  mesh.export(tmp_path / 'a.obj')
  picture, = tmp_path.glob('*.png')
  material, = tmp_path.glob('*.mtl')
  material.write_text(material.read_text().replace(picture.name, name))
  with pytest.raises(UserError, match='wood.png, which is missing'):
    meshes.load(tmp_path / 'a.obj')
  folder = tmp_path / 'maps' if name.startswith('maps') else tmp_path
  folder.mkdir(exist_ok=True)
  picture.rename(folder / 'wood.png')
  np.testing.assert_array_equal(
      meshes.load(tmp_path / 'a.obj')[0].texture, texture)
