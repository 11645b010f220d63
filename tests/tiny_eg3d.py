"""An untrained EG3D of a few pixels, as a Trained, for tests."""

import jax
import jax.numpy as jnp

from configs import eg3d as config_file
from gen3d.gan import build as gan_build
from gen3d.gan import inference, projector

CAMERA = {'elevation': 20.0, 'distance': 1.7, 'focal': 1.35}
# Pixels, and their means over squares: cheap to compile.
PIXEL_LOSS = projector.PerceptualLoss((), lambda _, x: (
    x / 16, x.reshape(len(x), 4, x.shape[1] // 4, 4, x.shape[1] // 4, 3).mean(
        (2, 4)) / 4))


def config():
  return config_file.get_config('tiny')


def trained():
  variables = gan_build.new_generator(
      gan_build.networks(config()), jax.random.key(0))
  return inference.from_config(config(), variables, CAMERA, 8)


def dense(trained):
  """The same with density everywhere in its cube: the surface is a cube."""
  params = trained.variables['params']
  layer = params['decoder']['net.2']
  layer = {**layer, 'bias': layer['bias'].at[0].set(30.0)}
  params = {**params, 'decoder': {**params['decoder'], 'net.2': layer}}
  return trained._replace(variables={**trained.variables, 'params': params})


def with_noise(trained):
  """The same with noise that changes the images, as after a training."""
  params = trained.variables['params']
  layer = params['backbone']['synthesis']['b8']['conv1']
  layer = {**layer, 'noise_strength': jnp.float32(0.1)}
  block = {**params['backbone']['synthesis']['b8'], 'conv1': layer}
  synthesis = {**params['backbone']['synthesis'], 'b8': block}
  params = {**params, 'backbone': {**params['backbone'],
                                   'synthesis': synthesis}}
  return trained._replace(variables={**trained.variables, 'params': params})
