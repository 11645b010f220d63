"""Sweeps and the launch scripts, with the cluster's commands faked."""

import functools
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import commands
import pytest

from gen3d.choices import UserError
from gen3d.engine import stopping, sweeps

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = str(ROOT / 'tests' / 'toy_config.py')


def test_sweep_has_one_command_line_for_each_override():
  lines = sweeps.commands(f'{CONFIG}:long', '/runs', ['--config.steps=7'])
  assert [line[3:-1] for line in lines] == [
      [f'--config={CONFIG}:long', '--config.steps=7', f'--config.rows={rows}',
       '--config.optimizer.learning_rate=0.001'] for rows in (8, 16)]
  assert lines[1][-1] == (
      '--workdir=/runs/001_rows=16,optimizer.learning_rate=0.001')


@pytest.mark.parametrize('text, sentence', [
    ('', 'has no sweep'),
    ("def sweep():\n  yield {'rws': 1}\n", "'rws'.*Did you mean 'rows'"),
])
def test_missing_sweep_or_unknown_key_is_a_user_error(tmp_path, text, sentence):
  source = pathlib.Path(CONFIG).read_text().partition('def sweep')[0]
  (tmp_path / 'config.py').write_text(source + text)
  with pytest.raises(ValueError, match=sentence):
    sweeps.commands(str(tmp_path / 'config.py'), '/runs')


def test_runs_continue_after_a_failure(tmp_path):
  program = 'import sys, pathlib; pathlib.Path(sys.argv[2]).write_text(""); '
  lines = [[sys.executable, '-c', program + f'sys.exit({code})', '-', str(
      tmp_path / name)] for name, code in (('a', 0), ('b', 2), ('c', 0))]
  with pytest.raises(ValueError, match=f'1 of 3 runs failed: {tmp_path}/b'):
    sweeps.run(lines)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b', 'c']
  for path in tmp_path.iterdir():
    path.unlink()
  with pytest.raises(UserError, match=f'1 of 3 runs failed: {tmp_path}/b'):
    sweeps.run(lines, keep_going=False)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b']


def test_command_prints_the_count_and_runs_one(tmp_path):
  call = functools.partial(commands.run, 'gen3d.sweep', f'--config={CONFIG}',
                           f'--workdir={tmp_path}')
  assert call('--count').stdout == '2\n'
  # gen3d.train does not have the toy task, so its error shows that it started.
  assert call('--index=1').stderr.startswith("Unknown task 'toy'")


@pytest.mark.parametrize('script, env, want', [
    ('slurm.sbatch', {}, 'srun .venv/bin/python -m gen3d.train '),
    ('slurm.sbatch', {'SLURM_NNODES': '2'},
     'GEN3D_DISTRIBUTED=1 srun .venv/bin/python -m gen3d.train '),
    ('slurm.sbatch', {'SLURM_ARRAY_TASK_ID': '3'},
     'srun .venv/bin/python -m gen3d.sweep --index=3 '),
    ('tpu_pod.sh', {'TPU': 'pod', 'ZONE': 'here'}, 'gcloud compute tpus '
     'tpu-vm ssh pod --zone=here --worker=all --command='),
])
def test_launch_scripts_pass_all_arguments(tmp_path, script, env, want):
  for name in ('srun', 'gcloud'):
    fake = tmp_path / name
    fake.write_text(
        '#!/usr/bin/env python3\nimport os, shlex, sys\n'
        'if "GEN3D_DISTRIBUTED" in os.environ:\n'
        '  print("GEN3D_DISTRIBUTED=1", end=" ")\n'
        f'print("{name}", *map(shlex.quote, sys.argv[1:]))\n')
    fake.chmod(0o755)
  clean = {k: v for k, v in os.environ.items()
           if not k.startswith(('SLURM_', 'GEN3D_'))}
  out = subprocess.run(
      ['bash', str(ROOT / 'launch' / script), 'c.py', '/w', '--config.p=a b'],
      env={**clean, **env, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
      check=True, capture_output=True, text=True).stdout
  assert out.startswith(want) or out.startswith(want.replace(
      '--command=', "'--command="))
  if script == 'tpu_pod.sh':  # The workers' shell reads the last word again.
    remote = shlex.split(out)[-1].removeprefix('--command=')
    assert 'GEN3D_DISTRIBUTED=1 .venv/bin/python -m gen3d.train' in remote
    out = remote
  assert shlex.split(out)[-3:] == [
      '--config=c.py', '--workdir=/w', '--config.p=a b']


def test_prompts_of_a_file_get_folders_of_their_names(tmp_path):
  file = tmp_path / 'prompts.txt'
  file.write_text('a red chair\n\n# no\n A red chair! \na red chair\n猫\n')
  lines = sweeps.commands('dreamfusion:tiny', '/runs', (), file)
  assert [line[4] for line in lines] == [
      f'--config.prompt={x}' for x in ('a red chair', 'A red chair!', '猫')]
  folders = [line[-1].removeprefix('--workdir=/runs/') for line in lines]
  assert folders[0] == 'a-red-chair' and len(set(folders)) == 3
  assert folders[1].startswith('a-red-chair-')


@pytest.mark.parametrize('content, sentence', [
    (None, 'cannot be read'), (b'\xff\xfe', 'is not in UTF-8'),
    (b'\n# nothing\n', 'has no prompt')])
def test_files_without_prompts_are_refused(tmp_path, content, sentence):
  file = tmp_path / 'prompts.txt'
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(UserError, match=sentence):
    sweeps.commands('dreamfusion:tiny', '/runs', (), file)


def test_sweep_ends_with_a_summary(capsys):
  lines = [[sys.executable, '-c', f'import sys; sys.exit({code})',
            f'--workdir=/runs/{code}'] for code in (0, 2, 130, 0)]
  with pytest.raises(KeyboardInterrupt):
    sweeps.run(lines)
  *_, title, done, failed, stopped = capsys.readouterr().err.splitlines()
  assert title == '3 of 4 runs:'
  assert done.split()[0] == 'done' and done.endswith('min  /runs/0')
  assert failed.split()[:2] == ['failed', '(2)']
  assert stopped.split()[0] == 'stopped'


@pytest.mark.parametrize('number, error', [
    (signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_to_the_sweep_alone_stop_its_run(
    number, error, monkeypatch, capfd):
  monkeypatch.setattr(stopping, '_LATER', .1)
  program = (
      'import os, signal, sys, time\n'
      'signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n'
      f'os.kill(os.getppid(), {number})\ntime.sleep(60)')
  with pytest.raises(error):
    sweeps.run([[sys.executable, '-c', program, '--workdir=/runs/a']] * 2)
  title, stopped = capfd.readouterr().err.splitlines()[-2:]
  assert title == '1 of 2 runs:' and stopped.split()[0] == 'stopped'
