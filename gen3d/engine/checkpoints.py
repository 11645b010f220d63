"""Checkpoints of a run, written by Orbax.

Each holds the SHA-256 of every array, so that damage is reported when the
checkpoint is read instead of appearing as a wrong result later.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen3d import files, legacy, schemas
from gen3d.choices import UserError, excerpt
from gen3d.engine import sharding, storage
from gen3d.engine.state import TrainState, copy, to_save
from gen3d.engine.stopping import AtOnce

# Longest waits for a save in progress, after an error and after one of writing.
_CLOSE_SECONDS, _CLOSE_SECONDS_UNWRITABLE = 30.0, 7.0


class Checkpoints:
  """The checkpoints in workdir/checkpoints, saved in the background.

  All processes of a run make one such object and call it alike. A checkpoint
  appears complete or not at all. As a context it waits, when it ends, for the
  save in progress.
  """

  def __init__(
      self, workdir: str | os.PathLike, keep: int = 2,
      read_only: bool = False):
    """Opens workdir/checkpoints; keeps the newest `keep` checkpoints.

    Raises:
      UserError: the metadata of a checkpoint are damaged.
    """
    self.path = pathlib.Path(workdir).absolute() / 'checkpoints'
    verbosity = logging.get_verbosity()
    if read_only:  # Orbax warns that it will not write.
      logging.set_verbosity(logging.ERROR)
    self._saving = threading.RLock()
    self._last = -1
    self._hook = None if read_only else sys.unraisablehook
    if not read_only:
      _hide_reports()
    try:
      options = ocp.CheckpointManagerOptions(
          max_to_keep=None if read_only else keep, read_only=read_only,
          cleanup_tmp_directories=not read_only,
          enable_async_checkpointing=True)
      self._manager = ocp.CheckpointManager(self.path, options=options)
    except (RecursionError, TypeError, ValueError) as error:
      # Orbax reads the metadata of all checkpoints.
      for file in self.path.glob('*/_CHECKPOINT_METADATA'):
        files.read_json(file, remedy=f'delete {file.parent}')
      raise UserError(f'{self.path} cannot be opened ({excerpt(error)}); '
                      'choose another workdir.') from error
    finally:
      logging.set_verbosity(verbosity)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type[BaseException] | None,
               error: BaseException | None, trace: TracebackType | None):
    if error is None:
      self.close()
    elif isinstance(error, (UserError, OSError)) and not isinstance(
        error, AtOnce):
      # A save may be in progress. It may also never end.
      closing = threading.Thread(target=self._try_to_close, daemon=True)
      closing.start()
      closing.join(_CLOSE_SECONDS if isinstance(error, UserError) else
                   _CLOSE_SECONDS_UNWRITABLE)

  def _try_to_close(self):
    with contextlib.suppress(Exception):  # An error came before.
      self.close()

  def save(self, state: TrainState) -> None:
    """Begins to save a TrainState, without state.frozen.

    Raises:
      OSError: this or the save before cannot be written.
    """
    with self._saving, self._writing():
      step = int(sharding.unreplicate(state.step))
      if step != self._last:
        self._save(step, state)
      self._last = step

  def _save(self, step: int, state: TrainState):
    tree = to_save(state)
    if jax.process_count() == 1:
      # Of the arrays on several devices, Orbax would take a slice from each,
      # by a program for every shape.
      tree = sharding.unreplicate(tree)
    # A copy, because the next step reuses the state's own buffers.
    tree = copy(tree)
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      size = sum(x.nbytes for x in jax.tree.leaves(tree))
      storage.check_room(self.path, size)
    leaves = _digests(tree)
    meta = {'sha256': _total(leaves), 'leaves': leaves}
    self._manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)))

  def restore(
      self, state: TrainState, mesh: Mesh, step: int | None = None
  ) -> TrainState:
    """Returns `state` with everything but its frozen weights read from disk.

    Args:
      state: TrainState of the right shapes, such as a task's init makes.
      mesh: from sharding.device_mesh; the result is replicated over it.
      step: number of the checkpoint; None for the newest.

    Raises:
      UserError: the checkpoint is damaged, of another model or of version 1,
        or its state is of another step than that of its directory's name.
      FileNotFoundError: there is no such checkpoint.
    """
    steps = sorted(self._manager.all_steps())
    step = _choose(self.path, steps, step)
    place = NamedSharding(mesh, P())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        to_save(state))
    try:
      meta = _read_meta(self.path / str(step))
      tree = self._restore(step, like) if 'leaves' in meta else None
    except Exception as error:  # Orbax raises many kinds for one damage.
      raise UserError(_damaged(self.path, step, steps, error)) from error
    if tree is None:
      raise UserError(legacy.incompatible(self.path.parent, 1))
    if _total(_digests(tree)) != meta['sha256']:
      raise UserError(
          _damaged(self.path, step, steps, 'its SHA-256 differs'))
    _check_step(self.path, step, steps, sharding.unreplicate(tree['step']))
    return state.replace(
        frozen=sharding.replicate(state.frozen, mesh, may_alias=True), **tree)

  def _restore(self, step: int, like: Any) -> Any:
    """Reads the state of a checkpoint, a tree like `like`."""
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_ignore_late_arrays, hook)
    result = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like)))['state']
    # Not after an error, since arrays arrive until the process ends.
    sys.unraisablehook = hook
    return result

  def wait(self) -> None:
    """Returns when the save in progress, if any, is on disk.

    Raises:
      OSError: it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self):
    """Turns what Orbax raises where it cannot write into an OSError."""
    try:
      yield
    except Exception as error:
      unwritable = storage.os_error(error, self.path)
      if unwritable is None or unwritable is error:
        raise
      raise unwritable from error

  def close(self) -> None:
    """Waits for the save in progress and closes the directory.

    Raises:
      OSError: the save cannot be written.
    """
    with self._writing():
      self._manager.close()
    if self._hook is not None:
      sys.unraisablehook = self._hook


