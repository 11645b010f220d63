"""The table of 3-D GANs of EG3D's paper (2112.07945, table 1), on true shapes.

Generators that were trained on one set of the shapes world are compared by the
Frechet distance of their pictures, and by ID, Depth and Pose of views of one
object, as evaluation/faces.py does for faces. Two models of gen3d take the
place of those of faces: the image features of the shipped CLIP pair that of
ArcFace, and the view estimator that of the face reconstructor. The same numbers
of true pictures are the least that can be reached. The shapes world also tells
how near the shapes are to the true ones.
"""

import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import files, notices
from gen3d.choices import UserError
from gen3d.data.images import dataset
from gen3d.data.images import open as opening
from gen3d.data.shapes import render as shapes_render
from gen3d.data.shapes import world as shapes_world
from gen3d.evaluation import faces as face_evaluation
from gen3d.evaluation import gan as gan_evaluation
from gen3d.gan import inference
from gen3d.io import images as image_io
from gen3d.metrics import distribution, faces
from gen3d.metrics.features import Features, shapes_clip
from gen3d.models import view_estimator
from gen3d.ops import cameras
from gen3d.render import objects

# FID, ID, Depth and Pose on FFHQ from EG3D's table 1. GIRAFFE's row is
# confirmed by a second source, the others are quoted from memory of it.
PUBLISHED = {'giraffe': (31.5, 0.64, 0.94, 0.089),
             'pigan': (29.9, 0.67, 0.44, 0.021),
             'lifted_gan': (29.8, 0.58, 0.40, 0.023),
             'eg3d': (4.8, 0.76, 0.31, 0.005)}
NAMES = {'giraffe': 'GIRAFFE', 'pigan': 'pi-GAN',
         'lifted_gan': 'Lifting StyleGAN', 'eg3d': 'EG3D'}
SHAPES, TRUE_SHAPES = 64, 1000
_COLUMNS = {'frechet': 'Frechet distance', 'identity': 'ID', 'depth': 'Depth',
            'pose': 'Pose', 'iou': 'IoU', 'f_score': 'F-score',
            'distinct': 'distinct shapes', 'seconds': 's/view'}


class Interval(NamedTuple):
  """A mean over seeds, and the standard error of that mean."""
  mean: float
  error: float


class Row(NamedTuple):
  """Numbers of one generator, or of true pictures; None: not measured.

  Attributes:
    frechet: distance of the pictures from as many true ones.
    identity: mean cosine of the embeddings of two views of an object.
    depth: mean squared difference of standardized depths.
    pose: mean squared difference of rotation vectors, squared radians.
    iou, f_score: with the nearest of TRUE_SHAPES true shapes.
    distinct: how many of these are the nearest of one of SHAPES objects.
    seconds: of a view of a given object.
    failed: values of ID, Depth and Pose that could not be measured, of all
      seeds.
  """
  frechet: Interval
  identity: Interval
  depth: Interval
  pose: Interval
  iou: Interval | None = None
  f_score: Interval | None = None
  distinct: int | None = None
  seconds: float | None = None
  failed: int = 0


class Measures(NamedTuple):
  """The networks that measure, and the true pictures."""
  features: Features
  estimator: view_estimator.Estimator
  real: distribution.Moments


def compare(networks: Sequence[str], out: str | os.PathLike, *,
            samples: int = 512, seeds: int = 3) -> str:
  """Measures generators and writes comparison.md, .json and .png.

  What `out` already holds of a network with the same weights is not measured
  again.

  Args:
    networks: names or files, as inference.load_with_config takes them; all
      trained on one set of the shapes world.
    out: folder.
    samples: pictures for the Frechet distance, and objects for ID, Depth and
      Pose, for each seed.
    seeds: how many times they are drawn.

  Returns:
    The table, and the paths of the files written.

  Raises:
    UserError: a network is missing, is not trained on the shapes world, or on
      another set than the first one.
  """
  if samples < 2 or seeds < 2:
    raise UserError(f'--samples={samples} and --seeds={seeds} are too few for '
                    'means with intervals; take at least 2 of each.')
  out = pathlib.Path(out)
  loaded = {name: inference.load_with_config(name) for name in networks}
  data = _common_data(loaded)
  source = opening.open_data(data)
  measures = _measures(source, samples)
  rows = {'true pictures': stored(
      out / 'true.json', {'samples': samples, 'seeds': seeds},
      lambda: true_row(data, measures, samples, seeds))}
  for name, (trained, config) in loaded.items():
    key = {'samples': samples, 'seeds': seeds, 'weights': str(
        inference.record_of(name)['tuned_from'])}
    rows[name] = stored(
        out / f'{pathlib.Path(name).stem}.json', key,
        functools.partial(
            generator_row, name, trained, config, source, measures, samples,
            seeds))
  kinds = {name: config.networks for name, (_, config) in loaded.items()}
  text = table(rows, kinds, data, samples, seeds)
  written = [out / 'comparison.md', out / 'comparison.json',
             out / 'comparison.png']
  files.write_bytes(written[0], f'{text}\n'.encode())
  files.write_bytes(written[1], json.dumps(
      {name: as_dict(row) for name, row in rows.items()}, indent=1).encode())
  image_io.save(written[2], sheet([x for x, _ in loaded.values()]))
  return '\n'.join([text, *map(str, written)])


