"""How well textures on objects of the shapes world agree with the truth.

For the run of a texture (configs/scene_tex.py) on the mesh 'shapes:CATEGORY',
the true color of every place is known: that of the part of the typical object
there, in the colors of the prompt. Points are sampled on the exported mesh and
their colors read from its texture. Any run is also judged by the bundled CLIP
pair, each of its objects alone.
"""

import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets
from gen3d.choices import UserError
from gen3d.data import untextured
from gen3d.data.shapes import captions
from gen3d.engine import checkpoints
from gen3d.evaluation import clip as clip_evaluation
from gen3d.evaluation import text_to_3d as runs_evaluation
from gen3d.guidance import prompts
from gen3d.io import images as image_io
from gen3d.io import meshes
from gen3d.metrics import text as text_metrics
from gen3d.models import clip_pair
from gen3d.ops import bake, merge, shading
from gen3d.ops.mesh import Mesh
from gen3d.scenes import View, texture, views
from gen3d.tasks import text_to_3d

TOLERANCE = 0.15  # of a color, Euclidean in RGB
POINTS = 20_000
MESH = 'mesh.glb'  # as render.finished.export writes it


class Agreement(NamedTuple):
  """Scores of one object.

  Attributes:
    prompt: of the object.
    named: share of the surface within TOLERANCE of the true color, of the
      parts whose color the prompt names; NaN where the truth is unknown.
    everything: the same of all parts.
    error: mean distance from the true color on the named parts.
    retrieval: fraction of eight views whose prompt the CLIP pair retrieves.
  """
  prompt: str
  named: float
  everything: float
  error: float
  retrieval: float


def report(runs: str | os.PathLike,
           clip_weights: str | os.PathLike = assets.CLIP,
           out: str | os.PathLike | None = None) -> str:
  """The table of all finished runs of textures in a folder.

  Args:
    runs: folder of workdirs.
    clip_weights: of the CLIP pair.
    out: folder for a sheet of the objects; None for no sheet.

  Raises:
    UserError: the folder has no such run, or the weights are missing.
  """
  pair = clip_pair.load(clip_weights)
  objects = [x for run in runs_evaluation.each(
      texture_runs(runs), functools.partial(score_run, pair)) for x in run]
  rows = [scores for scores, _ in objects]
  if out:
    images = [seen[1] for _, seen in objects]  # from 45 degrees
    image_io.save(pathlib.Path(out) / 'textures.png', image_io.tile(
        np.round(255 * np.stack(images)).astype(np.uint8), 8))
  return table(rows)


def texture_runs(runs: str | os.PathLike) -> list[pathlib.Path]:
  """Paths of the finished workdirs of textures in a folder, sorted.

  Raises:
    UserError: there are none.
  """
  folders = [folder for folder in runs_evaluation.finished_runs(runs)
             if checkpoints.load_config(folder).scene.name == 'texture']
  if not folders:
    raise UserError(f'There is no finished run of a texture in {runs}; make '
                    'one by --config=configs/scene_tex.py.')
  return folders


def score_run(pair: clip_pair.ClipPair, folder: pathlib.Path
              ) -> list[tuple[Agreement, np.ndarray]]:
  """(Agreement, views [8, S, S, 3] in [0, 1]) of each object of a run.

  Args:
    pair: the retrieval model.
    folder: workdir of a finished run of a texture.
  """
  scene, params, config = text_to_3d.load_run(folder)
  several = scene.subjects > 1
  texts = prompts.split(config.prompt, scene.subjects) if several else (
      prompts.normalize(config.prompt),)
  files = texture.names(config.scene.meshes)
  results = []
  for index, text in enumerate(texts):
    seen = render_views(scene, params, index if several else None,
                        config.orbit.distance, config.orbit.focal)
    try:
      retrieval = clip_evaluation.retrieval_rate(pair, seen, text, False)
    except captions.Unknown:
      retrieval = np.nan
    truth = (np.nan,) * 3
    if len(files) == 1 and files[0].startswith(untextured.SHAPES):
      mesh, = meshes.load(folder / MESH)
      truth = color_agreement(mesh, text)
    results.append((Agreement(text, *truth, retrieval), seen))
  return results


def render_views(scene: Any, params: Any, subject: int | None,
                 distance: float, focal: float) -> np.ndarray:
  """Lit images [8, S, S, 3] in [0, 1] of one object, in steps of 1 / 255.

  Args:
    scene: scenes.Scene of a texture, with training views of S pixels.
    params: of the scene.
    subject: index of the object; None for the whole scene.
    distance, focal: of the cameras.
  """
  def one(camera):
    light = shading.camera_light(camera, *views.SHADING_MODES['color'])
    background = jnp.full(3, runs_evaluation.BACKGROUNDS['color'])
    return scene.render(params, None, View(
        camera, None, light, background, 0.0, subject)).image

  path = text_metrics.viewpoints(runs_evaluation.PROTOCOL, distance, focal)
  images = np.asarray(jax.jit(lambda path: jax.lax.map(one, path))(path))
  return np.round(255 * np.clip(images, 0, 1)) / 255


def color_agreement(mesh: Mesh, prompt: str) -> tuple[float, float, float]:
  """(named, everything, error) of an Agreement.

  Args:
    mesh: with a texture, in the frame of the shapes world.
    prompt: names the object and its colors.
  """
  points, uv = sample_surface(mesh, POINTS)
  colors = bake.texture_colors(mesh.texture, uv)
  true, named = runs_evaluation.true_colors(captions.parse(prompt), points)
  error = np.linalg.norm(colors - true, axis=-1)
  good = error < TOLERANCE
  if not named.any():
    return np.nan, float(good.mean()), np.nan
  return (float(good[named].mean()), float(good.mean()),
          float(error[named].mean()))


def sample_surface(mesh: Mesh, count: int, seed: int = 0
                   ) -> tuple[np.ndarray, np.ndarray]:
  """(points [count, 3], uv [count, 2]), uniform in the area of a mesh."""
  rng = np.random.default_rng(seed)
  areas = merge.face_areas(mesh.vertices, mesh.faces)
  chosen = np.asarray(mesh.faces)[
      rng.choice(len(areas), count, p=areas / areas.sum())]
  # The sorted pair cuts [0, 1] into three weights, uniform in a triangle.
  cuts = np.sort(rng.random((count, 2)), axis=-1)
  weights = np.diff(cuts, axis=-1, prepend=0.0, append=1.0)
  at = lambda x: np.einsum('nk,nkc->nc', weights, np.asarray(x)[chosen])
  return at(mesh.vertices), at(mesh.uv)


def table(rows: list[Agreement]) -> str:
  """A Markdown table of Agreements, with the means at its end."""
  percent = lambda x: '-' if np.isnan(x) else f'{100 * x:.0f} %'
  line = lambda name, v: (
      f'| {name} | {percent(v[0])} | {percent(v[1])} | '
      + ('-' if np.isnan(v[2]) else f'{v[2]:.3f}') + f' | {percent(v[3])} |')
  lines = [
      f'| prompt | named parts within {TOLERANCE} | all parts | mean error | '
      'R-precision |', '|---|---|---|---|---|']
  lines += [line(row.prompt, row[1:]) for row in rows]
  columns = np.array([row[1:] for row in rows]).T
  known = [column[~np.isnan(column)] for column in columns]
  means = [x.mean() if len(x) else np.nan for x in known]
  return '\n'.join([*lines, line(f'**mean of {len(rows)}**', means)])
