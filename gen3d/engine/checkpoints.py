"""Checkpoints of a run, written by Orbax.

Each carries a SHA-256 of its content, so that damage is reported when it is
read instead of showing as a wrong result later.
"""

import hashlib
import json
import pathlib

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gen3d import files, legacy
from gen3d.choices import UserError
from gen3d.engine import sharding
from gen3d.engine.state import copy, to_save


class Checkpoints:
  """The checkpoints in workdir/checkpoints, saved in the background.

  All processes of a run make one and call it alike. A checkpoint appears
  whole or not at all.
  """

  def __init__(self, workdir, keep=2, read_only=False):
    """Opens workdir/checkpoints; keeps the newest `keep` checkpoints."""
    self.path = pathlib.Path(workdir).absolute() / 'checkpoints'
    verbosity = logging.get_verbosity()
    if read_only:  # Orbax warns that it will not write.
      logging.set_verbosity(logging.ERROR)
    try:
      options = ocp.CheckpointManagerOptions(
          max_to_keep=None if read_only else keep, read_only=read_only,
          cleanup_tmp_directories=not read_only,
          enable_async_checkpointing=True)
      self._manager = ocp.CheckpointManager(self.path, options=options)
    finally:
      logging.set_verbosity(verbosity)

  def save(self, state):
    """Begins to save a TrainState, without state.frozen."""
    # A copy: the next step reuses the state's own buffers.
    tree = copy(to_save(state))
    meta = {'sha256': _digest(tree)}
    self._manager.save(int(sharding.unreplicate(state.step)), args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)))

  def restore(self, state, mesh, step=None):
    """Returns `state` with everything but its frozen weights read from disk.

    Args:
      state: TrainState of the right shapes, such as a task's init makes.
      mesh: from sharding.device_mesh; the result is replicated over it.
      step: which checkpoint; None: the newest.

    Raises:
      UserError: where the checkpoint is damaged or of another model, or its
        state is of another step than its directory's name says.
      FileNotFoundError: where there is none.
    """
    steps = sorted(self._manager.all_steps())
    step = steps[-1] if step is None and steps else step
    if step not in steps:
      wanted = 'no checkpoint' if step is None else f'no checkpoint {step}'
      raise FileNotFoundError(
          f'There is {wanted} in {self.path}; there are {steps}.')
    place = NamedSharding(mesh, P())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        to_save(state))
    try:
      found = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(like),
          meta=ocp.args.JsonRestore()))
    except Exception as error:  # Orbax raises many kinds for one damage.
      raise UserError(self._damaged(step, steps, error)) from error
    if _digest(found.state) != found.meta['sha256']:
      raise UserError(self._damaged(step, steps, 'its SHA-256 differs'))
    inside = int(sharding.unreplicate(found.state['step']))
    if inside != step:
      remedy = ('delete that directory' if inside in steps else
                f'rename that directory to {inside}, or delete it')
      raise UserError(f'Checkpoint {self.path / str(step)} holds step '
                      f'{inside}, not step {step} as its name says; {remedy}.')
    return state.replace(
        frozen=sharding.replicate(state.frozen, mesh, share=True),
        **found.state)

  def wait(self):
    """Returns when the save under way, if any, is on disk."""
    self._manager.wait_until_finished()

  def close(self):
    """Waits and lets go of the directory."""
    self._manager.close()

  def _damaged(self, step, steps, reason):
    reason = ' '.join(str(reason).split())[:200]
    before = [s for s in steps if s < step]
    advice = (f'delete that directory to go on from step {before[-1]}'
              if before else 'start again in another workdir')
    return (f'Checkpoint {self.path / str(step)} is damaged or of another '
            f'model; {advice} ({reason}).')


def latest(workdir):
  """Returns the step of the newest checkpoint in a workdir, or 0."""
  names = [p.name for p in pathlib.Path(workdir).glob('checkpoints/*')]
  return max([int(name) for name in names if name.isdigit()], default=0)


def load(workdir, state, step=None):
  """Returns a TrainState read from a run's checkpoint, on one device.

  Args:
    workdir: the run's directory.
    state: TrainState of the right shapes, such as a task's init makes.
    step: which checkpoint; None: the newest.

  Raises:
    FileNotFoundError: where there is none.
    UserError: where it is damaged, or of another step than its name says.
  """
  path = pathlib.Path(workdir) / 'checkpoints'
  if not path.is_dir():
    raise FileNotFoundError(f'There is no checkpoint in {workdir}.')
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    mesh = jax.make_mesh((1,), (sharding.AXIS,), devices=jax.devices()[:1],
                         axis_types=(jax.sharding.AxisType.Auto,))
    return sharding.unreplicate(checkpoints.restore(state, mesh, step))
  finally:
    checkpoints.close()


def load_config(workdir):
  """Returns the ConfigDict of the run in a workdir.

  Raises:
    UserError: where there is no run or its config.json is damaged.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise UserError(
        f'There is no run in {workdir}: it has no config.json; give the '
        '--workdir that gen3d.train was given.')
  try:
    content = files.to_tuples(json.loads(path.read_text()))
    return ml_collections.ConfigDict(legacy.upgrade(content))
  except (ValueError, AttributeError) as error:
    raise UserError(f'{path} is damaged, so the run cannot be read.'
                    ) from error


def _digest(tree):
  digest = hashlib.sha256()
  leaves, _ = jax.tree_util.tree_flatten_with_path(sharding.unreplicate(tree))
  for path, leaf in leaves:
    x = np.asarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
  return digest.hexdigest()
