"""Quality of a trained generator of objects: images and shapes.

The generated images are compared with the training images. The shapes of a
generator that was trained on the shapes world are compared with its true
shapes, which are known.
"""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gen3d import notices
from gen3d.choices import UserError
from gen3d.data.images import open as opening
from gen3d.data.shapes import captions, primitives
from gen3d.data.shapes import world as shapes_world
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.gan import build as gan_build
from gen3d.gan import inference, sampling
from gen3d.metrics import distribution
from gen3d.metrics import shape as shape_metrics
from gen3d.metrics.features import Features, shapes_clip
from gen3d.models import clip_pair

VIEWS = 8  # of each object, for the classification
CELLS = 48  # along a side of the occupancy grid


class Shape(NamedTuple):
  """One shape, within the box of a generator."""
  occupied: np.ndarray  # bool [CELLS^3]
  surface: np.ndarray   # [text_to_3d_evaluation.POINTS, 3]


class NearestShapes(NamedTuple):
  """Similarity of each of N shapes to the nearest of M others."""
  ious: np.ndarray      # [N] with the nearest, that of the largest IoU
  f_scores: np.ndarray  # [N] with the same; text_to_3d_evaluation.THRESHOLD
  distinct: int         # how many of the M are the nearest of some shape


class Distances(NamedTuple):
  """Frechet distances to half of the real images, on one kind of features."""
  untrained: float   # of images of an untrained generator
  trained: float     # of images of the trained generator
  real_halves: float  # of the other half of the real images: the least value


def report(path: str | os.PathLike, count: int = 64, num_true: int = 1000,
           features: Sequence[Features] | None = None) -> str:
  """A text with all numbers of a generator.

  Args:
    path: as inference.load_with_config takes it.
    count: number of generated objects for the shapes and the categories.
    num_true: number of true shapes that they are compared with.
    features: for the Frechet distances; None for the shipped CLIP pair's.

  Returns:
    Lines: the Frechet distance on each kind of features and, if the training
    data are of the shapes world, the similarity of the shapes and the
    classification of the images.

  Raises:
    UserError: there is no such network or its training data cannot be read.
  """
  _, config = inference.load_with_config(path)
  lines = [
      f'Frechet distance to real images, {name} features: '
      f'untrained {x.untrained:.3f}, trained {x.trained:.4f} '
      f'({x.untrained / x.trained:.0f} times less), two halves of the real '
      f'images {x.real_halves:.4f}'
      for name, x in distances(path, features).items()]
  if not opening.is_world(config.data):
    return '\n'.join(lines)
  lines += [
      f'{len(x.ious)} shapes, {name}: IoU {np.mean(x.ious):.2f}, F-score '
      f'{np.mean(x.f_scores):.2f} '
      f'with the nearest of {num_true} true shapes, {x.distinct} different '
      'ones' for name, x in geometry(path, count, num_true).items()]
  lines += [
      f'{name}: the shipped CLIP classifies {100 * accuracy:.0f} % of the '
      f'images correctly, among {len(captions.CATEGORIES)} categories'
      for name, accuracy in classification(path, count).items()]
  return '\n'.join(lines)


def distances(
    path: str | os.PathLike, features: Sequence[Features] | None = None
) -> dict[str, Distances]:
  """Frechet distances of generated images to the training images.

  Args:
    path: as inference.load_with_config takes it.
    features: compared features; None for the shipped CLIP pair's.

  Returns:
    {name of the features: Distances}, at config.distance_count images each.
  """
  trained, config = inference.load_with_config(path)
  source, count = opening.open_data(config.data), config.distance_count
  networks = gan_build.networks(config, source.labels.shape[1])
  # The images and the order of training's own reports.
  rows = np.random.default_rng(0).permutation(len(source.names))[:2 * count]
  real = np.stack([source.pixels(int(i)) for i in rows])
  sample = sampling.sampler(networks, trained.size)
  generate = lambda variables: sample(variables, source.labels[rows[:count]])
  untrained = generate(gan_build.new_generator(
      networks, jax.random.key(config.seed)))
  generated = generate(trained.variables)
  half = len(real) // 2
  result = {}
  for kind in features or [shapes_clip()]:
    moments = lambda images, kind=kind: distribution.moments(
        kind.embed(images))
    reference = moments(real[:half])
    result[kind.name] = Distances(*(
        distribution.frechet(moments(images), reference)
        for images in (untrained, generated, real[half:])))
  return result


