"""The launch scripts, with stand-ins for Python where the real one is slow."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = ('turntable.mp4', 'preview.png', 'mesh.glb', 'mesh.ply')

# Stands in for the Python of an environment; records its command lines.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  -c*|*--version) exit ${STAND_IN_AGE:-0} ;;
esac
printf '%s|' "$@" >> "$CALLS"; echo >> "$CALLS"
case "$2" in ${FAILING_MODULE:-none}) exit 1 ;; esac
for word in "$@"; do
  case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
done
[ -n "${workdir-}" ] && [ -z "${STOP-}" ] || exit 0
mkdir -p "$workdir"
touch "$workdir"/{finished.json,turntable.mp4,preview.png,mesh.glb,mesh.ply}
"""


@pytest.fixture
def clone(tmp_path):
  """A copy of the scripts' files, in a folder with a space in its name."""
  folder = tmp_path / 'a clone'
  folder.mkdir()
  shutil.copytree(ROOT / 'launch', folder / 'launch')
  for file in (*ROOT.glob('requirements*.txt'), ROOT / 'pyproject.toml'):
    shutil.copy(file, folder)
  return folder


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return path


@pytest.fixture
def ready(clone):
  """The clone with a stand-in environment."""
  executable(clone / '.venv' / 'bin' / 'python', STAND_IN)
  return clone


def launch(clone, script, *args, cwd=None, **variables):
  return subprocess.run(
      ['bash', str(clone / 'launch' / script), *args],
      cwd=cwd or clone, capture_output=True, text=True, timeout=300,
      stdin=subprocess.DEVNULL,
      env={**os.environ, 'CALLS': str(clone / 'calls'), **variables})


def calls(clone, module):
  path = clone / 'calls'
  lines = path.read_text().splitlines() if path.exists() else []
  return [line for line in lines if line.startswith(f'-m|{module}|')]


def sentence(done):
  """Returns the one line of the error message."""
  assert done.returncode == 1
  line, = [x for x in done.stderr.splitlines() if x.startswith('gen3d: ')]
  assert 'Traceback' not in done.stderr
  return line


def test_prompt_is_trained_and_exported_once(ready):
  done = launch(ready, 'quickstart.sh', 'a blue cat')
  assert done.returncode == 0, done.stderr
  for file in FILES:
    assert f'{ready}/runs/a-blue-cat/{file}' in done.stdout
  train, = calls(ready, 'gen3d.train')
  assert '|--config.prompt=a blue cat|' in train
  requirements, package = calls(ready, 'pip')
  assert requirements.endswith('/requirements.txt|')
  assert package.endswith(f'|--no-deps|--editable|{ready}|')
  again = launch(ready, 'quickstart.sh', 'a blue cat', cwd='/')
  assert again.stdout == done.stdout
  assert len(calls(ready, 'gen3d.train')) == 1
  (ready / 'runs' / 'a-blue-cat' / 'mesh.glb').unlink()
  assert launch(ready, 'quickstart.sh', 'a blue cat').returncode == 0
  assert len(calls(ready, 'gen3d.export')) == 1


def test_installation_says_every_30_seconds_what_it_does(ready):
  """A second passes at once, and pip ends after 31 of them."""
  bin_ = ready / 'bin'
  executable(bin_ / 'sleep', '#!/bin/sh\necho >> "$SECONDS_PASSED"\n')
  executable(ready / '.venv/bin/python', STAND_IN.replace(
      '  -c*', '  *"pip install"*) echo Collecting jax; echo WARNING: x; while '
      '[ "$(wc -l < "$SECONDS_PASSED")" -lt 31 ]; do /bin/sleep 0.1; done ;;\n'
      '  -c*', 1))
  (ready / 'seconds').touch()
  done = launch(ready, 'quickstart.sh', 'a cat',
                PATH=f'{bin_}:{os.environ["PATH"]}',
                SECONDS_PASSED=str(ready / 'seconds'))
  assert done.returncode == 0, done.stderr
  assert 'Installing requirements.txt (0:30) Collecting jax' in done.stderr
  later = done.stderr.partition('Installing pyproject.toml into')[2]
  assert 'requirements.txt' not in later  # It has ended.


def test_each_prompt_has_a_folder_and_is_passed_unchanged(ready):
  prompts = ['a cat', 'A cat!', "a 'b' $(touch x) \"c\" * ; d", '猫', 'a/../b']
  for prompt in prompts:
    assert launch(ready, 'quickstart.sh', prompt).returncode == 0
  assert len(list((ready / 'runs').iterdir())) == len(prompts)
  for prompt, call in zip(prompts, calls(ready, 'gen3d.train'), strict=True):
    assert f'|--config.prompt={prompt}|' in call
  assert not (ready / 'x').exists()


