"""Reports of a run: scalars.jsonl, TensorBoard, previews, progress line."""

import contextlib
import datetime
import itertools
import json
import os
import pathlib
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from PIL import Image

from gen3d import files, glossary, notices, schemas
from gen3d.choices import UserError

try:
  import resource
except ImportError:  # Windows
  resource = None

# Seconds between two lines of progress where stderr is not a terminal.
_PLAIN_SECONDS = 30.
# Longer gaps in scalars.jsonl are interruptions of the run.
_PAUSE_SECONDS = 600.
# Where a full disk has ended TensorBoard's thread, a queue of the usual length
# would be full, too, and wait.
_BOARD_QUEUE = 2 ** 20
_LINE = {'step': schemas.whole(0, 2 ** 62), 'time': schemas.real(0, 1e12)}


class Report:
  """Writes a run's metrics and images into its workdir."""

  def __init__(
      self, workdir: str | os.PathLike, step: int, steps: int,
      shown: Sequence[str] = (), active: bool = True,
      throughput: tuple[str, int] | None = None, config: str = ''):
    """Opens the reports of a run that stands at `step` of `steps`.

    Args:
      workdir: the run's directory.
      step: updates done; lines of later steps, which an interrupted run has
        written, are dropped.
      steps: updates in all.
      shown: names of the metrics in the progress line; empty: the first three.
      active: False on all processes but one, where nothing is written.
      throughput: (unit, number a step), such as ('rays', 4096), whose rate is
        printed beside that of the steps.
      config: the run's, as JSON, which TensorBoard shows as a text.
    """
    self._active = active
    if not active:
      return
    self._previews = pathlib.Path(workdir) / 'previews'
    self._scalars = pathlib.Path(workdir) / 'scalars.jsonl'
    _drop_after(self._scalars, step)
    self._file = self._scalars.open('a', encoding='utf-8')
    # Here, because it imports PyTorch where that is installed, which takes
    # longer than all other imports of a command.
    import tensorboardX
    self._board = tensorboardX.SummaryWriter(
        str(pathlib.Path(workdir) / 'tensorboard'), purge_step=step + 1,
        max_queue=_BOARD_QUEUE)
    if config:
      # Indented text is code in Markdown.
      self._board.add_text('config', textwrap.indent(config, ' ' * 4), step)
    self._described: set[str] = set()
    self._speed = _Speed()
    self._line = _ProgressLine(step, steps, tuple(shown), throughput)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes {name: float} of a step.

    TensorBoard also gets the speed since the last call, the memory, and as a
    text the meaning of each in gen3d/glossary.py. (Its data server drops the
    descriptions of scalars.)
    """
    if not self._active:
      return
    line = {'step': step, 'time': round(time.time(), 3), **values}
    try:
      self._file.write(json.dumps(line) + '\n')
      self._file.flush()
    except OSError as error:
      raise OSError(
          error.errno, error.strerror, str(self._scalars)) from error
    values = {**values, **self._speed.since_last(), **peak_memory()}
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    if not set(values) <= self._described:
      self._described |= set(values)
      self._board.add_text('curves', glossary.table(self._described), step)
    self._speed.restart()

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes {name: uint8 [H, W, 3]} as previews/NAME_STEP.png."""
    for name, image in images.items() if self._active else ():
      path = self._previews / f'{name.replace("/", "_")}_{step:06d}.png'
      with files.atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary)
      self._board.add_image(name, image, step, dataformats='HWC')
    if self._active:
      self._speed.restart()

  def progress(
      self, step: int, metrics: Callable[[], Mapping[str, float]]) -> None:
    """Advances the progress line to a step; reads `metrics` if it prints."""
    if self._active:
      self._speed.count(step)
      self._line.move(step, metrics)

  def message(self, text: str) -> None:
    """Prints a text to stderr, above the progress line."""
    if self._active:
      notices.message(text)

  def close(self) -> None:
    """Ends the progress line and closes the files."""
    if not self._active:
      return
    self._line.close()
    with contextlib.suppress(OSError):  # It was raised by `scalars`.
      self._file.close()
    with contextlib.suppress(OSError):
      self._board.close()


