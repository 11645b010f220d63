"""Writers of a scene in the five layouts of captures.

Each writer puts the same cameras (c2w [N, 4, 4], OpenGL axes, y up) and points
into a folder, in the axes and the world that its format has, and returns the
similarity [4, 4] from the scene's world to the files' one. Nothing of the
loaders is used.
"""

import json
import struct

import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from gen3d.ops import cameras

WIDTH, HEIGHT, FOCAL, COUNT = 40, 30, 44.0, 18
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL camera axes <-> OpenCV's
# A world as COLMAP may choose it: rotated, scaled and moved.
ODD = np.eye(4)
ODD[:3, :3] = 3.7 * Rotation.from_euler('xyz', [200, 30, 75],
                                        degrees=True).as_matrix()
ODD[:3, 3] = [5.0, -2.0, 1.0]
Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
LAYOUTS = ('blender', 'llff', 'colmap_txt', 'colmap_bin', 'nsvf', 'nerfpp')


def moved(world, c2w):
  """Cameras [N, 4, 4] after a similarity of the world."""
  scale = np.linalg.norm(world[:3, 0])
  return np.stack([np.block([
      [world[:3, :3] / scale @ c[:3, :3],
       world[:3, :3] @ c[:3, 3:] + world[:3, 3:]],
      [np.zeros((1, 3)), np.ones((1, 1))]]) for c in c2w])


def around():
  """Cameras on a sphere of radius 2 with the origin as target; y is up."""
  camera = cameras.orbit(
      jnp.linspace(0.0, 320.0, COUNT), 20 + 25 * jnp.cos(jnp.arange(COUNT)),
      jnp.full(COUNT, 2.0), jnp.full(COUNT, 1.0))
  return np.asarray(camera.c2w, np.float64)


def ahead():
  """Cameras on a plane with viewing direction -z."""
  c2w = np.tile(np.eye(4), (COUNT, 1, 1))
  rng = np.random.default_rng(0)
  c2w[:, :3, 3] = rng.uniform(-0.5, 0.5, (COUNT, 3)) * [1, 1, 0.1]
  c2w[:, :3, :3] = Rotation.from_rotvec(
      rng.normal(scale=0.05, size=(COUNT, 3))).as_matrix()
  return c2w


def points_in_front(c2w, depths=(1.4, 2.6)):
  """(points [N, K, 3], pixels [N, K, 2] (column, row)) of pixel centers."""
  rng = np.random.default_rng(1)
  pixels = np.stack([rng.integers(WIDTH, size=(len(c2w), 7)),
                     rng.integers(HEIGHT, size=(len(c2w), 7))], -1)
  depth = rng.uniform(*depths, pixels.shape[:2])[..., None]
  local = np.concatenate([
      (pixels[..., :1] + 0.5 - WIDTH / 2) / FOCAL * depth,
      -(pixels[..., 1:] + 0.5 - HEIGHT / 2) / FOCAL * depth, -depth], -1)
  return local @ c2w[:, :3, :3].transpose(0, 2, 1) + c2w[:, None, :3, 3], pixels


def picture(path, index, size=(WIDTH, HEIGHT), alpha=None):
  """A picture of one color that encodes its index."""
  path.parent.mkdir(parents=True, exist_ok=True)
  color = (10 * index, 200, 7) + (() if alpha is None else (alpha,))
  Image.new('RGB' if alpha is None else 'RGBA', size, color).save(path)


