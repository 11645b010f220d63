"""pi-GAN (2012.00926): networks for the adversarial step, and a Generator3D.

The representation of an object is the styles ws [N, L, 2W] of its SIREN. The
generator draws the camera of each image from a prior; the labels of the
training images are not used. A training raises the size of the images by
stages, and the size is the `render_size` of GANNetworks.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gen3d.choices import UserError, pick
from gen3d.gan import Generated, Generator3D, Official
from gen3d.gan.networks import (
    GANNetworks,
    Latents,
    compiled_parts,
    keys_of,
    mix_styles,
    update_w_avg,
)
from gen3d.models import pigan, pigan_discriminators, pigan_official
from gen3d.models import pigan_render as rendering
from gen3d.ops import cameras, mesh

# Rate of the running mean of the styles, as in StyleGAN2.
_W_AVG_RATE = 0.005


def networks(config: Any, resolution: int, label_width: int) -> GANNetworks:
  """pi-GAN's generator and one of its discriminators.

  Args:
    config: ConfigDict with `z_dim`, `siren`, `mapping`, `camera` (the prior),
      `rendering`, `discriminator` (`kind` and `widths`, () for the official
      ones), `pose_weight` of the pose's error, `noise_steps` in which the noise
      of the density ends, `fade_from` and `fade_steps`, the first steps of the
      stages and the length of a fade.
    resolution: of the largest images.
    label_width: any; labels are ignored.

  Raises:
    UserError: the discriminator takes no images of this resolution.
  """
  del label_width
  discriminator = pigan_discriminators.Discriminator(
      discriminator_kind(config.discriminator))
  discriminator.check_size(resolution)
  if config.pose_weight and not discriminator.kind.encoder:
    raise UserError(
        f'The discriminator {config.discriminator.kind!r} estimates no pose; '
        'set model.pose_weight=0 or choose another one.')
  make = functools.partial(_networks, config, module(config), discriminator)

  def at(step):
    return make(
        # Fractions of a few steps may be none.
        noise=jnp.maximum(0.0, 1 - step / max(config.noise_steps, 1)),
        alpha=pigan_discriminators.fade_in(
            step, config.fade_from, max(config.fade_steps, 1)))

  return make(noise=None, alpha=1.0)._replace(at=at)


def module(config: Any) -> pigan.Generator:
  """The pigan.Generator of a config's `model`."""
  return pigan.Generator(
      pigan.SirenConfig(**config.siren), pigan.MappingConfig(**config.mapping))


def discriminator_kind(config: Any) -> pigan_discriminators.Kind:
  """The Kind of a config's `model.discriminator`.

  Raises:
    UserError: there is no such kind.
  """
  kind = pick('discriminator', pigan_discriminators.KINDS, config.kind)
  return kind._replace(widths=tuple(config.widths)) if config.widths else kind


def _networks(config, generator, discriminator, noise, alpha):
  """GANNetworks for a deviation of the density's noise and a fade-in alpha.

  `noise` may be None for none.
  """
  prior = rendering.CameraPrior(**config.camera)
  settings = rendering.RenderingConfig(**config.rendering)

  def generate(variables, latents, render_size):
    mapping = lambda z, camera: generator.apply(variables, z, method='map')
    ws = mix_styles(mapping, latents)
    # Keys of the examples, so that an image does not depend on the others.
    draws = jax.vmap(lambda key: rendering.sample_draws(
        jax.random.fold_in(key, 1), render_size, settings,
        noise is not None))(keys_of(latents.key, latents.index))
    rendered = rendering.render(
        _field(generator, variables, ws),
        rendering.camera_at(_poses(latents, prior), prior), render_size, draws,
        settings, prior.radius, 0.0 if noise is None else noise)
    return {'image': rendered.image}, ws

  def discriminated(variables, x):
    return discriminator.apply(variables, x['image'], alpha)

  def discriminate_fakes(variables, fakes, latents):
    output = discriminated(variables, fakes)
    error = jnp.mean(jnp.square(output.pose - _poses(latents, prior)))
    return output.logit, config.pose_weight * error

  def discriminate(variables, x, label):
    del label
    return discriminated(variables, x).logit

  samples = settings.samples
  return GANNetworks(
      init=functools.partial(_init, generator, discriminator, config.z_dim),
      generate=generate,
      prepare_reals=lambda x, render_size: {'image': nearest(x, render_size)},
      discriminate=discriminate,
      regularize=None,
      update_w_avg=functools.partial(update_w_avg, (), _W_AVG_RATE),
      z_dim=config.z_dim, is_3d=True,
      samples_per_ray=(samples, samples if settings.hierarchical else 0),
      parts=functools.partial(_parts, generate, discriminate, config.z_dim),
      discriminate_fakes=discriminate_fakes if config.pose_weight else None)


