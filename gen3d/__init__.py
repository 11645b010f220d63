"""gen3d: 3-D objects out of 2-D image models, in JAX and Flax."""

import os
import pathlib
import signal
import sys

# Where a command starts, Ctrl-C ends it without a traceback while it imports
# JAX, which takes seconds. engine/cli.py then sets the usual handler.
if (pathlib.PurePath(*sys.argv[:1]).name == 'gen3d' or sys.argv[:1] == ['-m']
    and any(word.split('.')[0] == 'gen3d' for word in sys.orig_argv)) and (
        signal.getsignal(signal.SIGINT) == signal.default_int_handler):
  signal.signal(signal.SIGINT, lambda *_: os._exit(130))
