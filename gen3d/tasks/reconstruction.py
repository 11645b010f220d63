"""Posed photographs become a scene that can be looked at from anywhere.

NeRF (2003.08934), Mip-NeRF (2103.13415), hybrid voxels and hybrid tri-planes
(EG3D, section 3) train by the same step: rays drawn over all photographs,
rendered twice, compared with the pixels they go through. The field and how
rays are sampled are the config's.
"""

import itertools
import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import files
from gen3d.choices import UserError
from gen3d.data import synthetic
from gen3d.data.captures import posed, records
from gen3d.engine import checkpoints, optim
from gen3d.engine import state as states
from gen3d.io import images as image_io
from gen3d.metrics import image as image_metrics
from gen3d.models import perceptual
from gen3d.ops import cameras
from gen3d.render import finished
from gen3d.scenes import View, radiance
from gen3d.tasks import Task

SHOWN = ('color', 'depth', 'normal')
RESULTS = 'test.json'


def make(config):
  """The Task of configs/nerf.py and its neighbors.

  Raises:
    UserError: the capture cannot be read, or a name is not known.
  """
  train = open_data(config.data, 'train')
  frame, train = to_unit_frame(train, config.export.frames)
  test = open_data(config.data, 'test')
  test = in_frame(test, frame.to_world)
  scene = radiance.make(config.scene, frame)
  optimizer = optim.make_optimizer(config.optimizer, config.steps)
  look = finished.viewer(scene, test.images.shape[1:3], ('color', 'depth'),
                        None)
  measure = partial(judge, look=look, test=test,
                    network=config.lpips and perceptual.load(config.lpips))
  some = np.linspace(0, len(test.names) - 1, min(
      config.eval_views, len(test.names))).astype(int)

  def finish(state, workdir):
    rows = np.arange(len(test.names))
    scalars, images = measure(state.params, rows)
    folder = pathlib.Path(workdir) / 'test'
    folder.mkdir(exist_ok=True)
    for name, image in zip(test.names, images):
      image_io.save(folder / f'{pathlib.PurePath(name).stem}.png', image)
    with files.atomic_write(pathlib.Path(workdir) / RESULTS) as temporary:
      temporary.write_text(json.dumps(scalars, indent=2))
    seen = shown(scene, state.params, config)
    return [pathlib.Path(workdir) / RESULTS, folder,
            *finished.export(seen, workdir, **seen.defaults)]

  return Task(
      init=lambda key: states.create(jax.jit(scene.init)(key), optimizer),
      step=partial(step, scene=scene, optimizer=optimizer,
                   config=config.scene, height=train.images.shape[1]),
      batches=partial(batches, train=train, size=config.batch,
                      crop=config.crop),
      evaluate=partial(_evaluate, measure=measure, rows=some, test=test),
      finish=finish)


def open_data(data, split):
  """The posed.Posed of a config's `data`.

  `path` is a folder, or 'shapes:' and a caption of the shapes world, of which
  `count` pictures of `size` pixels are rendered.

  Raises:
    UserError: what the sentence says.
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


def load(workdir, step=None):
  """The showing.Shown of a run of this task; its photographs need not exist.

  Raises:
    UserError: where there is no such run or it is damaged.
    FileNotFoundError: where there is no such checkpoint.
  """
  config = checkpoints.load_config(workdir)
  if config.get('task') != 'reconstruction':
    raise UserError(f'The run in {workdir} is of the task '
                    f'{config.get("task")!r}, not of a reconstruction.')
  frames = config.export.frames
  # All of the right shape; the checkpoint has the values.
  blank = radiance.Frame(np.eye(4), np.array([1.0, 2.0]), cameras.Camera(
      np.zeros((frames, 4, 4)), np.zeros((frames, 3, 3))))
  scene = radiance.make(config.scene, blank)
  optimizer = optim.make_optimizer(config.optimizer, config.steps)
  state = checkpoints.load(workdir, states.create(
      jax.jit(scene.init)(jax.random.key(0)), optimizer), step)
  return shown(scene, state.params, config)


def shown(scene, params, config):
  """The showing.Shown of a scene with trained parameters."""
  frame = params['frame']
  return finished.Shown(
      scene, params, frame.path, SHOWN, frame.to_world,
      {k: v for k, v in config.export.items() if k != 'frames'})


def to_unit_frame(train, frames):
  """(radiance.Frame, the photographs in it): the box becomes [-1, 1]^3.

  Args:
    train: posed.Posed.
    frames: of the path that the scene is shown from.
  """
  low, high = np.asarray(train.box, np.float64)
  half = float((high - low).max() / 2)
  to_world = np.diag([half, half, half, 1.0])
  to_world[:3, 3] = (low + high) / 2
  train = in_frame(train, to_world)
  return radiance.Frame(to_world, np.array([train.near, train.far]),
                        path(train, frames)), train


def in_frame(photographs, to_world):
  """A posed.Posed with its cameras and bounds taken from the world's frame."""
  scale = to_world[0, 0]
  c2w = records.transform_poses(np.linalg.inv(to_world), np.asarray(
      photographs.camera.c2w, np.float64)).astype(np.float32)
  corners = (np.asarray(photographs.box) - to_world[:3, 3]) / scale
  return photographs._replace(
      camera=photographs.camera._replace(c2w=c2w),
      near=photographs.near / scale, far=photographs.far / scale,
      box=corners.astype(np.float32))


