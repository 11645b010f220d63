"""Reconstruction: photographs with known cameras become a scene.

NeRF (2003.08934), Mip-NeRF (2103.13415), hybrid voxels and hybrid tri-planes
(EG3D, section 3) are trained by the same step: rays drawn from all
photographs, rendered in two passes, compared with the pixels they go through.
The field and the sampling of rays are the config's.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen3d import files
from gen3d.choices import UserError
from gen3d.data import synthetic
from gen3d.data.captures import posed, records
from gen3d.engine import checkpoints, devices, optim
from gen3d.engine import state as states
from gen3d.io import images as image_io
from gen3d.metrics import image as image_metrics
from gen3d.models import perceptual
from gen3d.ops import cameras
from gen3d.render import finished
from gen3d.scenes import Scene, View, radiance
from gen3d.tasks import (
    Costs,
    Task,
    check_least,
    load_config,
    scheduled_rate,
)

MODES = ('color', 'depth', 'normal')  # of films
RESULTS = 'test.json'


def make(config: Any) -> Task:
  """The Task of configs/nerf.py and the configs that are based on it.

  Raises:
    UserError: the capture cannot be read, or a name is not known.
  """
  check_least(config, {
      'batch': 1, 'scene.coarse.samples': 1, 'scene.fine.samples': 0,
      'scene.chunk': 1, 'data.factor': 1, 'data.count': 1, 'data.size': 1,
      'eval_views': 1, 'export.frames': 1})
  train = open_data(config.data, 'train')
  # The test views must be in the frame of the training views.
  test = in_frame(open_data(config.data, 'test'), unit_cube(train))
  frame, train = to_unit_frame(train, config.export.frames)
  scene = radiance.make(config.scene, frame)
  optimizer = optim.make_optimizer(config.optimizer, config.steps)
  height, width = test.images.shape[1:3]
  score = partial(
      score_test_views, test=test,
      render_views=finished.make_renderer(
          scene, (height, width), ('color', 'depth'), None),
      network=config.lpips and perceptual.load(config.lpips))
  # Evenly spaced test views for evaluation during training.
  eval_rows = np.linspace(0, len(test.names) - 1, min(
      config.eval_views, len(test.names))).astype(int)
  return Task(
      init=lambda key: states.create(
          devices.jit_once(scene.init)(key), optimizer),
      step=partial(
          step, scene=scene, optimizer=optimizer,
          background=config.scene.background,
          coarse_weight=config.scene.coarse.loss_weight,
          height=train.images.shape[1]),
      batches=partial(
          batches, train=train, size=config.batch,
          crop_steps=config.crop.steps, crop_fraction=config.crop.fraction),
      evaluate=partial(_evaluate, score=score, rows=eval_rows, test=test),
      finish=partial(
          _finish, score=score, test=test, scene=scene,
          options=finished.export_options(config.export)),
      costs=partial(
          _costs, scene=scene, rays=config.batch,
          samples=(config.scene.coarse.samples, config.scene.fine.samples),
          height=train.images.shape[1]),
      scheduled=scheduled_rate(config))


def load(workdir: str | os.PathLike, step: int | None = None
         ) -> finished.Finished:
  """The finished scene of a run; its photographs need not exist.

  Args:
    workdir: of the run.
    step: which checkpoint; None for the newest.

  Raises:
    UserError: there is no such run, it is damaged, or it is of another task.
    FileNotFoundError: there is no such checkpoint.
  """
  config = load_config(workdir, ['reconstruction'])
  params = _load_params(workdir, step)
  scene = radiance.make(config.scene, params['frame'])
  return _finished_scene(
      scene, params, finished.export_options(config.export),
      lambda step: [_load_params(workdir, step)])


def _load_params(workdir, step):
  """The parameters in a checkpoint, with the Frame as a record."""
  params = jax.tree.map(
      jnp.asarray, checkpoints.load_tree(workdir, 'params', step))
  frame = params['frame']
  return {**params, 'frame': radiance.Frame(
      frame['to_world'], frame['bounds'], cameras.Camera(**frame['path']))}


def _finished_scene(scene, params, options, load_params=None):
  """The Finished of a scene; `options` are those of finished.export."""
  frame = params['frame']
  return finished.from_scene(
      scene, params, frame.path, MODES, options, frame.to_world, load_params)


def _finish(state, workdir, *, score, test, scene, options):
  """Writes scores and images of all test views, a film and a mesh."""
  workdir = pathlib.Path(workdir)
  scalars, images = score(state.params, np.arange(len(test.names)))
  folder = workdir / 'test'
  folder.mkdir(exist_ok=True)
  for name, image, (height, width) in zip(
      _result_names(test.names), images, test.all_sizes()):
    image_io.save(folder / name, np.concatenate([
        half[:height, :width] for half in np.split(image, 2, axis=1)], axis=1))
  with files.atomic_write(workdir / RESULTS) as temporary:
    temporary.write_text(json.dumps(scalars, indent=2))
  return [workdir / RESULTS, folder, *finished.export(
      _finished_scene(scene, state.params, options), workdir)]


def _result_names(names):
  """Names of PNG files for photographs: unique, if need be with folders."""
  stems = [pathlib.PurePosixPath(name).stem for name in names]
  if len({*stems}) == len(names):
    return [f'{stem}.png' for stem in stems]
  # The suffix stays, in which names may differ as well.
  return ['_'.join(part for part in pathlib.PurePosixPath(name).parts
                   if part not in ('/', '..')) + '.png' for name in names]


def _costs(*, scene, rays, samples, height):
  """The Costs of a training; see tasks.Costs."""
  def parts(params, batch, devices):
    count = rays // devices
    # One device's part of the batch.
    camera, pixel = jax.tree.map(
        lambda x: jnp.asarray(x[:count]), (batch['camera'], batch['pixel']))
    view = View(None, cameras.rays_through(camera, pixel, height), None,
                jnp.ones(3), jnp.float32(1.0))
    render = jax.jit(lambda params: scene.render(params, None, view).image)
    return {'rays rendered': partial(render, params)}

  return Costs(sizes={'rays a step': rays, 'samples a ray': samples},
               unit=('rays', rays), parts=parts)


def open_data(data: Any, split: str) -> posed.Posed:
  """The photographs of a config's `data`.

  `path` is a folder, or 'shapes:' and a caption of the shapes world, of which
  `count` images of `size` pixels are rendered.

  Args:
    data: ConfigDict.
    split: 'train' or 'test'.

  Raises:
    UserError: there is no path, or it cannot be read.
  """
  if not data.path:
    raise UserError(
        'There are no photographs: give --config.data.path, the folder of a '
        'capture, or --config.data.path="shapes:a red car".')
  if data.path.startswith('shapes:'):
    count = data.count if split == 'train' else max(2, data.count // 4)
    return synthetic.render_views(
        data.path.removeprefix('shapes:'), split, count, data.size)
  return posed.open_posed(data.path, split, format=data.format,
                          factor=data.factor, near=data.get('near') or None,
                          far=data.get('far') or None,
                          box=data.get('box') or None)


def unit_cube(photographs: posed.Posed) -> np.ndarray:
  """[4, 4] from the unit frame to the frame of the photographs.

  The photographs' box is scaled by its longest side into [-1, 1]^3.
  """
  low, high = np.asarray(photographs.box, np.float64)
  half = float((high - low).max() / 2)
  cube = np.diag([half, half, half, 1.0])
  cube[:3, 3] = (low + high) / 2
  return cube


def to_unit_frame(train: posed.Posed, frames: int
                  ) -> tuple[radiance.Frame, posed.Posed]:
  """The unit frame of a capture, and its photographs in that frame.

  Args:
    train: photographs of open_data.
    frames: number of cameras on the path for films.
  """
  cube = unit_cube(train)
  unit = in_frame(train, cube)
  # Meshes are in the coordinates of the capture's files.
  to_files = np.eye(4) if train.align is None else np.linalg.inv(train.align)
  return radiance.Frame(to_files @ cube, np.array([unit.near, unit.far]),
                        camera_path(unit, frames)), unit


def in_frame(photographs: posed.Posed, cube: np.ndarray) -> posed.Posed:
  """Photographs with cameras and bounds in the frame of `unit_cube`."""
  scale = cube[0, 0]
  c2w = records.transform_poses(np.linalg.inv(cube), np.asarray(
      photographs.camera.c2w, np.float64)).astype(np.float32)
  corners = (np.asarray(photographs.box) - cube[:3, 3]) / scale
  return photographs._replace(
      camera=photographs.camera._replace(c2w=c2w),
      near=photographs.near / scale, far=photographs.far / scale,
      box=corners.astype(np.float32))


def camera_path(photographs: posed.Posed, frames: int) -> cameras.Camera:
  """Cameras [frames] for a film of a capture, with square images.

  A full circle where the photographs' cameras surround the scene; else a loop
  as wide as the standard deviation of their angles.
  """
  c2w = np.asarray(photographs.camera.c2w, np.float64)
  # The point that the cameras face, else the mean point in front of them.
  ahead = c2w[:, :3, 3] - c2w[:, :3, 2] * photographs.far / 2
  target = records.closest_point(c2w)
  target = np.mean(ahead, axis=0) if target is None else target
  azimuth, elevation, distance = (np.asarray(x) for x in cameras.angles(
      jnp.asarray(c2w[:, :3, 3] - target)))
  focal = np.median(np.asarray(photographs.camera.intrinsics)[:, 1, 1])
  turn = np.linspace(0, 2 * np.pi, frames, endpoint=False)
  # The circular mean; its length is 1 where all azimuths are the same.
  center = np.exp(1j * np.deg2rad(azimuth)).mean()
  if abs(center) > 0.5:  # Most cameras are on one side.
    # Azimuths relative to the mean, so that none jumps by 360.
    mean = np.angle(center, deg=True)
    relative = (azimuth - mean + 180) % 360 - 180
    azimuths = mean + np.std(relative) * np.sin(turn)
    elevations = np.mean(elevation) + np.std(elevation) * np.cos(turn)
  else:
    azimuths = np.rad2deg(turn)
    elevations = np.full(frames, np.median(elevation))
  return cameras.orbit(azimuths, elevations, np.median(distance), focal,
                       target)


def batches(
    seed: int, first_step: int, *, train: posed.Posed, size: int,
    crop_steps: int, crop_fraction: float) -> Iterator[dict[str, Any]]:
  """Random pixels of all photographs, each batch a function of (seed, step).

  Args:
    seed, first_step: of tasks.Task.batches.
    train: photographs in the unit frame; each is drawn equally often.
    size: rays in a batch.
    crop_steps: for so many steps pixels are drawn from the middle of each
      photograph only (NeRF's remedy against an empty start).
    crop_fraction: side of that middle, as a fraction of the photograph's.

  Yields:
    {'camera': Camera [size], 'pixel': float32 [size, 2] as rays_through takes
    them, 'color': uint8 [size, 4], 'index': int32 [size]}.
  """
  count, height, width, _ = train.images.shape
  index, sides = np.arange(size, dtype=np.int32), train.all_sizes()[:, ::-1]
  for number in itertools.count(first_step):
    rng = np.random.default_rng((seed, number))
    fraction = crop_fraction if number < crop_steps else 1.0
    photograph = rng.integers(count, size=size)
    position = 0.5 + fraction * (rng.random((size, 2)) - 0.5)
    column, row = (position * sides[photograph]).astype(int).T
    pixel = np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=-1)
    c2w, intrinsics = train.camera
    yield {'camera': cameras.Camera(c2w[photograph], intrinsics[photograph]),
           'pixel': pixel.astype(np.float32),
           'color': train.images[photograph, row, column], 'index': index}


def step(
    state: states.TrainState, batch: dict[str, Any], key: jax.Array, *,
    scene: Scene, optimizer: optax.GradientTransformation, background: str,
    coarse_weight: float, height: int
) -> tuple[states.TrainState, dict[str, jax.Array]]:
  """One update from one device's rays; see tasks.Task.

  Args:
    state, batch, key: of tasks.Task.step.
    scene: of radiance.make.
    optimizer: optax.GradientTransformation.
    background: one of radiance.BACKGROUNDS.
    coarse_weight: factor of the coarse pass's loss.
    height: of the photographs in pixels.
  """
  # A ray's randomness comes from its index in the batch: see tasks.Task.
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  key_background, key_rays = jax.random.split(key)
  keys = fold(key_rays, batch['index'])
  behind = jax.vmap(partial(radiance.background_color, background))(
      fold(key_background, batch['index']))
  rays = cameras.rays_through(batch['camera'], batch['pixel'], height)
  # The photographs' background is that of the scene, so that a random one
  # cannot be learned as density.
  truth = posed.composite_over(batch['color'], behind)
  view = View(None, rays, None, behind, jnp.float32(1.0))

  def loss(params):
    render = scene.render(params, keys, view)
    error = lambda image: jnp.mean(jnp.square(image - truth))
    photometric, coarse = error(render.image), [
        error(image) for image in render.passes]
    penalties = scene.penalties(params, render, state.step)
    metrics = {f'weighted_penalty/{name}': x for name, x in penalties.items()}
    metrics['loss/photometric'] = photometric
    total = photometric + sum(coarse_weight * e for e in coarse)
    return total + sum(penalties.values()), metrics

  grads, metrics = jax.grad(loss, has_aux=True)(state.params)
  grads, metrics = jax.lax.pmean((grads, metrics), 'devices')
  # Of the mean error: the mean of devices' PSNRs would depend on their number.
  metrics['psnr'] = -10 * jnp.log10(metrics['loss/photometric'])
  return optim.apply_gradients(state, grads, optimizer), metrics


def score_test_views(
    params: Any, rows: np.ndarray, *, render_views: Callable,
    test: posed.Posed, network: perceptual.Perceptual | None
) -> tuple[dict[str, float], np.ndarray]:
  """Compares the scene with the test photographs `rows`.

  Args:
    params: of the scene.
    rows: [N] ints.
    render_views: (params, cameras [N]) -> uint8 [N, H, 2 W, 3], colors beside
      depths.
    test: photographs in the unit frame.
    network: of LPIPS, or None.

  Returns:
    ({'test/psnr', 'test/ssim' (, 'test/lpips')}: means over the photographs,
    of 8-bit images; the images of `render_views`, white beside photographs
    that are smaller than H x W).
  """
  whole = test.images.shape[2]
  images = np.array(render_views(
      params, jax.tree.map(lambda x: x[rows], test.camera)))
  means = {}
  for row, image in zip(rows, images):
    height, width = test.all_sizes()[row]
    for half in np.split(image, [whole], axis=1):
      half[height:] = half[:, width:] = 255
    truth = posed.composite_over(test.images[row, :height, :width], 1.0)
    color = image[:height, :width] / 255.0
    scores = {'test/psnr': image_metrics.psnr(truth, color)}
    # SSIM needs images as large as its filter.
    if min(height, width) >= image_metrics.TAPS:
      scores['test/ssim'] = image_metrics.ssim(truth, color)
    if network:
      scores['test/lpips'] = image_metrics.lpips(network, truth, color)
    for name, value in scores.items():
      means[name] = means.get(name, 0.0) + float(value) / len(rows)
  return means, images


def _evaluate(state, key, *, score, rows, test):
  """Scores of some test views, and a sheet: truth, color, depth."""
  del key
  scalars, images = score(state.params, rows)
  truth = np.round(
      255 * posed.composite_over(test.images[rows], 1.0)).astype(np.uint8)
  return scalars, {'test': image_io.tile(
      np.concatenate([truth, images], axis=2), 1)}
