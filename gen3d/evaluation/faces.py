"""ID, Depth and Pose of a generator of faces, by 'our protocol'.

EG3D's numbers came without code, and are not reproduced by this. The protocol
is that of the benchmark Carver (2306.12423), with four differences: each sample
has a camera of its own (its code seeds them all alike), the reconstructor sees
the central 94 % of an image, which is what it was trained on, ID is measured on
aligned faces too, and failures are counted.

* ID: the cosine of ArcFace's embeddings of two views of a face.
* Depth: the face reconstructor's depth of the first view, and the generator's.
* Pose: the face reconstructor's rotation of the camera, and the true one.

Views are from cameras of the data; the camera that conditions the generator is
frontal and fixed, so that both views show one object. Noise is that of the
buffers. For ID on aligned faces the landmarks are those of the reconstructor,
not of a detector.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import notices
from gen3d.choices import UserError
from gen3d.engine import sharding
from gen3d.evaluation import fid
from gen3d.gan import inference
from gen3d.metrics import face_model, faces
from gen3d.models import arcface, deep3d
from gen3d.ops import cameras

SAMPLES = 1024
_CHUNK = 16  # samples at a time, of two views each


class FaceNetworks(NamedTuple):
  """What the user's files contain; each may be missing."""
  recognizer: arcface.ArcFace | None = None
  reconstructor: deep3d.Reconstructor | None = None
  model: face_model.FaceModel | None = None


class Views(NamedTuple):
  """Two views, a and b, of n generated objects."""
  images: Any      # uint8 [n, 2, R, R, 3]
  depth: Any       # [n, r, r] of a along the viewing axis, 0 where none
  camera_to_world: Any  # [n, 3, 3], rotations of a


class Measured(NamedTuple):
  """Numbers of n samples; None where a network or the face model is missing."""
  identity: np.ndarray | None          # [n] cosines
  identity_aligned: np.ndarray | None  # [n] cosines
  depth: np.ndarray | None             # [n]
  rotations: np.ndarray | None         # [n, 2, 3, 3], true and estimated


class Result(NamedTuple):
  """Scores; None where a network or the face model is missing.

  `pose_offset` is the pose after removal of one rotation of the world, for
  generators whose world has no absolute orientation.
  """
  identity: faces.Score | None
  identity_aligned: faces.Score | None
  depth: faces.Score | None
  pose: faces.Score | None
  pose_offset: faces.Score | None


def report(network: str | os.PathLike, data: str = '',
           arcface_path: str = '', deep3d_path: str = '',
           model_path: str = '', samples: int = SAMPLES,
           seed: int = 0) -> str:
  """A text with ID, Depth and Pose, those that the given files allow.

  Args:
    network: as inference.load takes it.
    data: images whose cameras are used, see fid.report; '' for the generator's
      own distribution of cameras.
    arcface_path: see models/arcface.py; ID needs it.
    deep3d_path: see models/deep3d.py; Pose needs it.
    model_path: see metrics/face_model.py; Depth and ID on aligned faces need
      it.
    samples: number of objects.
    seed: of the objects and cameras.

  Raises:
    UserError: a file is not there or not what it should be.
  """
  if samples < 2:
    raise UserError(f'--samples={samples} is too few; take at least 2.')
  networks = load_networks(arcface_path, deep3d_path, model_path)
  source, cameras_of = None, 'the generator'
  if data:
    trained, source = fid.open_both(network, data)
    cameras_of = source.where
  else:
    trained = inference.load(network)
  result = evaluate(trained, networks, source, samples, seed)
  lines = [f'our protocol (after Carver, 2306.12423; not EG3D\'s), {samples} '
           f'samples of {network}, cameras of {cameras_of}, frontal '
           'conditioning']
  names = {'identity': 'ID, not aligned',
           'identity_aligned': 'ID, aligned by the reconstruction',
           'depth': 'Depth', 'pose': 'Pose',
           'pose_offset': 'Pose without a constant offset'}
  for field, score in result._asdict().items():
    if score is not None:
      lines.append(f'{names[field]} {score.mean:.4f}, {score.failed} of '
                   f'{score.count} failed')
  return '\n'.join(lines)


def load_networks(arcface_path: str = '', deep3d_path: str = '',
                  model_path: str = '') -> FaceNetworks:
  """The FaceNetworks of the user's files; '' where one is missing.

  Raises:
    UserError: a file is not what it should be, or is of no use alone.
  """
  if model_path and not deep3d_path:
    raise UserError('The face model needs the reconstructor: give --deep3d, '
                    'the path of epoch_20.pth.')
  if not (arcface_path or deep3d_path):
    raise UserError(
        'Metrics of faces need your files: give --arcface (ID), --deep3d '
        '(Pose) and with it --face_model (Depth); gen3d/models/arcface.py, '
        'gen3d/models/deep3d.py and gen3d/metrics/face_model.py say where they '
        'are.')
  return FaceNetworks(
      arcface.load(arcface_path) if arcface_path else None,
      deep3d.load(deep3d_path) if deep3d_path else None,
      face_model.load(model_path) if model_path else None)