def read_scalars(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of a scalars.jsonl, without those that are damaged.

  A file that is missing has no lines.
  """
  if not os.path.exists(path):
    return []
  lines = map(_parse_line, files.read_file(path).split(b'\n'))
  return [line for line in lines if line is not None]


def _parse_line(line: bytes) -> dict[str, Any] | None:
  """Returns the scalars of a line of scalars.jsonl; None if it is damaged."""
  try:
    scalars = files.parse_json(line, 'the line', nan=True)
    schemas.check('the line', scalars, _LINE, required=True)
    return scalars
  except UserError:
    return None


def provenance(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns the cost of a run for a weights record: {'hours', 'machine'}.

  Hours are those between the first and the last line of scalars.jsonl, without
  gaps of over ten minutes, in which the run was interrupted.
  """
  path = pathlib.Path(workdir) / 'scalars.jsonl'
  times = [line['time'] for line in read_scalars(path)]
  gaps = [b - a for a, b in itertools.pairwise(times)]
  worked = sum(gap for gap in gaps if 0 < gap < _PAUSE_SECONDS)
  device = jax.devices()[0]
  machine = (f'{os.cpu_count()} cores ({platform.machine()})'
             if device.platform == 'cpu' else
             f'{jax.device_count()} x {device.device_kind}')
  return {'hours': round(worked / 3600, 2), 'machine': machine}


def peak_memory() -> dict[str, float]:
  """The most memory in use so far, in gigabytes.

  Returns:
    {'run/peak_memory_gb'} of the process, where the system tells it, and
    {'run/peak_device_memory_gb'} of the first device, if it has its own.
  """
  found = {}
  if resource is not None:
    # In bytes on macOS, else in kilobytes.
    unit = 1 if sys.platform == 'darwin' else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found['run/peak_memory_gb'] = peak * unit / 1e9
  stats = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
  if 'peak_bytes_in_use' in stats:
    found['run/peak_device_memory_gb'] = stats['peak_bytes_in_use'] / 1e9
  return found


class _Speed:
  """Steps per second, without what other work takes between the steps."""

  def __init__(self):
    # Of the last step, and the time from which the next one is measured.
    self._step: int | None = None
    self._since = time.monotonic()
    self._steps, self._seconds = 0, 0.0

  def count(self, step):
    """A step is done; the first one is mostly compilation."""
    now = time.monotonic()
    if self._step is not None:
      self._steps += step - self._step
      self._seconds += now - self._since
    self._step, self._since = step, now

  def restart(self):
    """Leaves out the time since the last step."""
    self._since = time.monotonic()

  def since_last(self):
    """{name: value} since the last call; {} without a step."""
    steps, seconds = self._steps, self._seconds
    self._steps, self._seconds = 0, 0.0
    return {'run/steps_per_second': steps / seconds} if seconds else {}


class _ProgressLine:
  """Step, it/s, time left and metrics: a bar on a terminal, else lines."""

  def __init__(self, step, steps, shown, throughput):
    self._step, self._steps, self._shown = step, steps, shown
    self._throughput = throughput
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(initial=step, total=steps, unit='it',
                            dynamic_ncols=True, mininterval=.2)
    # Time and step of the last text; time of the last step.
    self._printed: tuple[float | None, int] = (None, step)
    self._moved = time.monotonic()

  def move(self, step, metrics):
    """Advances to a step and prints if it is time; metrics as in Report."""
    if self._bar is not None:
      time_before, step_before = self._printed
      if time.monotonic() - (time_before or 0.) > 1.:
        text, now = self._format(metrics()), time.monotonic()
        if time_before is not None:
          rate = (step - step_before) / (now - time_before)
          text = ', '.join([*self._per_second(rate), text])
        self._printed = (now, step)
        self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(step - self._step)
    else:
      self._print_line(step, metrics)
    self._step = step

  def close(self):
    if self._bar is not None:
      self._bar.close()

  def _print_line(self, step, metrics):
    now = time.monotonic()
    took, self._moved = now - self._moved, now
    time_before, step_before = self._printed
    if time_before is None:  # The first step is mostly compilation: no rate.
      parts = [f'step {step}/{self._steps}']
    elif now + took - time_before > _PLAIN_SECONDS or step == self._steps:
      rate = max(step - step_before, 1) / max(now - time_before, 1e-9)
      left = datetime.timedelta(seconds=int((self._steps - step) / rate))
      parts = [f'step {step}/{self._steps}', f'{rate:.3g} it/s',
               *self._per_second(rate), f'ETA {left}']
    else:
      return
    self._printed = (now, step)
    notices.message('  '.join([*parts, self._format(metrics())]))

  def _per_second(self, rate):
    if not self._throughput:
      return []
    unit, per_step = self._throughput
    return [f'{rate * per_step:,.0f} {unit}/s']

  def _format(self, metrics):
    names = [name for name in self._shown or tuple(metrics)[:3]
             if name in metrics]
    return ', '.join(f'{name} {metrics[name]:.4g}' for name in names)


def _drop_after(path, step):
  """Drops lines of later steps, and a last line that is incomplete."""
  if not path.exists():
    return
  lines = files.read_file(path).split(b'\n')
  parsed = [_parse_line(line) for line in lines]
  # The last one is empty, or cut off when the run was killed.
  damaged = parsed[:-1].count(None)
  if damaged:
    print(f'{path} has damaged lines, which are removed ({damaged}).',
          file=sys.stderr)
  files.write_bytes(path, b''.join(
      line + b'\n' for line, scalars in zip(lines, parsed, strict=True)
      if scalars is not None and scalars['step'] <= step))
