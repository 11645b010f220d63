"""Steps of a task outside of the loop, for tests of devices and resumption."""

import jax
import numpy as np

from gen3d.engine import checkpoints, sharding


def devices(count):
  """A mesh of the first `count` devices."""
  return jax.make_mesh((count,), ('devices',), devices=jax.devices()[:count])


def start(task, mesh):
  """The TrainState at step 0 on each device."""
  return sharding.replicate(task.init(jax.random.key(0)), mesh)


def run(task, step, mesh, state, count):
  """(state, metrics) after `count` steps of the compiled step."""
  for _, batch in zip(range(count), task.batches(0, 0)):
    state, metrics = step(state, sharding.to_devices(batch, mesh),
                          sharding.replicate(jax.random.key(1), mesh))
  return state, jax.device_get(metrics)


def assert_resumption_is_exact(task, step, mesh, folder):
  """Asserts that 2 + 2 steps equal 2 steps, a checkpoint and 2 steps."""
  state, _ = run(task, step, mesh, start(task, mesh), 2)
  saving = checkpoints.Checkpoints(folder)
  saving.save(state)
  saving.wait()
  state, _ = run(task, step, mesh, state, 2)
  resumed, _ = run(
      task, step, mesh, saving.restore(start(task, mesh), mesh, 2), 2)
  saving.close()
  for a, b in zip(jax.tree.leaves(jax.device_get(state.replace(frozen=None))),
                  jax.tree.leaves(jax.device_get(
                      resumed.replace(frozen=None))), strict=True):
    np.testing.assert_array_equal(a, b)