def _init(generator, discriminator, z_dim, key):
  """GANNetworks.init of pi-GAN."""
  keys = jax.random.split(key)
  size = discriminator.sizes[-2]  # The smallest: all have all parameters.
  return {'generator': generator.init(keys[0], jnp.zeros((1, z_dim))),
          'discriminator': discriminator.init(
              keys[1], jnp.zeros((1, size, size, 3)))}


def _poses(latents: Latents, prior: rendering.CameraPrior) -> jax.Array:
  """The poses [N, 2] of the images that are generated from `latents`."""
  return jax.vmap(lambda key: rendering.sample_pose(
      jax.random.fold_in(key, 0), prior))(keys_of(latents.key, latents.index))


def _field(generator, variables, ws) -> rendering.Field:
  return lambda points, directions: generator.apply(
      variables, points, directions, ws, method='field')


def nearest(images: jax.Array, size: int) -> jax.Array:
  """Images [N, R, R, C] resized to [N, size, size, C], nearest neighbor."""
  shape = (len(images), size, size, images.shape[-1])
  return images if images.shape == shape else jax.image.resize(
      images, shape, 'nearest')


def _parts(generate, discriminate, z_dim, params, batch_size, render_size
           ) -> dict[str, Callable]:
  """{name: function without arguments}: parts of pi-GAN's step, compiled.

  Args:
    generate, discriminate: of GANNetworks.
    z_dim: of the latents.
    params: of a TrainState, on one device.
    batch_size, render_size: sizes of the inputs.
  """
  label = jnp.zeros((batch_size, 0))
  latents = Latents(jax.random.key(1), jnp.arange(batch_size),
                    jnp.ones((batch_size, z_dim)), label, label)

  def generate_images(variables, latents):
    return generate(variables, latents, render_size)[0]

  def generator_gradient(variables, latents):
    return jax.grad(lambda params: jnp.sum(generate_images(
        {**variables, 'params': params}, latents)['image'] ** 2))(
            variables['params'])

  fakes = {'image': jnp.zeros((batch_size, render_size, render_size, 3))}
  parts = {
      'generator forward': (generate_images, params['generator'], latents),
      'generator forward and backward': (
          generator_gradient, params['generator'], latents),
      'discriminator forward': (
          discriminate, params['discriminator'], fakes, label)}
  return compiled_parts(parts)


def generator(
    config: Any, front: cameras.Camera,
    sample_camera: Callable[[jax.Array], cameras.Camera]) -> Generator3D:
  """The Generator3D of the `model` of a config such as configs/pigan.py.

  Args:
    config: as of `networks`; its `evaluation` has those entries of `rendering`
      that differ where no gradient is needed.
    front: not used; nothing depends on a camera but the rendering.
    sample_camera: key -> Camera of the training data's distribution.
  """
  del front
  return make(
      module(config), config.z_dim,
      rendering.RenderingConfig(**{**config.rendering, **config.evaluation}),
      rendering.CameraPrior(**config.camera).radius, sample_camera)


def make(
    module: pigan.Generator, z_dim: int, settings: rendering.RenderingConfig,
    radius: float, sample_camera: Callable[[jax.Array], cameras.Camera]
) -> Generator3D:
  """The Generator3D of a pi-GAN network, ours or an official one.

  Args:
    module: the network.
    z_dim: size of the latent.
    settings: RenderingConfig.
    radius: of the sphere of cameras, to which its distances refer.
    sample_camera: key -> Camera of the training data's distribution.
  """
  field = _compiled_field(module, settings)
  bound = (settings.far - settings.near) / 2
  return Generator3D(
      map=functools.partial(_map, module),
      synthesize=lambda variables, ws, noise='const', key=None: ws,
      render=functools.partial(_render, module, settings, radius),
      mesh=lambda variables, ws, resolution: mesh.extract(
          functools.partial(field, variables, ws), bound, resolution),
      color=lambda *args: field(*args)[1],
      sample_camera=sample_camera,
      z_dim=z_dim,
      num_ws=module.siren_config.layers + 1,
      bound=bound,
      image_size=lambda size: size,
      background='white' if settings.white_background else 'black',
      absolute_pose=False)


