"""GIRAFFE (2011.12100) for the adversarial step and as a Generator3D.

The latent z [N, Z] is the concatenation of the shape and appearance codes of
the objects, then of the background. Images of a data set have no cameras here:
camera, layout and rotation of the background are drawn from the prior for each
example (official code: one rotation of the background for a batch). The paper's
images are in [0, 1], those of gen3d in [-1, 1].

GIRAFFE's cameras have no azimuth: instead the objects turn, before a background
that stays. So a Generator3D that is seen from an azimuth has its background
behind the objects in each view. Its representation is a Scene, N scenes whose
objects can be moved, turned, left out and added by `place` and `join` of
models/giraffe_scene.py.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import files
from gen3d.choices import UserError, excerpt
from gen3d.gan import Generated, Generator3D, Official
from gen3d.gan.networks import GANNetworks, keys_of
from gen3d.models import giraffe, giraffe_official, giraffe_rendering
from gen3d.models import giraffe_scene as scenes
from gen3d.ops import cameras, mesh

# Of the official scenes of Clevr, whose file of locations has other units.
_CLEVR_UNIT = 0.2378777237835723


def from_config(config: Any) -> giraffe.Model:
  """The giraffe.Model of the ConfigDict `model` of configs/giraffe.py.

  Raises:
    UserError: the file of locations cannot be read, or a number makes no
      rendering possible.
  """
  rendering = giraffe_rendering.Rendering(**config.rendering)
  if rendering.samples < 2 or rendering.near >= rendering.far:
    raise UserError(
        f'--config.model.rendering has {rendering.samples} samples between '
        f'the depths {rendering.near} and {rendering.far}; give at least 2, '
        'and rising depths.')
  prior = scenes.Prior(**config.prior)
  if prior.locations:
    prior = prior._replace(locations=_locations(prior.locations, prior.boxes))
  return giraffe.Model(
      giraffe.Generator(
          dict(config.decoder), dict(config.background), dict(config.renderer),
          config.features, rendering),
      prior, config.z_dim, config.z_dim_background)


def networks(config: Any, resolution: int, label_width: int) -> GANNetworks:
  """GIRAFFE's generator and discriminator.

  Args:
    config: see `from_config`; also `discriminator`.
    resolution: of the images.
    label_width: of the images' labels, which are not used.

  Raises:
    UserError: see `from_config`.
  """
  del label_width
  model = from_config(config)
  module, prior = model.module, model.prior
  rendering = module.rendering._replace(
      window=giraffe_rendering.window_size(prior, module.rendering))
  module = module.clone(rendering=rendering)
  discriminator = giraffe.Discriminator(resolution, **config.discriminator)

  def init(key):
    keys = jax.random.split(key)
    return {'generator': model.init(keys[0]),
            'discriminator': discriminator.init(
                keys[1], jnp.zeros((1, resolution, resolution, 3)))}

  def generate(variables, latents, render_size):
    if render_size * 2 ** config.renderer.blocks != resolution:
      raise UserError(
          f'{config.renderer.blocks} blocks make images of '
          f'{render_size * 2 ** config.renderer.blocks} pixels from '
          f'{render_size} rays a side, but the data have {resolution}; change '
          '--config.render_size or --config.model.renderer.blocks.')

    @jax.vmap
    def draw(key):
      keys = jax.random.split(key, 3)
      return (scenes.sample_layout(keys[0], prior),
              scenes.sample_camera(keys[1], prior),
              giraffe_rendering.draw(
                  keys[2], render_size, prior.boxes, rendering.samples))

    layout, camera, draws = draw(keys_of(latents.key, latents.index))
    image: Any = module.apply(
        variables, model.split(latents.z), layout, camera, render_size, draws)
    return {'image': 2 * image - 1}, latents.z

  def discriminate(variables, x, label) -> Any:
    del label
    return discriminator.apply(variables, x['image'] / 2 + 0.5)

  return GANNetworks(
      init=init, generate=generate,
      prepare_reals=lambda x, render_size: {'image': x},
      discriminate=discriminate, regularize=None,
      update_w_avg=lambda variables, w: variables, z_dim=model.z_dim,
      is_3d=True, samples_per_ray=(rendering.samples, 0))


def generator(
    config: Any, front: cameras.Camera,
    sample_camera: Callable[[jax.Array], cameras.Camera]) -> Generator3D:
  """`make` of the ConfigDict `model` of a config such as configs/giraffe.py.

  Args:
    config: see `from_config`.
    front: not used; there is no camera conditioning.
    sample_camera: key -> Camera of the training data's distribution.

  Raises:
    UserError: see `from_config`.
  """
  del front
  return make(from_config(config), sample_camera, config.background_color)


def make(
    model: giraffe.Model,
    sample_camera: Callable[[jax.Array], cameras.Camera],
    background: str = 'black') -> Generator3D:
  """The Generator3D of a GIRAFFE, ours or an official one.

  Without a key objects are in the middle of the prior's ranges, and rendering
  has even distances and no noise (the official mode 'val'). With a key
  `synthesize` draws the layouts, and `render` jitters distances and adds noise
  to densities (the official mode 'training', in which the official FID is
  measured). Depth, opacity and mesh are those of the objects.

  A point of the field has features instead of a color. Colors of the mesh and
  of `image_raw` are those that the neural renderer gives to an endless image
  of the feature (giraffe.uniform_color), a point being seen from outside.

  Args:
    model: giraffe.Model.
    sample_camera: key -> Camera.
    background: 'white' or 'black', of the training data.
  """
  field = _compiled_field(model)
  bound = scenes.reach(model.prior)
  blocks = model.module.renderer_config['blocks']
  return Generator3D(
      map=functools.partial(_map, model),
      synthesize=functools.partial(_synthesize, model),
      render=functools.partial(_render, model.module),
      mesh=lambda variables, scene, resolution: mesh.extract(
          functools.partial(field, variables, scene), bound, resolution),
      color=lambda *args: field(*args)[1],
      sample_camera=sample_camera, z_dim=model.z_dim, num_ws=1, bound=bound,
      image_size=lambda size: size * 2**blocks, background=background,
      absolute_pose=False)


def load_official(path: str | os.PathLike, dataset: str | None = None
                  ) -> Official:
  """An official generator.

  Args:
    path: of a checkpoint (.pt).
    dataset: of giraffe_official.PRIORS; None for the one in the file's name.

  Raises:
    UserError: the file cannot be read, refers to other code, does not fit, or
      there is no such data set.
  """
  model, variables, _ = giraffe_official.load(path, dataset)
  return Official(
      lambda front, sample_camera: make(model, sample_camera), variables,
      giraffe_official.RENDER_SIZE, typical_camera(model.prior))


def typical_camera(prior: scenes.Prior) -> dict:
  """The typical camera (gan/inference) of a Prior's middle."""
  low, high = prior.rotation_range
  full = not 0 < high - low < 1
  return {'elevation': float(np.rad2deg(np.arcsin(1 - sum(prior.v_range)))),
          'distance': sum(prior.radius_range) / 2,
          'focal': float(0.5 / np.tan(np.deg2rad(prior.fov) / 2)),
          'yaw_range': None if full else 180.0 * (high - low)}


