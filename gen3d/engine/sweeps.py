"""One config, many runs: the command lines of its sweep()."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence

from gen3d import notices
from gen3d.choices import UserError
from gen3d.engine import cli, config_files, stopping


def commands(
    path: str, workdir: str | os.PathLike, common: Sequence[str] = (),
    prompts: str | os.PathLike | None = None) -> list[list[str]]:
  """Returns the command lines of a sweep.

  Args:
    path: FILE.py or FILE.py:VARIANT with `sweep()`, which gives dicts of
      {dotted config key: value}.
    workdir: directory; run 3 gets workdir/003_KEY=VALUE,...
    common: '--config.KEY=VALUE' flags for all.
    prompts: file with a prompt a line, in place of `sweep()`; its runs have
      workdirs that are named after the prompts.

  Raises:
    UserError: there is no sweep or prompt, or a key is unknown.
  """
  if prompts:
    if 'prompt' not in cli.check_config(['', f'--config={path}']):
      raise UserError(f'The config {path} has no prompt; --prompts is for '
                      'those of text to 3-D, such as dreamfusion.')
    runs = {folder_name(x): {'prompt': x} for x in read_prompts(prompts)}
  else:
    sweep = config_files.execute(
        config_files.resolve(path).partition(':')[0]).get('sweep')
    if sweep is None:
      raise UserError(f'The config {path} has no sweep().')
    runs = {_numbered(*run): run[1] for run in enumerate(sweep())}
  lines = []
  for name, overrides in runs.items():
    own = [f'--config.{key}={value}' for key, value in overrides.items()]
    # The overrides stand last, because the last of equal flags applies.
    line = [sys.executable, '-m', 'gen3d.train', f'--config={path}', *common,
            *own, f'--workdir={pathlib.Path(workdir) / name}']
    cli.check_config(line)
    lines.append(line)
  return lines


def read_prompts(path: str | os.PathLike) -> list[str]:
  """Returns the prompts of a file: one a line, without those that repeat.

  Empty lines and lines that begin with # are left out.

  Raises:
    UserError: the file cannot be read or has no prompt.
  """
  try:
    lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
  except OSError as error:
    raise UserError(f'The file of prompts {path} cannot be read '
                    f'({error.strerror}); give --prompts a text file with a '
                    'prompt a line.') from error
  except UnicodeDecodeError as error:
    raise UserError(f'The file of prompts {path} is not in UTF-8; save it so.'
                    ) from error
  prompts = list(dict.fromkeys(
      x.strip() for x in lines if x.strip() and not x.strip().startswith('#')))
  if not prompts:
    raise UserError(f'{path} has no prompt; write one a line.')
  return prompts


def folder_name(prompt: str) -> str:
  """Returns a name for a prompt's folder; a checksum keeps names distinct."""
  name = re.sub('[^a-z0-9]+', '-', prompt.lower())[:60].strip('-')
  if name.replace('-', ' ') == prompt:
    return name
  return f'{name or "prompt"}-{zlib.crc32(prompt.encode()):08x}'


def _numbered(index, overrides):
  name = ','.join(f'{key}={value}' for key, value in overrides.items())
  return re.sub(r'[^\w.,=-]+', '-', f'{index:03d}_{name}')[:80]


def run(lines: Sequence[Sequence[str]], keep_going: bool = True) -> None:
  """Runs command lines in turn; ends with a summary on stderr.

  Args:
    lines: command lines as lists of words.
    keep_going: whether the others run after one that fails; else it is the
      last.

  Raises:
    UserError: at least one failed.
    KeyboardInterrupt: one was stopped by Ctrl-C.
    SystemExit: one was stopped by SIGTERM.
  """
  results, failed = [], []
  try:
    for number, line in enumerate(lines, 1):
      notices.message(f'{number}/{len(lines)}: {shlex.join(line)}')
      begin = time.monotonic()
      code, stopped = _wait_for(line)
      state = {0: 'stopped' if stopped else 'done', 130: 'stopped'}.get(
          code, f'failed ({code})')
      minutes = (time.monotonic() - begin) / 60
      results.append(f'  {state:10}  {minutes:6.1f} min  '
                     f'{line[-1].partition("=")[2] or line[-1]}')
      if code == 130 or stopped == signal.SIGINT:
        raise KeyboardInterrupt
      if stopped:
        raise SystemExit(0)
      if code:
        failed.append(line[-1])
        if not keep_going:
          break
  finally:
    notices.message('\n'.join(
        [f'{len(results)} of {len(lines)} runs:', *results]))
  if failed:
    raise UserError(f'{len(failed)} of {len(lines)} runs failed: '
                    f'{", ".join(failed)}.')


def _wait_for(line):
  """Runs a command line; (its exit code, the signal that was passed to it)."""
  passed = []
  notices.attended()
  with subprocess.Popen(line) as child:

    def send(number):
      if child.poll() is None:
        passed.append(number)
        # It saves; a second SIGINT would not wait for that.
        child.send_signal(signal.SIGTERM)

    with stopping.left_to(send):
      return child.wait(), passed[0] if passed else None
