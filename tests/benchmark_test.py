"""The numbers of gen3d.benchmark and their sizes; no times."""

import json

import commands
import ml_collections
import numpy as np
import pytest
import toy_config
import toy_task

from gen3d import tasks
from gen3d.evaluation import rasterizer, speed

# Fewer layers and phases: nearly all of the time is for compiling.
TINY = ('--config=configs/eg3d.py:tiny', '--config.resolution=8',
        '--config.data.size=8', '--config.model.synthesis.resolution=4',
        '--config.model.super_resolution.size=4',
        '--config.model.rendering.samples_fine=0',
        '--config.schedule.g_reg_interval=0',
        '--config.schedule.d_reg_interval=0')
SIZES = {'task': 'gan', 'devices': 2, 'platform': 'cpu', 'image': 8,
         'batch': 4, 'rays a side': 8, 'samples a ray': [4, 0]}
PLANNED = ('parameters', 'bytes of parameters', 'planned peak of a chip in GB')
TIMED = ('generator', 'discriminator', 'moving average',
         'training step on average',
         'generator forward, one device', 'rendering forward, one device',
         'rendering forward and backward, one device',
         'discriminator forward, one device')


def benchmark(*flags, env):
  return commands.run('gen3d.benchmark', *flags, env=env)


def test_all_numbers_of_a_gan_are_printed_and_written(tmp_path, with_devices):
  out = tmp_path / 'new' / 'numbers.json'
  done = benchmark(*TINY, '--repeats=1', f'--out={out}', env=with_devices(2))
  assert done.returncode == 0, done.stderr
  first, sizes, *lines = done.stdout.splitlines()
  assert first == 'gan, 2 cpu device(s)'
  assert sizes == 'image 8, batch 4, rays a side 8, samples a ray 4 + 0'
  assert 'end of the training' in lines[0]
  printed = dict(line.split(': ') for line in lines[1:])
  numbers = json.loads(out.read_text())
  assert {name: numbers.pop(name) for name in SIZES} == SIZES
  assert set(numbers) == {*PLANNED, *TIMED, 'peak memory in GB'}
  assert set(printed) == {*numbers, 'first step, compiled before'}
  for name, x in numbers.items():
    assert x > 0
    assert float(printed[name].split()[0].replace(',', '')) > 0
  assert all(printed[name].endswith(' /s)') for name in TIMED)
  assert [p.name for p in out.parent.iterdir()] == ['numbers.json']

  done = benchmark(*TINY, '--plan', f'--out={out}', env=with_devices(2))
  assert done.returncode == 0, done.stderr
  planned = {name: numbers[name] for name in PLANNED}
  assert json.loads(out.read_text()) == {**SIZES, **planned}
  assert done.stdout.splitlines()[-1].startswith(PLANNED[-1])


@pytest.mark.parametrize('flags, words', [
    (['--out={folder}'], ['--out={folder}', 'is a folder']),
    (['--config.batch=3', '--out={folder}/new/x.json'],
     ['A batch of 3', 'over 2 devices']),
])
def test_a_mistake_is_one_sentence_before_any_work(
    tmp_path, with_devices, flags, words):
  fill = lambda texts: [text.format(folder=tmp_path) for text in texts]
  done = benchmark(*TINY, *fill(flags), env=with_devices(2))
  assert done.returncode == 2 and done.stdout == ''
  assert len(done.stderr.splitlines()) == 1
  assert all(word in done.stderr for word in fill(words)), done.stderr
  assert not [p for p in tmp_path.rglob('*') if p.suffix == '.json']


def measure(task, plan_only=False, repeats=2, steps=10):
  measurements = []
  numbers = speed.measure(
      task, name='toy', seed=0, steps=steps, repeats=repeats,
      plan_only=plan_only, report=measurements.append)
  return numbers, measurements


def toy():
  return toy_task.make(ml_collections.ConfigDict(toy_config.get_config()))


def test_a_task_without_costs_has_one_step_and_its_memory(capsys):
  numbers, measurements = measure(toy())
  assert list(numbers) == [
      'devices', 'platform', 'parameters', 'bytes of parameters',
      'planned peak of a chip in GB', 'training step', 'peak memory in GB']
  assert numbers['parameters'] == 4 * 16 + 16 * 3 + 3
  assert numbers['bytes of parameters'] == 4 * numbers['parameters']
  assert [x.name for x in measurements] == list(numbers)[2:]
  assert capsys.readouterr().out.startswith(
      f'toy, {numbers["devices"]} cpu device(s)')
  planned, _ = measure(toy(), plan_only=True)
  assert list(planned) == list(numbers)[:5]


