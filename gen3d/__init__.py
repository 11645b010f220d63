"""gen3d: 3-D objects out of 2-D image models, in JAX and Flax."""

import os
import pathlib
import signal
import sys

__version__ = '0.1.0'

if pathlib.PurePath(*sys.argv[:1]).name == 'gen3d' or (
    sys.argv[:1] == ['-m']
    and any(word.split('.')[0] == 'gen3d' for word in sys.orig_argv)):
  # A command starts. Ctrl-C ends it without a traceback while it imports JAX,
  # which takes seconds. engine/cli.py then sets the usual handler.
  if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
  # XLA reads this when it is loaded; 1 is the value that JAX sets. XLA's errors
  # are exceptions; what it also logs as errors are remarks of several lines,
  # such as on a compilation that takes over two minutes.
  if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
