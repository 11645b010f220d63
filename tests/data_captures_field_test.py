"""Captures as people have them: sizes, splits, names, EXIF, several models."""

import json
import os
import shutil
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from posed_layouts import (
  COUNT,
  FOCAL,
  HEIGHT,
  WIDTH,
  WRITERS,
  around,
  moved,
  picture,
  points_in_front,
  write_blender,
  write_colmap_bin,
  write_dialect,
  write_llff,
  write_nerfpp,
  write_nsvf,
)
from scipy.spatial.transform import Rotation

from gen3d.choices import UserError
from gen3d.data.captures import folders, posed, records
from gen3d.ops import cameras
from gen3d.tasks import reconstruction


@pytest.fixture(autouse=True)
def told(monkeypatch):
  """The messages that were printed, each once."""
  messages = set()
  monkeypatch.setattr(folders, '_TOLD', messages)
  return messages


def ring(elevation, span=360.0, roll=0.0):
  """COUNT cameras on an arc of `span` degrees; images are turned by `roll`."""
  camera = cameras.orbit(
      jnp.arange(COUNT) * span / COUNT, jnp.full(COUNT, float(elevation)),
      jnp.full(COUNT, 2.0), jnp.full(COUNT, 1.0))
  c2w = np.array(camera.c2w, np.float64)
  c2w[:, :3, :3] @= Rotation.from_euler('z', roll, degrees=True).as_matrix()
  return c2w


@pytest.mark.parametrize('roll', [0, 90])
@pytest.mark.parametrize('elevation', [0, 30, 45, 60, 80])
@pytest.mark.parametrize('layout', ['colmap_bin', 'llff'])
def test_cameras_all_around_end_with_y_up_at_any_elevation(
    tmp_path, layout, elevation, roll):
  if elevation == 0 and roll:
    pytest.skip('Nothing tells up from down.')
  c2w = ring(elevation, roll=roll)
  WRITERS[layout](tmp_path, c2w, points_in_front(c2w)[0])
  position = posed.open_posed(tmp_path).camera.c2w[:, :3, 3]
  up = np.linalg.norm(position[:, [0, 2]], axis=1)
  # The circle is horizontal, and its cameras look down.
  np.testing.assert_allclose(position[:, 1], position[0, 1], atol=1e-4)
  np.testing.assert_allclose(up, up[0], rtol=1e-3)
  back = posed.open_posed(tmp_path).camera.c2w[:, 1, 2]
  np.testing.assert_allclose(
      back, np.sin(np.deg2rad(elevation)), atol=1e-4)


@pytest.mark.parametrize('elevation', [0, 40, 70])
def test_only_cameras_that_turn_around_a_point_surround_it(elevation):
  assert not records.is_forward_facing(ring(elevation))
  assert records.is_forward_facing(ring(elevation, span=150))
  # To and fro with parallel axes, as a drone that looks straight down.
  c2w = np.tile(np.eye(4), (COUNT, 1, 1))
  c2w[::2, :2, :2] *= -1
  c2w[:, 0, 3] = np.arange(COUNT)
  assert records.is_forward_facing(c2w)


def write_sizes(folder):
  """A transforms.json whose odd frames are portraits, in nerfstudio's way."""
  write_dialect(folder, around())
  content = json.loads((folder / 'transforms.json').read_text())
  for frame in content['frames']:
    i = int(frame['file_path'][-7:-4])
    if i % 2:
      picture(folder / frame['file_path'], i, (HEIGHT, WIDTH))
      frame |= {'w': HEIGHT, 'h': WIDTH, 'cx': 14.0, 'cy': 21.0}
  (folder / 'transforms.json').write_text(json.dumps(content))


