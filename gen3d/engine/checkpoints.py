"""Checkpoints of a run (Orbax) and shipped weights (safetensors).

Both carry a SHA-256 of what they hold, so that damage is noticed when they are
read and not as a strange result later.
"""

import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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
    self._manager.save(int(sharding.local(state.step)), args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)))

  def restore(self, state, mesh, step=None):
    """Returns `state` with everything but its frozen weights read from disk.

    Args:
      state: TrainState of the right shapes, such as a task's init makes.
      mesh: from sharding.chips; the result is replicated over it.
      step: which checkpoint; None: the newest.

    Raises:
      ValueError: where the checkpoint is damaged or of another model, or its
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
      raise ValueError(self._damaged(step, steps, error)) from error
    if _digest(found.state) != found.meta['sha256']:
      raise ValueError(self._damaged(step, steps, 'its SHA-256 differs'))
    inside = int(sharding.local(found.state['step']))
    if inside != step:
      remedy = ('delete that directory' if inside in steps else
                f'rename that directory to {inside}, or delete it')
      raise ValueError(f'Checkpoint {self.path / str(step)} holds step '
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
    ValueError: where it is damaged, or of another step than its name says.
  """
  path = pathlib.Path(workdir) / 'checkpoints'
  if not path.is_dir():
    raise FileNotFoundError(f'There is no checkpoint in {workdir}.')
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    mesh = jax.make_mesh((1,), (sharding.CHIPS,), devices=jax.devices()[:1],
                         axis_types=(jax.sharding.AxisType.Auto,))
    return sharding.local(checkpoints.restore(state, mesh, step))
  finally:
    checkpoints.close()


def load_config(workdir):
  """Returns the ConfigDict of the run in a workdir.

  Raises:
    ValueError: where there is no run or its config.json is damaged.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise ValueError(
        f'There is no run in {workdir}: it has no config.json; give the '
        '--workdir that gen3d.train was given.')
  try:
    return ml_collections.ConfigDict(_tuples(json.loads(path.read_text())))
  except ValueError as error:
    raise ValueError(f'{path} is damaged, so the run cannot be read.'
                     ) from error


def save_asset(path, tree, record, dtype='float32'):
  """Writes weights that ship: one safetensors file and a json beside it.

  Args:
    path: where to, ending in .safetensors.
    tree: nested dict of arrays; tensors are named 'a/b/c'.
    record: dict for the json: how the weights came to be. Their sha256 and
      number are added.
    dtype: 'float32' or 'float16', of the floating tensors on disk.

  Returns:
    The two paths.
  """
  path = pathlib.Path(path)
  tensors = {name: _stored(x, dtype) for name, x in _flatten(tree).items()}
  content = safetensors.numpy.save(tensors)
  record = {**record, 'dtype': dtype,
            'parameters': int(sum(x.size for x in tensors.values())),
            'sha256': hashlib.sha256(content).hexdigest()}
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_suffix('.json')
  write_whole(path, content)
  text = json.dumps(record, indent=2, default=float) + '\n'
  write_whole(beside, text.encode())
  return path, beside


def load_asset(path):
  """Reads what `save_asset` wrote; returns (nested dict of arrays, record).

  Floating tensors come as float32, the record's config with tuples.

  Raises:
    ValueError: where the file is missing or not what its json says.
  """
  path = pathlib.Path(path)
  beside = path.with_suffix('.json')
  for file in (path, beside):
    if not file.is_file():
      raise ValueError(f'The weights file {file} is missing; get it again.')
  content = path.read_bytes()
  try:
    record = _tuples(json.loads(beside.read_text()))
    wanted = record['sha256']
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{beside} is damaged; get it again.') from error
  if hashlib.sha256(content).hexdigest() != wanted:
    raise ValueError(
        f'The weights file {path} is truncated or damaged: its SHA-256 is not '
        f'the one in {beside.name}; get it again.')
  tree = {}
  for name, x in safetensors.numpy.load(content).items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    floating = np.issubdtype(x.dtype, np.floating)
    node[last] = x.astype(np.float32) if floating else x
  return tree, record


def write_whole(path, content):
  """Writes bytes to a file that is then there whole or not at all."""
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.part')
  partial.write_bytes(content)
  os.replace(partial, path)


def _tuples(node):
  """JSON has no tuples, and configs have no lists."""
  if isinstance(node, dict):
    return {key: _tuples(value) for key, value in node.items()}
  return tuple(map(_tuples, node)) if isinstance(node, list) else node


def _stored(x, dtype):
  x = np.asarray(x)
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  return np.asarray(x.astype(dtype) if floating else x, order='C')


def _flatten(tree, prefix=''):
  flat = {}
  for name, node in tree.items():
    if '/' in name:
      raise ValueError(f"The tensor name {name!r} contains a '/'.")
    if hasattr(node, 'items'):
      flat.update(_flatten(node, f'{prefix}{name}/'))
    else:
      flat[prefix + name] = node
  return flat


def _digest(tree):
  digest = hashlib.sha256()
  leaves, _ = jax.tree_util.tree_flatten_with_path(sharding.local(tree))
  for path, leaf in leaves:
    x = np.asarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
  return digest.hexdigest()
