"""The command gen3d.sample and the function behind it."""

from types import SimpleNamespace

import commands
import numpy as np
import pytest

from gen3d.diffusion import loading
from gen3d.evaluation import samples


@pytest.fixture
def sampled(monkeypatch):
  """Options of the sampler, whose images are black."""
  calls = {}

  def make_teacher(config):
    calls['teacher'] = config
    return SimpleNamespace(camera_conditioned=config['path'] != 'blind')

  def sample(key, teacher, prompts, **options):
    calls.update(options, prompts=prompts)
    return np.zeros((len(prompts), 8, 8, 3), np.uint8)

  monkeypatch.setattr(samples.loading, 'make_teacher', make_teacher)
  monkeypatch.setattr(samples.sampling, 'sample', sample)
  return calls


def teacher(name='shapes', path=''):
  return {'name': name, 'path': path, 'variant': '', 'revision': '',
          'dtype': ''}


def test_there_are_defaults_for_every_teacher():
  assert samples.DEFAULTS.keys() == loading.TEACHERS.keys()


def test_each_prompt_is_sampled_several_times(sampled, tmp_path):
  path = samples.export(teacher(), ['a red chair', 'a mug'], tmp_path, num=3,
                        negative_prompt='blurry', seed=1, sampler='ddpm')
  assert path == tmp_path / 'grid.png'
  assert sampled['prompts'] == ['a red chair'] * 3 + ['a mug'] * 3
  assert (sampled['scale'], sampled['batch']) == (3.0, 16)
  assert (sampled['negative'], sampled['eta']) == ('blurry', 1.0)
  assert sampled['labels'] is None
  assert sorted(p.name for p in tmp_path.iterdir()) == [
      *(f'{i:04d}.png' for i in range(6)), 'grid.png']


def test_sides_are_cameras_around_the_object(sampled, tmp_path):
  samples.export(teacher(), ['a red chair'], tmp_path, sides=4,
                 guidance_scale=1.0, batch=2)
  assert sampled['prompts'] == [
      f'a red chair, {side} view' for side in ('front', 'side', 'back', 'side')]
  assert sampled['labels'].shape == (4, 25)
  assert (sampled['scale'], sampled['batch']) == (1.0, 2)


@pytest.mark.parametrize('name, path, sentence', [
    ('stable_diffusion', '', 'stable_diffusion has none'),
    ('shapes', 'blind', 'that of blind was trained without')])
def test_sides_need_camera_conditioning(
    sampled, tmp_path, name, path, sentence):
  with pytest.raises(ValueError, match=sentence):
    samples.export(teacher(name, path), ['a chair'], tmp_path, sides=2)


def test_prompts_are_separated_by_semicolons():
  assert samples.split_prompts(' a red chair; a mug;;') == [
      'a red chair', 'a mug']
  with pytest.raises(ValueError, match='No prompt is given'):
    samples.split_prompts(' ; ')


def run(*flags):
  return commands.run('gen3d.sample', *flags)


def test_images_of_the_shipped_model(tmp_path):
  out = tmp_path / 'new' / 'out'
  done = run('--prompts=a red chair;a cyan mug', '--steps=2', '--num=2',
             '--batch=4', f'--out={out}')
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [str(out / 'grid.png')]
  assert len(list(out.iterdir())) == 5


@pytest.mark.parametrize('flags, sentence', [
    ((), 'The flag --out is missing'),
    (('--out=x', '--teacher=deepfloyd', '--lora=x.safetensors'),
     '--lora has no effect with --teacher=deepfloyd'),
    (('--out=x', '--teacher=stable_diffusion', '--path=.', '--lora=x:y'),
     'no folder unet'),
    (('--out=x', '--prompts=;'), 'No prompt is given'),
    (('--out=x', '--teacher=deepfloyd', '--sides=2'),
     '--sides has no effect with --teacher=deepfloyd'),
    (('--out=x', '--seeds=0-7'), 'seeds')])
def test_missing_and_invalid_flags(flags, sentence):
  done = run(*flags)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert sentence in done.stderr
