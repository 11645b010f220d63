"""Representations of one scene against one another: EG3D's figure, run here.

EG3D (2112.07945, section 3) compares a Mip-NeRF MLP, hybrid voxels and hybrid
tri-planes on one capture. Here each is trained by its own config on the same
rays; what they cost and how close they come is read from the runs.
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from gen3d import files
from gen3d.choices import UserError
from gen3d.tasks import reconstruction

REFERENCE = 'mip_nerf'
# The lecture's table, relative to Mip-NeRF: speed and memory.
PUBLISHED = {'mip_nerf': (1.0, 1.0), 'voxels': (3.5, 0.33),
             'triplanes': (2.9, 0.32)}
NAMES = {'nerf': 'NeRF', 'mip_nerf': 'Mip-NeRF', 'voxels': 'hybrid voxels',
         'triplanes': 'hybrid tri-planes'}
LEVELS = (25.0, 27.5, 30.0)  # dB
BENCHMARK = 'benchmark.json'


class Run(NamedTuple):
  """What is known of one representation.

  Attributes:
    name: of its config.
    costs: the numbers of gen3d.benchmark.
    seconds: of a training step.
    steps: [N] at which some test pictures were judged.
    psnr, ssim: [N] there.
    final: PSNR and SSIM of all test pictures, at the end.
  """
  name: str
  costs: Any
  seconds: float
  steps: Any
  psnr: Any
  ssim: Any
  final: tuple


def read(workdir, name):
  """The Run in workdir/name.

  Raises:
    UserError: it is not there or not finished.
  """
  folder = pathlib.Path(workdir) / name
  scalars, costs = folder / 'scalars.jsonl', folder / BENCHMARK
  results = folder / reconstruction.RESULTS
  for file in (scalars, costs, results):
    if not file.exists():
      raise UserError(f'{file} is missing; run the comparison again, it goes '
                      'on where it was stopped.')
  lines = [json.loads(line) for line in scalars.read_text().splitlines()]
  judged = [line for line in lines if 'test/psnr' in line]
  if not judged:
    raise UserError(f'{scalars} has no test/psnr: was eval_every zero?')
  costs, final = (json.loads(x.read_text()) for x in (costs, results))
  column = lambda key: np.array([line.get(key, np.nan) for line in judged])
  return Run(name, costs, costs['training step'], column('step'),
             column('test/psnr'), column('test/ssim'),
             (final['test/psnr'], final['test/ssim']))


def table(runs):
  """Markdown: a column for each Run, with ratios to Mip-NeRF's.

  Times are steps times the benchmark's seconds per step, without reports.
  """
  reference = next((r for r in runs if r.name == REFERENCE), runs[0])
  soonest = min(run.seconds * run.steps[-1] for run in runs)
  published = lambda i: [
      f'{PUBLISHED[run.name][i]:g} x' if run.name in PUBLISHED else '-'
      for run in runs]
  cost = lambda key, style: [
      f'{run.costs[key]:{style}} '
      f'({run.costs[key] / reference.costs[key]:.2f} x)' for run in runs]
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
      (f'PSNR / SSIM after {soonest:,.0f} s',
       [_scores(*scores_at(run, soonest)) for run in runs]),
      ('PSNR / SSIM of all test pictures',
       [_scores(*run.final) for run in runs])]
  return '\n'.join(f'| {" | ".join([name, *cells])} |' for name, cells in rows)


def scores_at(run, seconds):
  """PSNR and SSIM after so many seconds of training, between reports."""
  return tuple(float(np.interp(seconds, run.seconds * run.steps, scores))
               for scores in (run.psnr, run.ssim))


def time_to(run, level):
  """Seconds of training until a PSNR was first reported, or None."""
  reached = np.flatnonzero(run.psnr >= level)
  return float(run.seconds * run.steps[reached[0]]) if len(reached) else None


def plot(runs, title, path):
  """Writes PSNR over seconds of training as a PNG."""
  figure = Figure(figsize=(7, 4), dpi=110)
  axes = figure.subplots()
  for run in runs:
    axes.plot(run.seconds * run.steps, run.psnr, marker='o', markersize=3,
              label=NAMES.get(run.name, run.name))
  axes.set(xscale='log', xlabel='seconds of training',
           ylabel='PSNR of test pictures, dB', title=title)
  axes.grid(alpha=0.3)
  axes.legend()
  figure.tight_layout()
  with files.atomic_write(path) as temporary:
    figure.savefig(temporary, format='png')


def _scores(psnr, ssim):
  return f'{psnr:.2f} / {ssim:.3f}'


def _time(run, level):
  seconds = time_to(run, level)
  return 'not reached' if seconds is None else f'{seconds:,.0f}'
