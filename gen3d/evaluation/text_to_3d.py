"""Scores of finished text-to-3D runs on prompts of the shapes world.

Each object is rendered from eight views, in color and textureless, and the
bundled CLIP pair retrieves the prompt; its mesh is compared with the *typical*
object of the prompt's category, whose proportions are the middle of their
ranges. The scores of a run are stored in its workdir, in evaluation.json.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gen3d import assets, files, notices, schemas
from gen3d.choices import UserError
from gen3d.data.shapes import captions, categories, primitives
from gen3d.data.shapes import render as shapes_render
from gen3d.engine import checkpoints
from gen3d.evaluation import clip as clip_evaluation
from gen3d.io import images as image_io
from gen3d.io import meshes
from gen3d.metrics import shape as shape_metrics
from gen3d.metrics import text as text_metrics
from gen3d.models import clip_pair
from gen3d.ops import cameras, shading
from gen3d.ops import mesh as mesh_ops
from gen3d.render import finished
from gen3d.scenes import views
from gen3d.tasks import text_to_3d

_Score = TypeVar('_Score')

PROTOCOL = text_metrics.DREAMFUSION
SIZE = 64  # pixels of the views that the bundled CLIP pair takes
# Modes and the gray levels behind the object. Every color of the world differs
# from 0.8, but the tones of a white object do not: before 0.8, only 65 % of the
# textureless views of the true objects are retrieved, before 0.2 86 %.
BACKGROUNDS = {'color': 0.8, 'textureless': 0.2}
_STATED = ', '.join(f'{mode} {gray}' for mode, gray in BACKGROUNDS.items())
SHEET_AZIMUTH = 30.0  # degrees, of the view in `contact_sheet`
REPORT = 'evaluation.json'
MESH = 'mesh.ply'  # as render.finished.export writes it
POINTS = 10_000  # sampled on each surface for the F-score
THRESHOLD = 0.05 * 2 * categories.RADIUS  # 5 % of the largest object's size


class RunScores(NamedTuple):
  """Scores of one finished run.

  Attributes:
    prompt: of the run.
    split: 'seen' or 'unseen' pair of category and color.
    color: fraction of views whose prompt the CLIP pair retrieves.
    textureless: the same for textureless views.
    iou: with the category's typical object, at the best scale and position.
    f_score: of the surfaces there, with the distance THRESHOLD.
    color_error: mean absolute difference of RGB from the true color, on the
      surface of the parts whose color the prompt names; NaN without any.
  """
  prompt: str
  split: str
  color: float
  textureless: float
  iou: float
  f_score: float
  color_error: float


_NUMBER = schemas.Rule(lambda x: isinstance(x, float | int), 'a number')
_SCORES = dict.fromkeys(RunScores._fields, _NUMBER) | {
    'prompt': schemas.TEXT, 'split': schemas.TEXT}


def report(runs: str | os.PathLike,
           clip_weights: str | os.PathLike = assets.CLIP,
           force: bool = False, out: str | os.PathLike | None = None) -> str:
  """The table of all finished runs in a folder.

  Args:
    runs: folder of workdirs.
    clip_weights: of the CLIP pair.
    force: score again where the stored scores are up to date.
    out: folder for a contact sheet of the objects; None for no sheet.

  Raises:
    UserError: the folder has no finished run, or the weights are missing.
  """
  pair = clip_pair.load(clip_weights)
  scores = score_runs(pair, runs, force)
  if out:
    image_io.save(pathlib.Path(out) / 'objects.png', contact_sheet(runs))
  orbit = checkpoints.load_config(finished_runs(runs)[0]).orbit
  with notices.slow('Rendering the true objects'):
    of_prompt = {prompt: true_rates(pair, prompt, orbit)
                 for prompt in dict.fromkeys(s.prompt for s in scores)}
  truth = np.mean([of_prompt[s.prompt] for s in scores], axis=0)
  return table(scores) + (
      f'\n| **true objects** | all | {100 * truth[0]:.0f} % | '
      f'{100 * truth[1]:.0f} % | | | |')


def score_runs(pair: clip_pair.ClipPair, runs: str | os.PathLike,
               force: bool = False) -> list[RunScores]:
  """Scores of all finished text-to-3D runs in a folder.

  Stored scores are used where they are not older than the run's mesh.

  Args:
    pair: the retrieval model.
    runs: folder of workdirs.
    force: score again where the stored scores are up to date.

  Returns:
    RunScores, sorted by split and prompt.

  Raises:
    UserError: the folder has no finished text-to-3D run.
  """
  return sorted(
      each(finished_runs(runs), lambda folder: score_run(pair, folder, force)),
      key=lambda s: (s.split, s.prompt))


def each(folders: Sequence[pathlib.Path],
         score: Callable[[pathlib.Path], _Score]) -> list[_Score]:
  """score(folder) of runs; names those that cannot be evaluated, and goes on.

  Raises:
    UserError: none of them can be evaluated.
  """
  scores = []
  for folder in notices.track(folders, 'Evaluating runs'):
    try:
      scores.append(score(folder))
    except (UserError, OSError) as error:
      notices.message(f'{folder} cannot be evaluated and is left out: {error}')
  if not scores:
    raise UserError(f'None of the {len(folders)} runs can be evaluated; the '
                    'messages above have the reasons.')
  return scores


def score_run(pair: clip_pair.ClipPair, folder: pathlib.Path,
              force: bool = False) -> RunScores:
  """The scores of one finished run, stored as by `score_runs`.

  Args:
    pair: the retrieval model.
    folder: workdir of the run.
    force: score again where the stored scores are up to date.
  """
  stored = folder / REPORT
  before = files.read_result(stored, _SCORES) if (
      not force and _is_current(stored, folder / MESH)) else None
  # Scores of another protocol are computed anew.
  if before is not None and before.get('backgrounds') == _STATED:
    return RunScores(*(before[key] for key in RunScores._fields))
  scores = _score_run(pair, folder)
  files.write_bytes(stored, json.dumps(
      scores._asdict() | {'backgrounds': _STATED}).encode())
  return scores


def finished_runs(runs: str | os.PathLike) -> list[pathlib.Path]:
  """Paths of the finished text-to-3D objects in a folder, sorted.

  They are workdirs, or of a run with several objects the folder of each.

  Raises:
    UserError: there are none.
  """
  folders = sorted(
      folder for p in pathlib.Path(runs).glob('*/finished.json')
      if _is_text_to_3d(p.parent) for folder in text_to_3d.folders(p.parent))
  if not folders:
    raise UserError(f'There is no finished text-to-3D run in {runs}; give '
                    'the folder that holds the workdirs.')
  return folders


def table(scores: Sequence[RunScores]) -> str:
  """A Markdown table of RunScores, with the means of the splits at its end."""
  percent = lambda x: f'{100 * x:.0f} %'
  row = lambda name, split, v: (
      f'| {name} | {split} | {percent(v[0])} | {percent(v[1])} | '
      f'{v[2]:.2f} | {v[3]:.2f} | {v[4]:.3f} |')
  lines = ['| prompt | pair | color | textureless | IoU | F-score | '
           'color error |',
           '|---|---|---|---|---|---|---|']
  lines += [row(s.prompt, s.split, s[2:]) for s in scores]
  for split in ('seen', 'unseen', None):
    chosen = [s[2:] for s in scores if split in (None, s.split)]
    if chosen:
      lines.append(row(
          f'**mean of {len(chosen)}**', split or 'all',
          [np.mean(x[~np.isnan(x)]) if not np.isnan(x).all() else np.nan
           for x in np.transpose(chosen)]))
  return '\n'.join(lines)


def contact_sheet(runs: str | os.PathLike, size: int = 128) -> np.ndarray:
  """One image uint8 [H, W, 3] of the objects of all scored runs.

  Args:
    runs: folder of workdirs.
    size: of each object's image, in pixels.
  """
  images, labels = [], []
  for folder in finished_runs(runs):
    if not (folder / REPORT).exists():
      continue  # It could not be evaluated.
    scene, params, config = text_to_3d.load_run(folder)
    render = finished.make_renderer(scene, size, ('color',))
    camera = cameras.orbit([SHEET_AZIMUTH], **config.orbit)
    images.append(render(params, camera)[0])
    labels.append(config.prompt)
  # Rows of at most eight, as equal as possible.
  rows = -(-len(images) // 8)
  return image_io.tile(np.stack(images), -(-len(images) // rows), labels)


def render_views(config: Any, params: Any, protocol: text_metrics.Protocol,
                 size: int, backgrounds: Mapping[str, float]
                 ) -> dict[str, np.ndarray]:
  """Images of a run's object from a protocol's views.

  Distance and focal length are those of the run's turntable (config.orbit).

  Args:
    config: of the run.
    params: of its scene.
    protocol: of V views.
    size: S, in pixels.
    backgrounds: {mode of the scene: gray level behind the object}.

  Returns:
    {mode: [V, S, S, 3] in [0, 1], in steps of 1 / 255}.
  """
  # Only what determines the scene: the key of the cache must not contain the
  # prompt, which differs between the runs of one method.
  scene = ml_collections.FrozenConfigDict({'scene': config.scene})
  camera = text_metrics.viewpoints(
      protocol, config.orbit.distance, config.orbit.focal)
  return {mode: _renderer(scene, size, mode, gray)(params, camera)
                / np.float32(255) for mode, gray in backgrounds.items()}


def true_rates(pair: clip_pair.ClipPair, prompt: str, orbit: Any
               ) -> list[float]:
  """The rates of a prompt's typical object: what a perfect run would have.

  Args:
    pair: the retrieval model.
    prompt: with a category of the shapes world.
    orbit: `distance` and `focal` of the views.

  Returns:
    Fractions of the views that retrieve the prompt, for BACKGROUNDS' modes.
  """
  camera = text_metrics.viewpoints(PROTOCOL, orbit.distance, orbit.focal)
  images = _show_truth(_typical(captions.parse(prompt)).parts, camera)
  return [clip_evaluation.retrieval_rate(
      pair, np.asarray(image), prompt, mode == 'textureless')
          for mode, image in images.items()]


@jax.jit
def _show_truth(parts, camera):
  """{mode: [V, SIZE, SIZE, 3]} of an object from V cameras."""
  def show(one):
    view = shapes_render.trace(parts, one, SIZE)
    return {mode: shapes_render.shade_and_composite(
        view, shading.camera_light(one, *views.SHADING_MODES[mode]), gray)
            for mode, gray in BACKGROUNDS.items()}
  return jax.lax.map(show, camera)


def _typical(spec):
  """The typical object of a spec; parts without a color are white and gray."""
  return categories.build(
      spec._replace(main=spec.main or 'white', second=spec.second or 'gray'),
      lambda low, high: (low + high) / 2)


def shape_scores(mesh: mesh_ops.Mesh,
                 spec: captions.Spec) -> tuple[float, float, float]:
  """(IoU, F-score, color error) of a mesh and a category's typical object.

  A text does not fix scale and position, so those with the largest IoU are
  taken. The orientation is not optimized: the front is part of the prompt.

  Args:
    mesh: of the object.
    spec: of the prompt, with a category.
  """
  # The bound exceeds the largest object, since the mesh may have another scale
  # and position.
  bound = 1.5 * categories.RADIUS
  sdf = jax.jit(functools.partial(primitives.sdf, _typical(spec).parts))
  fit = shape_metrics.best_scale_iou(
      shape_metrics.inside_mesh(mesh.vertices, mesh.faces, bound),
      lambda points: np.asarray(sdf(points)) < 0, bound)
  surface = (mesh.vertices, mesh.faces)
  points = fit.place(shape_metrics.sample_surface(*surface, POINTS))
  error = np.nan
  if mesh.colors is not None:
    colors = shape_metrics.sample_values(*surface, mesh.colors, POINTS)
    true, named = true_colors(spec, points)
    if named.any():
      error = float(np.abs(colors[:, :3] - true)[named].mean())
  return (fit.iou, shape_metrics.f_score(points, true_surface(sdf), THRESHOLD),
          error)


def true_colors(spec: captions.Spec, points: np.ndarray
                ) -> tuple[np.ndarray, np.ndarray]:
  """(colors [N, 3], named [N]) of the typical object near points [N, 3].

  `named` is True where the color is that of a part which the prompt names.

  Args:
    spec: of the prompt, with a category.
    points: in the frame of the shapes world.
  """
  true = np.asarray(primitives.color(
      _typical(spec).parts, jnp.asarray(points, jnp.float32)))
  named = np.zeros(len(points), bool)
  for name in filter(None, (spec.main, spec.second)):
    named |= np.abs(true - captions.COLORS[name]).max(-1) < 1e-3
  return true, named


def true_surface(sdf: Callable, resolution: int = 128) -> np.ndarray:
  """Points [POINTS, 3] on the surface of an object of the shapes world.

  Args:
    sdf: points [N, 3] -> signed distances [N].
    resolution: of the marching-cubes grid.
  """
  cells = shape_metrics.cell_centers(1.5 * categories.RADIUS, resolution)
  # `isosurface` expects a density; exp(-10 sdf) is 1 on the surface and
  # decreases away from the object.
  density = np.exp(-10 * np.asarray(sdf(cells))).reshape((resolution,) * 3)
  vertices, faces = mesh_ops.isosurface(
      density, 1.0, cells[0], float(cells[1, 2] - cells[0, 2]))
  return shape_metrics.sample_surface(vertices, faces, POINTS)


def _score_run(pair, folder):
  _, params, config = text_to_3d.load_run(folder)
  spec = captions.parse(config.prompt)
  split = 'unseen' if spec.category and spec.main and captions.unseen(
      spec.category, spec.main) else 'seen'
  images = render_views(config, params, PROTOCOL, SIZE, BACKGROUNDS)
  color, textureless = (
      clip_evaluation.retrieval_rate(
          pair, images[mode], config.prompt, mode == 'textureless')
      for mode in BACKGROUNDS)
  mesh, = meshes.load(folder / MESH)
  return RunScores(config.prompt, split, color, textureless,
                   *shape_scores(mesh, spec))


def _is_text_to_3d(folder):
  try:
    return checkpoints.load_config(folder).get('task') == 'text_to_3d'
  except UserError as error:
    notices.message(f'{folder} is left out: {error}')
    return False


def _is_current(stored, source):
  """True where `stored` exists and is not older than the file `source`."""
  return stored.exists() and not (
      source.exists() and source.stat().st_mtime > stored.stat().st_mtime)


# jax.jit finds a compiled program by the identity of the function, and every
# viewer is a new closure: without this cache each run would compile its own.
# Runs of one method have equal scene configs, so they get the same viewer,
# with the parameters as its argument. Eight of them (a method has one for each
# mode), since each one holds its compiled program.
@functools.lru_cache(maxsize=8)
def _renderer(config, size, mode, background):
  return finished.make_renderer(text_to_3d.make_scene(config), size, (mode,),
                         (background,) * 3)
