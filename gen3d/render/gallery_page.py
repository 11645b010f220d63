"""The HTML of gen3d gallery: text in, text out.

Every text of a run is escaped; links are relative; nothing is loaded from
elsewhere.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gen3d.choices import printable

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1080px;
  padding: 0 1.5rem 4rem; color: #222; background: #fff; }
h1, h3 { font-weight: 600; } h2 { font-weight: 600; margin: 0 0 .6rem; }
section { border-top: 1px solid #ddd; padding: 1.5rem 0; }
.media { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
canvas, video, .media img { border-radius: 6px; background: #f4f4f2; }
canvas { width: 340px; height: 340px; cursor: grab; touch-action: none; }
video { width: 680px; max-width: 100%; }
.media img { max-width: 680px; width: 100%; }
figure { margin: 0; } figcaption { color: #777; font-size: 13px; }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0; }
td, th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top;
  border-bottom: 1px solid #eee; overflow-wrap: anywhere; }
th { font-weight: 600; color: #555; }
.scroll th:first-child { white-space: nowrap; }
.scroll { overflow-x: auto; }
.plots { display: grid; gap: .8rem 1.2rem; margin-top: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(140px, 180px)); }
.plots svg { display: block; overflow: visible; }
.plots figcaption { overflow-wrap: anywhere; }
summary { cursor: pointer; color: #555; margin-top: .6rem; }
"""
_WIDTH, _HEIGHT = 180, 56  # of a plot
_SHORT = 12  # rows of a table that is open at first
# Keys that differ between runs for no interesting reason.
_UNIMPORTANT = ('version',)


def page(runs: Sequence[Any], script: str) -> str:
  """The page of `runs`, render.gallery.Run.

  Args:
    runs: to show, in this order.
    script: name of the script of the turnable meshes, beside the page.
  """
  count = _count(len(runs), 'run')
  return '\n'.join([
      '<!DOCTYPE html>', '<html lang="en">', '<head>',
      '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>gen3d: {count}</title>', f'<style>{_STYLE}</style>', '</head>',
      '<body>', f'<h1>{count}</h1>', differences(runs),
      *map(_section, runs), f'<script src="{script}"></script>', '</body>',
      '</html>', ''])


def differences(runs: Sequence[Any]) -> str:
  """A table of the config's keys in which the runs differ; '' for one run."""
  keys = sorted({key for run in runs for key in run.config
                 if key not in _UNIMPORTANT})
  missing = object()
  differing = [key for key in keys if any(
      run.config.get(key, missing) != runs[0].config.get(key, missing)
      for run in runs)]
  if not differing:
    return ''
  names = ''.join(f'<th><a href="#{run.folder}">{_text(run.folder)}</a></th>'
                  for run in runs)
  rows = ''.join(
      f'<tr><th>{_text(key)}</th>' + ''.join(
          f'<td>{_value(run.config[key]) if key in run.config else ""}</td>'
          for run in runs) + '</tr>' for key in differing)
  is_open = ' open' if len(differing) <= _SHORT else ''
  return (f'<details{is_open}><summary>What differs between the configs: '
          f'{_count(len(differing), "key")}</summary>'
          f'<div class="scroll"><table><tr><th></th>{names}</tr>{rows}</table>'
          '</div></details>')


def plot(points: Sequence[tuple[float, float]]) -> str:
  """An SVG of a curve of (step, value), with its range at the sides."""
  steps, values = zip(*points, strict=True)
  low, high = min(values), max(values)
  first, last = min(steps), max(steps)
  x = lambda step: _WIDTH * (step - first) / ((last - first) or 1)
  y = lambda value: (_HEIGHT - 4) * (
      1 - (value - low) / (high - low) if high > low else 0.5) + 2
  line = ' '.join(f'{x(step):.1f},{y(value):.1f}' for step, value in points)
  return (
      f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">'
      f'<title>from {low:.4g} to {high:.4g}, steps {first} to {last}</title>'
      f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#f4f4f2"></rect>'
      f'<polyline points="{line}" fill="none" stroke="#2a6fb0" '
      'stroke-width="1.5"></polyline></svg>')


def _section(run):
  state = (f'{run.step:,} steps' if run.step >= run.steps
           else f'step {run.step:,} of {run.steps:,}')
  parts = [
      f'<section id="{run.folder}">', f'<h2>{_text(run.title)}</h2>',
      *(_object(run, folder) for folder in run.files), f'<p>{state}</p>',
      _table(run.numbers, 'Evaluation', True), _plots(run.curves),
      _table(run.config, 'Config', False), '</section>']
  return '\n'.join(part for part in parts if part)


def _object(run, folder):
  """The mesh, and the film and the sheet of views, of one object of a run."""
  files, parts = run.files[folder], []
  if 'mesh.glb' in files:
    parts.append(f'<figure><canvas data-mesh="{folder}" width="680" '
                 'height="680"></canvas><figcaption>drag to turn</figcaption>'
                 '</figure>')
  poster = f' poster="{folder}/preview.png"' if 'preview.png' in files else ''
  if 'turntable.mp4' in files:
    parts.append(f'<figure><video src="{folder}/turntable.mp4" autoplay loop '
                 f'muted playsinline controls{poster}></video></figure>')
  if 'preview.png' in files:
    parts.append(f'<figure><img src="{folder}/preview.png" loading="lazy" '
                 f'alt="{_text(run.title)}"></figure>')
  name = folder.removeprefix(run.folder).strip('/')
  links = ', '.join(f'<a href="{folder}/{file}">{file}</a>' for file in files)
  return '\n'.join([
      f'<h3>{_text(name)}</h3>' if name else '',
      '<div class="media">' + (
          ''.join(parts)
          or '<p>There are no films, pictures or meshes yet.</p>') + '</div>',
      f'<p class="files">{links}</p>' if links else ''])


def _table(values: Mapping[str, Any], title, is_open):
  if not values:
    return ''
  rows = ''.join(f'<tr><th>{_text(key)}</th><td>{_value(value)}</td></tr>'
                 for key, value in values.items())
  return (f'<details{" open" if is_open else ""}><summary>{title}</summary>'
          f'<table>{rows}</table></details>')


def _plots(curves):
  figures = ''.join(
      f'<figure>{plot(points)}<figcaption>{_breakable(name)}: '
      f'{points[-1][1]:.4g}</figcaption></figure>'
      for name, points in curves.items() if len(points) > 1)
  return figures and (
      '<details open><summary>Curves, with the last value</summary>'
      f'<div class="plots">{figures}</div></details>')


def _value(value):
  return _text(f'{value:.4g}' if isinstance(value, float) else str(value))


def _count(number, noun):
  return f'{number} {noun}' + ('s' if number != 1 else '')


def _breakable(name):
  """The text of a curve's name, which may be broken behind its parts."""
  return re.sub('([/._])', r'\1<wbr>', _text(name))


def _text(text):
  return html.escape(printable(text, 2000))
