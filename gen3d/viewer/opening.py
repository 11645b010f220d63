"""From the words of the command line to Things."""

import os
import pathlib
from collections.abc import Callable, Sequence

from gen3d import tasks
from gen3d.choices import UserError
from gen3d.data.captures import layouts
from gen3d.engine import checkpoints, workdirs
from gen3d.gan import inference
from gen3d.io import meshes
from gen3d.tasks import gan
from gen3d.viewer import things
from gen3d.viewer.things import Thing

KINDS = ('run', 'capture', 'network', 'mesh')
_NETWORKS = ('.safetensors', '.pkl', '.pt', '.pth')
_MESHES = (*meshes.SUFFIXES, '.gltf', '.off', '.stl')


def kind_of(path: str | os.PathLike) -> str:
  """One of KINDS.

  Args:
    path: of a file or a folder, or the name of a network that ships.

  Raises:
    UserError: it is nothing that can be shown.
  """
  place = pathlib.Path(path)
  if place.is_dir():
    if (place / 'config.json').is_file():
      return 'run'
    if any(layout.matches(place) for layout in layouts.FORMATS.values()):
      return 'capture'
    raise UserError(f'{path} is neither the workdir of a run nor a capture; '
                    'give a workdir, a capture, a 3-D GAN or a mesh file.')
  if place.suffix.lower() in _MESHES:
    if not place.is_file():
      raise UserError(f'{path} is missing; give the path of a mesh file.')
    return 'mesh'
  if place.is_file() and place.suffix not in _NETWORKS:
    raise UserError(
        f'{path} cannot be shown; give a workdir, a capture, a 3-D GAN '
        f'({", ".join(_NETWORKS)}) or a mesh ({", ".join(_MESHES)}).')
  try:
    inference.find(place)
  except UserError as error:
    raise UserError(
        f'{path} is no file or folder, and no network of that name ships with '
        'gen3d; give a workdir, a capture, a 3-D GAN or a mesh file.'
    ) from error
  return 'network'


def open_all(paths: Sequence[str], wait: bool = False
             ) -> dict[str, Callable[[], Thing]]:
  """{title: function that opens it} of the things on the command line.

  A folder of runs stands for them. A capture beside a reconstruction of it is
  shown with that, and not by itself.

  Args:
    paths: of files and folders, or names of networks.
    wait: whether `paths` are of runs that may not have begun.

  Raises:
    UserError: one of `paths` is nothing that can be shown.
  """
  if wait:
    return {path: lambda path=path: _open_run(path, None) for path in paths}
  kinds = {str(path): kind_of(path) for path in workdirs.runs_in(paths)}
  captures = [path for path, kind in kinds.items() if kind == 'capture']
  rebuilt = {path for path, kind in kinds.items() if kind == 'run'
             and checkpoints.load_config(path).task == 'reconstruction'}
  of_kind = {'network': _open_network, 'mesh': things.of_mesh,
             'capture': things.of_capture}
  opened: dict[str, Callable[[], Thing]] = {}
  for path, kind in kinds.items():
    if kind == 'run':
      opened[path] = lambda path=path: _open_run(
          path, captures[0] if captures and path in rebuilt else None)
    elif kind != 'capture' or not rebuilt:
      opened[path] = lambda path=path, kind=kind: of_kind[kind](path)
  return opened


def _open_network(path):
  return things.of_generator(
      str(path), 'A 3-D GAN: each seed is an object.', inference.load(path))


def _open_run(path, capture):
  """The Thing of a run, with the capture of a reconstruction."""
  if not (pathlib.Path(path) / 'config.json').is_file():
    raise FileNotFoundError(f'The run in {path} has not begun.')
  config = checkpoints.load_config(path)
  if config.task == 'gan':
    return _open_gan_run(path, config)
  if config.task not in tasks.FINISHED:
    networks = [file for file in sorted(pathlib.Path(path).glob(
        '*.safetensors')) if not file.stem.endswith(inference.DISCRIMINATOR)]
    if config.task == 'lifting' and networks:
      return _open_network(networks[0])
    raise UserError(
        f'The run in {path} is of the task {config.task!r}, which has nothing '
        'to turn, or nothing yet; tensorboard --logdir shows its curves.')
  step = _newest(path)
  photographs = _photographs(config, capture)
  title = str(config.get('prompt') or pathlib.Path(path).name)

  def newer_than(step, shown):
    newest = checkpoints.latest(path)
    if newest <= step:
      return None
    return make(newest, shown.reload(newest))

  def make(step, shown):
    return things.of_finished(
        title, _note(step, config.steps), shown, photographs,
        newer=lambda: newer_than(step, shown))

  return make(step, tasks.load_finished(path, step))


def _photographs(config, capture):
  """Those of a reconstruction's capture, where it is still there."""
  if config.task != 'reconstruction':
    return ()
  if capture:
    return things.photographs(capture)
  try:
    return things.photographs(config.data.path)
  except (UserError, OSError):
    return ()  # A reconstruction is shown without its photographs.


def _open_gan_run(path, config):
  step = _newest(path)
  trained = gan.load_generator(path, step)
  shown = [step]

  def newer():
    newest = checkpoints.latest(path)
    if newest <= shown[0]:
      return None
    shown[0] = newest
    return _note(newest, config.steps), checkpoints.load_tree(
        path, 'ema', newest)

  return things.of_generator(
      pathlib.Path(path).name, _note(step, config.steps), trained, newer)


def _newest(path):
  """Step of a run's newest checkpoint, at least 1.

  Raises:
    FileNotFoundError: it has none.
  """
  step = checkpoints.latest(path)
  if not step:
    raise FileNotFoundError(f'The run in {path} has no checkpoint yet.')
  return step


def _note(step, steps):
  return f'Step {step:,} of {steps:,}.'
