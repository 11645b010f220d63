"""Training of the view estimator on pictures of the shapes world."""

import functools
import itertools
import operator
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from gen3d import assets, notices
from gen3d.choices import UserError
from gen3d.data import exporting
from gen3d.data.images import dataset
from gen3d.data.images import open as opening
from gen3d.data.shapes import world as shapes_world
from gen3d.engine import devices, optim
from gen3d.engine import state as states
from gen3d.engine.release import save_release
from gen3d.metrics import face_model, faces
from gen3d.models import deep3d, view_estimator
from gen3d.models.view_estimator import Estimate
from gen3d.ops import cameras, images
from gen3d.tasks import Costs, Task, check_least, scheduled_rate

_CHUNK = 64  # pictures that are read at a time


def make(config: ml_collections.ConfigDict) -> Task:
  """The Task of configs/view_estimator.py's get_config.

  Raises:
    UserError: a set of the data is not of the shapes world, or of pictures of
      another size.
  """
  check_least(config, {'batch': 1, 'held_out': 1})
  for name, data in config.data.items():
    if not opening.is_world(data) or data.size != config.size:
      raise UserError(
          f'--config.data.{name} is {data.path!r} of {data.size} pixels; the '
          f'view estimator is trained on the shapes world ("shapes:cat") at '
          f'--config.size={config.size}, where depth and cameras are known.')
  model = view_estimator.module(config.model)
  optimizer = optim.make_optimizer(config.optimizer, config.steps)

  def init(key):
    params = devices.jit_once(model.init)(
        key, jnp.zeros((1, config.size, config.size, 3)))
    return states.create(params, optimizer, ema=True)

  def finish(state: states.TrainState,
             workdir: str | os.PathLike) -> tuple[pathlib.Path, ...]:
    scalars, _ = evaluate(state, None, config=config)
    categories = [category for data in config.data.values()
                  for category in opening.world_of(data).categories]
    return save_release(assets.VIEW_ESTIMATOR, config, state, workdir,
                        errors=scalars, categories=categories)

  return Task(
      init=init,
      step=functools.partial(
          train_step, model=model, optimizer=optimizer,
          weights=config.weights.to_dict(), ema_decay=config.ema_decay),
      batches=functools.partial(batches, config=config),
      evaluate=functools.partial(evaluate, config=config),
      finish=finish,
      costs=lambda: Costs({'image': config.size, 'batch': config.batch}),
      scheduled=scheduled_rate(config))


def truth(views: Any) -> Estimate:
  """The true Estimate of Views [N, S, S]; the mask is 0 or 1."""
  position = jnp.asarray(views.camera.c2w)[:, :3, 3]
  distance = jnp.linalg.norm(position, axis=-1)
  return Estimate(cameras.normalize(position),
                  views.depth - distance[:, None, None],
                  (views.coverage > 127).astype(jnp.float32))


def batches(seed: int, first_step: int, *,
            config: Any) -> Iterator[dict[str, Any]]:
  """Training batches, each a pure function of (seed, step).

  Yields:
    {'index' [B], 'pictures' uint8 [B, S, S, 3], 'truth': Estimate [B]}.
  """
  pictures, truths = zip(*(
      _pictures(data, 'train', data.count) for data in config.data.values()),
      strict=True)
  pictures = np.concatenate(pictures)
  truths = jax.tree.map(lambda *x: np.concatenate(x), *truths)
  for step in itertools.count(first_step):
    rows = np.random.default_rng((seed, step)).integers(
        len(pictures), size=config.batch)
    yield {'index': np.arange(config.batch, dtype=np.int32),
           'pictures': pictures[rows],
           'truth': jax.tree.map(operator.itemgetter(rows), truths)}


def _pictures(data, split, count):
  """(pictures uint8 [N, S, S, 3], their true Estimate) of a set."""
  views, _ = shapes_world.load_views(
      0, split, count, data.size, opening.world_of(data))
  return shapes_world.shade_posed(views), jax.tree.map(
      np.asarray, truth(views))


def augment(key: jax.Array, picture: jax.Array) -> jax.Array:
  """A picture [S, S, 3] in [0, 1] as a generator might make it.

  Blur, noise and the exposure vary, since pictures of generators are less
  sharp than those of the training; the geometry is the picture's.
  """
  key_blur, key_noise, key_exposure = jax.random.split(key, 3)
  side = jnp.maximum(0.0, jax.random.uniform(
      key_blur, minval=-0.25, maxval=0.3))
  picture = images.blur3(picture, side)
  picture *= jax.random.uniform(key_exposure, minval=0.9, maxval=1.05)
  return picture + 0.02 * jax.random.normal(key_noise, picture.shape)


def losses(estimated: Estimate, true: Estimate) -> dict[str, jax.Array]:
  """{'direction', 'depth', 'mask': mean loss} of Estimates [N].

  The squared distance of the directions, the absolute error of the depth
  within the true mask, and the cross-entropy of the mask.
  """
  error = jnp.abs(estimated.depth - true.depth) * true.mask
  return {
      'direction': jnp.mean(jnp.sum(
          (estimated.direction - true.direction) ** 2, axis=-1)),
      'depth': jnp.sum(error) / jnp.maximum(jnp.sum(true.mask), 1),
      'mask': jnp.mean(optax.sigmoid_binary_cross_entropy(
          estimated.mask, true.mask))}


