"""The table of guidances: commands, intervals, and a table of two runs."""

import json
import pathlib

import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.evaluation import guidances
from gen3d.evaluation.guidances import Cost, Run
from gen3d.evaluation.text_to_3d import RunScores

PROMPTS = ('a red chair', 'a blue car')


def test_there_is_a_run_for_each_guidance_prompt_and_seed():
  lines = guidances.commands(
      pathlib.Path('runs'), PROMPTS, 2, ['sds', 'asd'], ['steps=8'])
  assert len(lines) == 2 * 2 * 2
  folder = pathlib.Path('runs/asd/a-blue-car/seed_1')
  line = lines[folder]
  assert line[3:] == [
      '--config=score_distillation:asd',
      '--config.prompt=a blue car', '--config.seed=1', '--config.steps=8',
      f'--workdir={folder}']


@pytest.mark.parametrize('arguments, words', [
    ((PROMPTS, 0), 'seeds=0'), ((PROMPTS, 1, ['isd']), "'isd'.*'sds'"),
    ((['  '], 1), 'prompt is empty'),
    ((PROMPTS, 1, ['sds'], ['stepz=3']), 'stepz')])
def test_errors_come_before_the_first_run(arguments, words, tmp_path):
  with pytest.raises(UserError, match=words):
    guidances.compare(tmp_path, *arguments)
  assert not any(tmp_path.iterdir())


def test_bootstrap_is_as_wide_as_the_normal_interval():
  # 400 prompts of one seed: the interval is mean +- 1.96 standard errors.
  values = np.random.default_rng(1).normal(3.0, 2.0, (400, 1))
  estimate = guidances.bootstrap(values)
  error = values.std() / 20
  assert estimate.mean == pytest.approx(values.mean())
  assert estimate.low == pytest.approx(estimate.mean - 1.96 * error, abs=0.03)
  assert estimate.high == pytest.approx(estimate.mean + 1.96 * error, abs=0.03)


def test_bootstrap_draws_the_seeds_of_a_drawn_prompt():
  # One prompt: only its seeds are left to draw.
  estimate = guidances.bootstrap(np.array([[0.0, 1.0]]))
  assert (estimate.low, estimate.mean, estimate.high) == (0.0, 0.5, 1.0)
  unknown = guidances.bootstrap(np.array([[np.nan], [2.0]]))
  assert unknown.mean == unknown.low == unknown.high == 2.0
  assert np.isnan(guidances.bootstrap(np.full((2, 2), np.nan)).mean)


def _run(color, gray, error=0.1):
  scores = RunScores('a red chair', 'seen', color, 0.5, 0.7, 0.9, error)
  return Run(scores, 60.0, np.full((4, 4, 3), gray, np.uint8))


@pytest.mark.parametrize('rows, want', [
    # A compilation or an evaluation between two rows, a row of an evaluation
    # at the same step, a resumed run that repeats a step.
    (((1, 0), (11, 20), (21, 50), (21, 55), (31, 75), (21, 99), (31, 119)),
     200.0),
    (((1, 0), (4, 9), (4, 30)), 300.0), (((4, 9), (4, 30)), np.nan)])
def test_seconds_are_those_of_the_median_step(tmp_path, rows, want):
  (tmp_path / 'scalars.jsonl').write_text('\n'.join(
      json.dumps({'step': step, 'time': time}) for step, time in rows))
  np.testing.assert_equal(guidances.seconds_of(tmp_path, 100), want)


def test_diversity_is_the_mean_distance_of_seeds():
  embed = lambda images: np.stack(
      [np.array([1.0, x.mean() > 100, 0.0]) for x in images])
  rows = guidances.summarize(
      [[_run(1.0, 0), _run(0.5, 200)], [_run(1.0, 0), _run(1.0, 0)]], embed)
  assert rows['color'].mean == pytest.approx(0.875)
  # The cosine of (1, 0, 0) and (1, 1, 0) for one prompt, equal for the other.
  assert rows['diversity'].mean == pytest.approx((1 - 2**-0.5) / 2)
  text = guidances.table({'sds': rows}, {'sds': Cost(4800.0, 5.71)}, 2, 2)
  assert '| sds | 88 % (' in text
  assert '| 60 (60 to 60) | 4,800 | 5.7 |' in text


def test_a_table_without_named_colors_and_of_one_seed():
  rows = guidances.summarize([[_run(1.0, 0, np.nan)]], None)
  line = guidances.table({'csd': rows}, {'csd': Cost(1.0, 1.0)}, 1,
                         1).splitlines()[-1]
  assert line.count('| - ') == 2  # color error and diversity


def test_seconds_are_the_median_time_of_a_step_times_the_steps(tmp_path):
  times = (0.0, 100.0, 102.0, 104.0, 106.0, 300.0)
  (tmp_path / 'scalars.jsonl').write_text('\n'.join(
      json.dumps({'step': 1 + 2 * i, 'time': t}) for i, t in enumerate(times)))
  assert guidances.seconds_of(tmp_path, 300) == pytest.approx(300.0)
