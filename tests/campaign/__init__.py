"""Faults that gen3d must survive, made from a seed.

python -m tests.campaign --seed=0 --parts=mutants,hostile --out=DIR

Each trial runs in a process of its own with limits on time and memory, and has
one of the outcomes of outcomes.KINDS. A second start with the same folder goes
on where the first one ended. The parts:

  mutants      small right files of every kind, one of them damaged
  hostile      files that were made to harm, and prompts
  kill, term   a training that is killed or asked to end, then resumed
  concurrency  two trainings in one workdir
  disk         a training on a disk that is full, or with a limit on files
  procs        a training of two or three processes, of which one dies

inputs.py makes a table of what is said of given files; README.md has results.
"""

import pathlib
import sys

# Tests import their helpers by the names of the files.
TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(TESTS), str(TESTS.parent))
                if path not in sys.path]
