"""Command lines that sample and evaluate, called as a user would."""

import pathlib

import commands
import jax
import numpy as np
from PIL import Image

from configs import text_to_image as config_file
from gen3d import assets
from gen3d.engine import cli, config_files
from gen3d.tasks import text_to_image

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _run(module, *flags):
  return commands.run(f'gen3d.{module}', *flags)


def _refused(result, *words):
  """Whether the answer is one sentence with these words, and no traceback."""
  lines = result.stderr.strip().splitlines()
  assert result.returncode == 2, result.stderr
  assert 'Traceback' not in result.stderr
  assert all(word in lines[-1] for word in words), lines[-1]
  return True


def test_sample_writes_a_labeled_grid(tmp_path):
  config = config_file.get_config('tiny')
  state = text_to_image.make(config).init(jax.random.key(0))
  weights, _ = assets.save(
      tmp_path / 'tiny.safetensors', state.params,
      {'config': config.to_dict()})
  result = _run('sample', '--prompts=a red car; a zebra', '--num=2',
                '--steps=2', '--sampler=ddpm', f'--weights={weights}',
                f'--out={tmp_path}/out')
  assert result.returncode == 0, result.stderr
  assert "'zebra'" in result.stderr and 'chair' in result.stderr
  assert Image.open(tmp_path / 'out/grid.png').width > 2 * 16
  samples = [np.asarray(Image.open(tmp_path / f'out/{i:04d}.png'))
             for i in range(4)]
  assert samples[0].shape == (16, 16, 3)
  assert not np.array_equal(samples[0], samples[1])


def test_sample_refuses_what_it_cannot_do(tmp_path):
  weights = tmp_path / 'none.safetensors'
  assert _refused(_run('sample', f'--weights={weights}',
                       f'--out={tmp_path}/out'), str(weights), 'missing')
  assert _refused(_run('sample', '--prompts= ; ', f'--out={tmp_path}/out'),
                  'No prompt')
  assert _refused(_run('sample', '--teacher=deepfloyd', '--sides=4',
                       f'--out={tmp_path}/out'), '--sides', 'deepfloyd')
  assert not (tmp_path / 'out').exists()


def test_evaluate_says_what_is_missing(tmp_path):
  assert _refused(_run('evaluate', f'--runs={tmp_path}'),
                  'no finished text-to-3D run', str(tmp_path))


def test_configs_are_found_from_any_folder(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  path, variant = config_files.resolve('configs/nerf.py:tiny').split(':')
  assert pathlib.Path(path) == ROOT / 'configs' / 'nerf.py'
  assert variant == 'tiny'
  assert config_files.resolve('configs/none.py') == 'configs/none.py'
  # One of the user's own goes first.
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'nerf.py').touch()
  assert config_files.resolve('configs/nerf.py') == 'configs/nerf.py'


def test_home_folders_in_values_of_flags_are_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  expanded = {
      '--workdir=~/runs': '--workdir=/home/me/runs',
      '--config.data.path=~/a,~/b': '--config.data.path=/home/me/a,/home/me/b',
      '--config=~/nerf.py:tiny': '--config=/home/me/nerf.py:tiny',
      '--prompts=a ~ sign': '--prompts=a ~ sign', '~/a=b': '~/a=b'}
  for argument, expected in expanded.items():
    assert cli._expanded(argument) == expected