def evaluate(trained: inference.Trained, networks: FaceNetworks,
             source: Any = None, samples: int = SAMPLES, seed: int = 0
             ) -> Result:
  """Scores of a generator.

  Args:
    trained: Trained.
    networks: FaceNetworks.
    source: data.images.dataset.Images whose cameras are used, with repetition;
      None for the generator's own distribution.
    samples: number of objects.
    seed: of the objects and cameras.
  """
  measure = measurer(networks)
  parts = []
  with notices.progress('Measuring faces', samples) as advance:
    for views in generated_views(trained, source, samples, seed):
      parts.append(measure(views))
      advance(len(views.images))
  whole = Measured(*(None if part[0] is None else np.concatenate(part)
                     for part in zip(*parts, strict=True)))
  score = lambda x: None if x is None else faces.score(x)
  pose = lambda offset: None if whole.rotations is None else faces.pose_errors(
      whole.rotations[:, 0], whole.rotations[:, 1], offset)
  return Result(*map(score, (whole.identity, whole.identity_aligned,
                             whole.depth, pose(False), pose(True))))


def generated_views(trained: inference.Trained, source: Any, samples: int,
                    seed: int = 0) -> Iterator[Views]:
  """Yields Views of a few objects at a time, `samples` in all.

  Args:
    trained: Trained.
    source: see `evaluate`.
    samples: number of objects.
    seed: of the objects and cameras.
  """
  render = sharding.map_over_devices(
      functools.partial(_render, trained, seed), rows=1)
  draw = fid.camera_draws(trained, source, seed)
  for start in range(0, samples, _CHUNK):
    index = np.arange(start, min(start + _CHUNK, samples))
    labels = np.stack([draw(index, 0), draw(index, 1)], axis=1)
    images, depth = render(trained.variables, (index, labels))
    first = cameras.from_label(jnp.asarray(labels[:, 0]))
    yield Views(images, depth, np.asarray(first.c2w[:, :3, :3]))


def _render(trained, seed, variables, rows):
  """(uint8 [1, 2, R, R, 3], depth [1, r, r]) of one object."""
  index, labels = rows
  generator, camera = trained.generator, cameras.from_label(labels[0])
  z = jax.random.normal(
      jax.random.fold_in(jax.random.key(seed), index[0]),
      (1, generator.z_dim))
  ws = generator.map(variables, z, None, 1.0, None)
  shared = generator.synthesize(variables, ws, 'const', None)
  generated = [generator.render(
      variables, shared, ws, jax.tree.map(lambda x, i=i: x[i:i + 1], camera),
      trained.size, None) for i in (0, 1)]
  first = jax.tree.map(lambda x: x[:1], camera)
  depth = cameras.axial_depth(first, generated[0].depth)
  depth = jnp.where(generated[0].opacity > 0.5, depth, 0)
  return fid.quantize(jnp.stack([x.image for x in generated], 1)), depth


def measurer(networks: FaceNetworks) -> Callable[[Views], Measured]:
  """A function Views -> Measured."""
  similarity = side = None
  if networks.recognizer is not None:
    similarity = _similarity(networks.recognizer)
    side = networks.recognizer.spec.image_side
  estimate = (None if networks.reconstructor is None else
              _estimator(networks.reconstructor))
  reconstruct = sharding.map_over_devices(face_model.reconstruct, rows=1)

  def measure(views: Views) -> Measured:
    identity = aligned = depth = rotations = None
    two, n = [views.images[:, 0], views.images[:, 1]], len(views.images)
    if similarity and side:
      identity = similarity([faces.central(x, side) for x in two])
    if estimate:
      estimated = estimate(np.concatenate(two))
      rotations = np.stack([
          views.camera_to_world,
          face_model.camera_to_world(estimated.angles[:n])], axis=1)
      if networks.model is not None:
        face = reconstruct(networks.model, estimated)
        own = faces.central(views.depth, deep3d.SIDE, faces.CENTRAL)
        depth = np.array([faces.depth_error(*pair)
                          for pair in zip(own, face.depth)])
        if similarity and side:
          crops, found = _aligned(two, face.landmarks, side)
          aligned = np.where(found, similarity(crops), np.nan)
    return Measured(identity, aligned, depth, rotations)

  return measure


# Specs are static, weights are arguments of the compiled programs.


def _similarity(network):
  """A function (crops of two views, uint8 [n, S, S, 3]) -> cosines [n]."""
  embed = sharding.map_over_devices(
      lambda params, images: arcface.embed(
          network._replace(params=params), faces.arcface_input(images)),
      rows=_CHUNK)
  return lambda crops: faces.cosines(*np.split(
      embed(network.params, np.concatenate(crops)), 2))


def _estimator(network):
  """A function images uint8 [n, R, R, 3] -> Coefficients."""
  estimate = sharding.map_over_devices(
      lambda params, images: deep3d.coefficients(
          network._replace(params=params), jnp.float32(images) / 255),
      rows=_CHUNK)
  return lambda images: estimate(network.params, faces.central(
      images, deep3d.SIDE, faces.CENTRAL))


def _aligned(two, landmarks, side):
  """(aligned crops of two views, whether both have landmarks, bool [n])."""
  size = two[0].shape[1]
  # From the central crop, whose pixels are counted at their centers.
  start, step = size * (1 - faces.CENTRAL) / 2, (
      size * faces.CENTRAL / deep3d.SIDE)
  landmarks = start + (landmarks + 0.5) * step - 0.5
  (a, found_a), (b, found_b) = (
      faces.align(view, points, side)
      for view, points in zip(two, np.split(landmarks, 2)))
  return [a, b], found_a & found_b