def test_photographs_of_two_orientations_have_the_rays_of_their_pixels(
    tmp_path):
  write_sizes(tmp_path)
  found = posed.open_posed(tmp_path)
  index = [i for i in range(COUNT) if i % 8]
  assert found.images.shape == (len(index), WIDTH, WIDTH, 4)
  assert not found.has_alpha
  for n, i in enumerate(index):
    height, width = (WIDTH, HEIGHT) if i % 2 else (HEIGHT, WIDTH)
    assert found.sizes[n].tolist() == [height, width]
    center = (14.0, 21.0) if i % 2 else (18.0, 16.0)
    # In pixels, as in the file.
    np.testing.assert_allclose(
        found.camera.intrinsics[n] * [[WIDTH], [WIDTH], [1]],
        [[FOCAL + i, 0, center[0]], [0, 50, center[1]], [0, 0, 1]], rtol=1e-6)
    assert abs(int(found.images[n, height - 1, width - 1, 0]) - 10 * i) < 4
    assert not found.images[n, height:].any()
    assert not found.images[n, :, width:].any()


def test_batches_have_pixels_of_photographs_of_all_sizes(tmp_path):
  write_sizes(tmp_path)
  _, train = reconstruction.to_unit_frame(posed.open_posed(tmp_path), 4)
  batch = next(reconstruction.batches(
      0, 0, train=train, size=2000, crop_steps=0, crop_fraction=1.0))
  column, row = np.round(batch['pixel'] * WIDTH - 0.5).astype(int).T
  which = np.argmax(np.all(
      batch['camera'].c2w[:, None] == train.camera.c2w, axis=(2, 3)), 1)
  np.testing.assert_array_equal(
      batch['color'], train.images[which, row, column])
  assert batch['color'][:, 3].min() == 255
  for n, (height, width) in enumerate(train.sizes):
    assert row[which == n].max() == height - 1
    assert column[which == n].max() == width - 1


def test_scores_of_photographs_of_two_sizes_are_of_their_pixels(tmp_path):
  write_sizes(tmp_path)
  test = posed.open_posed(tmp_path, 'test')
  # A photograph of the split is lying, one is standing.
  test = test._replace(sizes=np.array([[30, 40], [40, 30], [30, 40]]))
  images = np.full((3, WIDTH, 2 * WIDTH, 3), 100, np.uint8)
  whole = np.zeros((3, WIDTH, WIDTH, 4), np.uint8)
  for image, (height, width) in zip(whole, test.sizes):
    image[:height, :width] = (100, 100, 100, 255)
  scores, shown = reconstruction.score_test_views(
      None, np.arange(3), render_views=lambda params, camera: images,
      test=test._replace(images=whole), network=None)
  assert scores['test/psnr'] > 60
  assert shown[1, 35, 20, 0] == 100 and shown[1, 20, 35, 0] == 255
  assert shown[1, 35, 60, 0] == 100 and shown[0, 35, 60, 0] == 255


@pytest.mark.parametrize('keys, expected', [
    (('train', 'val', 'test'),
     {'train': [1, 2, 3], 'val': [4], 'test': [4, 5]}),
    (('train', 'val'), {'train': [1, 2, 3], 'val': [4], 'test': [4]}),
    (('train',), {'train': [2, 3], 'test': [1]})])
def test_splits_that_transforms_json_lists_are_followed(
    tmp_path, keys, expected):
  write_dialect(tmp_path, around())
  content = json.loads((tmp_path / 'transforms.json').read_text())
  lists = {'train': [3, 1, 2], 'val': [4], 'test': [5, 4]}
  content |= {f'{key}_filenames': [f'./images/{i:03d}.jpg' for i in lists[key]]
              for key in keys}
  (tmp_path / 'transforms.json').write_text(json.dumps(content))
  for split, index in expected.items():
    assert posed.open_posed(tmp_path, split).names == tuple(
        f'images/{i:03d}.jpg' for i in index)


def test_a_split_with_unknown_names_is_refused(tmp_path):
  write_dialect(tmp_path, around(), train_filenames=['images/x.jpg'])
  with pytest.raises(UserError, match='"train_filenames" has .images/x.jpg.'):
    posed.open_posed(tmp_path)


def _without_test_images(folder):
  write_blender(folder, around(), None)
  shutil.rmtree(folder / 'test')


def _without_test_file(folder):
  write_blender(folder, around(), None)
  (folder / 'transforms_test.json').unlink()


