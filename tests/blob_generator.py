"""A Generator3D without a network: an ellipsoid-free ball in closed form."""

import functools

import jax
import jax.numpy as jnp

from gen3d.gan import Generated, Generator3D, inference
from gen3d.ops import cameras, mesh

CAMERA = {'elevation': 10.0, 'distance': 2.0, 'focal': 1.5}
SIZE = 24
BOUND = 0.6
PARAMS = {'center': jnp.array([0.05, -0.1, 0.0]), 'radius': jnp.float32(0.25)}


def generator(density_scale=4000.0):
  """The record; `density_scale` 0 is a generator without surfaces."""
  return Generator3D(
      map=_map, synthesize=_synthesize, render=_render,
      mesh=functools.partial(_mesh, density_scale),
      color=lambda variables, ball, points: points + 0.5,
      sample_camera=lambda key: cameras.sample(key),
      z_dim=5, num_ws=2, bound=BOUND, image_size=lambda size: size,
      background='white')


def trained(density_scale=4000.0):
  return inference.Trained(
      generator(density_scale), {'params': PARAMS}, SIZE, CAMERA)


def _map(variables, z, camera, psi, cutoff):
  del variables, camera
  layers = jnp.arange(2) < (2 if cutoff is None else cutoff)
  scale = jnp.where(layers, psi, 1.0)[:, None]
  return scale * jnp.tanh(z[:, None, :4])


def _synthesize(variables, ws, noise, key):
  """(centers [N, 3], radii [N]): layer 0 moves the ball, 1 scales it."""
  del noise, key
  params = variables['params']
  return (params['center'] + 0.2 * ws[:, 0, :3],
          params['radius'] * jnp.exp(0.3 * ws[:, 1, 3]))


def _render(variables, ball, ws, camera, size, key):
  """A soft disk, whose colors are the positions nearest to the center."""
  del variables, ws, key
  center, radius = (x[:, None, None] for x in ball)
  rays = cameras.rays(camera, size, size)
  offset = rays.origins - center
  along = jnp.sum(offset * rays.directions, axis=-1, keepdims=True)
  nearest = rays.origins - along * rays.directions
  miss = jnp.sqrt(jnp.sum((nearest - center) ** 2, axis=-1) + 1e-6)
  opacity = jax.nn.sigmoid((radius - miss) / 0.03)
  image = opacity[..., None] * (2 * nearest) + (1 - opacity[..., None])
  return Generated(image, image, -along[..., 0], opacity)


def _mesh(density_scale, variables, ball, resolution):
  del variables
  center, radius = ball

  def field(points):
    distance = jnp.linalg.norm(points - center[0], axis=-1)
    density = jnp.clip(density_scale * (radius[0] - distance), 0, 50)
    return density, points + 0.5

  return mesh.extract(jax.jit(field), BOUND, resolution)
