"""A short selection of the fault campaign (tests/campaign)."""

import json
import os
import pathlib
import subprocess
import sys

import ghostscript
import pytest

ROOT = pathlib.Path(__file__).parents[1]


def campaign(out, *flags):
  return subprocess.run(
      [sys.executable, '-m', 'tests.campaign', f'--out={out}', *flags],
      cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
      capture_output=True, timeout=300)


def test_damaged_and_hostile_files_end_in_sentences(tmp_path):
  flags = ('--parts=mutants,hostile', '--quick', '--trials=0.08', '--seed=1')
  done = campaign(tmp_path, *flags)
  assert done.returncode == 0, done.stdout + done.stderr
  table = json.loads((tmp_path / 'table.json').read_text())
  kinds = [record['kind'] for record in table['records']]
  assert kinds.count('sentence') > len(kinds) / 3 > 10
  again = campaign(tmp_path, *flags)  # Nothing is left to do.
  assert again.stdout == done.stdout
  assert json.loads((tmp_path / 'table.json').read_text()) == table


PROGRAM = """
import pathlib, sys, time
from campaign import outcomes
from gen3d.choices import UserError
def fails(error): raise error
def allocates():
  kept = [b'x' * 2 ** 24 for _ in range(40)]
  return len(kept)
log = pathlib.Path(sys.argv[1])
for function in (
    lambda: 5, lambda: print('a note') or 6, lambda: 6,
    lambda: fails(UserError('a sentence')), lambda: fails(KeyError('x')),
    lambda: fails(UserError('x' * 3000)), lambda: time.sleep(9),
    lambda: __import__('os').abort(), allocates):
  outcome = outcomes.forked(function, log, outcomes.Limits(2, 5, 2 ** 28))
  print(outcomes.compared(outcome, outcomes.fingerprint(5)).kind)
"""


def test_outcomes_are_told_apart(tmp_path):
  done = subprocess.run(
      [sys.executable, '-c', PROGRAM, str(tmp_path / 'log')], text=True,
      capture_output=True, timeout=100,
      env={**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'})
  assert done.stdout.split() == [
      'accepted', 'accepted', 'silent', 'sentence', 'traceback', 'sentence',
      'hang', 'crash', 'memory'], done.stderr


@pytest.mark.parametrize('flags', [('--parts=none',), ('--trials=x',)])
def test_unknown_parts_are_refused(tmp_path, flags):
  done = campaign(tmp_path, *flags)
  assert done.returncode == 2 and 'Traceback' not in done.stderr


def test_table_of_given_inputs(tmp_path):
  inputs = tmp_path / 'mine'
  (inputs / 'group').mkdir(parents=True)
  (inputs / 'README.md').write_text('No input.')
  (inputs / 'group' / 'page.pkl').write_bytes(b'<html>')
  (inputs / 'mesh_of_mine__a.obj').write_text('v 0 0 nan\nf 1 1 1\n')
  (inputs / 'png_set-postscript__a.png').write_bytes(ghostscript.POSTSCRIPT)
  command = [
      sys.executable, '-m', 'tests.campaign.inputs', f'--inputs={inputs}',
      f'--out={tmp_path / "table.md"}', f'--work={tmp_path / "work"}',
      f'--against={ROOT}']
  for _ in range(2):  # The second time, nothing is left to do.
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
        text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
  assert not done.stdout
  lines = (tmp_path / 'table.md').read_text().splitlines()
  assert lines[0] == '| input | before | now |'
  assert [line.split(':')[0].strip('| ') for line in lines[2:5]] == [
      'mine/group/page.pkl | sentence', 'mine/mesh\\_of\\_mine\\_\\_a.obj | '
      'sentence', 'mine/png\\_set-postscript\\_\\_a.png | sentence']
  for line, words in zip(lines[2:5], (
      'is a web page', 'vertices that are not finite', 'is a PostScript file'),
      strict=True):
    assert line.count(words) == 2
  assert lines[-2:] == [f'| {side} | 3 | 3 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |'
                        for side in ('before', 'now')]
  assert str(tmp_path) not in '\n'.join(lines)