def _without_test_frames(folder):
  write_blender(folder, around(), None)
  (folder / 'transforms_test.json').write_text('{"frames": []}')


def _nsvf_without_test(folder):
  write_nsvf(folder, around(), points_in_front(around())[0])
  for file in [*folder.glob('*/1_*')]:
    file.unlink()


def _nerfpp_without_test(folder):
  write_nerfpp(folder, around(), None)
  shutil.rmtree(folder / 'test')


@pytest.mark.parametrize('write', [
    _without_test_images, _without_test_file, _without_test_frames,
    _nsvf_without_test, _nerfpp_without_test])
def test_without_test_images_some_are_held_out_and_that_is_told_once(
    tmp_path, write, told, capsys):
  write(tmp_path)
  train, test = (posed.open_posed(tmp_path, s) for s in ('train', 'test'))
  assert len(train.names) == 13 and len(test.names) == 2
  assert not {*train.names} & {*test.names}
  assert len(told) == 1 and 'held out' in told.pop()
  assert capsys.readouterr().err.count('held out') == 1


def test_byte_order_marks_and_utf_16_are_read(tmp_path):
  write_dialect(tmp_path, around())
  file = tmp_path / 'transforms.json'
  text = file.read_text()
  for encoding in ('utf-8-sig', 'utf-16'):
    file.write_text(text, encoding)
    assert len(posed.open_posed(tmp_path).names) == 15
  file.write_text(100_000 * '[')
  with pytest.raises(UserError, match='is not JSON'):
    posed.open_posed(tmp_path)


@pytest.mark.parametrize('write', [write_llff, write_nsvf, write_nerfpp])
def test_files_of_other_systems_are_skipped(tmp_path, write):
  points = points_in_front(around())[0]
  write(tmp_path, around(), points)
  count = len(posed.open_posed(tmp_path).names)
  for file in [*tmp_path.rglob('*')]:
    if file.is_file():
      (file.parent / f'._{file.name}').write_bytes(b'\0\5\x16\7')
      for name in ('Thumbs.db', 'desktop.ini', '.DS_Store'):
        (file.parent / name).write_bytes(b'x')
  assert len(posed.open_posed(tmp_path).names) == count


def rename_in_colmap(folder, name, stored):
  """Image 0 has `name` (bytes) in images.bin and `stored` on the disk."""
  file = folder / 'sparse' / '0' / 'images.bin'
  file.write_bytes(file.read_bytes().replace(b'frame 000.png', name))
  target = folder / 'images' / stored
  target.parent.mkdir(exist_ok=True)
  (folder / 'images' / 'frame 000.png').rename(target)


@pytest.mark.parametrize('name, stored', [
    ('café.png'.encode('cp1252'), 'café.png'),
    ('café.png'.encode(), 'cafe\u0301.png'),
    ('图.png'.encode('gbk'), '图.png'),
    (b'caf\xe9.png', os.fsdecode(b'caf\xe9.png')),
    (b'left\\a.png', 'left/a.png'), (b'./left/a.png', 'left/a.png'),
    (b'IMG.JPG', 'img.jpg')])
def test_names_of_other_systems_are_found(tmp_path, name, stored):
  write_colmap_bin(tmp_path, around(), points_in_front(around())[0])
  rename_in_colmap(tmp_path, name, stored)
  names = [f.file for f in posed.layouts.read(tmp_path).frames]
  assert tmp_path / 'images' / stored in names
  assert all(file.is_file() for file in names)


def test_names_of_another_encoding_in_json_are_found(tmp_path):
  write_dialect(tmp_path, around())
  file = tmp_path / 'transforms.json'
  file.write_bytes(file.read_bytes().replace(
      b'images/000', 'images/caf\xe9'.encode('cp1252')))
  (tmp_path / 'images' / '000.jpg').rename(
      tmp_path / 'images' / 'caf\xe9.jpg')
  assert len(posed.open_posed(tmp_path).names) + len(
      posed.open_posed(tmp_path, 'test').names) == COUNT