def test_words_flags_and_the_default_prompt(ready):
  assert launch(ready, 'quickstart.sh', 'a', 'red', 'car', '--config.seed=1',
                '--flag=b c').returncode == 0
  assert launch(ready, 'quickstart.sh').returncode == 0
  assert launch(ready, 'quickstart.sh', 'a cat',
                '--config=a.py:tiny').returncode == 0
  first, second, third = calls(ready, 'gen3d.train')
  for call in (first, second):
    assert '|--config=dreamfusion|' in call
  assert third.count('--config=') == 1 and '|--config=a.py:tiny|' in third
  assert '|--config.prompt=a red car|' in first
  assert '|--config.seed=1|--flag=b c|' in first
  assert '|--config.prompt=a red chair|' in second


def test_flags_before_the_prompt_and_a_folder_for_each_set_of_flags(ready):
  for words in (['a cat'], ['a cat', '--config.seed=1'],
                ['--config.seed=1', 'a cat'], ['a cat', '--config.seed=2'],
                ['a cat', '--config=eg3d:tiny']):
    done = launch(ready, 'quickstart.sh', *words)
    assert done.returncode == 0, done.stderr
  plain, *others = [re.search(r'--workdir=([^|]*)', call)[1]
                    for call in calls(ready, 'gen3d.train')]
  assert plain == f'{ready}/runs/a-cat' and len(set(others)) == 3
  assert all(re.fullmatch(rf'{plain}-\d+', folder) for folder in others)


@pytest.mark.parametrize('flag, reason', [
    ('--config.seed', 'has no value; write --config.seed=VALUE'),
    ('--workdir=a', 'the folder is named after the prompt'),
    ('--config.prompt=b', 'the folder is named after the prompt')])
def test_flags_that_quickstart_refuses(ready, flag, reason):
  done = launch(ready, 'quickstart.sh', 'a cat', flag)
  assert reason in sentence(done)
  assert not calls(ready, 'gen3d.train')


def test_sh_runs_the_script_by_bash_or_names_it(ready, tmp_path):
  script = str(ready / 'launch/quickstart.sh')
  tools = tmp_path / 'tools'
  tools.mkdir()
  for name in ('dirname', 'cat'):
    (tools / name).symlink_to(shutil.which(name))
  sh = shutil.which('dash') or shutil.which('sh')
  run = lambda path: subprocess.run(
      [sh, script, '--help'], env={'PATH': path}, text=True,
      capture_output=True, timeout=60)
  done = run(os.environ['PATH'])
  assert done.returncode == 0 and done.stdout.startswith('usage: bash')
  if pathlib.Path(sh).resolve().name != 'bash':
    assert sentence(run(str(tools))) == (
        'gen3d: quickstart.sh needs bash, which is not installed.')


def test_next_steps_are_printed(ready):
  lines = launch(ready, 'quickstart.sh', 'a cat').stdout.splitlines()
  steps = lines[lines.index(f'Next, after ". {ready}/.venv/bin/activate":'):]
  view, gallery, export = map(shlex.split, steps[1:4])
  assert view == ['gen3d', 'view', f'{ready}/runs/a-cat']
  assert gallery == ['gen3d', 'gallery', f'{ready}/runs',
                     f'--out={ready}/gallery']
  assert export[:3] == ['gen3d', 'export', f'--workdir={ready}/runs/a-cat']
  assert shlex.split(steps[-1])[-1] == f'--logdir={ready}/runs'
  done = launch(ready, 'quickstart.sh', "a cat's $HOME")
  refine = done.stdout.partition('\n  gen3d train')[2].partition('\n  pip')[0]
  assert "--config.prompt=a cat's $HOME" in shlex.split(refine)


@pytest.mark.parametrize('words', [
    ['-h'], ['--help'], ['a cat', '--help'],
    ['a cat', '--config.seed=1', '-h']])
def test_help_prints_the_usage_only(clone, words):
  """Without an environment or a Python to make one with."""
  tools = clone / 'tools'
  tools.mkdir()
  for name in ('bash', 'cat', 'dirname'):
    (tools / name).symlink_to(shutil.which(name))
  done = launch(clone, 'quickstart.sh', *words, PATH=str(tools))
  assert done.returncode == 0 and not done.stderr
  assert done.stdout.startswith('usage: bash launch/quickstart.sh [')
  assert not (clone / '.venv').exists() and not (clone / 'runs').exists()


@pytest.mark.parametrize('words, unknown', [
    (['-x'], '-x'), (['-help'], '-help'), (['-5 degrees'], '-5 degrees'),
    (['a cat', '-config.seed=1'], '-config.seed=1')])
def test_word_with_one_dash_is_refused(ready, words, unknown):
  done = launch(ready, 'quickstart.sh', *words)
  assert sentence(done) == (
      f'gen3d: the option "{unknown}" is unknown; flags begin with two dashes, '
      'and bash launch/quickstart.sh --help shows the usage.')
  assert not calls(ready, 'gen3d.train') and not (ready / 'runs').exists()