def path(photographs, frames):
  """Cameras [frames] to show a capture from, with square pictures.

  Once around where the cameras stood around the scene; else a loop as wide as
  they were apart.
  """
  c2w = np.asarray(photographs.camera.c2w, np.float64)
  ahead = c2w[:, :3, 3] - c2w[:, :3, 2] * photographs.far / 2
  target = records.closest_point(c2w)
  target = np.mean(ahead, axis=0) if target is None else target
  azimuth, elevation, distance = (np.asarray(x) for x in cameras.angles(
      jnp.asarray(c2w[:, :3, 3] - target)))
  focal = np.median(np.asarray(photographs.camera.intrinsics)[:, 1, 1])
  turn = np.linspace(0, 2 * np.pi, frames, endpoint=False)
  middle = np.exp(1j * np.deg2rad(azimuth)).mean()
  if abs(middle) > 0.5:  # Most of them on one side.
    # Azimuths relative to the middle one, so that none jumps by 360.
    mean = np.angle(middle, deg=True)
    apart = (azimuth - mean + 180) % 360 - 180
    azimuths = mean + np.std(apart) * np.sin(turn)
    elevations = np.mean(elevation) + np.std(elevation) * np.cos(turn)
  else:
    azimuths = np.rad2deg(turn)
    elevations = np.full(frames, np.median(elevation))
  return cameras.orbit(azimuths, elevations, np.median(distance), focal,
                       target)


def batches(seed, first_step, *, train, size, crop):
  """Random pixels of all photographs, each batch a function of (seed, step).

  For the first `crop.steps` steps from the middle `crop.share` of each
  picture only (NeRF's remedy against an empty start).

  Yields:
    {'camera': Camera [size], 'pixel': float32 [size, 2] as rays_through takes
    them, 'color': uint8 [size, 4], 'index': int32 [size]}.
  """
  count, height, width, _ = train.images.shape
  index = np.arange(size, dtype=np.int32)
  for number in itertools.count(first_step):
    rng = np.random.default_rng((seed, number))
    share = crop.share if number < crop.steps else 1.0
    which = rng.integers(count, size=size)
    place = 0.5 + share * (rng.random((size, 2)) - 0.5)
    column, row = (place * (width, height)).astype(int).T
    pixel = np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=-1)
    c2w, intrinsics = train.camera
    yield {'camera': cameras.Camera(c2w[which], intrinsics[which]),
           'pixel': pixel.astype(np.float32),
           'color': train.images[which, row, column], 'index': index}


def step(state, batch, key, *, scene, optimizer, config, height):
  """One update from this chip's share of the rays; see tasks.Task."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  key_backdrop, key_rays = jax.random.split(key)
  keys = fold(key_rays, batch['index'])
  behind = jax.vmap(partial(radiance.backdrop, config))(
      fold(key_backdrop, batch['index']))
  rays = cameras.rays_through(batch['camera'], batch['pixel'], height)
  truth = posed.composite_over(batch['color'], behind)
  view = View(None, rays, None, behind, jnp.float32(1.0))

  def loss(params):
    render = scene.render(params, keys, view)
    errors = [jnp.mean(jnp.square(color - truth))
              for color in render.aux['colors']]
    penalties = scene.penalties(params, render, state.step)
    metrics = {f'loss/{name}': x for name, x in penalties.items()}
    metrics['loss/photometric'] = errors[-1]
    total = errors[-1] + sum(config.coarse.loss * e for e in errors[:-1])
    return total + sum(penalties.values()), metrics

  grads, metrics = jax.grad(loss, has_aux=True)(state.params)
  grads, metrics = jax.lax.pmean((grads, metrics), 'devices')
  metrics['psnr'] = -10 * jnp.log10(metrics['loss/photometric'])
  return optim.apply_gradients(state, grads, optimizer), metrics


def judge(params, rows, *, look, test, network):
  """How close the scene comes to the test photographs `rows`.

  Args:
    params: of the scene.
    rows: [N] ints.
    look: (params, cameras [N]) -> uint8 [N, H, 2 W, 3], colors beside depths.
    test: posed.Posed in the unit frame.
    network: perceptual.Perceptual, or nothing.

  Returns:
    ({'test/psnr', 'test/ssim' (, 'test/lpips')}: means over the pictures,
    on the 8 bits that are written; what `look` shows).
  """
  _, height, width, _ = test.images.shape
  images = look(params, jax.tree.map(lambda x: x[rows], test.camera))
  sums = {}
  for row, image in zip(rows, images):
    truth, made = posed.composite_over(test.images[row], 1.0), image[:, :width] / 255.0
    scores = {'test/psnr': image_metrics.psnr(truth, made)}
    if min(height, width) >= image_metrics.TAPS:
      scores['test/ssim'] = image_metrics.ssim(truth, made)
    if network:
      scores['test/lpips'] = image_metrics.lpips(network, truth, made)
    for name, score in scores.items():
      sums[name] = sums.get(name, 0.0) + float(score) / len(rows)
  return sums, images


def _evaluate(state, key, *, measure, rows, test):
  """Scores on some test photographs, and a sheet: truth, color, depth."""
  del key
  scalars, images = measure(state.params, rows)
  truth = np.round(255 * posed.composite_over(test.images[rows], 1.0)).astype(np.uint8)
  return scalars, {'test': image_io.tile(
      np.concatenate([truth, images], axis=2), 1)}
