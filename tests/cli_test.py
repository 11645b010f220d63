"""The command lines that sample, export and judge, as a person calls them."""

import json
import subprocess
import sys

import jax
import numpy as np
from PIL import Image

from configs import text_to_image as config_file
from gen3d import assets
from gen3d.data.images import dataset
from gen3d.data.shapes import captions
from gen3d.ops import cameras
from gen3d.tasks import text_to_image


def _run(module, *flags):
  return subprocess.run(
      [sys.executable, '-m', f'gen3d.{module}', *flags],
      capture_output=True, text=True, timeout=600)


def _refused(result, *words):
  """Whether the answer is one sentence with these words, and no traceback."""
  lines = result.stderr.strip().splitlines()
  assert result.returncode == 2, result.stderr
  assert 'Traceback' not in result.stderr
  assert all(word in lines[-1] for word in words), lines[-1]
  return True


def test_generate_writes_a_labeled_grid(tmp_path):
  config = config_file.get_config('tiny')
  state = text_to_image.make(config).init(jax.random.key(0))
  weights, _ = assets.save(
      tmp_path / 'tiny.safetensors', state.params,
      {'config': config.to_dict()})
  result = _run('generate', '--prompts=a red car; a zebra', '--num=2',
                '--steps=2', '--sampler=ddpm', f'--weights={weights}',
                f'--out={tmp_path}/out')
  assert result.returncode == 0, result.stderr
  assert "'zebra'" in result.stderr and 'chair' in result.stderr
  assert Image.open(tmp_path / 'out/grid.png').width > 2 * 16
  samples = [np.asarray(Image.open(tmp_path / f'out/{i:04d}.png'))
             for i in range(4)]
  assert samples[0].shape == (16, 16, 3)
  assert not np.array_equal(samples[0], samples[1])


def test_generate_refuses_what_it_cannot_do(tmp_path):
  weights = tmp_path / 'none.safetensors'
  assert _refused(_run('generate', f'--weights={weights}',
                       f'--out={tmp_path}/out'), str(weights), 'missing')
  assert _refused(_run('generate', '--prompts= ; ', f'--out={tmp_path}/out'),
                  'No prompt')
  assert _refused(_run('generate', '--teacher=deepfloyd', '--sides=4',
                       f'--out={tmp_path}/out'), '--sides', 'deepfloyd')
  assert not (tmp_path / 'out').exists()


def test_a_slice_of_the_world_is_exported_with_captions_and_cameras(tmp_path):
  result = _run('export_shapes', '--split=unseen', '--first=3', '--count=2',
                '--size=16', f'--out={tmp_path}')
  assert result.returncode == 0, result.stderr
  listing = json.loads((tmp_path / 'dataset.json').read_text())
  names = ['00000003.png', '00000004.png']
  assert [name for name, _ in listing['labels']] == names
  assert all(len(label) == 25 for _, label in listing['labels'])
  assert sorted(listing['captions']) == names
  for name in names:
    assert Image.open(tmp_path / name).size == (16, 16)
    said = captions.parse(listing['captions'][name])
    assert captions.is_true(said, listing['objects'][name].values())


def test_held_out_pictures_of_the_kind_that_a_gan_learns_from(
    tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / 'cache'))
  export = lambda *flags: _run(
      'export_shapes', *flags, '--count=2', f'--out={tmp_path}/out')
  result = export('--config=configs/eg3d.py:tiny', '--split=seen', '--first=1')
  assert result.returncode == 0, result.stderr
  source = dataset.open_images(tmp_path / 'out')
  dataset.check(source)
  assert source.names == ('00000001.png', '00000002.png') and source.size == 16
  _, elevation, distance = cameras.angles(source.labels[:, [3, 7, 11]])
  np.testing.assert_allclose(distance, 1.7, rtol=1e-5)
  assert np.all(elevation > 5)
  assert np.all(source.pixels(0)[[0, 0, -1, -1], [0, -1, 0, -1]] > 250)
  said = json.loads(
      (tmp_path / 'out' / 'dataset.json').read_text())['captions']
  assert all(text.split()[-1] == 'car' or ' car ' in text
             for text in said.values())
  assert _refused(export('--config=configs/dreamfusion.py'),
                  'is not of a GAN')


def test_evaluate_says_what_is_missing(tmp_path):
  assert _refused(_run('evaluate', f'--runs={tmp_path}'),
                  'no finished text-to-3D run', str(tmp_path))
