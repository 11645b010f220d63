"""The command gen3d: its list, its names of configs, its packaging."""

import os
import pathlib
import subprocess
import sys
import tomllib

import commands
import pytest

from gen3d import __main__ as command
from gen3d.choices import UserError
from gen3d.engine import cli, config_files, config_text

ROOT = pathlib.Path(__file__).parents[1]


def gen3d(*words, cwd=ROOT):
  return commands.run('gen3d', *words, cwd=cwd, timeout=120)


def test_every_command_is_listed_with_its_title():
  commands = {path.stem for path in (ROOT / 'gen3d').glob('*.py')
              if 'cli.run(main' in path.read_text()}
  assert set(command.COMMANDS) == commands
  lines = command.usage().splitlines()
  for name in commands:
    line, = [x for x in lines if x.startswith(f'  {name} ')]
    assert line.endswith('.') and len(line) <= 100


@pytest.mark.parametrize('words', [[], ['--help'], ['-h'], ['help']])
def test_list_of_commands_does_not_import_jax(words):
  program = (f'import sys; sys.argv[1:] = {words!r}\n'
             'from gen3d import __main__ as m; m.main()\n'
             'assert "jax" not in sys.modules, "jax"')
  done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, text=True,
                        capture_output=True, timeout=60)
  assert done.returncode == 0, done.stderr
  assert done.stdout == command.usage() + '\n'


def test_unknown_command_is_refused_with_the_near_one():
  done = gen3d('trian')
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.endswith("Did you mean 'train'?\n")


def test_imports_that_take_long_have_a_notice():
  done = subprocess.run(
      [sys.executable, '-c', 'import sys; from gen3d import __main__, notices; '
       'notices._EVERY = 0.2; sys.argv = ["gen3d", "gallery"]; '
       '__main__.main()'],
      capture_output=True, text=True, timeout=300, cwd=ROOT)
  first, *lines = done.stderr.splitlines()
  assert first.startswith('Loading the libraries (0:00:0')
  assert lines[-1].startswith('There is nothing to show')


@pytest.mark.parametrize('words', [
    ['train', '--help'], ['train', '-h'], ['train', '--config=none', '--help'],
    ['help', 'train']])
def test_help_of_a_command_has_its_flags_and_status_0(words, tmp_path):
  done = gen3d(*words, cwd=tmp_path)
  assert done.returncode == 0 and not done.stderr
  assert '--workdir:' in done.stdout and 'the same command' in done.stdout


def test_configs_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'eg3d').mkdir()  # such as a clone of the official repository
  path = str(ROOT / 'configs/eg3d.py')
  assert config_files.resolve('eg3d') == path
  assert config_files.resolve('eg3d:cats') == path + ':cats'
  assert config_files.resolve('configs/eg3d.py:cats') == path + ':cats'
  cli.check_config(['train', '--config=eg3d:tiny', '--config.steps=3'])
  cli.check_config(['train', '--config', 'eg3d:tiny', '--config.steps=3'])
  with pytest.raises(UserError, match="config 'dremfusion'.*'dreamfusion'"):
    cli.check_config(['train', '--config=dremfusion'])


def test_files_import_gen3ds_configs_or_their_own(tmp_path):
  """In new processes, whose import path is that of the command gen3d."""
  (tmp_path / 'mine.py').write_text(
      'from configs import eg3d\nget_config = eg3d.tiny\n')
  other = tmp_path / 'own'
  (other / 'configs').mkdir(parents=True)
  (other / 'configs/eg3d.py').write_text(
      'import ml_collections\ntiny = ml_collections.ConfigDict\n')
  (other / 'mine.py').write_text((tmp_path / 'mine.py').read_text())
  program = ('import sys; from gen3d.engine import config_files\n'
             f'sys.path.remove({str(ROOT)!r})\n'
             'print(len(config_files.load("mine.py", "")))')
  counts = [int(subprocess.run(
      [sys.executable, '-c', program], cwd=folder, capture_output=True,
      text=True, check=True, timeout=60, env={
          **os.environ, 'PYTHONPATH': str(ROOT)}).stdout)
      for folder in (tmp_path, other)]
  assert counts[0] > 0 and counts[1] == 0


def test_description_has_every_key_the_comments_and_the_changes():
  text = config_text.describe(str(ROOT / 'configs/dreamfusion.py'))
  keys, _, changes = text.partition("\nThe variant 'csd' changes:\n")
  shapes = config_files.load(str(ROOT / 'configs/dreamfusion.py'), 'shapes')
  for key, value in config_text.flat(shapes).items():
    assert f'\n  {key} = {value!r}\n' in keys
  # Of paper(), of shapes(), of a constant.
  assert '  # view_prompts: Degrees: |azimuth| of the front view' in keys
  assert '  # Largest while thin parts become opaque.\n  guidance.scale' in keys
  assert "  # export: Of the mesh's pieces the largest alone is kept" in keys
  assert changes.startswith("\n  guidance.name = 'csd'\n\nThe variant 'sd'")


@pytest.mark.parametrize('name', config_files.names())
def test_every_config_can_be_described(name):
  path = config_files.folder() / f'{name}.py'
  assert 'steps = ' in config_text.describe(str(path))
  assert 'steps = ' in config_text.describe(str(path), 'tiny')


def test_packages_of_the_distribution():
  tool = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']
  folders = {path.parent.relative_to(ROOT).as_posix().replace('/', '.')
             for path in (ROOT / 'gen3d').rglob('__init__.py')}
  assert set(tool['setuptools']['packages']) == {
      *folders, 'gen3d.assets.configs'}


@pytest.mark.parametrize('words, sentence', [
    (['evaluate', '--what=gan', '--runs=a'],
     'The flag --runs has no effect with --what=gan; it is for '
     '--what=text_to_3d and --what=r_precision and --what=textures and '
     '--what=texture_truth.'),
    (['compare', '--what=gans', '--data=a'], '--what=representations'),
    (['benchmark', '--what=rasterizer', '--config=eg3d'], '--what=step'),
    (['sample', '--out=a', '--dtype=float32'], '--teacher=stable_diffusion'),
    (['make_data', '--out=a', '--caption=a cat', '--count=3'], '--shapes'),
    (['sweep', '--config=dreamfusion', '--workdir=a', '--run', '--count'],
     'Give one of --run, --count and --index.')])
def test_flags_of_another_mode_are_refused(words, sentence, tmp_path):
  done = gen3d(*words, cwd=tmp_path)
  assert done.returncode == 2 and not done.stdout
  assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
  assert not list(tmp_path.iterdir())
