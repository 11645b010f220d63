"""The command gen3d.invert."""


import commands
import numpy as np
import pytest
import tiny_eg3d
import trimesh
from PIL import Image

from gen3d import assets
from gen3d.gan import inference
from gen3d.io import video
from gen3d.ops import cameras

CAMERA = tiny_eg3d.CAMERA


def run(*flags):
  return commands.run('gen3d.invert', *flags)


def test_an_image_becomes_an_object(tmp_path):
  network = tiny_eg3d.dense(tiny_eg3d.trained())
  weights, _ = assets.save(
      tmp_path / 'mine.safetensors', network.variables,
      {'config': tiny_eg3d.config().to_dict(), 'camera': CAMERA})
  Image.new('RGBA', (20, 20), (255, 0, 0, 0)).save(tmp_path / 'a.png')
  out = tmp_path / 'new' / 'out'
  result = run(
      f'--network={weights}', f'--image={tmp_path}/a.png', '--azimuth=30',
      '--elevation=10', '--space=w+', '--steps=3', '--tuning_steps=2',
      '--views=0,-90', '--resolution=12', '--texture=32', f'--out={out}')
  assert result.returncode == 0, result.stderr
  names = ['inversion.png', 'latent.npz', 'tuned.safetensors', 'tuned.json',
           'turntable.mp4', 'mesh.glb', 'mesh.ply']
  assert result.stdout.split() == [str(out / name) for name in names]
  assert sorted(p.name for p in out.iterdir()) == sorted(names)

  sheet = np.asarray(Image.open(out / 'inversion.png'))
  assert sheet.shape[1] == 5 * 130 - 2
  np.testing.assert_array_equal(sheet[:128, :128], 255)
  latent = np.load(out / 'latent.npz')
  np.testing.assert_allclose(latent['label'], cameras.to_label(
      inference.camera_at({**CAMERA, 'elevation': 10.0}, 30.0)), atol=1e-6)
  assert [len(latent[f'{of}_loss']) for of in ('projection', 'tuning')] == [
      3, 2]
  assert all(np.isfinite(x).all() for x in latent.values())
  tuned = inference.load(out / 'tuned.safetensors')
  assert not np.array_equal(*(
      x.variables['params']['decoder']['net.0']['bias']
      for x in (tuned, network)))
  film, _ = video.load(out / 'turntable.mp4')
  assert film.shape == (48, 16, 16, 3)
  # Density is everywhere within the generator's cube.
  for name in ('mesh.glb', 'mesh.ply'):
    shape = trimesh.load_mesh(out / name)
    assert shape.visual.kind == (
        'texture' if name == 'mesh.glb' else 'vertex')
    np.testing.assert_allclose(
        shape.extents, 2 * network.generator.bound, rtol=0.1)


@pytest.mark.parametrize('flags, sentence', [
    ((), 'The camera is missing; give --camera or --azimuth.'),
    (('--camera=c.json', '--azimuth=3'),
     'Give --camera or --azimuth, but not both.'),
    (('--camera=c.json', '--elevation=3'),
     'Give --camera or --elevation, but not both.'),
    (('--azimuth=nan',), '--azimuth=nan are no angles'),
    (('--azimuth=3', '--elevation=nan'), '--elevation=nan are no angles'),
    (('--azimuth=3', '--views=0,left'), '--views=0,left are no angles'),
    (('--azimuth=3', '--views=0,inf'), '--views=0,inf are no angles')])
def test_missing_and_conflicting_flags(flags, sentence):
  result = run('--network=shapes', '--image=x.png', '--out=/nowhere', *flags)
  assert result.returncode == 2 and 'Traceback' not in result.stderr
  assert sentence in result.stderr
