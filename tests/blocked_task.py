"""The task of tests/toy_task.py, which stays in C in one of its functions.

BLOCKED=static:6 in the environment: in static(6), which the loop calls before
it compiles the step. The main thread then says 'blocked' on stderr and runs no
Python for two minutes, as while XLA compiles.
"""

import ctypes
import os
import signal
import sys

import toy_task


def make(config):
  name, _, first = os.environ['BLOCKED'].partition(':')
  task = toy_task.make(config)
  function = getattr(task, name)

  def blocked(*args):
    if not first or args[0] == int(first):
      print('blocked', file=sys.stderr, flush=True)
      # A signal would end the call; in XLA it does not.
      signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
      ctypes.CDLL(None).poll(None, 0, 120_000)
    return function(*args)

  return task._replace(**{name: blocked})
