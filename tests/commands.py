"""Runs command lines of gen3d in processes that import the libraries once.

run('gen3d.train', '--config=...') is `python -m gen3d.train --config=...` as a
process of its own, forked from a server that has imported JAX and all modules
of gen3d but the commands: starting Python and importing them takes more than
three seconds of a core. The server is started by the first call and ends with
the tests; python tests/commands.py is the server.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import pathlib
import pkgutil
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).parents[1]
# The server's value is not the test's: conftest.py sets it for each test.
_OPTIMIZATIONS = 'JAX_DISABLE_MOST_OPTIMIZATIONS'


def run(module, *flags, cwd=ROOT, env=None, timeout=600):
  """The subprocess.CompletedProcess of `python -m MODULE FLAG...`.

  Args:
    module: such as 'gen3d.train'.
    flags: strings.
    cwd: folder of the process.
    env: its environment; None for that of this process.
    timeout: seconds after which it is killed and TimeoutExpired raised.
  """
  env = dict(os.environ if env is None else env)
  if _at_import(env) != _server(ROOT)[1]:
    return subprocess.run(
        [sys.executable, '-m', module, *flags], cwd=cwd, env=env,
        timeout=timeout, capture_output=True, text=True)
  done, _ = measured(module, *flags, cwd=cwd, env=env, timeout=timeout)
  if done.returncode == -signal.SIGALRM:
    raise subprocess.TimeoutExpired(done.args, timeout, done.stderr)
  return done


def measured(module, *flags, cwd, env, timeout, limits=None, root=ROOT):
  """(CompletedProcess, MB of memory at most) of `python -m MODULE FLAG...`.

  Args:
    module, flags, cwd: see `run`.
    env: its environment, whose variables of JAX are those of this process.
    timeout: seconds after which SIGALRM ends it.
    limits: (seconds of the processor, after which SIGXCPU ends it; bytes that
      it may allocate, beyond which it gets a MemoryError), or None.
    root: folder with the package gen3d.
  """
  command = [sys.executable, '-m', module, *flags]
  server, _ = _server(root)
  with tempfile.NamedTemporaryFile() as out, \
      tempfile.NamedTemporaryFile() as err:
    json.dump([module, flags, str(cwd), env, timeout, limits, out.name,
               err.name], server.stdin)
    server.stdin.write('\n')
    server.stdin.flush()
    status, kilobytes = map(int, server.stdout.readline().split())
    return subprocess.CompletedProcess(
        command, status, out.read().decode(errors='replace'),
        err.read().decode(errors='replace')), kilobytes >> 10


@functools.cache
def _server(root):
  """(process, variables that it was started with)."""
  env = {**os.environ, 'PYTHONPATH': str(root)}
  process = subprocess.Popen(
      [sys.executable, __file__], cwd=root, env=env, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  return process, _at_import(env)


def _at_import(env):
  """Variables that the libraries read when they are imported."""
  return {name: sorted(value.split()) for name, value in env.items()
          if name.startswith(('JAX_', 'XLA_')) and name != _OPTIMIZATIONS}


def serve():
  """Forks a process for each line of stdin; prints status and kilobytes."""
  import gen3d
  for package in pkgutil.walk_packages(gen3d.__path__, 'gen3d.'):
    if package.name.count('.') > 1:  # Not the commands, which define flags.
      importlib.import_module(package.name)
  assert threading.active_count() == 1, 'a fork would lose threads'
  gc.freeze()  # Not a part of each child's last collection.
  # No readline: a child must not have lines that are for the server.
  while line := _line():
    child = os.fork()
    if not child:
      os.setpgid(0, 0)
      _become(*json.loads(line))
      return
    _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(OSError):  # What it has started and left.
      os.killpg(child, signal.SIGKILL)
    os.write(1, f'{os.waitstatus_to_exitcode(status)} '
                f'{usage.ru_maxrss}\n'.encode())


def _line():
  line = b''
  while not line.endswith(b'\n'):
    part = os.read(0, 1)
    if not part:
      return b''
    line += part
  return line


def _become(module, flags, cwd, env, timeout, limits, out, err):
  """Turns a fork of the server into `python -m MODULE FLAG...`."""
  signal.alarm(timeout)
  if limits is not None:
    for kind, limit in zip((resource.RLIMIT_CPU, resource.RLIMIT_DATA), limits,
                           strict=True):
      resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  for number, path in enumerate((os.devnull, out, err)):
    os.dup2(os.open(path, os.O_RDWR), number)
  os.chdir(cwd)
  os.environ.clear()
  os.environ.update(env)
  path = env.get('PYTHONPATH', '').split(os.pathsep)
  sys.path[:1] = [cwd, *filter(None, path)]
  import jax
  jax.config.update('jax_disable_most_optimizations',
                    env.get(_OPTIMIZATIONS) == '1')
  sys.argv = [module, *flags]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  serve()
