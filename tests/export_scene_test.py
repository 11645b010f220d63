"""Posed data out of meshes and captions, read back by the loader."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import trimesh
from PIL import Image

from gen3d.data import synthetic
from gen3d.data.captures import posed
from gen3d.data.images import dataset
from gen3d.ops import cameras


def run(*flags):
  return subprocess.run(
      [sys.executable, '-m', 'gen3d.export_scene', *flags],
      capture_output=True, text=True, timeout=600)


def test_a_mesh_becomes_a_scene_that_the_loader_reads(tmp_path):
  mesh = trimesh.creation.box((0.5, 1.0, 2.0))  # z is up
  mesh.visual = trimesh.visual.ColorVisuals(
      mesh, vertex_colors=np.tile([[200, 40, 90, 255]], (8, 1)))
  mesh.export(tmp_path / 'box.ply')
  result = run(f'--mesh={tmp_path}/box.ply', '--up=z', '--views=6',
               '--test_views=5', '--size=48', '--ambient=1',
               f'--out={tmp_path}/out')
  assert result.returncode == 0, result.stderr
  assert json.loads((tmp_path / 'out/transforms_test.json').read_text())[
      'frames'][0]['file_path'] == './test/r_0'
  assert Image.open(tmp_path / 'out/map.png').width == 960
  for split, count in (('train', 6), ('val', 1), ('test', 5)):
    found = posed.open_posed(tmp_path / 'out', split)
    assert found.images.shape == (count, 48, 48, 4) and found.has_alpha
    assert found.near < 3 and found.far > 5
    assert np.all(np.abs(found.box) > 1) and np.all(np.abs(found.box) < 1.2)
    # The box's corners, y up now, frame what is drawn.
    corners = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    corners = corners * [0.25, 1.0, 0.5] / np.linalg.norm([0.25, 1.0, 0.5])
    seen, _ = cameras.project(
        cameras.Camera(*map(jnp.asarray, found.camera)), jnp.broadcast_to(
            jnp.float32(corners), (count, 8, 3)))
    for image, place in zip(found.images, 48 * np.asarray(seen)):
      rows, columns = np.nonzero(image[..., 3])
      np.testing.assert_allclose(
          [columns.min(), rows.min()], place.min(0), atol=1.01)
      np.testing.assert_allclose(
          [columns.max() + 1, rows.max() + 1], place.max(0), atol=1.01)
      assert np.abs(image[image[..., 3] > 0][:, :3] - [200., 40, 90]).max() <= 1


def test_the_command_refuses_what_it_cannot_do(tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'a').touch()
  for flags, said in (
      ((f'--out={tmp_path}/out',), 'one of --mesh, --caption, --capture and'),
      ((f'--out={tmp_path}/full', '--caption=a red car'), 'full is not empty'),
      ((f'--out={tmp_path}/out', f'--mesh={tmp_path}/a.obj'),
       'a.obj is missing')):
    result = run(*flags)
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert said in result.stderr.strip().splitlines()[-1]
  assert not (tmp_path / 'out').exists()


def test_a_map_of_a_capture_that_is_there(tmp_path):
  scene = tmp_path / 'scene'
  synthetic.write_blender(scene, synthetic.surface_from_caption('a cyan mug', 24), train=3,
                       test=1, size=16)
  done = run(f'--capture={scene}', f'--out={tmp_path}/map')
  assert done.returncode == 0, done.stderr[-2000:]
  np.testing.assert_array_equal(
      np.asarray(Image.open(tmp_path / 'map' / 'map.png')),
      posed.map_of_posed(posed.open_posed(scene)))
  both = run(f'--capture={scene}', f'--out={tmp_path}/map',
             '--caption=a cyan mug')
  assert both.returncode == 2 and 'Give one of' in both.stderr


def test_a_map_of_images_for_a_gan_is_drawn_once_they_are_sound(tmp_path):
  folder = tmp_path / 'faces'
  folder.mkdir()
  labels = np.asarray(cameras.to_label(
      cameras.orbit([0.0, 90.0], 10.0, 2.7, 4.2647)))
  for name in 'ab':
    Image.new('RGB', (16, 16)).save(folder / f'{name}.png')
  listing = {'labels': [[f'{name}.png', label.tolist()]
                        for name, label in zip('ab', labels)]}
  (folder / 'dataset.json').write_text(json.dumps(listing))
  done = run(f'--images={folder}', f'--out={tmp_path}/map')
  assert done.returncode == 0, done.stderr[-2000:]
  np.testing.assert_array_equal(
      np.asarray(Image.open(tmp_path / 'map' / 'map.png')),
      dataset.map_of_cameras(dataset.open_images(folder)))
  (folder / 'b.png').write_text('not a picture')
  done = run(f'--images={folder}', f'--out={tmp_path}/other')
  assert done.returncode == 2 and 'b.png cannot be read' in done.stderr
  assert not (tmp_path / 'other').exists()
