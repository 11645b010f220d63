"""The table of guidances: which distillation is better, on known truth.

Every guidance is run on every prompt with every seed, each in a workdir of its
own, GUIDANCE/PROMPT/SEED; the same command goes on where it was stopped. The
scores of a run are those of evaluation/text_to_3d.py; beside them are the cost
of its training in noise predictions of the teacher and in operations. Intervals
are of the bootstrap over prompts and, within a prompt, over seeds.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gen3d import assets, files, notices
from gen3d.choices import UserError, pick
from gen3d.diffusion import loading
from gen3d.engine import checkpoints, cli, report, sweeps
from gen3d.evaluation import flops, speed
from gen3d.evaluation import text_to_3d as runs_evaluation
from gen3d.evaluation.text_to_3d import RunScores
from gen3d.guidance import prompts as prompting
from gen3d.io import images as image_io
from gen3d.metrics import features
from gen3d.models import clip_pair
from gen3d.ops import cameras
from gen3d.render import finished
from gen3d.tasks import text_to_3d

# Variants that differ in their guidance only.
GUIDANCES = {
    'sds': 'dreamfusion',
    'csd': 'dreamfusion:csd',
    'vsd': 'prolific_dreamer',
    'asd': 'score_distillation:asd',
    'bridge': 'score_distillation:bridge',
    'hifa': 'score_distillation:hifa',
    'ism': 'score_distillation:ism',
    'sdi': 'score_distillation:sdi'}
RESAMPLES = 2000
_VIEW = {'azimuth': 30.0, 'size': 64}  # of a run's picture

# Scores, with the headings of their columns.
_COLUMNS = {'color': 'color', 'textureless': 'textureless', 'iou': 'IoU',
            'f_score': 'F-score', 'color_error': 'color error'}


class Run(NamedTuple):
  """A finished run.

  Attributes:
    scores: RunScores.
    seconds: of its training without compilation: the median time of a step,
      times the steps.
    image: uint8 [S, S, 3], from one side.
  """
  scores: RunScores
  seconds: float
  image: np.ndarray


class Cost(NamedTuple):
  """The work of a run's training.

  Attributes:
    evaluations: noise predictions of the teacher, each of one image.
    tflop: floating-point operations of all steps, in 10^12; with those of a
      student and of rendering.
  """
  evaluations: float
  tflop: float


class Estimate(NamedTuple):
  """A mean and its 95 % interval."""
  mean: float
  low: float
  high: float


def compare(workdir: str | os.PathLike, prompts: Sequence[str], seeds: int,
            guidances: Sequence[str] = tuple(GUIDANCES),
            settings: Sequence[str] = ()) -> str:
  """Runs what is missing; writes comparison.md, .json and .png.

  Args:
    workdir: folder of the runs and the results.
    prompts: of the shapes world.
    seeds: seeds 0 to seeds - 1 of each prompt.
    guidances: keys of GUIDANCES.
    settings: 'KEY=VALUE' for all configs.

  Returns:
    The table.

  Raises:
    UserError: a guidance, prompt or setting is unknown, or a run failed.
  """
  if seeds < 1:
    raise UserError(f'--seeds={seeds} makes no run; take 1 or more.')
  workdir = pathlib.Path(workdir)
  prompts = [prompting.normalize(prompt) for prompt in prompts]
  lines = commands(workdir, prompts, seeds, guidances, settings)
  missing = [line for folder, line in lines.items()
             if not (folder / 'finished.json').exists()]
  sweeps.run(missing, keep_going=False)
  pair, embed = clip_pair.load(assets.CLIP), features.shapes_clip().embed
  with notices.slow('Evaluating the runs'):
    runs = {name: [[
        read(pair, workdir / name / sweeps.folder_name(prompt), seed)
        for seed in range(seeds)] for prompt in prompts] for name in guidances}
    rows = {name: summarize(of_name, embed) for name, of_name in runs.items()}
  costs = {name: cost_of(checkpoints.load_config(
      workdir / name / sweeps.folder_name(prompts[0]) / 'seed_0'))
           for name in notices.track(guidances, 'Counting operations')}
  text = table(rows, costs, len(prompts), seeds)
  files.write_bytes(workdir / 'comparison.md', f'{text}\n'.encode())
  files.write_bytes(workdir / 'comparison.json', json.dumps(
      {name: {column: None if np.isnan(estimate.mean) else list(estimate)
              for column, estimate in row.items()} | costs[name]._asdict()
       for name, row in rows.items()}, indent=1).encode())
  # A row for each guidance, the first seed of each prompt.
  image_io.save(workdir / 'comparison.png', image_io.tile(
      np.stack([of_prompt[0].image for of_name in runs.values()
                for of_prompt in of_name]), len(prompts)))
  return text


def commands(workdir: pathlib.Path, prompts: Sequence[str], seeds: int,
             guidances: Sequence[str], settings: Sequence[str]
             ) -> dict[pathlib.Path, list[str]]:
  """{workdir: command line of gen3d.train} of all runs; checks them all.

  Arguments and errors are those of `compare`; the prompts are normalized.
  """
  common = [f'--config.{setting}' for setting in settings]
  lines = {}
  # Guidances of one prompt and seed are neighbors: a table of what is there
  # compares like with like.
  for seed in range(seeds):
    for prompt in prompts:
      for name in guidances:
        config = pick('guidance', GUIDANCES, name)
        folder = workdir / name / sweeps.folder_name(prompt) / f'seed_{seed}'
        lines[folder] = [
            sys.executable, '-m', 'gen3d.train', f'--config={config}',
            f'--config.prompt={prompt}', f'--config.seed={seed}', *common,
            f'--workdir={folder}']
  for line in {line[3]: line for line in lines.values()}.values():
    cli.check_config(line)
  return lines


def read(pair: clip_pair.ClipPair, folder: pathlib.Path, seed: int) -> Run:
  """The Run of a prompt's folder and a seed; what is stored is used.

  Args:
    pair: the retrieval model.
    folder: of a prompt.
    seed: of the run.
  """
  run = folder / f'seed_{seed}'
  scores = runs_evaluation.score_run(pair, run)
  scene, params, config = text_to_3d.load_run(run)
  render = finished.make_renderer(scene, _VIEW['size'], ('color',))
  image = render(params, cameras.orbit([_VIEW['azimuth']], **config.orbit))[0]
  return Run(scores, seconds_of(run, config.steps), image)


def seconds_of(folder: pathlib.Path, steps: int) -> float:
  """Seconds of a run's steps, by the median of those that it logged.

  NaN where it logged one step only.
  """
  logged = report.read_scalars(folder / 'scalars.jsonl')
  steps_between, seconds = (
      np.diff([row[key] for row in logged]) for key in ('step', 'time'))
  # An evaluation has a row of the same step, and a resumed run repeats steps.
  later = steps_between > 0
  if not later.any():
    return np.nan
  return float(np.median(seconds[later] / steps_between[later]) * steps)


def cost_of(config: ml_collections.ConfigDict) -> Cost:
  """The Cost of a run with this config; no step is computed."""
  task = text_to_3d.make(config)
  state = task.init(jax.random.key(0))
  of_step = speed.step_flops(
      task, task.costs().scopes, state, next(iter(task.batches(0, 0))))
  # The task's own has the weights already.
  teacher, weights = loading.make_teacher(config.teacher), state.frozen.weights
  text = teacher.add_camera(weights, teacher.embed(['']), jnp.zeros((1, 25)))
  of_one = flops.by_scope(
      teacher.denoise, (weights, np.zeros((1, *teacher.latent), np.float32),
                        np.zeros(1, np.float32), text), ['unet'])
  return Cost(config.steps * of_step['unet'] / of_one['unet'],
              config.steps * sum(of_step.values()) / 1e12)


def summarize(
    runs: Sequence[Sequence[Run]],
    embed: Callable[[np.ndarray], np.ndarray]) -> dict[str, Estimate]:
  """{score: Estimate} of one guidance.

  `diversity` is the mean distance, 1 - cosine, of the image features of two
  seeds of a prompt.

  Args:
    runs: of P prompts, each of S seeds.
    embed: of metrics.features.
  """
  values = {name: np.array([[getattr(run.scores, name) for run in of_prompt]
                            for of_prompt in runs]) for name in _COLUMNS}
  values['seconds'] = np.array(
      [[run.seconds for run in of_prompt] for of_prompt in runs])
  result = {name: bootstrap(x) for name, x in values.items()}
  if len(runs[0]) > 1:
    result['diversity'] = bootstrap(np.array(
        [[_diversity(embed(np.stack([run.image for run in of_prompt])))]
         for of_prompt in runs]))
  return result


def _diversity(embedded):
  x = embedded / np.linalg.norm(embedded, axis=-1, keepdims=True)
  return float(np.mean((1 - x @ x.T)[~np.eye(len(x), dtype=bool)]))


def bootstrap(values: np.ndarray, seed: int = 0) -> Estimate:
  """The mean of values [P, S] with a 95 % interval.

  Prompts are drawn with replacement, and for each its seeds; values that are
  NaN do not count.

  Args:
    values: of P prompts and S seeds.
    seed: of the resampling.
  """
  rng = np.random.default_rng(seed)
  prompts, seeds = values.shape
  rows = rng.integers(prompts, size=(RESAMPLES, prompts, 1))
  columns = rng.integers(seeds, size=(RESAMPLES, prompts, seeds))
  drawn = values[rows, columns].reshape(RESAMPLES, -1)
  known = ~np.isnan(drawn)
  count = known.sum(1)
  means = np.where(known, drawn, 0).sum(1)[count > 0] / count[count > 0]
  if not len(means):
    return Estimate(np.nan, np.nan, np.nan)
  return Estimate(float(np.nanmean(values)), *map(
      float, np.percentile(means, [2.5, 97.5])))


def table(rows: Mapping[str, Mapping[str, Estimate]],
          costs: Mapping[str, Cost], prompts: int, seeds: int) -> str:
  """A Markdown table of `summarize`, with the intervals, and of the costs.

  Args:
    rows: {guidance: {score: Estimate}}.
    costs: {guidance: Cost}.
    prompts, seeds: their numbers.
  """
  columns = [*_COLUMNS, 'diversity', 'seconds']
  headings = [*(_COLUMNS.get(name, name) for name in columns),
              'teacher evaluations', 'TFLOP']
  lines = [f'Prompts: {prompts}; seeds of each: {seeds}; 95 % intervals of the '
           'bootstrap over both.', '', f'| guidance | {" | ".join(headings)} |',
           '|---' * (1 + len(headings)) + '|']
  for name, row in rows.items():
    cells = [_cell(row[column], column) if column in row else '-'
             for column in columns]
    cells += [f'{costs[name].evaluations:,.0f}', f'{costs[name].tflop:.1f}']
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _cell(estimate, column):
  if np.isnan(estimate.mean):
    return '-'
  if column in ('color', 'textureless'):
    return '{:.0f} % ({:.0f} to {:.0f})'.format(*(100 * x for x in estimate))
  digits = 0 if column == 'seconds' else 3
  return '{0:.{n}f} ({1:.{n}f} to {2:.{n}f})'.format(*estimate, n=digits)
