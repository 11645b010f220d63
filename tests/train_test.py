"""The command line: a run from end to end, and mistakes in one sentence."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gen3d.engine import cli

TESTS = pathlib.Path(__file__).parent
CONFIG = str(TESTS / 'toy_config.py')


def train(*flags):
  """Runs `python -m gen3d.train`, with the toy among its tasks."""
  program = ('from gen3d import train; from gen3d.engine import cli; '
             'train.tasks.TASKS["toy"] = "toy_task"; cli.run(train.main)')
  env = {**os.environ,
         'PYTHONPATH': os.pathsep.join([str(TESTS.parent), str(TESTS)])}
  return subprocess.run([sys.executable, '-c', program, *flags], env=env,
                        capture_output=True, text=True, timeout=120)


def test_a_run_from_end_to_end_and_once_more(tmp_path):
  flags = (f'--config={CONFIG}:small', f'--workdir={tmp_path / "run"}',
           '--config.optimizer.learning_rate=0.02')
  first = train(*flags)
  assert first.returncode == 0, first.stderr
  assert first.stdout == f'{tmp_path / "run" / "result.json"}\n'
  assert 'step 10/10' in first.stderr
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['optimizer']['learning_rate'] == .02
  again = train(*flags)
  assert (again.returncode, again.stdout) == (0, first.stdout)
  assert 'step' not in again.stderr  # Nothing was left to do.


@pytest.mark.parametrize('flags, sentence', [
    (['--config.sed=3'], "Unknown config key 'sed'"),
    (['--config.task=toi'], "Unknown task 'toi'; choose from ['gan'"),
    (['--config.rows=7'], 'A batch of 7 cannot be divided over 2 chips'),
    (['--config.nan_at=2'], 'Training stopped at step 2'),
    (['--workdir='], 'The flag --workdir is missing'),
])
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, flags, sentence):
  workdir = tmp_path / 'run'
  done = train(f'--config={CONFIG}', f'--workdir={workdir}', *flags)
  assert done.returncode == 2
  assert done.stdout == '' and 'Traceback' not in done.stderr
  assert done.stderr.splitlines()[-1].startswith(sentence)
  if 'nan_at' not in flags[0]:
    assert not workdir.exists() and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('config, sentence', [
    (f'{CONFIG}:smal', "Unknown variant 'smal'.*Did you mean 'small'"),
    (f'{TESTS}/toy_confg.py', 'There is no config file .*toy_config.py'),
])
def test_configs_that_are_not_there(config, sentence):
  for argv in (['train', f'--config={config}'], ['train', '--config', config]):
    with pytest.raises(ValueError, match=sentence):
      cli.check_config(argv)


@pytest.mark.parametrize('flag, near', [
    ('--config.sed=3', "Did you mean 'seed'"),
    ('--config.optimizer.learnin_rate=3', "'optimizer.learning_rate'"),
    ('--config.learning_rate=3', "'optimizer.learning_rate'"),
    ('--noconfig.log_evry', "'log_every'"),
])
def test_unknown_keys_get_their_near_misses(flag, near):
  with pytest.raises(ValueError, match=near):
    cli.check_config(['train', flag, f'--config={CONFIG}'])


def test_known_keys_pass():
  assert cli.check_config(
      ['train', f'--config={CONFIG}:long', '--config.seed=3',
       '--config.optimizer.learning_rate', '.5']) is None


def test_a_defect_keeps_its_traceback():
  with pytest.raises(ValueError) as ours:
    cli.check_config(['train', '--config=nowhere.py'])
  assert cli._is_users(ours.value)
  with pytest.raises(ValueError) as librarys:
    json.loads('{')
  assert not cli._is_users(librarys.value)
  with pytest.raises(ValueError) as mine:
    int('x')
  assert not cli._is_users(mine.value)