def numbers(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(' '.join(repr(float(x)) for x in np.ravel(array)))


def write_blender(folder, c2w, points):
  listed = {'train': [i for i in range(COUNT) if i % 8],
            'test': [i for i in range(COUNT) if i % 8 == 0]}
  for split, indices in listed.items():
    frames = []
    for i in indices:
      picture(folder / split / f'r_{i}.png', i)
      frames.append({'file_path': f'./{split}/r_{i}',
                     'transform_matrix': moved(Z_UP, c2w[i:i + 1])[0].tolist()})
    (folder / f'transforms_{split}.json').write_text(json.dumps({
        'camera_angle_x': 2 * np.arctan(0.5 * WIDTH / FOCAL),
        'frames': frames}))
  return Z_UP


def write_llff(folder, c2w, points, side=1):
  cams, rows = moved(ODD, c2w), []
  scale = np.linalg.norm(ODD[:3, 0])
  for i, c in enumerate(cams):
    picture(folder / 'images' / f'IMG_{i:03d}.JPG', i)
    block = np.concatenate([
        -c[:3, 1:2], c[:3, :1], c[:3, 2:3], c[:3, 3:],
        side * np.array([[HEIGHT], [WIDTH], [FOCAL]])], axis=1)
    rows.append(np.concatenate([block.ravel(), [scale * 1.2, scale * 3.4]]))
  np.save(folder / 'poses_bounds.npy', np.stack(rows))
  return ODD


def colmap_records(c2w):
  """[(name, quaternion wxyz, translation)], in an order of COLMAP's own."""
  records = []
  for i, c in enumerate(moved(ODD, c2w)):
    w2c = np.linalg.inv(c @ FLIP)
    quaternion = Rotation.from_matrix(w2c[:3, :3]).as_quat()[[3, 0, 1, 2]]
    records.append((f'frame {i:03d}.png', quaternion, w2c[:3, 3]))
  return records[::-1]


def write_colmap_txt(folder, c2w, points, camera=None):
  sparse = folder / 'sparse' / '0'
  sparse.mkdir(parents=True)
  for i in range(COUNT):
    picture(folder / 'images' / f'frame {i:03d}.png', i)
  camera = camera or f'PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} 20 15'
  (sparse / 'cameras.txt').write_text(f'# cameras\n3 {camera}\n')
  lines = ['# two lines an image']
  for n, (name, q, t) in enumerate(colmap_records(c2w)):
    lines.append(' '.join(map(repr, [n + 1, *map(float, q), *map(float, t), 3])
                          ) + f' {name}')
    lines.append('' if n % 2 else '12.5 7.25 -1 3.5 2.0 17')
  (sparse / 'images.txt').write_text('\n'.join(lines) + '\n')
  carried = points.reshape(-1, 3) @ ODD[:3, :3].T + ODD[:3, 3]
  (sparse / 'points3D.txt').write_text('# points\n' + ''.join(
      f'{n} {x!r} {y!r} {z!r} 1 2 3 0.5 1 2 3 4\n'
      for n, (x, y, z) in enumerate(carried.tolist())))
  return ODD


def write_colmap_bin(folder, c2w, points):
  sparse = folder / 'sparse' / '0'
  sparse.mkdir(parents=True)
  for i in range(COUNT):
    picture(folder / 'images' / f'frame {i:03d}.png', i)
  (sparse / 'cameras.bin').write_bytes(
      struct.pack('<Q', 1) + struct.pack('<iiQQ', 3, 1, WIDTH, HEIGHT)
      + struct.pack('<4d', FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))
  data = struct.pack('<Q', COUNT)
  for n, (name, q, t) in enumerate(colmap_records(c2w)):
    data += struct.pack('<i7di', n + 1, *q, *t, 3) + name.encode() + b'\0'
    data += struct.pack('<Q', n % 3) + n % 3 * struct.pack('<ddq', 1.5, 2.5, -1)
  (sparse / 'images.bin').write_bytes(data)
  carried = points.reshape(-1, 3) @ ODD[:3, :3].T + ODD[:3, 3]
  data = struct.pack('<Q', len(carried))
  for n, point in enumerate(carried):
    data += struct.pack('<Q3d3Bd', n, *point, 1, 2, 3, 0.5)
    data += struct.pack('<Q', 2) + struct.pack('<4i', 1, 2, 3, 4)
  (sparse / 'points3D.bin').write_bytes(data)
  return ODD


def write_nsvf(folder, c2w, points):
  for i, c in enumerate(moved(ODD, c2w)):
    name = f'{0 if i % 8 else 1}_{i:04d}'
    picture(folder / 'rgb' / f'{name}.png', i)
    numbers(folder / 'pose' / f'{name}.txt', c @ FLIP)
  (folder / 'intrinsics.txt').write_text(
      f'{FOCAL} 0 20 0\n0 {FOCAL} 15 0\n0 0 1 0\n0 0 0 1\n')
  carried = points.reshape(-1, 3) @ ODD[:3, :3].T + ODD[:3, 3]
  numbers(folder / 'bbox.txt', [*carried.min(0), *carried.max(0), 0.1])
  return ODD


def write_nerfpp(folder, c2w, points):
  small = np.diag([0.4, 0.4, 0.4, 1.0])
  for i, c in enumerate(moved(small, c2w)):
    split, name = ('train' if i % 8 else 'test'), f'{i:06d}'
    picture(folder / split / 'rgb' / f'{name}.png', i)
    numbers(folder / split / 'pose' / f'{name}.txt', c @ FLIP)
    numbers(folder / split / 'intrinsics' / f'{name}.txt', [
        FOCAL, 0, 20, 0, 0, FOCAL, 15, 0, 0, 0, 1, 0, 0, 0, 0, 1])
  return small


def write_dialect(folder, c2w, focal=FOCAL, **common):
  """instant-ngp's and nerfstudio's transforms.json; intrinsics per frame."""
  frames = []
  for i in range(COUNT):
    picture(folder / 'images' / f'{i:03d}.jpg', i)
    frames.append({'file_path': f'images/{i:03d}.jpg', 'fl_x': focal + i,
                   'transform_matrix': moved(Z_UP, c2w[i:i + 1])[0].tolist()})
  (folder / 'transforms.json').write_text(json.dumps(
      {'w': WIDTH, 'h': HEIGHT, 'cx': 18.0, 'cy': 16.0, 'fl_y': 50.0,
       'frames': frames[::-1], **common}))


WRITERS = dict(zip(LAYOUTS, (
    write_blender, write_llff, write_colmap_txt, write_colmap_bin, write_nsvf,
    write_nerfpp)))