def test_pictures_of_one_name_in_two_folders_stay_apart(tmp_path):
  write_colmap_bin(tmp_path, around(), points_in_front(around())[0])
  file = tmp_path / 'sparse' / '0' / 'images.bin'
  content = file.read_bytes()
  for i in range(COUNT):
    old, new = f'frame {i:03d}.png', f'cam{i % 2}/{i // 2:04d}.png'
    content = content.replace(old.encode(), new.encode())
    (tmp_path / 'images' / new).parent.mkdir(exist_ok=True)
    (tmp_path / 'images' / old).rename(tmp_path / 'images' / new)
  file.write_bytes(content)
  found = posed.open_posed(tmp_path, 'train')
  for name, image in zip(found.names, found.images):
    index = 2 * int(name[5:9]) + int(name[3])
    assert image[0, 0, 0] == 10 * index
  names = reconstruction._result_names(['a/0.png', 'b/0.png', 'b/0.jpg'])
  assert names == ['a_0.png.png', 'b_0.png.png', 'b_0.jpg.png']
  assert reconstruction._result_names(['a/0.png', 'a/1.png']) == [
      '0.png', '1.png']


def test_a_larger_sparse_model_is_told_and_can_be_chosen(tmp_path, told):
  write_colmap_bin(tmp_path, around(), points_in_front(around())[0])
  shutil.copytree(tmp_path / 'sparse' / '0', tmp_path / 'sparse' / '1')
  # Model 0 with the first two images only.
  file = tmp_path / 'sparse' / '0' / 'images.bin'
  file.write_bytes(struct.pack('<Q', 2) + file.read_bytes()[8:])
  assert len(posed.layouts.read(tmp_path).frames) == 2
  message, = told
  assert 'has 2 images' in message and f'{tmp_path}/sparse/1 has 18' in message
  assert len(posed.open_posed(tmp_path / 'sparse' / '1').names) == 15
  shutil.rmtree(tmp_path / 'sparse' / '0')
  assert len(posed.layouts.read(tmp_path).frames) == COUNT


def test_a_model_without_points_is_told(tmp_path, told):
  write_colmap_bin(tmp_path, around(), points_in_front(around())[0])
  posed.layouts.read(tmp_path)
  assert not told
  (tmp_path / 'sparse' / '0' / 'points3D.bin').unlink()
  assert posed.layouts.read(tmp_path).points is None
  message, = told
  assert f'{tmp_path}/sparse/0 has no 3-D points' in message


def turn_by_exif(folder):
  """Stores all pictures lying, with the EXIF orientation that turns them."""
  for file in (folder / 'images').glob('*.jpg'):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.open(file).transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)


def test_exif_turns_images_only_where_sizes_demand_it(tmp_path, told):
  write_dialect(tmp_path, around())
  turn_by_exif(tmp_path)
  assert posed.open_posed(tmp_path).images.shape[1:3] == (HEIGHT, WIDTH)
  message, = told
  assert 'are turned as their EXIF data say' in message


def test_exif_without_known_sizes_leaves_images_as_stored(tmp_path, told):
  write_dialect(tmp_path, around(), w=None, h=None, cx=None, cy=None)
  turn_by_exif(tmp_path)
  assert posed.open_posed(tmp_path).images.shape[1:3] == (WIDTH, HEIGHT)
  message, = told
  assert 'used as stored' in message and 'auto-orient' in message


@pytest.mark.parametrize('layout', [*WRITERS])
def test_meshes_are_in_the_coordinates_of_the_files(tmp_path, layout):
  c2w = around()
  points, _ = points_in_front(c2w)
  world = WRITERS[layout](tmp_path, c2w, points)
  frame, unit = reconstruction.to_unit_frame(posed.open_posed(tmp_path), 4)
  # Camera positions stand for the vertices of a mesh.
  ours = np.asarray(unit.camera.c2w, np.float64)[:, :3, 3]
  index = [i for i in range(COUNT) if i % 8]
  files = moved(world, c2w[index])[:, :3, 3]
  np.testing.assert_allclose(
      ours @ frame.to_world[:3, :3].T + frame.to_world[:3, 3], files,
      atol=1e-4 * np.abs(files).max())
