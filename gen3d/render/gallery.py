"""A page of several runs: films, meshes to turn, curves, what differs.

The page is a folder that needs nothing else: index.html, turntable.js and a
folder of files for each run. It opens from file://, too.
"""

import base64
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gen3d import assets, files, notices
from gen3d.choices import UserError
from gen3d.engine import checkpoints, config_text, report, workdirs
from gen3d.render import gallery_page

# A run's own files, or those in the folder of each of several objects.
_FILM, _SHEET, _MESH = 'turntable.mp4', 'preview.png', 'mesh.glb'
_NUMBERS = ('evaluation.json', 'r_precision.json', 'test.json')
_SCRIPT = 'turntable.js'
_POINTS = 200  # of a curve


class Run(NamedTuple):
  """What the page shows of a run.

  Attributes:
    title: its prompt, else the name of its folder.
    folder: of its files, beside the page.
    step, steps: of its newest checkpoint, and of its config.
    config: {dotted key: value}.
    curves: {name: [(step, value), ...]}.
    numbers: {name: number or text}, of `evaluate` and of the run itself.
    files: {folder beside the page: names} of _FILM, _SHEET and _MESH, for each
      object of the run; a preview stands for the sheet of an unfinished run.
  """
  title: str
  folder: str
  step: int
  steps: int
  config: Mapping[str, Any]
  curves: Mapping[str, Sequence[tuple[float, float]]]
  numbers: Mapping[str, Any]
  files: Mapping[str, Sequence[str]]


def write(paths: Sequence[str | os.PathLike],
          out: str | os.PathLike) -> pathlib.Path:
  """Writes the page of runs.

  Args:
    paths: workdirs, or folders of workdirs.
    out: folder of the page.

  Returns:
    The path of its index.html.

  Raises:
    UserError: a path is no run, or `out` cannot be written to.
  """
  out = pathlib.Path(out)
  workdirs_of_runs = workdirs.runs_in(paths)
  configs = [checkpoints.load_config(path) for path in workdirs_of_runs]
  if (out / 'config.json').exists():
    raise UserError(f'{out} is the workdir of a run; give another --out.')
  runs = [_collect(path, config, out, number) for number, (path, config)
          in enumerate(notices.track(
              list(zip(workdirs_of_runs, configs, strict=True)),
              'Collecting the runs'), 1)]
  files.write_bytes(out / _SCRIPT, (assets.FOLDER / _SCRIPT).read_bytes())
  index = out / 'index.html'
  files.write_bytes(index, gallery_page.page(runs, _SCRIPT).encode())
  return index


def read_curves(path: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
  """{name: [(step, value), ...]} of a scalars.jsonl, thinned out.

  Lines that are not complete, as of a run that is writing, are left out, and
  so are numbers that are not finite.
  """
  curves: dict[str, list[tuple[float, float]]] = {}
  for row in report.read_scalars(path):
    for name, value in row.items():
      if name not in ('step', 'time') and isinstance(value, int | float) and (
          abs(value) < float('inf')):
        curves.setdefault(name, []).append((row['step'], value))
  # The last point is always one of them.
  return {name: points[::-1][::-(-len(points) // _POINTS)][::-1]
          for name, points in sorted(curves.items())}


def _collect(workdir, config, out, number):
  """Copies a run's files into a folder of the page; returns its Run."""
  title = _title(config, workdir)
  name = f'{number:02d}-{_slug(title)}'
  folder = out / name
  try:
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier page
    copied = _copy(workdir, out, name)
  except OSError as error:
    raise UserError(f'{folder} cannot be written ({error.strerror}); give '
                    'another --out.') from error
  numbers = {}
  for beside in copied:
    part = pathlib.Path(beside).relative_to(name)  # '.' for the run itself
    prefix = '' if part == pathlib.Path() else f'{part}: '
    for file in _NUMBERS:
      content = files.read_result(workdir / part / file)
      numbers |= {prefix + key: value for key, value in config_text.flat(
          content if isinstance(content, dict) else {}).items()
                  if isinstance(value, int | float | str)}
  return Run(title, name, checkpoints.latest(workdir), int(config.steps),
             config_text.flat(config), read_curves(workdir / 'scalars.jsonl'),
             numbers, copied)


def _copy(workdir, out, name):
  """Copies the files of a run's objects into out/name; returns Run.files."""
  found = [file for part in ('', '*/') for name in (_FILM, _SHEET, _MESH)
           for file in workdir.glob(part + name)]
  # Of particle_10 and particle_9 the latter comes first.
  folders = sorted({file.parent for file in found} | {workdir},
                   key=lambda folder: (len(folder.name), folder))
  if len(folders) > 1 and not any(file.parent == workdir for file in found):
    folders.remove(workdir)
  copied = {}
  for folder in folders:
    beside = pathlib.PurePosixPath(name, *folder.relative_to(workdir).parts)
    names = [file for file in (_FILM, _SHEET, _MESH) if folder / file in found]
    (out / beside).mkdir(parents=True, exist_ok=True)
    for file in names:
      shutil.copyfile(folder / file, out / beside / file)
    if _MESH in names:
      _embed(out, str(beside))
    copied[str(beside)] = names
  previews = sorted(workdir.glob('previews/*.png'),
                    key=lambda file: file.stat().st_mtime)
  if previews and _SHEET not in copied.get(name, [_SHEET]):
    shutil.copyfile(previews[-1], out / name / _SHEET)
    copied[name].append(_SHEET)
  return copied


def _embed(out, beside):
  """Writes an object's mesh as a script, which pages from files may load."""
  content = base64.b64encode((out / beside / _MESH).read_bytes()).decode()
  files.write_bytes(out / beside / 'mesh.js', (
      f'gen3dMesh({json.dumps(beside)}, "{content}");\n').encode())


def _title(config, workdir):
  prompt = config.get('prompt') or workdir.resolve().name
  return prompt if isinstance(prompt, str) else '; '.join(map(str, prompt))


def _slug(title):
  """Letters, digits and dashes, for names of folders in the page's links."""
  return re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')[:40] or 'run'
