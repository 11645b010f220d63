"""Reports: scalars, images, TensorBoard, the progress line."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from gen3d.engine import report


def test_scalars_after_the_resumed_step_are_dropped(tmp_path, capsys):
  first = report.Report(tmp_path, 0, 100)
  for step in (10, 20, 30):
    first.scalars(step, {'loss': step / 10})
  image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
  first.images(20, {'sample/noise': image})
  first.close()
  with (tmp_path / 'scalars.jsonl').open('a') as file:
    file.write('{"step": 31, "lo')  # Killed while writing.
  second = report.Report(tmp_path, 20, 100)
  second.scalars(30, {'loss': 7.})
  second.close()
  lines = [json.loads(line) for line in
           (tmp_path / 'scalars.jsonl').read_text().splitlines()]
  assert [(x['step'], x['loss']) for x in lines] == [(10, 1), (20, 2), (30, 7)]
  preview = Image.open(tmp_path / 'previews' / 'sample_noise_000020.png')
  np.testing.assert_array_equal(np.asarray(preview), image)


def events(folder):
  """{tag: (step, summary value)} of the newest events of TensorBoard files."""
  found = {}
  for path in folder.iterdir():
    content = path.read_bytes()
    while content:  # Records: length, its checksum, the event, its checksum.
      size = int.from_bytes(content[:8], 'little')
      event = event_pb2.Event.FromString(content[12:12 + size])
      found.update({v.tag: (event.step, v) for v in event.summary.value})
      content = content[16 + size:]
  return found


def test_tensorboard_has_scalars_their_meanings_and_the_config(tmp_path):
  writer = report.Report(tmp_path, 0, 100, config='{"steps": 100}')
  for step in range(1, 11):
    writer.progress(step, lambda: {})
  writer.scalars(10, {'weighted_penalty/opacity_entropy': .5})
  writer.close()
  found = events(tmp_path / 'tensorboard')
  step, scalar = found['weighted_penalty/opacity_entropy']
  assert (step, scalar.simple_value) == (10, .5)
  text = lambda tag: found[tag][1].tensor.string_val[0].decode()
  assert '    {"steps": 100}' in text('config/text_summary')
  meanings = text('curves/text_summary')
  assert '| `weighted_penalty/opacity_entropy` | Penalty' in meanings
  assert 'grows by design' in meanings and '| `run/steps_per_' in meanings
  assert found['run/steps_per_second'][1].simple_value > 0
  # Of the tests' process, which has imported JAX.
  assert .05 < found['run/peak_memory_gb'][1].simple_value < 100


def test_speed_leaves_out_the_first_step_and_evaluations(tmp_path, monkeypatch):
  now = [1000.]
  monkeypatch.setattr(report.time, 'monotonic', lambda: now[0])
  writer = report.Report(tmp_path, 0, 100)
  for step in range(1, 13):
    now[0] += 60. if step == 1 else .5
    writer.progress(step, lambda: {})
    if step == 6:
      writer.scalars(step, {'loss': 1.})
      now[0] += 300.  # an evaluation
      writer.images(step, {})
  writer.scalars(12, {'loss': 1.})
  writer.close()
  step, speed = events(tmp_path / 'tensorboard')['run/steps_per_second']
  assert step == 12 and speed.simple_value == 2.


def test_progress_lines_without_a_terminal(tmp_path, capsys, monkeypatch):
  now = [1000.]
  monkeypatch.setattr(report.time, 'monotonic', lambda: now[0])
  writer = report.Report(tmp_path, 0, 100, shown=('opacity',))
  for step in range(1, 101):
    writer.progress(step, lambda: {'loss': 1., 'opacity': .25})
    now[0] += 2.
  writer.close()
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == 'step 1/100  opacity 0.25'
  assert lines[1] == 'step 16/100  0.5 it/s  ETA 0:02:48  opacity 0.25'
  assert lines[-1].startswith('step 100/100  0.5 it/s  ETA 0:00:00')
  assert len(lines) == 8


def test_throughput_is_the_step_rate_times_its_examples(tmp_path, capsys):
  writer = report.Report(tmp_path, 0, 2, throughput=('rays', 1000))
  writer.progress(1, lambda: {})
  writer.progress(2, lambda: {})
  writer.close()
  line = capsys.readouterr().err.splitlines()[-1]
  match = re.search(r'([\d.e+]+) it/s  ([\d,]+) rays/s', line)
  assert match, line
  steps, rays = float(match[1]), float(match[2].replace(',', ''))
  assert abs(rays / (1000 * steps) - 1) < 0.01


def test_inactive_report_writes_nothing(tmp_path, capsys):
  writer = report.Report(tmp_path, 0, 100, active=False)
  writer.scalars(1, {'loss': 1.})
  writer.images(1, {'a': np.zeros([2, 2, 3], np.uint8)})
  writer.progress(1, lambda: {})
  writer.message('Hello.')
  writer.close()
  assert not list(tmp_path.iterdir()) and not capsys.readouterr().err


def test_provenance_excludes_interruptions(tmp_path):
  times = [0, 100, 300, 5000, 5060]
  (tmp_path / 'scalars.jsonl').write_text(''.join(
      json.dumps({'step': i, 'time': t}) + '\n' for i, t in enumerate(times)))
  record = report.provenance(tmp_path)
  assert record['hours'] == round(360 / 3600, 2)
  assert 'core' in record['machine']
  assert report.provenance(tmp_path / 'nothing')['hours'] == 0


@pytest.mark.parametrize('damage', [
    b'[]', b'5', b'null', b'{"step": 15}', b'{"step": "x", "time": 1}', b'{',
    b'\xd8\x00', b'\x00' * 9, b'[' * 10 ** 5])
def test_damaged_scalars_are_left_out_with_a_note(tmp_path, capsys, damage):
  path = tmp_path / 'scalars.jsonl'
  good = [b'{"step": %d, "time": %d, "x": NaN}' % (step, 60 * step)
          for step in (10, 20, 30)]
  path.write_bytes(b'\n'.join([good[0], damage, *good[1:]]) + b'\n')
  assert [line['step'] for line in report.read_scalars(path)] == [10, 20, 30]
  assert report.provenance(tmp_path)['hours'] == 0
  report.Report(tmp_path, 20, 100).close()
  assert path.read_bytes() == b'\n'.join(good[:2]) + b'\n'
  assert 'scalars.jsonl has damaged lines, which are removed (1)' in (
      capsys.readouterr().err)
  report.Report(tmp_path, 20, 100).close()
  assert 'damaged' not in capsys.readouterr().err