def train_step(
    state: states.TrainState, batch: dict[str, Any], key: jax.Array, *,
    model: view_estimator.ViewEstimator,
    optimizer: optax.GradientTransformation, weights: dict[str, float],
    ema_decay: float) -> tuple[states.TrainState, dict[str, Any]]:
  """One update on this device's examples of the batch; see tasks.Task.

  Args:
    state: TrainState.
    batch: as from `batches`.
    key: of the step; an example's key is folded with its index.
    model: ViewEstimator.
    optimizer: of its parameters.
    weights: {name of a loss: factor}.
    ema_decay: of the moving average of the parameters.
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])
  pictures = jax.vmap(augment)(keys, batch['pictures'] / 255.0)

  def loss_fn(params):
    estimated: Any = model.apply(params, pictures)
    terms = losses(estimated, batch['truth'])
    return sum(weights[name] * x for name, x in terms.items()), terms

  grads, terms = jax.grad(loss_fn, has_aux=True)(state.params)
  grads = jax.lax.pmean(grads, 'devices')
  state = optim.apply_gradients(state, grads, optimizer, ema_decay)
  return state, {f'loss/{name}': x for name, x in terms.items()}


def label_faces(path: str | os.PathLike, out: str | os.PathLike,
                weights: str | os.PathLike) -> str:
  """Writes pictures of faces, framed as EG3D's, with estimated cameras.

  Args:
    path: folder or zip of pictures; labels that it has are not used.
    out: a new folder, for the pictures and dataset.json.
    weights: of Deep3DFaceRecon, see models/deep3d.py.

  Returns:
    What was written.

  Raises:
    UserError: there are no such pictures, or the weights are others.
  """
  network = deep3d.load(weights)
  source = dataset.open_images(path)
  dataset.check(source)

  @jax.jit
  def label(params, pictures):
    estimated = deep3d.coefficients(
        network._replace(params=params), pictures / 255.0)
    return cameras.to_label(face_model.camera_of(estimated))

  listing = _label(source, out, lambda pictures: label(
      network.params, faces.central(pictures, deep3d.SIDE, faces.CENTRAL)))
  return (f'{listing}: cameras of {len(source.names)} pictures, estimated by '
          'Deep3DFaceRecon. Faces must be framed as in EG3D\'s data.')


def label_pictures(
    path: str | os.PathLike, out: str | os.PathLike,
    weights: str | os.PathLike = assets.VIEW_ESTIMATOR) -> str:
  """Writes pictures of the shapes world with estimated cameras.

  Args:
    path: folder or zip of pictures; labels that it has are not used.
    out: a new folder, for the pictures and dataset.json.
    weights: of the view estimator.

  Returns:
    What was written, and how accurate the estimator is on true pictures.

  Raises:
    UserError: there are no such pictures, or they have another size than the
      estimator's.
  """
  estimator = view_estimator.load(weights)
  source = dataset.open_images(path)
  dataset.check(source)
  if source.size != estimator.size:
    raise UserError(
        f'{source.where} has pictures of {source.size} pixels a side, but the '
        f'view estimator is trained on {estimator.size}; resize them.')
  listing = _label(source, out, lambda pictures: cameras.to_label(
      view_estimator.camera_of(estimator, view_estimator.estimate(
          estimator, pictures).direction)))
  errors = ', '.join(
      f'{name.removesuffix("/angle")} {value:.1f}'
      for name, value in estimator.errors.items() if name.endswith('/angle'))
  return (f'{listing}: cameras of {len(source.names)} pictures, estimated. The '
          f'estimator knows {", ".join(estimator.categories)} of the shapes '
          f'world; its median error on true pictures, in degrees: {errors}.')


def _label(source, out, label):
  """Writes pictures with the labels that `label` gives a few of them."""
  labels, count = [], len(source.names)
  for start in notices.track(range(0, count, _CHUNK), 'Estimating cameras'):
    rows = np.arange(start, start + _CHUNK)
    # The last part is filled up: another number would be compiled anew.
    pictures = np.stack([
        source.pixels(int(i)) for i in np.minimum(rows, count - 1)])
    labels.append(np.asarray(label(pictures))[rows < count])
  return exporting.write_labeled(out, source, np.concatenate(labels))


def evaluate(state: states.TrainState, key: jax.Array | None, *,
             config: Any) -> tuple[dict[str, float], dict[str, Any]]:
  """Errors of the averaged weights on held-out pictures; no images.

  For each set: the median angle between estimated and true direction in
  degrees, the mean absolute error of the depth in world units, and the IoU of
  the masks.
  """
  del key  # The pictures are the same in every evaluation.
  estimator = view_estimator.Estimator(
      view_estimator.module(config.model), state.ema, config.size,
      config.distance, config.focal, (), {})
  scalars = {}
  for name, data in config.data.items():
    pictures, true = _pictures(data, 'seen', config.held_out)
    estimated = view_estimator.estimate(estimator, pictures)
    cosine = np.sum(estimated.direction * true.direction, axis=-1)
    inside = true.mask > 0
    found = estimated.mask > 0
    scalars |= {
        f'{name}/angle': float(np.median(np.rad2deg(
            np.arccos(np.clip(cosine, -1, 1))))),
        f'{name}/depth': float(np.mean(
            np.abs(estimated.depth - true.depth)[inside])),
        f'{name}/mask_iou': float((found & inside).sum()
                                  / (found | inside).sum())}
  return scalars, {}
