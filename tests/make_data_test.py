"""Data sets of the command make_data, read back by the loaders."""

import json

import commands
import jax.numpy as jnp
import numpy as np
import trimesh
from PIL import Image

from gen3d import assets
from gen3d.data import maps, synthetic
from gen3d.data.captures import posed
from gen3d.data.images import dataset
from gen3d.data.shapes import captions
from gen3d.ops import cameras


def run(*flags):
  return commands.run('gen3d.make_data', *flags)


def test_scene_of_a_mesh_is_read_by_open_posed(tmp_path):
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


def test_wrong_arguments_are_refused(tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'a').touch()
  for flags, message in (
      ((f'--out={tmp_path}/out',), 'Give one of --mesh, --caption, --capture'),
      ((f'--out={tmp_path}/full', '--caption=a red car'), 'full is not empty'),
      ((f'--out={tmp_path}/out', f'--mesh={tmp_path}/a.obj'),
       'a.obj is missing')):
    result = run(*flags)
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert message in result.stderr.strip().splitlines()[-1]
  assert not (tmp_path / 'out').exists()


def test_map_of_a_capture(tmp_path):
  scene = tmp_path / 'scene'
  synthetic.write_blender(
      scene, synthetic.surface_from_caption('a cyan mug', 24), train=3, test=1,
      size=16)
  done = run(f'--capture={scene}', f'--out={tmp_path}/map')
  assert done.returncode == 0, done.stderr[-2000:]
  np.testing.assert_array_equal(
      np.asarray(Image.open(tmp_path / 'map' / 'map.png')),
      maps.map_of_posed(posed.open_posed(scene)))
  both = run(f'--capture={scene}', f'--out={tmp_path}/map',
             '--caption=a cyan mug')
  assert both.returncode == 2 and 'Give one of' in both.stderr


def test_map_of_images_is_drawn_after_their_check(tmp_path):
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
      maps.map_of_images(dataset.open_images(folder)))
  (folder / 'b.png').write_text('not a picture')
  done = run(f'--images={folder}', f'--out={tmp_path}/other')
  assert done.returncode == 2 and 'b.png cannot be read' in done.stderr
  assert not (tmp_path / 'other').exists()


def test_slice_of_the_world_has_captions_and_cameras(tmp_path):
  result = run('--shapes', '--split=unseen', '--first=3', '--count=2',
                '--size=16', f'--out={tmp_path}')
  assert result.returncode == 0, result.stderr
  listing = json.loads((tmp_path / 'dataset.json').read_text())
  names = ['00000003.png', '00000004.png']
  assert [name for name, _ in listing['labels']] == names
  assert all(len(label) == 25 for _, label in listing['labels'])
  assert sorted(listing['captions']) == names
  for name in names:
    assert Image.open(tmp_path / name).size == (16, 16)
    stated = captions.parse(listing['captions'][name])
    assert all(s is None or s == truth for s, truth in zip(
        stated, listing['objects'][name].values()))


def test_held_out_images_like_those_of_a_gan(
    tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / 'cache'))
  export = lambda *flags: run(
      '--shapes', *flags, '--count=2', f'--out={tmp_path}/out')
  result = export('--config=configs/eg3d.py:tiny', '--split=seen', '--first=1')
  assert result.returncode == 0, result.stderr
  source = dataset.open_images(tmp_path / 'out')
  dataset.check(source)
  assert source.names == ('00000001.png', '00000002.png') and source.size == 16
  _, elevation, distance = cameras.angles(source.labels[:, [3, 7, 11]])
  np.testing.assert_allclose(distance, 1.7, rtol=1e-5)
  assert np.all(elevation > 5)
  assert np.all(source.pixels(0)[[0, 0, -1, -1], [0, -1, 0, -1]] > 250)
  texts = json.loads(
      (tmp_path / 'out' / 'dataset.json').read_text())['captions']
  assert all(text.split()[-1] == 'car' or ' car ' in text
             for text in texts.values())
  result = export('--config=configs/dreamfusion.py')
  assert result.returncode == 2 and 'Traceback' not in result.stderr
  assert 'is not of a GAN' in result.stderr.strip().splitlines()[-1]


def test_sheet_of_all_categories(tmp_path):
  result = run('--sheet', '--size=8', f'--out={tmp_path}/out')
  assert result.returncode == 0, result.stderr
  assert Image.open(tmp_path / 'out' / 'shapes.png').width > 7 * 8


def test_tokenizer_is_written(tmp_path):
  result = run('--tokenizer', f'--out={tmp_path}/out')
  assert result.returncode == 0, result.stderr
  texts = ['a photo of a pink castle with gray towers, overhead view']
  again = assets.Tokenizer(tmp_path / 'out' / 'tokenizer.json')
  np.testing.assert_array_equal(
      again.encode(texts)[0], assets.tokenizer().encode(texts)[0])
