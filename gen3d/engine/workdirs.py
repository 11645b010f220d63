"""The workdir of a run: its lock, its config and whether a run may use it."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Generator, Iterable

import jax
import ml_collections
from jax.experimental import multihost_utils

from gen3d import files, legacy, notices
from gen3d.choices import UserError, printable
from gen3d.engine import locks
from gen3d.engine.checkpoints import latest

# Config keys that may differ when a run is resumed: its length and its
# reports. 'version' is that of gen3d, and checked apart.
_MAY_CHANGE = ('steps', 'log_every', 'eval_every', 'checkpoint_every',
               'checkpoint_minutes', 'keep_checkpoints', 'progress',
               'throughput_unit', 'version')


def check(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> None:
  """Checks that a run of a config can use a workdir; changes nothing.

  Raises:
    UserError: the number of steps, or of the steps between two reports, is
      negative, the workdir cannot be written,
      or it has checkpoints of another config or of another version of gen3d.
  """
  if config.steps < 0:
    raise UserError(f'config.steps is {config.steps}; give a number from 0 on.')
  if config.log_every < 1:
    raise UserError(f'--config.log_every is {config.log_every}; give the steps '
                    'between two lines of scalars.jsonl, 1 or more.')
  for key, least in (('keep_checkpoints', 1), ('checkpoint_every', 0),
                     ('eval_every', 0)):
    if key in config and config[key] < least:
      raise UserError(f'--config.{key} is {config[key]}; it must be at least '
                      f'{least}.')
  workdir = pathlib.Path(workdir).absolute()
  parent = files.nearest_present(workdir)
  if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
    raise UserError(f'The workdir {workdir} cannot be written, because '
                    f'{parent} is not a directory that you can write to.')
  stored = workdir / 'config.json'
  if not latest(workdir):
    return  # Without a checkpoint, no training time is lost.
  if not stored.exists():
    raise UserError(f'The workdir {workdir} holds checkpoints but no '
                    f'config.json; choose another workdir.')
  before = files.read_json(stored, remedy='choose another workdir', nan=True)
  version = before.get('version', 1)
  if version != legacy.VERSION:
    raise UserError(legacy.incompatible(workdir, version))
  differ = _differences(before, _values(config, before.get('steps')))
  if differ:
    raise UserError(
        f'The workdir {workdir} holds a run of another config, which differs '
        f'in {", ".join(differ)}; choose another workdir, or delete it.')


def lock(workdir: pathlib.Path, stack: contextlib.ExitStack) -> None:
  """Creates a workdir; process 0 locks it until the ExitStack ends.

  Raises:
    UserError: it cannot be written, or another run has locked it.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      stack.enter_context(locks.hold(workdir))
  except OSError as error:
    raise UserError(f'The workdir {workdir} cannot be written '
                    f'({error.filename or workdir}: {error.strerror}); choose '
                    'another workdir.') from error


def write_config(
    config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Writes config.json into the workdir, on process 0; waits for it on all.

  Raises:
    UserError: the workdir cannot be written.
  """
  try:
    with tempfile.TemporaryFile(dir=workdir):
      pass
    if jax.process_index() == 0:
      content = json.loads(config.to_json_best_effort())
      content['version'] = legacy.VERSION
      _tell_of_other_steps(workdir, config.steps)
      files.write_bytes(workdir / 'config.json',
                        (json.dumps(content, indent=2) + '\n').encode())
  except OSError as error:
    raise UserError(f'The workdir {workdir} cannot be written '
                    f'({error.strerror}).') from error
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('workdir')


@contextlib.contextmanager
def discarded_on_error(workdir: pathlib.Path, new: bool) -> Generator[None]:
  """Removes a `new` workdir where nothing was trained, on an error.

  So a run that cannot begin, for instance because of damaged weights, leaves
  no workdir behind.
  """
  try:
    yield
  except Exception:
    if new and jax.process_index() == 0 and not latest(workdir):
      with contextlib.suppress(OSError):  # Other files are in the way.
        for name in ('config.json', '.lock'):
          (workdir / name).unlink(missing_ok=True)
        for folder in (workdir / 'checkpoints', workdir):
          if folder.is_dir():
            folder.rmdir()
    raise


def _tell_of_other_steps(workdir, steps):
  """A message where a run with checkpoints goes on to another last step."""
  stored = workdir / 'config.json'
  before = (files.read_json(stored, nan=True).get('steps', steps)
            if latest(workdir) and stored.exists() else steps)
  if before != steps:
    notices.message(
        f'The run began with {before} steps and goes on to {steps}: schedules '
        f'that are fractions of the steps now follow {steps}.')


def _values(config, steps):
  """The values of a config if it had so many steps, which others follow."""
  present = config.steps
  try:
    if isinstance(steps, int):
      config.steps = steps
    return json.loads(config.to_json_best_effort())
  finally:
    config.steps = present


def _differences(before, now, prefix=''):
  """Returns the dotted keys in which two configs differ, as 'key (a, b)'."""
  differ = []
  for key in sorted(set(before) | set(now)):
    a, b = before.get(key), now.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      differ += _differences(a, b, f'{prefix}{key}.')
    elif a != b and (prefix or key not in _MAY_CHANGE):
      differ.append(f'{prefix}{key} ({_short(a)} there, {_short(b)} here)')
  return differ


def _short(value):
  """A config's value as JSON, in at most 80 characters."""
  return printable(json.dumps(value), 80)


def runs_in(paths: Iterable[str | os.PathLike]) -> list[pathlib.Path]:
  """The paths, with the runs in a folder of runs in its place.

  A folder of runs has no config.json, but some of its folders have one.
  """
  found = []
  for path in map(pathlib.Path, paths):
    inside = sorted(file.parent for file in path.glob('*/config.json'))
    found += [path] if (path / 'config.json').is_file() else inside or [path]
  return found