def test_rates_are_units_over_seconds(monkeypatch):
  monkeypatch.setattr(speed, 'median_seconds', lambda function, repeats: 0.5)
  devices = []

  def parts(params, batch, count):
    assert params['w'].shape == (4, 16) and batch['x'].shape == (8, 4)
    devices.append(count)
    return {'rows read': lambda: 0, 'forward pass': lambda: 0}

  costs = tasks.Costs({'rows a step': 8, 'samples': (3, 2)}, ('rows', 8),
                      parts=parts)
  numbers, _ = measure(toy()._replace(costs=lambda: costs))
  assert numbers['rows a step'] == 8 and numbers['samples'] == (3, 2)
  assert numbers['rows/s in training'] == 16
  assert numbers['rows/s read by one device'] == 16 / devices[0]
  assert numbers['forward pass, one device'] == 0.5


def test_steps_are_timed_with_the_static_arguments_of_their_phases():
  """All programs of the phases are planned and run once before."""
  compiled = []
  base = toy()

  def step(state, batch, key, *, static):
    compiled.append(static)
    return base.step(state, batch, key)

  def phases(seconds_of):
    short, long = seconds_of('short'), seconds_of('long')
    yield 'short step', short
    yield 'training step on average', (short + long) / 2

  task = base._replace(
      step=step, static=lambda step: f'step {step}',
      costs=lambda: tasks.Costs({}, ('rows', 8), phases=phases))
  numbers, _ = measure(task)
  assert compiled == ['short', 'long']
  np.testing.assert_allclose(
      numbers['rows/s in training'], 8 / numbers['training step on average'])
  assert 'training step' not in numbers


def test_a_task_without_phases_has_the_static_argument_of_the_last_step():
  statics = []
  base = toy()

  def step(state, batch, key, *, static):
    statics.append(static)
    return base.step(state, batch, key)

  measure(base._replace(step=step, static=lambda step: step // 2), steps=9)
  assert statics == [4]


@pytest.mark.parametrize('measurement, line', [
    (speed.Measurement('parameters', 12345), 'parameters: 12,345'),
    (speed.Measurement('peak', 1.23456, 'GB'), 'peak: 1.23'),
    (speed.Measurement('rays/s', 1234.56, '/s'), 'rays/s: 1235'),
    (speed.Measurement('step', 0.25, 's'), 'step: 0.25 s (4.00 /s)')])
def test_numbers_are_printed_by_their_units(measurement, line, capsys):
  speed.print_measurement(measurement)
  assert capsys.readouterr().out == line + '\n'


def test_a_difference_within_the_noise_has_no_rate():
  assert speed.format_seconds(0.25) == '0.25 s (4.00 /s)'
  assert speed.format_seconds(0.0) == '0 s (within the noise)'
  assert speed.format_seconds(-0.001) == '-0.001 s (within the noise)'


def test_rasterizer_numbers_are_printed_and_written(
    tmp_path, capsys, monkeypatch):
  # Without the programs that take long to compile.
  every = rasterizer.programs
  assert len(every(rasterizer.bumpy_sphere(60), 16)) == 4
  monkeypatch.setattr(rasterizer, 'programs', lambda *args: [
      program for program in every(*args) if 'backward' not in program[0]])
  out = tmp_path / 'numbers.json'
  numbers = rasterizer.run(repeats=1, out=out, triangles=(60,), size=16)
  assert json.loads(out.read_text()) == numbers
  programs = [f'60 triangles, {what} forward' for what in ('faces', 'image')]
  assert set(numbers) == {
      'platform', 'image', 'peak memory in GB', *programs,
      *(f'{name}, planned memory in GB' for name in programs)}
  assert all(numbers[name] > 0 for name in programs)
  printed = capsys.readouterr().out
  assert all(f'{name}: ' in printed for name in programs)


def test_sphere_of_the_rasterizer_has_the_triangles():
  for count in rasterizer.TRIANGLES:
    mesh = rasterizer.bumpy_sphere(count)
    assert len(mesh.faces) == pytest.approx(count, rel=0.01)
    radius = np.linalg.norm(mesh.vertices, axis=-1)
    assert 0.84 < radius.min() < 0.9 and 1.1 < radius.max() < 1.16
    # Faces are counter-clockwise from outside.
    a, b, c = mesh.vertices[mesh.faces.T]
    assert np.all(np.sum(np.cross(b - a, c - a) * a, -1) > -1e-9)
