"""Comparison of scene representations on one capture, as in EG3D.

EG3D (2112.07945, section 3) compares a Mip-NeRF MLP, hybrid voxels and hybrid
tri-planes. Here each is trained by its own config on the same rays; its cost
and its quality over time are read from the run's workdir.
"""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from gen3d import files
from gen3d.choices import UserError
from gen3d.engine import cli, report, sweeps
from gen3d.tasks import reconstruction

REFERENCE = 'mip_nerf'
# Speed and memory relative to Mip-NeRF, as published.
PUBLISHED = {'mip_nerf': (1.0, 1.0), 'voxels': (3.5, 0.33),
             'triplanes': (2.9, 0.32)}
NAMES = {'nerf': 'NeRF', 'mip_nerf': 'Mip-NeRF', 'voxels': 'hybrid voxels',
         'triplanes': 'hybrid tri-planes'}
LEVELS = (25.0, 27.5, 30.0)  # dB
BENCHMARK = 'benchmark.json'


class Run(NamedTuple):
  """Cost and quality of one representation.

  Attributes:
    name: of its config.
    costs: {name: number}, as gen3d.benchmark writes them.
    seconds: of a training step.
    steps: int [N], at which a subset of the test images was evaluated.
    psnr, ssim: float [N], means over that subset.
    final: PSNR and SSIM of all test images, at the end.
  """
  name: str
  costs: Any
  seconds: float
  steps: Any
  psnr: Any
  ssim: Any
  final: tuple[float, float]


def compare(data: str, workdir: str | os.PathLike, configs: Sequence[str],
            variant: str, settings: Sequence[str] = ()) -> str:
  """Trains and benchmarks the representations, then compares them.

  Each is trained and benchmarked in processes of its own; what is finished is
  not repeated. Writes comparison.md and comparison.png into the workdir.

  Args:
    data: the configs' data.path.
    workdir: folder; each representation has a workdir in it.
    configs: files of configs/ without the suffix.
    variant: of all these configs.
    settings: 'KEY=VALUE' for all these configs.

  Returns:
    The table, and the paths of the files written.

  Raises:
    UserError: a setting or a config does not fit, or a process failed.
  """
  workdir = pathlib.Path(workdir)
  sweeps.run(_commands(data, workdir, configs, variant, settings),
             keep_going=False)
  runs = [read(workdir, name) for name in configs]
  text, plotted = workdir / 'comparison.md', workdir / 'comparison.png'
  files.write_bytes(text, f'{table(runs)}\n'.encode())
  plot(runs, pathlib.PurePath(data).name, plotted)
  return '\n'.join([table(runs), str(text), str(plotted)])


def read(workdir: str | os.PathLike, name: str) -> Run:
  """The Run in workdir/name.

  Raises:
    UserError: it is missing or not finished.
  """
  folder = pathlib.Path(workdir) / name
  scalars, costs = folder / 'scalars.jsonl', folder / BENCHMARK
  results = folder / reconstruction.RESULTS
  for file in (scalars, costs, results):
    if not file.exists():
      raise UserError(f'{file} is missing; run the same command again, it '
                      'continues from the last checkpoint.')
  # Test scores are logged every eval_every steps, beside other lines.
  lines = report.read_scalars(scalars)
  tests = [line for line in lines if 'test/psnr' in line]
  if not tests:
    raise UserError(f'{scalars} has no test/psnr; delete {folder} and train '
                    'with eval_every above 0.')
  costs, final = (files.read_json(
      x, remedy='delete it and run the same command again', nan=True)
                  for x in (costs, results))
  column = lambda key: np.array([line.get(key, np.nan) for line in tests])
  return Run(name, costs, costs['training step'], column('step'),
             column('test/psnr'), column('test/ssim'),
             (final['test/psnr'], final['test/ssim']))


