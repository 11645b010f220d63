"""gen3d.export through its command line, on a run of two tiny steps."""

import json

import commands
import numpy as np
import pytest
from PIL import Image

from gen3d.io import meshes, video


def command(module, *args):
  return commands.run(module, *args)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('export') / 'run'
  done = command(
      'gen3d.train', '--config=configs/dreamfusion.py:tiny',
      '--config.steps=2', '--config.prompt=a blue mug', f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr[-3000:]
  return workdir


def test_files_are_exported_at_another_size(run, tmp_path):
  out = tmp_path / 'again'
  done = command('gen3d.export', f'--workdir={run}', f'--out={out}',
                 '--size=24', '--resolution=40', '--step=2', '--share=0.5')
  assert done.returncode == 0, done.stderr[-3000:]
  names = ('turntable.mp4', 'preview.png', 'mesh.glb', 'mesh.ply')
  assert done.stdout.split() == [str(out / name) for name in names]
  assert sorted(p.name for p in out.iterdir()) == sorted(names)
  assert video.load(out / 'turntable.mp4')[0].shape[1:3] == (24, 72)
  assert Image.open(out / 'preview.png').size[0] == 4 * 24 + 3 * 2
  small, = meshes.load(run / 'mesh.glb')
  large, = meshes.load(out / 'mesh.glb')
  # The run's own setting.
  assert small.texture.shape == large.texture.shape == (64, 64, 3)
  assert len(large.vertices) > 2 * len(small.vertices)
  for mesh in (small, large):
    np.testing.assert_allclose(
        np.ptp(mesh.vertices, axis=0), np.ptp(large.vertices, axis=0),
        rtol=0.25)


def test_textures_and_formats_are_chosen_by_flags(run, tmp_path):
  done = command('gen3d.export', f'--workdir={run}', f'--out={tmp_path}',
                 '--size=16', '--resolution=16', '--texture=0',
                 '--formats=glb')
  assert done.returncode == 0, done.stderr[-3000:]
  plain, = meshes.load(tmp_path / 'mesh.glb')
  assert plain.texture is None and np.ptp(plain.colors) > 0
  assert not (tmp_path / 'mesh.ply').exists()
  done = command('gen3d.export', f'--workdir={run}', f'--out={tmp_path}',
                 '--size=16', '--resolution=16', '--texture=32',
                 '--formats=obj')
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split()[2:] == [str(tmp_path / 'mesh.obj')]
  textured, = meshes.load(tmp_path / 'mesh.obj')
  assert textured.texture.shape == (32, 32, 3)
  assert (tmp_path / 'mesh.mtl').exists() and (tmp_path / 'mesh.png').exists()


def test_errors_of_the_user_are_one_sentence_and_leave_no_files(run, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'config.json').write_text(json.dumps({'task': 'text_to_image'}))
  out = tmp_path / 'out'
  for args, message in (
      ([f'--workdir={tmp_path / "typo"}'], 'There is no run in'),
      ([f'--workdir={other}'], "of the task 'text_to_image'"),
      ([f'--workdir={run}', '--step=7'], 'no checkpoint 7 in'),
      ([f'--workdir={run}', '--texture=5'], 'have 5 texels per side'),
      ([f'--workdir={run}', '--formats=glb,stl'], "mesh format 'stl'"),
  ):
    done = command('gen3d.export', *args, f'--out={out}')
    assert done.returncode == 2 and message in done.stderr
    assert 'Traceback' not in done.stderr and not out.exists()
