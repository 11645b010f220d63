"""How good are the shipped models and what they make: the README's numbers.

Three questions, in the order in which the answers depend on one another: can
the judge (the CLIP pair) be trusted on real pictures, are the diffusion
model's samples what their captions say, are the finished objects.
"""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import tqdm

from gen3d import assets, files
from gen3d.choices import UserError
from gen3d.data.shapes import captions, categories, primitives
from gen3d.data.shapes import world as shapes_world
from gen3d.diffusion import pixel_model, sampling
from gen3d.engine import checkpoints
from gen3d.io import images as image_io
from gen3d.io import meshes
from gen3d.metrics import shape as shape_metrics
from gen3d.metrics import text as text_metrics
from gen3d.ops import cameras
from gen3d.ops import mesh as mesh_ops
from gen3d.render import finished
from gen3d.tasks import clip as clip_task
from gen3d.tasks import text_to_3d

PROTOCOL = text_metrics.DREAMFUSION
SIZE = 64  # of the pictures that the shipped judge sees
SHOWN_FROM = 30.0  # azimuth of the picture of all runs
MODES = ('color', 'textureless')
BACKGROUND = 0.8  # gray, on which every color can be told
REPORT = 'evaluation.json'
MESH = 'mesh.ply'  # as showing.export leaves it
POINTS = 10_000  # on each surface, for the F-score
THRESHOLD = 0.05 * 2 * categories.RADIUS  # 5 % of the largest object's size


class Verdict(NamedTuple):
  """What is known of one finished run."""
  prompt: str
  split: str          # 'seen' or 'unseen' pair of category and color
  color: float       # share of views whose caption the judge finds
  textureless: float  # the same without texture
  iou: float          # with the category's typical object, at the best scale
  f_score: float      # of surfaces, threshold 5 % of the largest object's size


def held_out_captions(split, count, seed=0):
  """The plain captions of the first `count` examples of a split."""
  return [captions.plain(shapes_world.example(seed, split, i).object.spec)
          for i in range(count)]


def judge_real(judge, count=512, size=64, seed=0):
  """Rates of the judge on real pictures of held-out examples.

  Returns:
    {split: metrics.text.Rate} among 64 captions that are untrue.
  """
  rates = {}
  for split in ('seen', 'unseen'):
    examples = list(shapes_world.pictures(seed, split, 0, count, size))
    images = np.stack([image for _, image, _, _, _ in examples])
    rates[split] = clip_task.r_precision(
        judge, images, held_out_captions(split, count, seed))['64']
  return rates


def judge_samples(judge, weights=assets.TEXT_TO_IMAGE, count=512, scale=3.0,
                  steps=40, seed=0):
  """Rates of samples of the diffusion model for held-out captions.

  Returns:
    ({split: metrics.text.Rate}, {split: (images uint8 [N, H, W, 3],
    captions)}).
  """
  teacher = pixel_model.teacher(weights)
  rates, samples = {}, {}
  for split in ('seen', 'unseen'):
    texts = held_out_captions(split, count, seed)
    images = sampling.sample(
        jax.random.key(seed), teacher, texts, scale=scale, steps=steps)
    rates[split] = clip_task.r_precision(judge, images / 255.0, texts)['64']
    samples[split] = images, texts
  return rates, samples


def judge_runs(judge, runs, force=False):
  """Verdicts of all finished text-to-3D runs in a folder.

  A run that has been judged since its mesh was written is not judged again,
  unless `force`; what is known of it stands beside it, in evaluation.json.

  Args:
    judge: image_text.Judge.
    runs: folder of workdirs.
    force: whether to do again what is done.

  Returns:
    list of Verdict, sorted by split and prompt.

  Raises:
    UserError: no finished text-to-3D run is there.
  """
  verdicts = []
  for folder in tqdm.tqdm(finished_runs(runs), 'runs', disable=None):
    report = folder / REPORT
    if not force and _is_current(report, folder / MESH):
      verdicts.append(Verdict(**json.loads(report.read_text())))
      continue
    verdict = _judge_run(judge, folder)
    with files.atomic_write(report) as temporary:
      pathlib.Path(temporary).write_text(json.dumps(verdict._asdict()))
    verdicts.append(verdict)
  return sorted(verdicts, key=lambda v: (v.split, v.prompt))


def finished_runs(runs):
  """Paths of the finished text-to-3D workdirs in a folder, sorted.

  Raises:
    UserError: there are none.
  """
  folders = sorted(p.parent for p in pathlib.Path(runs).glob('*/finished.json')
                   if _is_text_to_3d(p.parent))
  if not folders:
    raise UserError(f'There is no finished text-to-3D run in {runs}; give '
                    'the folder that holds the workdirs.')
  return folders


def table(verdicts):
  """A Markdown table of Verdicts, the means of both splits at its end."""
  percent = lambda x: f'{100 * x:.0f} %'
  row = lambda name, split, v: (
      f'| {name} | {split} | {percent(v[0])} | {percent(v[1])} | '
      f'{v[2]:.2f} | {v[3]:.2f} |')
  lines = ['| prompt | pair | color | textureless | IoU | F-score |',
           '|---|---|---|---|---|---|']
  lines += [row(v.prompt, v.split, v[2:]) for v in verdicts]
  for split in ('seen', 'unseen', None):
    chosen = [v[2:] for v in verdicts if split in (None, v.split)]
    if chosen:
      lines.append(row(f'**mean of {len(chosen)}**', split or 'all',
                       np.mean(chosen, axis=0)))
  return '\n'.join(lines)