def _common_data(loaded):
  """The `data` of the configs of all networks."""
  first = None
  for name, (_, config) in loaded.items():
    if 'data' not in config:
      continue  # It learned from the pictures of another generator.
    if not opening.is_world(config.data):
      raise UserError(f'{name} is trained on {config.data.path}, whose shapes '
                      'are not known; give networks of the shapes world, or '
                      'use gen3d.evaluate --what=fid and --what=faces.')
    if first is None:
      first = name, config.data
    elif config.data.to_dict() != first[1].to_dict():
      raise UserError(f'{name} is trained on {config.data.path} with other '
                      f'cameras or sizes than {first[0]}; compare networks of '
                      'one set.')
  if first is None:
    raise UserError('There are no pictures to compare with; give --networks, '
                    'one of them trained on the shapes world.')
  return first[1]


def _measures(source: dataset.Images, samples: int) -> Measures:
  features, estimator = shapes_clip(), view_estimator.load()
  rows = np.random.default_rng(0).permutation(len(source.names))[:samples]
  real = np.stack([source.pixels(int(i)) for i in rows])
  return Measures(features, estimator,
                distribution.moments(features.embed(real)))


def stored(
    path: pathlib.Path, key: dict[str, Any], measure: Callable[[], Row]) -> Row:
  """The Row in a file whose key is the same, else a new one.

  Args:
    path: .json file, which gets the new one.
    key: what the Row depends on.
    measure: () -> Row.
  """
  before = files.read_result(path) or {}
  if before.get('key') == key:
    try:
      return from_dict(before['row'])
    except (AttributeError, KeyError, TypeError):
      files.report_damage(path)
  row = measure()
  files.write_bytes(path, json.dumps(
      {'key': key, 'row': as_dict(row)}, indent=1).encode())
  return row


def as_dict(row: Row) -> dict[str, Any]:
  """A Row as JSON content."""
  return {name: list(x) if isinstance(x, Interval) else x
          for name, x in row._asdict().items()}


def from_dict(content: dict[str, Any]) -> Row:
  """Inverse of `as_dict`."""
  fields: Any = {name: Interval(*x) if isinstance(x, list) else x
                 for name, x in content.items()}
  return Row(**fields)


def interval(values: Sequence[float] | np.ndarray) -> Interval:
  """The Interval of values that were measured independently."""
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  if not len(values):
    return Interval(float('nan'), float('nan'))
  error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
  return Interval(float(values.mean()), float(error))


def intervals(measured: Sequence[Sequence[float]]) -> dict[str, Any]:
  """{field of Row: Interval} of what `measure_views` gave for each seed."""
  return {name: interval(values) for name, values in zip(
      Row._fields[:4], zip(*measured, strict=True), strict=True)}


def measure_views(views: face_evaluation.Views, measures: Measures,
                  remove_offset: bool) -> tuple[list[float], int]:
  """([Frechet distance, ID, Depth, Pose], number of failures).

  Args:
    views: of n objects.
    measures: Measures.
    remove_offset: whether a constant rotation is removed from the poses, for
      generators whose world has no absolute orientation.
  """
  first, second = (measures.features.embed(views.images[:, i]) for i in (0, 1))
  estimated = view_estimator.estimate(measures.estimator, views.images[:, 0])
  rotations = view_estimator.camera_of(
      measures.estimator, estimated.direction).c2w[:, :3, :3]
  # Depth where the estimator finds an object; both grow with the distance.
  shown = np.where(estimated.mask > 0,
                   measures.estimator.distance + estimated.depth, 0)
  size = shown.shape[1]
  depth = np.array([
      faces.depth_error(own, other)
      for own, other in zip(faces.central(views.depth, size), shown)])
  pose = faces.pose_errors(
      np.asarray(rotations), views.camera_to_world, remove_offset)
  scores = [faces.score(x) for x in (
      faces.cosines(first, second), depth, pose)]
  frechet = distribution.frechet(distribution.moments(first), measures.real)
  return ([frechet, *(score.mean for score in scores)],
          sum(score.failed for score in scores))


def generator_row(
    name: str, trained: inference.Trained, config: Any,
    source: dataset.Images, measures: Measures, samples: int, seeds: int
    ) -> Row:
  """The Row of a generator.

  Args:
    name: as inference.load_with_config takes it.
    trained: Trained.
    config: of its training.
    source: pictures whose cameras are used.
    measures: Measures.
    samples, seeds: of `compare`.
  """
  measured, failed = [], 0
  for seed in range(seeds):
    parts = list(notices.track(
        face_evaluation.generated_views(trained, source, samples, seed),
        f'Rendering {name}, seed {seed}'))
    views = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    values, failures = measure_views(
        views, measures, not trained.generator.absolute_pose)
    measured.append(values)
    failed += failures
  shapes: dict[str, Any] = {}
  if trained.generator.solid:
    found = gan_evaluation.geometry(name, SHAPES, TRUE_SHAPES)['generated']
    shapes = {'iou': interval(found.ious), 'f_score': interval(found.f_scores),
              'distinct': found.distinct}
  return Row(**intervals(measured), **shapes,
             seconds=seconds_per_view(trained), failed=failed)


