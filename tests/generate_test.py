"""The command gen3d.generate."""


import commands
import pytest
import tiny_eg3d

from gen3d import assets
from gen3d.io import meshes, video


def run(*flags):
  return commands.run('gen3d.generate', *flags)


def test_objects_and_a_film_between_them(tmp_path):
  trained = tiny_eg3d.dense(tiny_eg3d.trained())
  weights, _ = assets.save(
      tmp_path / 'mine.safetensors', trained.variables,
      {'config': tiny_eg3d.config().to_dict(), 'camera': tiny_eg3d.CAMERA})
  out = tmp_path / 'new' / 'out'
  done = run(f'--network={weights}', '--seeds=3,5', '--truncation=0.7',
             '--truncation_cutoff=2', '--frames=8', '--resolution=12',
             '--interpolate', '--texture=32', f'--out={out}')
  assert done.returncode == 0, done.stderr
  names = ['grid.png', 'seed0003.mp4', 'seed0003.glb', 'seed0003.ply',
           'seed0005.mp4', 'seed0005.glb', 'seed0005.ply',
           'interpolation.mp4']
  assert done.stdout.split() == [str(out / name) for name in names]
  assert sorted(p.name for p in out.iterdir()) == sorted(names)
  mesh, = meshes.load(out / 'seed0005.glb')
  assert mesh.texture.shape == (32, 32, 3)
  film, _ = video.load(out / 'interpolation.mp4')
  assert film.shape == (16, 16, 48, 3)


@pytest.mark.parametrize('flags, sentence', [
    (('--out=x',), 'The flag --network is missing'),
    (('--network=shapes',), 'The flag --out is missing'),
    (('--network=shapes', '--out=x', '--truncation=nan'),
     '--truncation is nan; give a number.'),
    (('--network=shapes', '--out=x', '--seeds=a'), 'write them like 0-7,12'),
    (('--network=shapes', '--out=x', '--texture=9'), 'have 9 texels per side'),
    (('--network=shapes', '--out=x', '--prompts=a chair'), 'prompts')])
def test_missing_and_invalid_flags(flags, sentence):
  done = run(*flags)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert sentence in done.stderr
