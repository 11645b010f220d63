"""Runs tests/toy_task.py in a process of its own, for the engine's tests.

python tests/toy_run.py WORKDIR OUT '{"steps": 20}': trains in WORKDIR and
writes the last state's arrays to OUT, an .npz.
"""

import json
import sys

import jax
import numpy as np
import toy_config
import toy_task

from gen3d.engine import devices, loop


def leaves(state):
  """Returns {path: array} of a state's parameters, moments and average."""
  paths, _ = jax.tree_util.tree_flatten_with_path(state)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in paths}


def main(workdir, out, overrides):
  devices.use_all_cores()
  devices.initialize_distributed()
  config = toy_config.get_config()
  config.update(json.loads(overrides))
  state, _ = loop.run(toy_task.make(config), config, workdir)
  np.savez(out, devices=jax.device_count(), **leaves(state))


if __name__ == '__main__':
  main(*sys.argv[1:])