def latest(workdir: str | os.PathLike) -> int:
  """Returns the step of the newest checkpoint in a workdir, or 0."""
  return max(_steps(pathlib.Path(workdir) / 'checkpoints'), default=0)


def load(
    workdir: str | os.PathLike, state: TrainState, step: int | None = None
) -> TrainState:
  """Returns a TrainState read from a run's checkpoint, on one device.

  Args:
    workdir: the run's directory.
    state: TrainState of the right shapes, such as a task's init makes.
    step: number of the checkpoint; None for the newest.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    UserError: it is damaged, of another model or of version 1, or of another
      step than that of its name.
  """
  path = pathlib.Path(workdir) / 'checkpoints'
  if not path.is_dir():
    raise FileNotFoundError(f'There is no checkpoint in {workdir}.')
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    mesh = sharding.mesh_of(jax.devices()[:1])
    return sharding.unreplicate(checkpoints.restore(state, mesh, step))
  finally:
    checkpoints.close()


def load_tree(
    workdir: str | os.PathLike, subtree: str, step: int | None = None) -> Any:
  """Reads a part of a checkpoint without a TrainState of its shapes.

  Only the arrays of the part are read. Each of them is verified against its
  own SHA-256 in the checkpoint. Checkpoints of version 1 have one SHA-256 for
  the whole state, which a part cannot be verified against; they are read
  unverified.

  Args:
    workdir: the run's directory.
    subtree: path in the state, such as 'params/scene' or 'ema'.
    step: number of the checkpoint; None for the newest.

  Returns:
    Nested dicts of NumPy arrays; lists stand for tuples and lists, and dicts
    for NamedTuples and dataclasses.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    UserError: it is damaged, has no such part, or is of another step than that
      of its name.
  """
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  if not path.is_dir():
    raise FileNotFoundError(f'There is no checkpoint in {workdir}.')
  steps = _steps(path)
  step = _choose(path, steps, step)
  keys = subtree.split('/')
  try:
    meta = _read_meta(path / str(step))
    tree = _read(path / str(step) / 'state', keys)
  except LookupError as error:
    raise UserError(
        f'Checkpoint {path / str(step)} has no {subtree!r}: it is of another '
        'model; give the workdir of another run.') from error
  except Exception as error:  # Orbax raises many kinds for one damage.
    raise UserError(_damaged(path, step, steps, error)) from error
  expected = meta.get('leaves')
  for name, digest in _digests(tree).items():
    if expected is not None and expected.get(name) != digest:
      raise UserError(
          _damaged(path, step, steps, f'the SHA-256 of {name} differs'))
  _check_step(path, step, steps, tree['step'])
  for key in keys:
    tree = tree[key]
  return tree


def load_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns the ConfigDict of the run in a workdir.

  Keys of earlier versions have their present names.

  Raises:
    UserError: there is no run, or its config.json is damaged.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise UserError(
        f'There is no run in {workdir}: it has no config.json; give the '
        '--workdir that gen3d.train was given.')
  content = files.to_tuples(files.read_json(
      path, {'task': schemas.TEXT, 'version': schemas.whole(1, 1000)},
      remedy='without it the run cannot be read', nan=True))
  version = content.pop('version', 1)
  return ml_collections.ConfigDict(legacy.upgrade(content, version))