def load_official(path: Any, curriculum: str | None = None) -> Official:
  """An official generator, with the mean styles of 10,000 latents.

  Args:
    path: generator.pth, whose averaged weights are read from the ema.pth
      beside it if that is there; ema.pth alone; or a state_dict.
    curriculum: a key of pigan_official.CURRICULA, with the cameras and samples
      of its training. None for the first one that has the network's kind.

  Raises:
    UserError: the file cannot be read, refers to other code, or does not fit.
  """
  loaded = pigan_official.load(path, curriculum)
  variables = mean_styles(loaded.module, loaded.variables)
  prior = loaded.curriculum.prior
  build = lambda front, sample_camera: make(
      loaded.module, loaded.z_dim, loaded.curriculum.rendering, prior.radius,
      sample_camera)
  return Official(build, variables, loaded.curriculum.size,
                  typical_camera(prior))


def mean_styles(module: pigan.Generator, variables: Any, count: int = 10_000
                ) -> Any:
  """Variables whose w_avg is the mean over `count` latents."""
  kernel = variables['params']['mapping']['dense_0']['kernel']
  z = jax.random.normal(jax.random.key(0), (count, len(kernel)))
  siren = module.siren_config
  variables = {**variables, 'buffers': {
      'w_avg': jnp.zeros((siren.layers + 1, 2 * siren.width))}}
  mean = jax.jit(lambda variables, z: jnp.mean(
      _map(module, variables, z), axis=0))(variables, z)
  return {**variables, 'buffers': {'w_avg': mean}}


def typical_camera(prior: rendering.CameraPrior) -> dict[str, Any]:
  """The typical camera (gan/inference.py) of a prior."""
  everywhere = prior.distribution == 'spherical_uniform'
  middle = rendering.pose(
      prior, *[jnp.float32(0.5 if prior.distribution != 'gaussian' else 0)] * 2)
  # The middle 95 percent.
  width = 1.96 if prior.distribution == 'gaussian' else 0.95
  return {
      'elevation': 90 - math.degrees(float(middle[0])),
      'distance': prior.radius,
      'focal': 0.5 / math.tan(math.radians(prior.fov) / 2),
      'yaw_range': None if everywhere else math.degrees(width * prior.yaw)}


def _map(module, variables, z, camera=None, psi=1.0, cutoff=None) -> Any:
  del camera
  return module.apply(variables, z, psi, cutoff, method='map')


def _render(module, settings, radius, variables, styles, ws, camera, size,
            key=None):
  del ws
  if key is None:
    draws = rendering.middle_draws(len(styles), size, settings)
  else:
    draws = jax.vmap(lambda key: rendering.sample_draws(
        key, size, settings, False))(jax.random.split(key, len(styles)))
  image, depth, opacity = rendering.render(
      _field(module, variables, styles), camera, size, draws, settings, radius)
  if settings.last_background:  # It covers the image.
    return Generated(image, image, depth, jnp.ones_like(opacity))
  distance = jnp.linalg.norm(camera.c2w[..., :3, 3], axis=-1)
  far = settings.far + (distance - radius)[:, None, None]
  # The mean distance of what is there, else the end of the ray.
  depth = jnp.where(
      opacity > 1e-6, depth / jnp.maximum(opacity, 1e-6), far)
  return Generated(image, image, depth, opacity)


def _compiled_field(module, settings):
  """(variables, ws [1, L, 2W], points [P, 3]) -> (density [P], colors)."""

  @jax.jit
  def field(variables, ws, points):
    # Colors as seen from the front.
    directions = jnp.broadcast_to(jnp.array([0.0, 0.0, -1.0]), points.shape)
    density, colors = module.apply(
        variables, points[None, :, None], directions[None], ws, method='field')
    return (rendering.ACTIVATIONS[settings.activation](density[0, :, 0]),
            colors[0, :, 0])

  return field