def test_dash_inside_a_prompt_remains(ready):
  assert launch(ready, 'quickstart.sh', 'a', '-', 'cat-like', 'car',
                '--flag=-1').returncode == 0
  train, = calls(ready, 'gen3d.train')
  assert '|--config.prompt=a - cat-like car|' in train
  assert '|--flag=-1|' in train


def test_readme_activates_the_environment_of_quickstart():
  """After quickstart, and before the first command that imports gen3d."""
  blocks = (ROOT / 'README.md').read_text().split('```bash\n')[1:]
  lines = '\n'.join(block.split('```')[0] for block in blocks).splitlines()
  made = next(i for i, x in enumerate(lines) if 'quickstart.sh' in x)
  used = next(i for i, x in enumerate(lines) if x.startswith('gen3d'))
  assert any(x.startswith('. .venv/bin/activate') for x in lines[made:used])


@pytest.mark.parametrize('prompt', ['', '  '])
def test_empty_prompt_is_refused(ready, prompt):
  assert 'prompt is empty' in sentence(launch(ready, 'quickstart.sh', prompt))
  assert not calls(ready, 'gen3d.train')


def test_interrupted_run_is_an_error(ready):
  done = launch(ready, 'quickstart.sh', 'a cat', STOP='1')
  assert 'same command goes on' in sentence(done) and not done.stdout
  assert launch(ready, 'quickstart.sh', 'a cat').returncode == 0
  assert len(calls(ready, 'gen3d.train')) == 2


def test_only_changed_requirements_are_installed(ready):
  for prompt in ('a cat', 'a car'):
    assert launch(ready, 'quickstart.sh', prompt).returncode == 0
  assert len(calls(ready, 'pip')) == 2
  with open(ready / 'requirements.txt', 'a') as file:
    file.write('another\n')
  assert launch(ready, 'quickstart.sh', 'a hat').returncode == 0
  assert len(calls(ready, 'pip')) == 3


def test_suite_installs_parity_requirements_only_with_the_flag(ready):
  assert launch(ready, 'test.sh', cwd='/').returncode == 0
  installed = calls(ready, 'pip')
  assert len(installed) == 2 and 'requirements-parity' not in str(installed)
  assert launch(ready, 'test.sh', '--parity', '-x').returncode == 0
  assert len(calls(ready, 'pip')) == 3
  assert calls(ready, 'pytest')[-1].endswith('|-x|')
  assert 'torch==2.13.0' in (
      ROOT / 'requirements-parity.txt').read_text().split()


@pytest.mark.parametrize('module, passes', [
    ('ruff', False), ('pyrefly', False), ('pytest', False), ('none', True)])
def test_suite_runs_all_checks_and_fails_with_any(ready, module, passes):
  done = launch(ready, 'test.sh', FAILING_MODULE=module)
  assert (done.returncode == 0) == passes
  for run in ('ruff', 'pyrefly', 'pytest'):
    assert len(calls(ready, run)) == 1
  if module in ('ruff', 'pyrefly'):
    assert f'checks by {module} above' in sentence(done)


def test_old_python_is_an_error(clone):
  for name in ('python3.12', 'python3.11', 'python3', 'python'):
    executable(clone / 'bin' / name, '#!/bin/sh\n'
               '[ "$1" = --version ] && echo Python 3.8.1 && exit; exit 1\n')
  done = launch(clone, 'quickstart.sh', 'a cat',
                PATH=f'{clone}/bin:{os.environ["PATH"]}')
  assert sentence(done) == (
      'gen3d: Python 3.11 or later is needed and Python 3.8.1 was found; '
      'install Python 3.12 and run this again.')
  assert not (clone / '.venv').exists()


def test_unreachable_registry_is_an_error_and_can_be_retried(clone):
  """A real environment, from a Python behind a shim that stands for none."""
  executable(clone / 'bin' / 'python3.12', '#!/bin/sh\nexit 127\n')
  for name in ('python3.11', 'python3'):
    executable(clone / 'bin' / name, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  # Left by a call that was stopped early on.
  executable(clone / '.venv' / 'bin' / 'python', '#!/bin/sh\nexit 1\n')
  variables = {
      'PATH': f'{clone}/bin:{os.environ["PATH"]}',
      'PIP_CONFIG_FILE': '/dev/null', 'PIP_FIND_LINKS': '',
      'PIP_INDEX_URL': 'http://127.0.0.1:9/simple'}
  done = launch(clone, 'quickstart.sh', 'a cat', **variables)
  assert 'registry cannot be reached' in sentence(done)
  assert 'Traceback' not in done.stderr and not (clone / 'runs').exists()
  (clone / 'requirements.txt').write_text('# nothing is needed any more\n')
  # The package, whose build needs the registry, counts as installed.
  shutil.copy(clone / 'pyproject.toml',
              clone / '.venv/installed-pyproject.toml')
  done = launch(clone, 'quickstart.sh', 'a cat', **variables)
  assert 'reached' not in done.stderr and 'Making' not in done.stderr
  assert (clone / '.venv' / 'installed-requirements.txt').exists()
