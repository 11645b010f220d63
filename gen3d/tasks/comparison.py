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

from gen3d.io import files

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
    steps: [N] at which test pictures were judged.
    psnr, ssim: [N] there.
  """
  name: str
  costs: Any
  seconds: float
  steps: Any
  psnr: Any
  ssim: Any


def read(workdir, name):
  """The Run in workdir/name.

  Raises:
    ValueError: it is not there or not finished.
  """
  folder = pathlib.Path(workdir) / name
  scalars, costs = folder / 'scalars.jsonl', folder / BENCHMARK
  for file in (scalars, costs):
    if not file.exists():
      raise ValueError(f'{file} is missing; run the comparison again, it goes '
                       'on where it was stopped.')
  lines = [json.loads(line) for line in scalars.read_text().splitlines()]
  judged = [line for line in lines if 'test/psnr' in line]
  if not judged:
    raise ValueError(f'{scalars} has no test/psnr: was eval_every zero?')
  costs = json.loads(costs.read_text())
  column = lambda key: np.array([line.get(key, np.nan) for line in judged])
  return Run(name, costs, costs['training step'], column('step'),
             column('test/psnr'), column('test/ssim'))


def table(runs):
  """Markdown: a row for each Run, with ratios to Mip-NeRF's.

  Times are steps times the benchmark's seconds per step, without reports.
  """
  reference = next((r for r in runs if r.name == REFERENCE), runs[0])
  soonest = min(run.seconds * run.steps[-1] for run in runs)
  head = ['representation', 'parameters', 'training rays/s',
          'rendering rays/s', 'planned GB', 'peak GB',
          *[f's to {level:g} dB' for level in LEVELS],
          f'PSNR / SSIM, {reference.steps[-1]:,} steps',
          f'PSNR, {soonest:,.0f} s', 'speed', 'memory',
          'published speed, memory']
  lines = [head, ['---'] * len(head),
           *[_row(run, reference, soonest) for run in runs]]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def psnr_at(run, seconds):
  """PSNR of a Run after so many seconds of training, between its reports."""
  return float(np.interp(seconds, run.seconds * run.steps, run.psnr))


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
  with files.replacing(path) as temporary:
    figure.savefig(temporary, format='png')


def _row(run, reference, soonest):
  cost = run.costs
  ratio = lambda key: f'{cost[key] / reference.costs[key]:.2f} x'
  published = PUBLISHED.get(run.name)
  return [
      NAMES.get(run.name, run.name), f'{cost["parameters"]:,}',
      f'{cost["rays/s in training"]:,.0f}',
      f'{cost["rays/s rendered by one device"]:,.0f}',
      f'{cost["planned peak of a chip in GB"]:.2f}',
      f'{cost["peak memory in GB"]:.2f}',
      *[_time(run, level) for level in LEVELS],
      f'{run.psnr[-1]:.2f} / {run.ssim[-1]:.3f}',
      f'{psnr_at(run, soonest):.2f}', ratio('rays/s in training'),
      ratio('planned peak of a chip in GB'),
      f'{published[0]:g} x, {published[1]:g} x' if published else '-']


def _time(run, level):
  seconds = time_to(run, level)
  return 'not reached' if seconds is None else f'{seconds:,.0f}'