def true_row(data: Any, measures: Measures, samples: int, seeds: int) -> Row:
  """The Row of true pictures that are not in the training data.

  Its depth and pose are the errors of the view estimator.
  """
  measured, failed = [], 0
  for seed in range(seeds):
    values, failures = measure_views(
        true_views(data, samples, seed), measures, False)
    measured.append(values)
    failed += failures
  return Row(**intervals(measured), failed=failed)


def true_views(data: Any, samples: int, seed: int) -> face_evaluation.Views:
  """Views of held-out true objects, from cameras of the training's kind."""
  world, size = opening.world_of(data), data.size
  first, count = seed * samples, samples
  examples = [shapes_world.example(0, 'seen', first + i, world)
              for i in range(count)]
  parts = np.stack([e.object.parts for e in examples])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(seed), jnp.arange(count))

  @jax.jit
  def trace_all(parts, keys):
    def trace(inputs):
      parts, key = inputs
      return jax.vmap(lambda key: shapes_render.trace(
          parts, cameras.sample(key, **dict(world.camera)), size))(
              jax.random.split(key))
    return jax.lax.map(trace, (parts, keys))

  views = trace_all(parts, keys)
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), views)
  images = shapes_world.shade_posed(flat).reshape(count, 2, size, size, 3)
  first_views = jax.tree.map(lambda x: x[:, 0], views)
  depth = cameras.axial_depth(
      first_views.camera, jnp.float32(first_views.depth))
  return face_evaluation.Views(
      images, np.where(first_views.coverage > 127, depth, 0),
      np.asarray(first_views.camera.c2w[:, :3, :3]))


def seconds_per_view(trained: inference.Trained, views: int = 16) -> float:
  """Seconds of a view of an object whose representation is computed."""
  render = inference.make_renderer(trained, ('image',))
  ws, path = inference.map_seed(trained, 0), inference.camera_path(
      trained.camera, views)
  render(ws, path)  # compiles
  start = time.perf_counter()
  render(ws, path)
  return (time.perf_counter() - start) / views


def table(rows: dict[str, Row], kinds: dict[str, str], data: Any, samples: int,
          seeds: int) -> str:
  """Markdown: a line for each Row, then the published rows.

  Args:
    rows: {name: Row}.
    kinds: {name: `networks` of the config}.
    data: of the training.
    samples, seeds: of `compare`.
  """
  lines = ['| generator | ' + ' | '.join(_COLUMNS.values()) + ' |',
           '|---' * (len(_COLUMNS) + 1) + '|']
  for name, row in rows.items():
    label = NAMES.get(kinds.get(name, ''), name)
    lines.append(f'| {label} | ' + ' | '.join(
        _cell(field, getattr(row, field)) for field in _COLUMNS) + ' |')
  failed = ', '.join(f'{NAMES.get(kinds.get(name, ""), name)} {row.failed}'
                     for name, row in rows.items())
  lines += [
      '', f'{data.path}, {data.size} pixels; {samples} objects, mean of '
      f'{seeds} seeds and its standard error. Frechet distance and ID on the '
      'image features of the shipped CLIP pair; Depth and Pose by the view '
      'estimator, whose own errors are those of the true pictures. A constant '
      'rotation is removed from the poses of generators without absolute '
      'cameras. IoU and F-score with the nearest of '
      f'{TRUE_SHAPES} true shapes, {SHAPES} objects; a depth mesh (Lifting '
      'StyleGAN) encloses no volume.',
      f'Values that could not be measured: {failed}.', '',
      'Published on photographs of faces (FFHQ), where FID, ID, Depth and Pose '
      'are by other networks; only the GIRAFFE row is confirmed by a second '
      'source:', '', '| generator | FID | ID | Depth | Pose |',
      '|---|---|---|---|---|']
  lines += [f'| {NAMES[kind]} | ' + ' | '.join(map(str, numbers)) + ' |'
            for kind, numbers in PUBLISHED.items()]
  return '\n'.join(lines)


def _cell(field, value):
  """One cell of the table."""
  if value is None:
    return '-'
  digits = {'pose': 5, 'frechet': 4}.get(field, 3)
  if isinstance(value, Interval):
    return f'{value.mean:.{digits}f} +- {value.error:.{digits}f}'
  return f'{value:.{digits}f}' if isinstance(value, float) else str(value)


def sheet(generators: Sequence[inference.Trained], seeds: int = 4,
          views: int = 5) -> np.ndarray:
  """Objects of each generator from several sides, uint8 [H, W, 3]."""
  rows = [objects.sheet(x, range(seeds), views) for x in generators]
  width = max(row.shape[1] for row in rows)
  return np.concatenate([np.pad(
      row, ((0, 0), (0, width - row.shape[1]), (0, 0)),
      constant_values=255) for row in rows])