def _map(model, variables, z, camera=None, psi=1.0, cutoff=None):
  """There is no mapping network: w is z, whose mean is 0."""
  del model, variables, camera
  # One layer, so that a cutoff is 0 or takes all.
  return (z * (1.0 if cutoff == 0 else psi))[:, None]


def _synthesize(model, variables, ws, noise='const', key=None):
  del variables, noise
  count = len(ws)
  if key is None:
    layout = scenes.middle_layout(model.prior, count)
  else:
    layout = jax.vmap(lambda k: scenes.sample_layout(k, model.prior))(
        jax.random.split(key, count))
  return scenes.Scene(model.split(ws[:, 0]), layout)


def _render(module, variables, scene, ws, camera, size, key=None):
  del ws
  camera = scenes.camera_from_world(camera)
  # The background turns with the camera.
  turns = jnp.arctan2(
      camera.c2w[:, 1, 3], camera.c2w[:, 0, 3]) / (2 * jnp.pi)
  layout = scene.layout._replace(background=jnp.matmul(
      scene.layout.background, scenes.turn(-turns), precision='highest'))
  draws = None
  if key is not None:
    draws = jax.vmap(lambda k: giraffe_rendering.draw(
        k, size, layout.scale.shape[1], module.rendering.samples))(
            jax.random.split(key, len(turns)))
  rendered = module.apply(
      variables, scene.codes, layout, camera, size, draws, method='render')
  image = module.apply(variables, rendered.features, method='image')
  raw = giraffe.uniform_color(
      variables['params']['neural_renderer'], rendered.features)
  return Generated(
      2 * image - 1, 2 * raw - 1, rendered.depth, rendered.opacity)


def _compiled_field(model):
  """(variables, Scene of one, points [Q, 3]) -> (density [Q], colors)."""

  @jax.jit
  def field(variables, scene, points):
    points = scenes.from_world(points)
    density, features = model.module.apply(
        variables, *scene, points[None], -cameras.normalize(points)[None],
        method='at_points')
    return density[0], giraffe.uniform_color(
        variables['params']['neural_renderer'], features[0])

  return field


def _locations(path, boxes):
  """Translations [K, B, 3] of an official file, in the scene's units."""
  try:
    places = np.asarray(
        files.read_npz(path)['coordinates'], np.float32) * _CLEVR_UNIT
  except (ValueError, KeyError) as error:
    raise UserError(
        f'{path} (--config.model.prior.locations) is no .npz with '
        f'"coordinates" ({excerpt(error)}); give the file of the data set.'
        ) from error
  if places.ndim != 3 or places.shape[1:] != (boxes, 3):
    raise UserError(
        f'{path} has locations of the shape {list(places.shape)}, but '
        f'--config.model.prior.boxes is {boxes}; it needs [K, {boxes}, 3].')
  return places


