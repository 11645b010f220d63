"""Captures of five layouts: one scene, and errors of damaged files."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from posed_layouts import (
  COUNT,
  FOCAL,
  HEIGHT,
  LAYOUTS,
  WIDTH,
  WRITERS,
  ahead,
  around,
  picture,
  points_in_front,
  write_blender,
  write_dialect,
  write_llff,
  write_nerfpp,
  write_nsvf,
)

from configs import nerf
from gen3d.choices import UserError
from gen3d.data.captures import layouts, posed, records
from gen3d.ops import cameras
from gen3d.tasks import reconstruction


def hit(found, points, pixels):
  """Whether rays and projections of a Posed meet the points, in its world."""
  height, width = found.images.shape[1:3]
  camera = cameras.Camera(*map(jnp.asarray, found.camera))
  rays = cameras.rays(camera, height, width)
  seen, _ = cameras.project(camera, jnp.asarray(points, jnp.float32))
  np.testing.assert_allclose(
      seen * np.array([width, height]), pixels + 0.5, atol=1e-3)
  index = np.arange(len(points))[:, None]
  origin, direction = (np.asarray(x, np.float64)[
      index, pixels[..., 1], pixels[..., 0]] for x in rays[:2])
  offset = points - origin
  away = np.linalg.norm(np.cross(offset, direction), axis=-1)
  pixel = np.asarray(rays.radii)[0, 0, 0, 0] * np.sqrt(3)
  assert np.all(away < 1e-3 * pixel * np.linalg.norm(offset, axis=-1))


@pytest.mark.parametrize('rig', [around, ahead])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_rays_of_every_layout_hit_the_points(tmp_path, layout, rig):
  if rig is ahead and layout == 'blender':
    pytest.skip('Blender scenes have cameras all around.')
  c2w = rig()
  points, pixels = points_in_front(c2w)
  world = WRITERS[layout](tmp_path, c2w, points)
  lengths = {}
  for split in ('train', 'test'):
    found = posed.open_posed(tmp_path, split)
    # The color of a picture tells whose it is: names, poses and pixels go
    # together, and every eighth is a test picture.
    index = np.round(found.images[:, 0, 0, 0] / 10).astype(int)
    assert list(index) == sorted(
        i for i in range(COUNT) if (i % 8 == 0) == (split == 'test'))
    assert found.images.shape == (len(index), HEIGHT, WIDTH, 4)
    assert not found.has_alpha and found.images[..., 3].min() == 255
    carried = found.align @ world
    here = points[index] @ carried[:3, :3].T + carried[:3, 3]
    hit(found, here, pixels[index])
    assert np.abs(found.camera.c2w[:, :3, :3].transpose(0, 2, 1)
                  @ found.camera.c2w[:, :3, :3] - np.eye(3)).max() < 1e-5
    # Bounds hold what there is to see; the same for every split.
    distance = np.linalg.norm(here - found.camera.c2w[:, None, :3, 3], axis=-1)
    assert found.near < distance.min() and distance.max() < found.far
    lengths[split] = (found.near, found.far, found.box.tolist())
  assert lengths['train'] == lengths['test']


def test_all_layouts_give_the_same_scene_up_to_a_similarity(tmp_path):
  c2w = around()
  points, _ = points_in_front(c2w)
  shapes = []
  for layout, write in WRITERS.items():
    (tmp_path / layout).mkdir()
    write(tmp_path / layout, c2w, points)
    found = posed.open_posed(tmp_path / layout)
    centers = found.camera.c2w[:, :3, 3].astype(np.float64)
    between = np.linalg.norm(centers[:, None] - centers, axis=-1)
    looks = found.camera.c2w[:, :3, 2] @ found.camera.c2w[:, :3, 2].T
    shapes.append((between / between.max(), looks,
                   found.camera.intrinsics))
  for other in shapes[1:]:
    for a, b in zip(shapes[0], other):
      np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize('layout', ['blender', 'llff', 'colmap_bin'])
def test_layouts_with_an_upward_direction_end_with_y_up(tmp_path, layout):
  points, _ = points_in_front(around())
  WRITERS[layout](tmp_path, around(), points)
  up = posed.open_posed(tmp_path).camera.c2w[:, :3, 1].mean(0)
  assert up[1] > 0.9 * np.linalg.norm(up)


def test_world_axes_and_scales_of_each_layout(tmp_path):
  c2w = around()
  points, _ = points_in_front(c2w)
  for layout in LAYOUTS:
    (tmp_path / layout).mkdir()
    WRITERS[layout](tmp_path / layout, c2w, points)
  found = posed.open_posed(tmp_path / 'blender', 'test')
  np.testing.assert_allclose(found.camera.c2w, c2w[::8], atol=1e-5)
  half = 2.0 * 0.5 * WIDTH / FOCAL  # what a camera at distance 2 sees
  np.testing.assert_allclose(found.box, [[-half] * 3, [half] * 3], atol=1e-3)
  everything = [f.c2w[:3, 3] for f in layouts.read(
      tmp_path / 'colmap_txt').frames]
  assert np.abs(everything).max() == pytest.approx(1)
  found = posed.open_posed(tmp_path / 'nsvf')
  corners = np.loadtxt(tmp_path / 'nsvf' / 'bbox.txt')[:6].reshape(2, 3)
  np.testing.assert_allclose(found.box.mean(0), corners.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
      np.diff(found.box, axis=0), 1.2 * np.diff(corners, axis=0), rtol=1e-5)
  (tmp_path / 'forward').mkdir()
  write_llff(tmp_path / 'forward', ahead(), points)
  found = posed.open_posed(tmp_path / 'forward')
  assert found.near == pytest.approx(4 / 3)
  assert found.far == pytest.approx(3.4 / 1.2 * 4 / 3)
  np.testing.assert_allclose(
      found.camera.c2w[:, :3, 2].mean(0), [0, 0, 1], atol=0.05)


def test_one_transforms_file_with_intrinsics_of_every_frame(tmp_path):
  write_dialect(tmp_path, around())
  found = posed.open_posed(tmp_path, 'train')
  index = [i for i in range(COUNT) if i % 8]
  assert found.names == tuple(f'images/{i:03d}.jpg' for i in index)
  for k, i in zip(found.camera.intrinsics, index):
    np.testing.assert_allclose(
        k, [[(FOCAL + i) / WIDTH, 0, 18 / 40], [0, 50 / 30, 16 / 30],
            [0, 0, 1]], rtol=1e-6)
  assert len(posed.open_posed(tmp_path, 'test').names) == 3


def test_nerfpp_without_validation_falls_back_to_test(tmp_path):
  points, _ = points_in_front(around())
  write_nerfpp(tmp_path, around(), points)
  val, test = (posed.open_posed(tmp_path, s) for s in ('val', 'test'))
  assert val.names == test.names and len(val.names) == 3


def test_nsvf_prefixes_of_two_and_of_three_splits(tmp_path):
  points, _ = points_in_front(around())
  write_nsvf(tmp_path, around(), points)
  for kind in ('rgb', 'pose'):
    for file in (tmp_path / kind).glob('0_*'):
      if int(file.stem[2:]) % 2:
        file.rename(file.with_name(f'2{file.name[1:]}'))
  (tmp_path / 'intrinsics.txt').write_text(f'{FOCAL} 20.0 15.0 0.\n0. 0. 0.\n')
  splits = {s: posed.open_posed(tmp_path, s) for s in ('train', 'val', 'test')}
  assert {s: {n[0] for n in p.names} for s, p in splits.items()} == {
      'train': {'0'}, 'val': {'1'}, 'test': {'2'}}
  np.testing.assert_allclose(splits['test'].camera.intrinsics[0], [
      [FOCAL / WIDTH, 0, 0.5], [0, FOCAL / HEIGHT, 0.5], [0, 0, 1]], rtol=1e-6)


def test_reduced_images_have_the_same_rays_and_average_areas(tmp_path):
  c2w = around()
  points, pixels = points_in_front(c2w)
  write_blender(tmp_path, c2w, points)
  rng = np.random.default_rng(2)
  pixel = rng.integers(256, size=(HEIGHT, WIDTH, 4), dtype=np.uint8)
  for file in tmp_path.glob('t*/*.png'):
    Image.fromarray(pixel).save(file)
  whole = posed.open_posed(tmp_path, 'test')
  found = posed.open_posed(tmp_path, 'test', factor=2)
  assert found.images.shape == (3, HEIGHT // 2, WIDTH // 2, 4)
  np.testing.assert_allclose(
      found.camera.intrinsics, whole.camera.intrinsics, rtol=1e-6)
  # A pixel of the small picture is a block of the large one; colors count
  # by their alpha.
  assert found.has_alpha
  blocks = whole.images.astype(float).reshape(3, 15, 2, 20, 2, 4)
  alpha = blocks[..., 3:].mean((2, 4))
  color = (blocks[..., :3] * blocks[..., 3:]).mean((2, 4)) / alpha
  np.testing.assert_allclose(found.images[..., 3:], alpha, atol=1)
  np.testing.assert_allclose(found.images[..., :3], color, atol=6)
  assert np.mean(abs(found.images[..., :3] - color)) < 1


def test_folder_of_reduced_images_is_used(tmp_path):
  points, _ = points_in_front(around())
  write_llff(tmp_path, around(), points, side=4)
  for i in range(COUNT):
    picture(tmp_path / 'images_4' / f'image{i:03d}.png', i)
  found = posed.open_posed(tmp_path, factor=4)
  assert found.names[0] == 'image001.png'
  assert found.images.shape[1:] == (HEIGHT, WIDTH, 4)
  np.testing.assert_allclose(found.camera.intrinsics[0, 0, 0], FOCAL / WIDTH)


@pytest.mark.parametrize('distortion', [
    (0.2, 0.0, 0.0, 0.0), (-0.25, 0.08, 0.01, -0.02), (0.1, 0.2, -0.01, 0.0)])
def test_undistorted_images_have_points_at_pinhole_projections(
    tmp_path, distortion):
  c2w = around()
  k1, k2, p1, p2 = distortion
  side = 200
  write_dialect(tmp_path, c2w, 200.0, w=side, h=side, cx=104.0, cy=97.0,
                fl_y=210.0, k1=k1, k2=k2, p1=p1, p2=p2)
  # A picture whose color is its own image coordinate, so that one can read
  # off where a pixel came from.
  ramp = (np.arange(side) + 0.5) / side * 255
  x, y = np.meshgrid(ramp, ramp)
  for file in (tmp_path / 'images').glob('*'):
    file.unlink()
    Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8)).save(
        file.with_suffix('.png'))
  text = (tmp_path / 'transforms.json').read_text()
  (tmp_path / 'transforms.json').write_text(text.replace('.jpg', '.png'))
  found = posed.open_posed(tmp_path, 'test')
  for image, k, i in zip(found.images, found.camera.intrinsics, (0, 8, 16)):
    rows, columns = np.meshgrid(np.arange(5, side, 10), np.arange(5, side, 10))
    u = ((columns + 0.5) / side - k[0, 2]) / k[0, 0]
    v = ((rows + 0.5) / side - k[1, 2]) / k[1, 1]
    r2 = u ** 2 + v ** 2
    radial = 1 + k1 * r2 + k2 * r2 ** 2
    seen = np.stack([
        104 + (200 + i) * (u * radial + 2 * p1 * u * v + p2 * (
            r2 + 2 * u ** 2)),
        97 + 210 * (v * radial + p1 * (r2 + 2 * v ** 2) + 2 * p2 * u * v)], -1)
    # Two roundings to 8 bits, each of 0.4 pixels at most.
    off = image[rows, columns, :2] / 255 * side - seen
    assert np.abs(off).max() < 0.8 and np.abs(off.mean((0, 1))).max() < 0.05
    assert np.abs(seen - np.stack([columns, rows], -1) - 0.5).max() > 3
    assert np.all((seen > -0.01) & (seen < side + 0.01))


def edit(name, change):
  """Replaces a file's content by change(content), bytes or a JSON value."""
  def apply(folder):
    file = folder / name
    if name.endswith('.json'):
      content = json.loads(file.read_text())
      change(content)
      file.write_text(json.dumps(content))
    else:
      file.write_bytes(change(file.read_bytes()))
  return apply