def table(runs: Sequence[Run]) -> str:
  """Markdown: a column for each Run, with ratios to Mip-NeRF's.

  Times are steps times the benchmark's seconds per step, which leaves out
  evaluations and checkpoints.
  """
  reference = next((r for r in runs if r.name == REFERENCE), runs[0])
  # Equal training time for all: that of the run that ends first.
  shortest = min(run.seconds * run.steps[-1] for run in runs)
  published = lambda i: [
      f'{PUBLISHED[run.name][i]:g} x' if run.name in PUBLISHED else '-'
      for run in runs]
  cost = lambda key, style: [
      f'{run.costs[key]:{style}} '
      f'({run.costs[key] / reference.costs[key]:.2f} x)' for run in runs]
  # Measured costs, published ratios, then quality at equal PSNR, steps, time.
  rows = [
      ('', [NAMES.get(run.name, run.name) for run in runs]),
      ('---', ['---'] * len(runs)),
      ('parameters', cost('parameters', ',')),
      ('their megabytes', [f'{run.costs["bytes of parameters"] / 1e6:.1f}'
                           for run in runs]),
      ('rays/s, training', cost('rays/s in training', ',.0f')),
      ('the same, published', published(0)),
      ('rays/s, rendering', cost('rays/s rendered by one device', ',.0f')),
      ('GB planned for a step',
       cost('planned peak of a chip in GB', '.2f')),
      ('the same, published', published(1)),
      ('GB at the peak of the process', cost('peak memory in GB', '.2f')),
      *[(f'seconds to {level:g} dB', [_time(run, level) for run in runs])
        for level in LEVELS],
      (f'PSNR / SSIM after {reference.steps[-1]:,} steps',
       [_scores(run.psnr[-1], run.ssim[-1]) for run in runs]),
      (f'PSNR / SSIM after {shortest:,.0f} s',
       [_scores(*scores_at(run, shortest)) for run in runs]),
      ('PSNR / SSIM of all test images',
       [_scores(*run.final) for run in runs])]
  return '\n'.join(f'| {" | ".join([name, *cells])} |' for name, cells in rows)


def scores_at(run: Run, seconds: float) -> tuple[float, float]:
  """PSNR and SSIM after `seconds` of training, linearly interpolated."""
  psnr, ssim = (float(np.interp(seconds, run.seconds * run.steps, scores))
                for scores in (run.psnr, run.ssim))
  return psnr, ssim


def time_to(run: Run, level: float) -> float | None:
  """Seconds of training until the PSNR first reached `level`, or None."""
  reached = np.flatnonzero(run.psnr >= level)
  return float(run.seconds * run.steps[reached[0]]) if len(reached) else None


def plot(runs: Sequence[Run], title: str, path: str | os.PathLike) -> None:
  """Writes PSNR over seconds of training as a PNG."""
  figure = Figure(figsize=(7, 4), dpi=110)
  axes = figure.subplots()
  for run in runs:
    axes.plot(run.seconds * run.steps, run.psnr, marker='o', markersize=3,
              label=NAMES.get(run.name, run.name))
  axes.set(xscale='log', xlabel='seconds of training',
           ylabel='PSNR of test images, dB', title=title)
  axes.grid(alpha=0.3)
  axes.legend()
  figure.tight_layout()
  with files.atomic_write(path) as temporary:
    figure.savefig(temporary, format='png')


def _commands(data, workdir, configs, variant, settings):
  """Command lines that train and benchmark each config."""
  for setting in settings:
    if '=' not in setting:
      raise UserError(f'--set={setting} has no value; write --set=KEY=VALUE.')
  common = [f'--config.data.path={data}',
            *[f'--config.{setting}' for setting in settings]]
  lines = []
  for name in configs:
    config = f'--config={name}:{variant}'
    train = [sys.executable, '-m', 'gen3d.train', config, *common,
             f'--workdir={workdir / name}']
    # All configs are checked before the first one is trained.
    cli.check_config(train)
    lines.append(train)
    # gen3d.train itself continues or ends at once; a benchmark would repeat.
    costs = workdir / name / BENCHMARK
    if not costs.exists():
      lines.append([sys.executable, '-m', 'gen3d.benchmark', config, *common,
                    f'--out={costs}'])
  return lines


def _scores(psnr, ssim):
  return f'{psnr:.2f} / {ssim:.3f}'


def _time(run, level):
  seconds = time_to(run, level)
  return 'not reached' if seconds is None else f'{seconds:,.0f}'