def sheet(runs, size=128):
  """One picture of all judged runs: (uint8 [H, W, 3])."""
  images, labels = [], []
  for folder in sorted(p.parent for p in pathlib.Path(runs).glob(
      f'*/{REPORT}')):
    scene, params, config = text_to_3d.load_run(folder)
    look = finished.viewer(scene, size, ('color',))
    camera = cameras.orbit([SHOWN_FROM], **config.orbit)
    images.append(look(params, camera)[0])
    labels.append(config.prompt)
  rows = -(-len(images) // 8)
  return image_io.tile(np.stack(images), -(-len(images) // rows), labels)


def _is_text_to_3d(folder):
  return (folder / 'config.json').exists() and (
      checkpoints.load_config(folder).get('task') == 'text_to_3d')


def _is_current(report, judged):
  """Whether there is a report that is not older than the file it is of."""
  return report.exists() and not (
      judged.exists() and judged.stat().st_mtime > report.stat().st_mtime)


def _judge_run(judge, folder):
  _, params, config = text_to_3d.load_run(folder)
  said = captions.parse(config.prompt)
  split = 'unseen' if said.main and captions.unseen(
      said.category, said.main) else 'seen'
  seen = views(config, params, PROTOCOL, SIZE, BACKGROUND)
  color, textureless = (
      found(judge, seen[mode], config.prompt, mode == 'textureless')
      for mode in MODES)
  iou, f_score = geometry(meshes.load(folder / MESH), said)
  return Verdict(config.prompt, split, color, textureless, iou, f_score)


def found(judge, images, prompt, textureless):
  """In what share of pictures the shipped judge finds a prompt.

  The distractors are 64 captions of held-out examples of the shapes world,
  drawn for each picture from those that are untrue of it.

  Args:
    judge: image_text.Judge.
    images: [V, S, S, 3] in [0, 1].
    prompt: one string.
    textureless: whether the pictures are.
  """
  return clip_task.r_precision(
      judge, images, [prompt] * len(images), _pool(),
      textureless=textureless)['64'].rate


def views(config, params, protocol, size, background):
  """What a run's object looks like in a protocol's views.

  It is framed as in the run's own film (config.orbit).

  Args:
    config: of the run.
    params: of its scene.
    protocol: metrics.text.Protocol, of V views.
    size: S, pixels a side.
    background: gray level behind the object.

  Returns:
    {mode of MODES: [V, S, S, 3] in [0, 1], in steps of 1 / 255}.
  """
  look = _viewer(ml_collections.FrozenConfigDict({'scene': config.scene}),
                 size, background)
  seen = look(params, text_metrics.viewpoints(
      protocol, config.orbit.distance, config.orbit.focal))
  return {mode: seen[:, :, i * size:(i + 1) * size] / np.float32(255)
          for i, mode in enumerate(MODES)}


@functools.cache
def _pool():
  return (*held_out_captions('seen', 256), *held_out_captions('unseen', 256))


@functools.lru_cache(maxsize=4)
def _viewer(config, size, background):
  """One program for all runs of a method, whose scenes are alike."""
  return finished.viewer(text_to_3d.make_scene(config), size, MODES,
                        (background,) * 3)


def geometry(mesh, said):
  """(IoU, F-score) of a mesh with the typical object of a caption's category.

  The mesh is laid over the object at its best scale and place, not turned:
  its front is part of what was asked for.

  Args:
    mesh: ops.mesh.Mesh.
    said: captions.Spec with a category.
  """
  typical = categories.build(
      captions.Spec(said.category, 'red', 'blue'), lambda lo, hi: (lo + hi) / 2)
  bound = 1.5 * categories.RADIUS
  sdf = jax.jit(functools.partial(primitives.sdf, typical.parts))
  fit = shape_metrics.best_scale_iou(
      shape_metrics.inside_mesh(mesh.vertices, mesh.faces, bound),
      lambda points: np.asarray(sdf(points)) < 0, bound)
  ours = shape_metrics.sample_surface(mesh.vertices, mesh.faces, POINTS)
  return fit.iou, shape_metrics.f_score(
      fit.place(ours), true_surface(sdf), THRESHOLD)


def true_surface(sdf, resolution=128):
  """Points [POINTS, 3] on the surface of an object of the shapes world.

  Args:
    sdf: points [N, 3] -> signed distances [N].
    resolution: of the grid on which the surface is looked for.
  """
  cells = shape_metrics.cell_centers(1.5 * categories.RADIUS, resolution)
  # As a density that is 1 on the surface: what `isosurface` expects.
  density = np.exp(-10 * np.asarray(sdf(cells))).reshape((resolution,) * 3)
  vertices, faces = mesh_ops.isosurface(
      density, 1.0, cells[0], float(cells[1, 2] - cells[0, 2]))
  return shape_metrics.sample_surface(vertices, faces, POINTS)
