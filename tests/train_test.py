"""gen3d.train from end to end, and errors of the command line."""

import json
import os
import pathlib
import subprocess
import sys

import commands
import pytest

from gen3d.choices import UserError
from gen3d.engine import cli

TESTS = pathlib.Path(__file__).parent
CONFIG = str(TESTS / 'toy_config.py')


def train(*flags):
  """Runs `python -m gen3d.train`, with the toy task registered."""
  return commands.run('toy_command', *flags, timeout=120, env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join([str(TESTS.parent), str(TESTS)])})


def test_train_from_end_to_end_and_again(tmp_path):
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
    (['--config.task=toi'], "Unknown task 'toi'; choose from ['clip'"),
    (['--config.rows=7'], 'A batch of 7 cannot be divided over 2 devices'),
    (['--config.nan_at=2'], 'Training stopped at step 2'),
    (['--workdir='], 'The flag --workdir is missing'),
])
def test_user_error_is_one_sentence_and_exit_code_2(tmp_path, flags, sentence):
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
def test_unknown_config_files_and_variants(config, sentence):
  for argv in (['train', f'--config={config}'], ['train', '--config', config]):
    with pytest.raises(ValueError, match=sentence):
      cli.check_config(argv)


@pytest.mark.parametrize('flag, near', [
    ('--config.sed=3', "Did you mean 'seed'"),
    ('--config.optimizer.learnin_rate=3', "'optimizer.learning_rate'"),
    ('--config.learning_rate=3', "'optimizer.learning_rate'"),
    ('--noconfig.log_evry', "'log_every'"),
])
def test_unknown_keys_get_near_ones(flag, near):
  with pytest.raises(ValueError, match=near):
    cli.check_config(['train', flag, f'--config={CONFIG}'])


def test_known_keys_are_accepted():
  assert {'seed', 'optimizer.learning_rate'} <= cli.check_config(
      ['train', f'--config={CONFIG}:long', '--config.seed=3',
       '--config.optimizer.learning_rate', '.5'])


@pytest.mark.parametrize('flag, present', [
    ('--config.schedule.swap=0.5', 'schedule.pose_swap_prob'),
    ('--config.counted=rays', 'throughput_unit')])
def test_renamed_keys_get_their_present_name(tmp_path, flag, present):
  (tmp_path / 'config.py').write_text(
      'import ml_collections\n'
      'get_config = lambda: ml_collections.ConfigDict({"throughput_unit": "",\n'
      '    "schedule": {"pose_swap_prob": 0.0}})\n')
  key = flag.split('=')[0].removeprefix('--config.')
  with pytest.raises(UserError, match=f"Unknown config key '{key}', which .*"
                     f"Did you mean '{present}'"):
    cli.check_config(['train', flag, f'--config={tmp_path}/config.py'])


def test_file_without_get_config_is_refused(tmp_path):
  (tmp_path / 'other.py').write_text('')
  with pytest.raises(UserError, match='has no get_config'):
    cli.check_config(['train', f'--config={tmp_path}/other.py'])


@pytest.mark.parametrize('error, code', [
    ('choices.UserError("a sentence.")', 2), ('OSError("a sentence.")', 2),
    ('ValueError("a sentence.")', 1)])
def test_only_user_errors_lose_their_traceback(error, code):
  program = ('from gen3d import choices; from gen3d.engine import cli\n'
             f'def main():\n  raise {error}\ncli.run(main)')
  done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': str(TESTS.parent)}, timeout=120)
  assert done.returncode == code
  assert ('Traceback' in done.stderr) == (code == 1)
  assert code == 1 or done.stderr == 'a sentence.\n'


def test_warnings_of_libraries_have_no_prefix():
  program = ('import warnings; from absl import logging\n'
             'from gen3d.engine import cli\n'
             'def main():\n  logging.warning("a %s.", "sentence")\n'
             '  warnings.warn("another one.")\ncli.run(main)')
  done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': str(TESTS.parent)}, timeout=120)
  assert (done.returncode, done.stderr) == (0, 'a sentence.\nanother one.\n')


def test_bug_in_a_users_config_is_named_with_its_line(tmp_path):
  (tmp_path / 'config.py').write_text(
      'VARIANTS = {"a": 1}\n'
      'def get_config(variant="a"):\n  return {}["missing"]\n')
  with pytest.raises(
      UserError, match=r"config.py fails in line 3 \(KeyError: 'missing'\)"):
    cli.check_config(['train', f'--config={tmp_path}/config.py:a'])
  with pytest.raises(UserError, match="Unknown variant 'b'"):
    cli.check_config(['train', f'--config={tmp_path}/config.py:b'])


def test_other_number_of_steps_is_refused_or_named(tmp_path):
  flags = (f'--config={CONFIG}:small', f'--workdir={tmp_path / "run"}')
  refused = train(*flags, '--config.steps=-5')
  assert (refused.returncode, refused.stderr) == (
      2, 'config.steps is -5; give a number from 0 on.\n')
  assert train(*flags, '--config.steps=4').returncode == 0
  longer = train(*flags, '--config.steps=6')
  assert longer.returncode == 0
  assert 'began with 4 steps and goes on to 6' in longer.stderr
