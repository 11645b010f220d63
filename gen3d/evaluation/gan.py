"""How good a generator of objects is: the README's numbers of the GANs.

Its pictures are held against real ones, its shapes against true ones: where
it has learned from the shapes world, those are known.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from gen3d.choices import UserError
from gen3d.data.shapes import captions, primitives
from gen3d.data.shapes import world as shapes_world
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.gan import inference
from gen3d.gan import networks as gan_networks
from gen3d.metrics import shape as shape_metrics
from gen3d.models import clip_pair
from gen3d.tasks import gan

SIDES = 8  # from which the judge looks at an object
CELLS = 48  # along a side of the grid on which the nearest shape is looked for


class Shape(NamedTuple):
  """One shape, within the box of a generator."""
  occupied: np.ndarray  # bool [CELLS^3]
  surface: np.ndarray   # [evaluation.POINTS, 3]


class Closeness(NamedTuple):
  """How close shapes are to the nearest of others, means over the shapes."""
  count: int
  iou: float       # with the nearest, which is the one of the largest IoU
  f_score: float   # with the same; evaluation.THRESHOLD
  distinct: int    # how many different ones are nearest to some


def report(path, count=64, truths=1000):
  """What is to be printed: `distances` and, of the shapes world, the rest."""
  _, config = inference.load_trained(path)
  far = distances(path)
  lines = ['Frechet distance to real pictures, features of the shipped CLIP: '
           f'untrained {far["untrained"]:.3f}, trained {far["trained"]:.4f} '
           f'({far["untrained"] / far["trained"]:.0f} times less), two halves '
           f'of the real ones {far["real halves"]:.4f}']
  if not gan.is_world(config.data):
    return lines[0]
  lines += [
      f'{found.count} shapes, {name}: IoU {found.iou:.2f}, F-score '
      f'{found.f_score:.2f} with the nearest of {truths} true shapes, '
      f'{found.distinct} different ones'
      for name, found in geometry(path, count, truths).items()]
  lines += [
      f'{name}: the shipped CLIP names {100 * share:.0f} % of the pictures '
      f'rightly, among {len(captions.CATEGORIES)} categories'
      for name, share in named(path, count).items()]
  return '\n'.join(lines)


def distances(path):
  """Frechet distances to the pictures that a generator has learned from.

  On the features of the shipped CLIP pair, as tasks/gan.py's reports.

  Args:
    path: as objects.load_trained takes it.

  Returns:
    {'untrained', 'trained', 'real halves': number}.
  """
  network, config = inference.load_trained(path)
  source = gan.open_data(config.data)
  networks = gan.build(config, source.labels.shape[1])
  measure = gan.frechet_distance_fn(config, networks, source)
  start = gan_networks.new_generator(networks, jax.random.key(config.seed))
  found = measure(network.variables, network.size)
  return {'untrained': measure(start, network.size)['frechet_clip/generated'],
          'trained': found['frechet_clip/generated'],
          'real halves': found['frechet_clip/real_halves']}


def geometry(path, count=64, truths=1000):
  """How close what a generator makes is to the true shapes.

  They are not moved or turned: the cameras have told the generator the
  world's own axes and scale.

  Args:
    path: as objects.load_trained takes it.
    count: of generated objects, seeds 0 to count - 1.
    truths: of objects that it has learned from.

  Returns:
    {'generated', 'held out': Closeness}, the latter of as many true objects
    that it has not seen.

  Raises:
    UserError: it has not learned from the shapes world.
  """
  network, config = inference.load_trained(path)
  if not gan.is_world(config.data):
    raise UserError(f'{path} has learned from {config.data.path}, of which no '
                    'true shapes are known.')
  world = gan.world_of(config.data)
  bound = network.generator.rendering.box_warp / 2
  known = [shapes_world.example(0, 'train', i, world).object for i in range(truths)]
  others = [shapes_world.example(0, 'seen', i, world).object for i in range(count)]
  cells = shape_metrics.cell_centers(bound, CELLS)
  filled = np.stack([_distance(x.parts, cells) < 0 for x in tqdm.tqdm(
      known, 'true shapes', disable=None)])
  surface = functools.cache(lambda i: _true_surface(known[i]))
  surface_of = inference.mesher(network)
  made = (_measured(surface_of(inference.ws_of(
      network, inference.latent(network, seed))), bound, cells)
      for seed in range(count))
  held = (Shape(_distance(x.parts, cells) < 0, _true_surface(x))
          for x in others)
  return {name: closeness(
      tqdm.tqdm(those, name, count, disable=None), filled, surface)
      for name, those in (('generated', made), ('held out', held))}


def named(path, count=64):
  """How often the shipped CLIP pair finds in a picture what it should show.

  That is a category that the generator has learned from, among all of the
  shapes world's, without colors.

  Args:
    path: as objects.load_trained takes it.
    count: of objects; generated ones are seen from SIDES sides.

  Returns:
    {'generated', 'held out': share of the pictures}, the latter of as many
    true pictures that the generator has not seen.
  """
  network, config = inference.load_trained(path)
  world = gan.world_of(config.data)
  paint = inference.painter(network, ('image',))
  labels = inference.label(network.camera, np.arange(SIDES) * 360.0 / SIDES)
  films = [paint(inference.ws_of(network, inference.latent(network, seed)), labels)
           for seed in tqdm.trange(count, desc='views', disable=None)]
  source = shapes_world.posed_images(
      world, count * SIDES, config.resolution, split='seen')
  truth = [source.pixels(i) for i in range(len(source.names))]
  judge = clip_pair.load()
  texts = judge.text_features([
      captions.plain(captions.Spec(category, None, None))
      for category in captions.CATEGORIES])

  def share(images):
    likeness = judge.image_features(images / np.float32(255)) @ texts.T
    found = np.array(captions.CATEGORIES)[np.argmax(likeness, axis=1)]
    return float(np.mean(np.isin(found, world.categories)))

  return {'generated': share(np.concatenate(films)),
          'held out': share(np.stack(truth))}


def closeness(those, filled, surface):
  """The Closeness of Shapes to the nearest of others.

  Args:
    those: Shapes.
    filled: bool [M, cells] of the others.
    surface: number of one of the others -> points of its surface.
  """
  filled = filled.astype(np.float32)
  volumes, found = filled.sum(1), []
  for one in those:
    shared = filled @ one.occupied.astype(np.float32)
    ious = shared / np.maximum(volumes + one.occupied.sum() - shared, 1)
    nearest = int(np.argmax(ious))
    found.append((ious[nearest], shape_metrics.f_score(
        one.surface, surface(nearest), text_to_3d_evaluation.THRESHOLD), nearest))
  iou, f_score, nearest = zip(*found, strict=True)
  return Closeness(len(found), float(np.mean(iou)), float(np.mean(f_score)),
                   len(set(nearest)))


def _measured(mesh, bound, cells):
  """The Shape of a Mesh."""
  inside = shape_metrics.inside_mesh(mesh.vertices, mesh.faces, bound)
  return Shape(inside(cells), shape_metrics.sample_surface(
      mesh.vertices, mesh.faces, text_to_3d_evaluation.POINTS))


def _true_surface(true_object):
  return text_to_3d_evaluation.true_surface(
      functools.partial(_distance, true_object.parts))


def _distance(parts, points):
  return np.asarray(_sdf(parts, points))


_sdf = jax.jit(primitives.sdf)
