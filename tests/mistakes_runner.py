"""Runs command lines of gen3d in processes that import the libraries once.

python tests/mistakes_runner.py: reads a JSON list of argument lists from stdin
and prints a JSON list of [exit status, what was printed].
"""

import json
import os
import runpy
import sys
import traceback

import flax  # noqa: F401
import jax  # noqa: F401
import ml_collections  # noqa: F401
import optax  # noqa: F401
import trimesh  # noqa: F401


def run(arguments):
  """(exit status, stdout and stderr) of `gen3d ARGUMENT...`."""
  read, write = os.pipe()
  child = os.fork()  # Before JAX starts its threads.
  if not child:
    os.dup2(write, 1)
    os.dup2(write, 2)
    sys.argv, status = ['gen3d', *arguments], 0
    try:
      runpy.run_module('gen3d', run_name='__main__', alter_sys=True)
    except SystemExit as end:
      status = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
      traceback.print_exc()
      status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  os.close(write)
  with os.fdopen(read, encoding='utf-8', errors='replace') as file:
    text = file.read()
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


if __name__ == '__main__':
  print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))