def _read_meta(path: pathlib.Path) -> dict[str, Any]:
  """Returns the SHA-256 of a checkpoint and of its leaves.

  Version 1 has no leaves.

  Raises:
    UserError: its record is damaged, or one of its files is a pipe or a device,
      which Orbax would read without end.
  """
  for part in path.rglob('*'):
    files.check_regular(part)
  file = path / 'meta' / 'metadata'
  meta = files.read_json(file, {'leaves': schemas.MAPPING})
  schemas.check(file, meta, {'sha256': schemas.TEXT}, required=True)
  return meta


def _read(folder: pathlib.Path, keys: list[str]) -> dict[str, Any]:
  """Reads 'step' and the arrays below the nested `keys` of a saved state."""
  checkpointer = ocp.PyTreeCheckpointer()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # It warns about optional metadata.
  try:
    saved: Any = checkpointer.metadata(folder).item_metadata
    if saved is None:
      raise ValueError('its metadata cannot be read')
    saved = saved.tree
    node: Any = saved
    for key in keys:
      if not isinstance(node, Mapping):
        raise LookupError(key)
      node = node[key]
    like = functools.reduce(lambda x, key: {key: x}, reversed(keys), node)
    like['step'] = saved['step']
    # As NumPy arrays, not with the sharding of the devices that saved them.
    arguments = jax.tree.map(
        lambda x: ocp.RestoreArgs(restore_type=np.ndarray), like)
    return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(
        like, restore_args=arguments, partial_restore=True))
  finally:
    logging.set_verbosity(verbosity)
    checkpointer.close()


def _hide_reports():
  """Hides what Orbax and TensorStore print beside what they raise."""
  logging.get_absl_logger().addFilter(_is_not_of_orbax)
  sys.unraisablehook = functools.partial(
      _ignore_late_arrays, sys.unraisablehook)


def _is_not_of_orbax(record):
  return f'{os.sep}orbax{os.sep}' not in record.pathname


def _ignore_late_arrays(hook, unraisable):
  """A sys.unraisablehook for checkpoints; the other errors go to `hook`.

  Orbax ends its event loop at the first array that cannot be read or written.
  TensorStore then has no caller for each of the other arrays, and would print
  a traceback, until the process ends.
  """
  if str(unraisable.exc_value) != 'Event loop is closed':
    hook(unraisable)


def _steps(path):
  names = [p.name for p in path.glob('*')]
  return sorted(int(name) for name in names if name.isdigit())


def _choose(path: pathlib.Path, steps: list[int], step: int | None) -> int:
  """Returns the step to read, one of `steps`: `step`, or the newest."""
  if step is None and steps:
    return steps[-1]
  if step is None or step not in steps:
    missing = 'no checkpoint' if step is None else f'no checkpoint {step}'
    raise FileNotFoundError(
        f'There is {missing} in {path}; there are {steps}.')
  return step


def _check_step(path, step, steps, saved):
  """Raises UserError where a state is not of its directory's step."""
  saved = int(saved)
  if saved != step:
    remedy = ('delete that directory' if saved in steps else
              f'rename that directory to {saved}, or delete it')
    raise UserError(f'Checkpoint {path / str(step)} holds step {saved}, not '
                    f'step {step} as its name says; {remedy}.')


def _damaged(path, step, steps, reason):
  """Returns the error message for a checkpoint that cannot be read."""
  reason = ' '.join(str(reason).split())[:200]
  earlier = [s for s in steps if s < step]
  advice = (f'delete that directory to go on from step {earlier[-1]}'
            if earlier else 'start again in another workdir')
  return (f'Checkpoint {path / str(step)} is damaged or of another model; '
          f'{advice} ({reason}).')


def _digests(tree):
  """Returns {path: SHA-256} of a tree's arrays, with dtype and shape."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(sharding.unreplicate(tree))
  digests = {}
  for path, leaf in leaves:
    x = np.asarray(leaf)
    digest = hashlib.sha256(f'{x.dtype} {x.shape}'.encode())
    digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    # The same name for a field of a NamedTuple and for a key of the dict that
    # it is read as.
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    digests[name] = digest.hexdigest()
  return digests


def _total(digests):
  lines = '\n'.join(f'{name} {x}' for name, x in sorted(digests.items()))
  return hashlib.sha256(lines.encode()).hexdigest()
