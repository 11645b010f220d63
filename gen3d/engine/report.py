"""What a run shows: scalars.jsonl, TensorBoard, previews, a live line."""

import datetime
import itertools
import json
import os
import pathlib
import platform
import sys
import time

import jax
import tensorboardX
import tqdm
from PIL import Image

from gen3d import files

_PLAIN_SECONDS = 30.
_PAUSE_SECONDS = 600.


class Report:
  """Writes a run's numbers and pictures into its workdir."""

  def __init__(self, workdir, step, steps, shown=(), active=True,
               counted=None):
    """Opens the reports of a run that stands at `step` of `steps`.

    Args:
      workdir: the run's directory.
      step: updates done; what an interrupted run reported beyond is dropped.
      steps: updates in all.
      shown: names of the metrics in the live line; empty: the first three.
      active: False on all processes but one, where nothing is written.
      counted: (what, how many) a step works on, such as ('rays', 4096), whose
        rate is told beside that of the steps.
    """
    self._active = active
    if not active:
      return
    self._previews = pathlib.Path(workdir) / 'previews'
    self._scalars = pathlib.Path(workdir) / 'scalars.jsonl'
    _drop_after(self._scalars, step)
    self._file = self._scalars.open('a', encoding='utf-8')
    self._board = tensorboardX.SummaryWriter(
        str(pathlib.Path(workdir) / 'tensorboard'), purge_step=step + 1)
    self._line = _Line(step, steps, tuple(shown), counted)

  def scalars(self, step, values):
    """Writes {name: float} of a step."""
    if not self._active:
      return
    line = {'step': step, 'time': round(time.time(), 3), **values}
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def images(self, step, images):
    """Writes {name: uint8 [H, W, 3]} as previews/NAME_STEP.png."""
    for name, image in images.items() if self._active else ():
      self._previews.mkdir(exist_ok=True)
      Image.fromarray(image).save(
          self._previews / f'{name.replace("/", "_")}_{step:06d}.png')
      self._board.add_image(name, image, step, dataformats='HWC')

  def progress(self, step, metrics):
    """Moves the live line to a step; metrics: () -> {name: float}."""
    if self._active:
      self._line.move(step, metrics)

  def say(self, sentence):
    """Writes a sentence to stderr, above the live line."""
    if self._active:
      tqdm.tqdm.write(sentence, file=sys.stderr)

  def close(self):
    """Ends the live line and closes the files."""
    if not self._active:
      return
    self._line.close()
    self._file.close()
    self._board.close()


def provenance(workdir):
  """What a weights record tells of its run: {'hours', 'machine'}.

  Hours are those between the first and the last line of scalars.jsonl, less
  the pauses of an interrupted run (over ten minutes without a line).
  """
  path = pathlib.Path(workdir) / 'scalars.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  times = [json.loads(line)['time'] for line in lines]
  gaps = [b - a for a, b in itertools.pairwise(times)]
  worked = sum(gap for gap in gaps if 0 < gap < _PAUSE_SECONDS)
  device = jax.devices()[0]
  machine = (f'{os.cpu_count()} cores ({platform.machine()})'
             if device.platform == 'cpu' else
             f'{jax.device_count()} x {device.device_kind}')
  return {'hours': round(worked / 3600, 2), 'machine': machine}


class _Line:
  """step, it/s, time left and metrics: a bar on a terminal, else lines."""

  def __init__(self, step, steps, shown, counted):
    self._step, self._steps, self._shown = step, steps, shown
    self._counted = counted
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(initial=step, total=steps, unit='it',
                            dynamic_ncols=True, mininterval=.2)
    self._told = (None, step)  # When the last line was written, and at what.

  def move(self, step, metrics):
    if self._bar is not None:
      if time.monotonic() - (self._told[0] or 0.) > 1.:
        text, now = self._text(metrics()), time.monotonic()
        if self._told[0] is not None:
          rate = (step - self._told[1]) / (now - self._told[0])
          text = ', '.join([*self._work(rate), text])
        self._told = (now, step)
        self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(step - self._step)
    else:
      self._plain(step, metrics)
    self._step = step

  def close(self):
    if self._bar is not None:
      self._bar.close()

  def _plain(self, step, metrics):
    now = time.monotonic()
    before, at = self._told
    if before is None:  # The first step is mostly compilation: no rate yet.
      parts = [f'step {step}/{self._steps}']
    elif now - before > _PLAIN_SECONDS or step == self._steps:
      rate = max(step - at, 1) / max(now - before, 1e-9)
      left = datetime.timedelta(seconds=int((self._steps - step) / rate))
      parts = [f'step {step}/{self._steps}', f'{rate:.3g} it/s',
               *self._work(rate), f'ETA {left}']
    else:
      return
    self._told = (now, step)
    print('  '.join([*parts, self._text(metrics())]), file=sys.stderr,
          flush=True)

  def _work(self, rate):
    if not self._counted:
      return []
    what, count = self._counted
    return [f'{rate * count:,.0f} {what}/s']

  def _text(self, metrics):
    names = [name for name in self._shown or tuple(metrics)[:3]
             if name in metrics]
    return ', '.join(f'{name} {metrics[name]:.4g}' for name in names)


def _drop_after(path, step):
  """Drops the lines of later steps, and one that was cut off in writing."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
    except (ValueError, KeyError):
      continue
  files.write_bytes(path, ''.join(kept).encode())