def remove(name):
  return lambda folder: (folder / name).unlink()


def resave(name, size):
  return lambda folder: picture(folder / name, 1, size)


def row(index, column, value):
  def apply(folder):
    rows = np.load(folder / 'poses_bounds.npy')
    rows[index, column] = value
    np.save(folder / 'poses_bounds.npy', rows)
  return apply


def pose(scale):
  def change(content):
    matrix = np.array(content['frames'][1]['transform_matrix'])
    matrix[:3, :3] *= scale
    content['frames'][1]['transform_matrix'] = matrix.tolist()
  return change


BAD = [
    ('blender', remove('train/r_3.png'),
     'train/r_3.png is missing, but .*transforms_train.json lists it'),
    ('blender', edit('train/r_3.png', lambda b: b[:40]),
     'r_3.png cannot be read as an image'),
    ('blender', edit('transforms_train.json', pose(0)),
     'transforms_train.json: the pose of ./train/r_2 is singular'),
    ('blender', edit('transforms_train.json', pose(2)),
     'transforms_train.json: the pose of ./train/r_2 .* not orthonormal'),
    ('blender', edit('transforms_train.json', pose([[1], [-1], [1]])),
     'transforms_train.json: the pose of ./train/r_2 .* mirrors'),
    ('blender', edit('transforms_train.json', lambda c: c['frames'][0].update(
        transform_matrix=[['a'] * 4] * 4)), 'r_1 has a matrix .* not made of'),
    ('blender', edit('transforms_train.json', lambda c: c['frames'][0].update(
        transform_matrix=[[10 ** 400] * 4] * 4)),
     'r_1 has numbers .* not finite'),
    ('blender', edit('transforms_train.json', lambda c: c['frames'][0].update(
        file_path=['r_1'])), 'every frame needs "file_path", a string'),
    ('blender', edit('transforms_train.json', lambda c: c['frames'][0].update(
        file_path=100_000 * 'x')), 'xxx ... is missing'),
    ('blender', edit('transforms_train.json', lambda c: c.update(
        camera_angle_x=7)), 'r_1 has the "camera_angle_x" 7; an angle of view'),
    ('blender', edit('train/r_3.png', lambda b: b.replace(
        b'IDAT', b'IDAT', 1)[:-20] + bytes([b[-20] ^ 1]) + b[-19:]),
     'r_3.png cannot be read as an image'),
    ('blender', edit('train/r_3.png', lambda b: b''), 'it is empty'),
    ('blender', edit('train/r_3.png', lambda b: (
        b'\0\0\0\x18ftypheic' + bytes(20))), 'it is a HEIC photograph'),
    ('blender', edit('transforms_train.json', lambda c: c['frames'].clear()),
     'transforms_train.json lists no "frames"'),
    ('blender', edit('transforms_train.json', lambda c: c.pop(
        'camera_angle_x')), 'transforms_train.json: .*r_1 has neither'),
    ('blender', edit('transforms_train.json', lambda c: c.update(
        camera_model='OPENCV_FISHEYE')), 'r_1 has the camera model OPENCV_F'),
    ('blender', edit('transforms_train.json', lambda c: c.update(
        camera_angle_x=0.0, fl_x=-1.0)), 'r_1 has a size or a focal length'),
    ('blender', edit('transforms_train.json', lambda c: c.update(
        w=40, h=30, fl_x=44, k1=-3.0)), './train/r_1 cannot be undistorted: '),
    ('blender', edit('transforms_train.json', lambda c: c.update(
        w=40, h=40)), r'r_1.png has 40 x 30 pixels, which is not the aspect '
     'ratio of 40 x 40 in .*transforms_train.json'),
    ('llff', remove('images/IMG_004.JPG'),
     'poses_bounds.npy has 18 poses, but .*images has 17'),
    ('llff', row(2, slice(0, 15, 5), 0.0),
     'poses_bounds.npy: the pose of IMG_002.JPG is singular'),
    ('llff', row(2, 3, np.nan), 'the pose of IMG_002.JPG has numbers that are'),
    ('llff', row(2, 15, -1.0), 'poses_bounds.npy has a bound that is not pos'),
    ('llff', edit('poses_bounds.npy', lambda b: b[:300]),
     'poses_bounds.npy cannot be read'),
    ('llff', lambda folder: np.savez(
        (folder / 'poses_bounds.npy').open('wb'), np.ones((18, 17))),
     'poses_bounds.npy cannot be read as an array .* archive'),
    ('llff', edit('poses_bounds.npy', lambda b: b'PK\3\4' + b[4:]),
     'poses_bounds.npy cannot be read'),
    ('llff', edit('poses_bounds.npy', lambda b: b.replace(
        b'(18, 17), }' + 13 * b' ', b'(1000000000000, 17), }  ')),
     'poses_bounds.npy cannot be read'),
    ('colmap_txt', edit('sparse/0/cameras.txt', lambda b: b.replace(
        b'PINHOLE', b'HOLE')), 'cameras.txt: camera 3 has the unknown model '
     "HOLE; choose from .'OPENCV'"),
    ('colmap_txt', edit('sparse/0/cameras.txt', lambda b: b.replace(
        b'PINHOLE', b'FOV')), 'cameras.txt: camera 3 has the model FOV'),
    ('colmap_txt', edit('sparse/0/cameras.txt', lambda b: b.replace(
        b'PINHOLE', b'RADIAL')), r'camera 3 \(RADIAL\) has 4 parameters'),
    ('colmap_txt', edit('sparse/0/images.txt', lambda b: b.replace(
        b' 3 frame 004', b' 4 frame 004')), 'frame 004.png has the camera 4'),
    ('colmap_txt', edit('sparse/0/images.txt', lambda b: b[:30]),
     'images.txt ends too early'),
    ('colmap_txt', edit('sparse/0/images.txt', lambda b: (
        b'# Number of images: 18, mean observations per image: 1\n'
        + b[:len(b) // 2])), 'images.txt ends too early: .* announces 18'),
    ('colmap_txt', edit('sparse/0/points3D.txt', lambda b: b[:-30]),
     'points3D.txt ends too early'),
    ('colmap_txt', edit('sparse/0/points3D.txt', lambda b: (
        b'# Number of points: 126, mean track length: 2\n'
        + b[:b.index(b'\n60 ') + 1])), 'points3D.txt ends too early: .* 126'),
    ('colmap_txt', remove('sparse/0/images.txt'), 'images.txt is missing'),
    ('colmap_txt', remove('images/frame 003.png'),
     'frame 003.png is missing, but .*images.txt lists it'),
    ('colmap_bin', edit('sparse/0/cameras.bin', lambda b: (
        b[:12] + struct.pack('<i', 99) + b[16:])),
     'cameras.bin: camera 3 has the unknown model 99'),
    ('colmap_bin', edit('sparse/0/cameras.bin', lambda b: (
        b[:12] + struct.pack('<i', 5) + b[16:] + bytes(32))),
     'cameras.bin: camera 3 has the model OPENCV_FISHEYE'),
    ('colmap_bin', edit('sparse/0/cameras.bin', lambda b: b[:-1]),
     'cameras.bin ends too early'),
    ('colmap_bin', edit('sparse/0/images.bin', lambda b: b[:-30]),
     'images.bin ends too early'),
    ('colmap_bin', edit('sparse/0/points3D.bin', lambda b: b[:-1]),
     'points3D.bin ends too early'),
    ('colmap_bin', edit('sparse/0/images.bin', lambda b: (
        b[:12] + bytes(32) + b[44:])),
     'images.bin: the pose of frame 017.png is singular'),
    ('colmap_bin', edit('sparse/0/points3D.bin', lambda b: (
        b[:16] + struct.pack('<d', 1e300) + b[24:])),
     r'points3D.bin has a point at 1e\+300, .*, far from all others'),
    ('nsvf', edit('intrinsics.txt', lambda b: b[:len(b) // 2]),
     'intrinsics.txt ends too early'),
    ('nsvf', edit('bbox.txt', lambda b: b'100 100 100 101 101 101 .1'),
     r'bbox.txt: no camera sees the box from \[99.9, 99.9, 99.9\]'),
    ('nsvf', edit('bbox.txt', lambda b: b'1 1 1 0 2 2'),
     r'bbox.txt: the upper corner \[0.0, 2.0, 2.0\] is not above'),
    ('nsvf', edit('bbox.txt', lambda b: b'1 1'), 'bbox.txt ends too early'),
    ('nsvf', edit('bbox.txt', lambda b: b'a b'), 'bbox.txt should hold num'),
    ('nsvf', remove('pose/0_0003.txt'), 'pose/0_0003.txt is missing'),
    ('nsvf', edit('pose/0_0003.txt', lambda b: b' '.join([b'0'] * 16)),
     'pose/0_0003.txt: the pose of 0_0003.png is singular'),
    ('nsvf', remove('intrinsics.txt'), 'intrinsics.txt is missing'),
    ('nsvf', edit('intrinsics.txt', lambda b: b.replace(b' 20 ', b' 960 ')),
     '0_0001.png: the principal point lies beyond the image of 40 x 30'),
    ('nerfpp', remove('train/pose/000003.txt'), 'train: 000003 has an image'),
    ('nerfpp', edit('train/intrinsics/000003.txt', lambda b: b'1 2'),
     'intrinsics/000003.txt ends too early'),
]


@pytest.mark.parametrize('layout, spoil, message', BAD)
def test_errors_are_one_sentence_with_the_file(
    tmp_path, layout, spoil, message):
  points, _ = points_in_front(around())
  WRITERS[layout](tmp_path, around(), points)
  spoil(tmp_path)
  with pytest.raises(ValueError, match=message) as caught:
    posed.open_posed(tmp_path, 'train')
  assert '\n' not in str(caught.value)


def test_invalid_json_is_named(tmp_path):
  (tmp_path / 'transforms.json').write_text('{"frames": [')
  with pytest.raises(ValueError, match='transforms.json is not JSON'):
    posed.open_posed(tmp_path)
  (tmp_path / 'transforms.json').write_text('{"frames": [{}]}')
  with pytest.raises(ValueError, match='every frame needs "file_path"'):
    posed.open_posed(tmp_path)


def test_arguments_that_do_not_fit_are_refused(tmp_path):
  points, _ = points_in_front(around())
  write_blender(tmp_path, around(), points)
  for kwargs, message in (
      ({'format': 'blenda'}, "Unknown format 'blenda'.*Did you mean 'blender'"),
      ({'format': 'llff'}, 'poses_bounds.npy is missing'),
      ({'format': 'colmap'}, 'no cameras.bin or cameras.txt'),
      ({'format': 'nsvf'}, 'bbox.txt is missing'),
      ({'format': 'nerfpp'}, 'train/rgb is missing'),
      ({'split': 'val'}, r"no images of the split 'val'; choose from \['te"),
      ({'factor': 0}, 'factor is 0'),
      ({'near': 5.0, 'far': 4.0}, 'near 5 and far 4'),
      ({'box': [[0, 0, 0], [1, 0, 1]]}, 'is empty'),
      ({'box': [[50, 50, 50], [51, 51, 51]]}, 'no camera sees the box'),
      ({'near': 50.0, 'far': 60.0}, 'between near 50 and far 60')):
    with pytest.raises(ValueError, match=message):
      posed.open_posed(tmp_path, **kwargs)
  with pytest.raises(ValueError, match='holds no capture .*poses_bounds.npy'):
    posed.open_posed(tmp_path / 'train')
  with pytest.raises(ValueError, match='is not a folder'):
    posed.open_posed(tmp_path / 'nowhere')
  given = posed.open_posed(tmp_path, near=1.0, far=3.0, box=0.5)
  assert (given.near, given.far) == (1, 3)
  np.testing.assert_allclose(given.box, [[-0.5] * 3, [0.5] * 3])


def test_parallel_cameras_need_a_box(tmp_path):
  c2w = ahead()
  c2w[:, :3, :3] = np.eye(3)
  assert records.closest_point(c2w) is None
  write_blender(tmp_path, c2w, None)
  with pytest.raises(ValueError, match='nearly parallel.*config.data.box'):
    posed.open_posed(tmp_path)
  box = [[-1, -1, -3], [1, 1, -1]]
  assert posed.open_posed(tmp_path, box=box).near > 0.8


def test_images_with_too_many_pixels_are_refused(tmp_path, monkeypatch):
  points, _ = points_in_front(around())
  write_blender(tmp_path, around(), points)
  # Pillow raises DecompressionBombError above twice its limit.
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', WIDTH * HEIGHT // 3)
  with pytest.raises(UserError, match='r_1.png cannot be read as an image'):
    posed.open_posed(tmp_path, 'train')


def test_bounds_and_box_of_the_config_are_used(tmp_path):
  points, _ = points_in_front(around())
  write_blender(tmp_path, around(), points)
  data = nerf.get_config().data
  data.path, data.near, data.far, data.box = str(tmp_path), 1.0, 3.0, 0.5
  given = reconstruction.open_data(data, 'train')
  assert (given.near, given.far) == (1, 3)
  np.testing.assert_allclose(given.box, [[-0.5] * 3, [0.5] * 3])
  data.near = data.far = data.box = 0.0
  automatic, expected = (reconstruction.open_data(data, 'train'),
                         posed.open_posed(tmp_path))
  assert (automatic.near, automatic.far) == (expected.near, expected.far)
  np.testing.assert_array_equal(automatic.box, expected.box)


@pytest.mark.parametrize('layout, file', [
    ('nsvf', 'intrinsics.txt'), ('nsvf', 'pose/0_0001.txt'),
    ('colmap_txt', 'sparse/0/images.txt'), ('llff', 'poses_bounds.npy'),
    ('colmap_bin', 'sparse/0/points3D.bin')])
def test_pipes_and_devices_are_not_read(tmp_path, layout, file):
  """They could be read without end."""
  WRITERS[layout](tmp_path, around(), points_in_front(around())[0])
  (tmp_path / file).unlink()
  (tmp_path / file).symlink_to('/dev/zero')
  with pytest.raises(ValueError, match='missing|pipe or a device'):
    posed.open_posed(tmp_path, format=layout.partition('_')[0])


@pytest.mark.parametrize('content', [
    '44.0 0 20 0\n0 44.0 15', '44.0 0 20 0\n0 44', '44.0 0'])
def test_half_of_nsvf_intrinsics_is_refused(tmp_path, content):
  write_nsvf(tmp_path, around(), points_in_front(around())[0])
  (tmp_path / 'intrinsics.txt').write_text(content)
  with pytest.raises(ValueError, match='intrinsics.txt ends too early'):
    posed.open_posed(tmp_path)