def geometry(path: str | os.PathLike, count: int = 64,
             num_true: int = 1000) -> dict[str, NearestShapes]:
  """Similarity of generated shapes to the true shapes.

  They are compared without alignment: the camera conditioning gives the
  generator the world's own axes and scale.

  Args:
    path: as inference.load_with_config takes it.
    count: number of generated objects, of seeds 0 to count - 1.
    num_true: number of objects of the training data.

  Returns:
    {'generated', 'held out': NearestShapes}, the latter of as many true
    objects that are not in the training data.

  Raises:
    UserError: the training data are not of the shapes world.
  """
  trained, config = inference.load_with_config(path)
  if not opening.is_world(config.data):
    raise UserError(f'{path} is trained on {config.data.path}, of which no '
                    'true shapes are known.')
  world = opening.world_of(config.data)
  bound = trained.generator.bound
  true_objects = lambda split, count: [
      shapes_world.example(0, split, i, world).object for i in range(count)]
  train, held_out = (
      true_objects('train', num_true), true_objects('seen', count))
  cells = shape_metrics.cell_centers(bound, CELLS)
  occupied = np.stack([_distance(x.parts, cells) < 0 for x in notices.track(
      train, 'Computing true shapes')])
  # Only the nearest shapes need a surface.
  surface = functools.cache(lambda i: _true_surface(train[i]))
  extract = inference.make_mesh_extractor(trained)
  shapes = {
      'generated': (
          _shape_of(extract(inference.map_seed(trained, seed)), bound, cells)
          for seed in range(count)),
      'held out': (
          Shape(_distance(x.parts, cells) < 0, _true_surface(x))
          for x in held_out)}
  return {name: nearest_shapes(
      notices.track(some, f'Comparing shapes, {name}', count), occupied,
      surface)
      for name, some in shapes.items()}


def classification(
    path: str | os.PathLike, count: int = 64) -> dict[str, float]:
  """Accuracy of the shipped CLIP pair's classification of the images.

  An image counts as correct where the category, among all of the shapes
  world's, is one of the training data. Prompts have no colors.

  Args:
    path: as inference.load_with_config takes it.
    count: number of objects; generated ones are rendered from VIEWS azimuths.

  Returns:
    {'generated', 'held out': accuracy in [0, 1]}, the latter of as many true
    images that are not in the training data.
  """
  trained, config = inference.load_with_config(path)
  world = opening.world_of(config.data)
  render = inference.make_renderer(trained, ('image',))
  around = inference.camera_at(
      trained.camera, np.arange(VIEWS) * 360.0 / VIEWS)
  films = [render(inference.map_seed(trained, seed), around)
           for seed in notices.track(range(count), 'Rendering views')]
  source = shapes_world.posed_images(
      world, count * VIEWS, config.resolution, split='seen')
  held_out = [source.pixels(i) for i in range(len(source.names))]
  clip = clip_pair.load()
  texts = clip.text_features([
      captions.plain(captions.Spec(category, None, None))
      for category in captions.CATEGORIES])

  def accuracy(images):
    # Unit features: products are cosines.
    logits = clip.image_features(images / np.float32(255)) @ texts.T
    predicted = np.array(captions.CATEGORIES)[np.argmax(logits, axis=1)]
    return float(np.mean(np.isin(predicted, world.categories)))

  return {'generated': accuracy(np.concatenate(films)),
          'held out': accuracy(np.stack(held_out))}


def nearest_shapes(
    shapes: Iterable[Shape], occupied: np.ndarray,
    surface: Callable[[int], np.ndarray]) -> NearestShapes:
  """NearestShapes of Shapes among M others.

  Args:
    shapes: to be compared.
    occupied: bool [M, cells] of the others.
    surface: index of one of the others -> points [P, 3] of its surface.
  """
  occupied = occupied.astype(np.float32)
  volumes, scores = occupied.sum(1), []
  for shape in shapes:
    overlap = occupied @ shape.occupied.astype(np.float32)
    ious = overlap / np.maximum(
        volumes + shape.occupied.sum() - overlap, 1)
    nearest = int(np.argmax(ious))
    scores.append((ious[nearest], shape_metrics.f_score(
        shape.surface, surface(nearest), text_to_3d_evaluation.THRESHOLD),
        nearest))
  iou, f_score, nearest = zip(*scores, strict=True)
  return NearestShapes(np.array(iou), np.array(f_score), len(set(nearest)))


def _shape_of(mesh: Any, bound: float, cells: np.ndarray) -> Shape:
  """The Shape of an ops.mesh.Mesh."""
  inside = shape_metrics.inside_mesh(mesh.vertices, mesh.faces, bound)
  return Shape(inside(cells), shape_metrics.sample_surface(
      mesh.vertices, mesh.faces, text_to_3d_evaluation.POINTS))


def _true_surface(true_object):
  return text_to_3d_evaluation.true_surface(
      functools.partial(_distance, true_object.parts))


def _distance(parts, points):
  return np.asarray(_sdf(parts, points))


_sdf = jax.jit(primitives.sdf)
