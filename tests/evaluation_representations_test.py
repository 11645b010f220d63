"""Comparison of representations: reading, table, plot, command."""

import json

import commands
import numpy as np
import pytest
from PIL import Image

from gen3d.evaluation import representations


def _write(folder, rate, psnr, gigabytes):
  folder.mkdir(parents=True)
  lines = [{'step': 0, 'time': 0.0, 'psnr': 3.0}] + [
      {'step': 100 * (i + 1), 'time': 0.0, 'test/psnr': x, 'test/ssim': x / 40}
      for i, x in enumerate(psnr)]
  (folder / 'scalars.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  (folder / representations.BENCHMARK).write_text(json.dumps({
      'parameters': 1234, 'bytes of parameters': 4936,
      'training step': 1000 / rate,
      'rays/s in training': rate, 'rays/s rendered by one device': 3 * rate,
      'planned peak of a chip in GB': gigabytes, 'peak memory in GB': 2.0}))
  (folder / 'test.json').write_text(json.dumps(
      {'test/psnr': psnr[-1] - 1, 'test/ssim': 0.5}))


@pytest.fixture
def runs(tmp_path):
  _write(tmp_path / 'mip_nerf', 500.0, [20.0, 26.0, 29.0], 4.0)
  _write(tmp_path / 'triplanes', 2000.0, [24.0, 28.0, 31.0], 1.0)
  return [representations.read(tmp_path, n) for n in ('mip_nerf', 'triplanes')]


def test_times_and_interpolated_scores(runs):
  slow, fast = runs
  assert slow.seconds == 2.0 and fast.seconds == 0.5
  assert representations.time_to(slow, 25.0) == 400.0
  assert representations.time_to(fast, 30.0) == 150.0
  assert representations.time_to(slow, 30.0) is None
  np.testing.assert_allclose(
      representations.scores_at(slow, 300.0), (23.0, 0.575))


def test_table_has_ratios_to_mip_nerf(runs):
  rows = [[cell.strip() for cell in line.split('|')[1:-1]]
          for line in representations.table(runs).splitlines()]
  assert rows[0] == ['', 'Mip-NeRF', 'hybrid tri-planes']
  row = {name: tuple(cells) for name, *cells in reversed(rows)}
  assert row['rays/s, training'] == ('500 (1.00 x)', '2,000 (4.00 x)')
  assert row['the same, published'] == ('1 x', '2.9 x')
  assert row['GB planned for a step'] == ('4.00 (1.00 x)', '1.00 (0.25 x)')
  assert row['seconds to 30 dB'] == ('not reached', '150')
  assert row['PSNR / SSIM after 300 steps'] == (
      '29.00 / 0.725', '31.00 / 0.775')
  # Equal time: that of the run that ends first, 150 s.
  assert row['PSNR / SSIM after 150 s'] == ('20.00 / 0.500', '31.00 / 0.775')
  assert row['PSNR / SSIM of all test images'] == (
      '28.00 / 0.500', '30.00 / 0.500')


def test_plot_has_a_line_for_each_run(runs, tmp_path):
  representations.plot(runs, 'a scene', tmp_path / 'plot.png')
  pixels = np.asarray(Image.open(tmp_path / 'plot.png').convert('RGB'))
  # Two lines, in the first two colors of matplotlib's cycle.
  for color in ((31, 119, 180), (255, 127, 14)):
    assert (np.abs(pixels.astype(int) - color).max(-1) < 3).sum() > 100


def test_missing_files_are_refused(tmp_path):
  with pytest.raises(ValueError, match='scalars.jsonl is missing'):
    representations.read(tmp_path, 'nerf')


def test_command_trains_benchmarks_and_compares(tmp_path):
  command = ['gen3d.compare', '--configs=voxels', '--variant=tiny',
             '--data=shapes:a green tree', f'--workdir={tmp_path}']
  done = commands.run(*command)
  assert done.returncode == 0, done.stderr[-2000:]
  assert '|  | hybrid voxels |' in done.stdout
  assert (tmp_path / 'comparison.md').read_text().strip() in done.stdout
  assert (tmp_path / 'comparison.png').exists()
  costs = tmp_path / 'voxels' / representations.BENCHMARK
  before = costs.stat().st_mtime_ns
  again = commands.run(*command)
  assert again.returncode == 0 and costs.stat().st_mtime_ns == before
  wrong = commands.run(*command, '--set=stps=3')
  assert wrong.returncode == 2 and "'steps'" in wrong.stderr


@pytest.mark.parametrize('flags, words', [
    (['--set=steps', '--data=shapes:a green tree'], 'write --set=KEY=VALUE'),
    (['--data=no/where'], 'no/where is not a folder')])
def test_command_prints_its_error_once(flags, words, tmp_path):
  done = commands.run('gen3d.compare', '--variant=tiny', *flags,
                      f'--workdir={tmp_path / "here"}')
  assert done.returncode != 0 and 'Traceback' not in done.stderr
  assert done.stderr.count(words) == 1
