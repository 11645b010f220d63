"""The benchmark says what it promises, at the sizes that it says; no times."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import dreamfusion, eg3d, nerf, stylegan2
from gen3d.evaluation import speed
from gen3d.gan import step as gan_step
from gen3d.tasks import gan

ROOT = pathlib.Path(__file__).parents[1]
# Fewer layers and one program: nearly all of the time is for compiling.
TINY = ('--config=configs/eg3d.py:tiny', '--config.resolution=8',
        '--config.data.size=8', '--config.model.synthesis.resolution=4',
        '--config.model.super_resolution.size=4',
        '--config.model.rendering.samples_fine=0',
        '--config.schedule.g_reg_interval=0', '--config.schedule.d_reg_interval=0')
SIZES = {'task': 'gan', 'devices': 2, 'platform': 'cpu', 'image': 8,
         'batch': 4, 'rays a side': 8, 'samples a ray': [4, 0]}
PLANNED = ('parameters', 'bytes of parameters', 'planned peak of a chip in GB')
TIMED = ('generator and discriminator phase', 'training step on average',
         'generator forward, one device', 'rendering forward, one device',
         'rendering forward and backward, one device',
         'discriminator forward, one device')


def benchmark(*flags, env):
  return subprocess.run(
      [sys.executable, '-m', 'gen3d.benchmark', *flags], cwd=ROOT, env=env,
      capture_output=True, text=True, timeout=600)


def test_every_promised_number_is_there(tmp_path, with_devices):
  out = tmp_path / 'new' / 'numbers.json'
  done = benchmark(*TINY, '--repeats=1', f'--out={out}', env=with_devices(2))
  assert done.returncode == 0, done.stderr
  first, sizes, *lines = done.stdout.splitlines()
  assert first == 'gan, 2 cpu device(s)'
  assert sizes == 'image 8, batch 4, rays a side 8, samples a ray 4 + 0'
  assert 'end of render_size' in lines[0]
  said = dict(line.split(': ') for line in lines[1:])
  numbers = json.loads(out.read_text())
  assert {name: numbers.pop(name) for name in SIZES} == SIZES
  assert set(numbers) == {*PLANNED, *TIMED, 'peak memory in GB'}
  assert set(said) == {*numbers, 'first step, compiled before'}
  for name, x in numbers.items():
    assert x > 0
    assert float(said[name].split()[0].replace(',', '')) > 0
  assert all(said[name].endswith(' /s)') for name in TIMED)
  assert [p.name for p in out.parent.iterdir()] == ['numbers.json']

  done = benchmark(*TINY, '--plan', f'--out={out}', env=with_devices(2))
  assert done.returncode == 0, done.stderr
  planned = {name: numbers[name] for name in PLANNED}
  assert json.loads(out.read_text()) == {**SIZES, **planned}
  assert done.stdout.splitlines()[-1].startswith(PLANNED[-1])


@pytest.mark.parametrize('flags, words', [
    (['--out={folder}'], ['--out={folder}', 'is a folder']),
    (['--config.batch=3', '--out={folder}/new/x.json'],
     ['A batch of 3', 'over 2 chips']),
])
def test_a_mistake_is_one_sentence_before_any_work(
    tmp_path, with_devices, flags, words):
  fill = lambda texts: [text.format(folder=tmp_path) for text in texts]
  done = benchmark(*TINY, *fill(flags), env=with_devices(2))
  assert done.returncode == 2 and done.stdout == ''
  assert len(done.stderr.splitlines()) == 1
  assert all(word in done.stderr for word in fill(words)), done.stderr
  assert not [p for p in tmp_path.rglob('*') if p.suffix == '.json']


def test_whole_and_parts_render_at_the_last_size_of_the_schedule():
  config = eg3d.get_config('shapes')
  assert gan.size_at(config, 0) == 24
  settled = speed.settled(config)
  assert {gan.size_at(settled, step) for step in (0, 10, 10**6)} == {32}
  assert speed.sizes(settled) == {
      'image': 64, 'batch': 8, 'rays a side': 32, 'samples a ray': (24, 12)}
  assert gan.size_at(config, 0) == 24
  flat = eg3d.get_config('cpu128')
  assert gan.size_at(speed.settled(flat), 0) == gan.size_at(flat, 0) == 32


def test_sizes_of_other_tasks():
  assert speed.sizes(speed.settled(stylegan2.get_config('shapes'))) == {
      'image': 64, 'batch': 16}
  assert speed.sizes(nerf.get_config('blender')) == {
      'rays a step': 4096, 'samples a ray': (64, 128)}
  assert speed.sizes(dreamfusion.get_config('paper')) == {
      'views a step': 4, 'rays a side': 64, 'samples a ray': (192, 0)}


def test_a_step_on_average_is_made_of_its_phases():
  config = eg3d.get_config('shapes')
  times = {(): 1.0, ('regularize',): 1.8, ('regularize', 'r1'): 2.1}
  found = dict(speed.phases(config, lambda due: times[tuple(due)]))
  want = {'generator and discriminator phase': 1.0,
          'regularization, every 4th step': 0.8, 'R1, every 16th step': 0.3,
          'training step on average': 1.0 + 0.8 / 4 + 0.3 / 16}
  assert found == pytest.approx(want) and list(found) == list(want)


def test_phases_that_a_gan_does_not_have_are_not_told():
  config = eg3d.get_config('shapes')
  config.model.density_weight = 0.0
  assert speed.lazy_phases(config) == {'r1': 16}
  config.schedule.d_reg_interval = 0
  assert speed.lazy_phases(config) == {}


@pytest.mark.parametrize('apart', [True, False])
def test_phases_are_due_as_in_training(apart):
  schedule = gan_step.Schedule(r1_gamma=1.0, d_reg_interval=6, g_reg_interval=4)
  due = lambda step: gan_step.due(step, 3, schedule, apart)
  for step, phases in ((1, ()), (4, ('regularize',)), (6, ('r1',)),
                       (12, ('regularize', 'r1'))):
    made = speed.with_phases({'index': 0, 'due': due(0)}, phases)
    assert made['index'] == 0
    for name, want in due(step).items():
      np.testing.assert_array_equal(made['due'][name], want)


@pytest.mark.parametrize('steps, words', [
    (1, 'step'), (2, '2nd step'), (3, '3rd step'), (4, '4th step'),
    (12, '12th step'), (16, '16th step'), (21, '21st step'),
    (111, '111th step'), (132, '132nd step')])
def test_ordinals(steps, words):
  assert speed.ordinal(steps) == words


def test_a_difference_within_the_noise_has_no_rate():
  assert speed.rated(0.25) == '0.25 s (4.00 /s)'
  assert speed.rated(0.0) == '0 s (within the noise)'
  assert speed.rated(-0.001) == '-0.001 s (within the noise)'
