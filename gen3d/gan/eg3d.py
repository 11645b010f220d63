"""EG3D's networks (2112.07945) as a Generator3D, ours and the official ones.

The representation is the tri-planes [N, R, R, 3, F]. This is the only module
outside the training that uses the methods of models.eg3d.Generator.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.gan import Generated, Generator3D, noise_buffers
from gen3d.gan import networks as gan_networks
from gen3d.models import eg3d, nvidia
from gen3d.ops import cameras, mesh

# Of the official visualizer: faces from a narrow range of yaw through a long
# lens, cars (the networks with a white background) from all around.
_FACES = {'focal': 4.2647, 'yaw_range': 20.0}
_CARS = {'focal': 1.7074, 'yaw_range': None}
_RADIUS = 2.7  # of the camera's sphere, where the pickle has none


def make(
    module: eg3d.Generator, z_dim: int, front: cameras.Camera,
    sample_camera: Callable[[jax.Array], cameras.Camera]) -> Generator3D:
  """The Generator3D of an EG3D network, ours or an official one.

  Args:
    module: the network.
    z_dim: size of the latent.
    front: camera conditioning of the mapping network where none is given.
    sample_camera: key -> Camera of the training data's distribution.
  """
  field = _compiled_field(module)
  return Generator3D(
      map=functools.partial(_map, module, front),
      synthesize=functools.partial(_synthesize, module),
      render=functools.partial(_render, module),
      mesh=functools.partial(_mesh, field, module),
      color=lambda *args: field(*args)[1],
      sample_camera=sample_camera,
      z_dim=z_dim,
      num_ws=module.bind({}).backbone.num_ws,
      bound=module.rendering.box_warp / 2,
      image_size=functools.partial(_image_size, module.super_resolution),
      background='white' if module.rendering.white_background else 'black',
      noise_buffers=_backbone_noise)


def from_config(
    config: Any, front: cameras.Camera,
    sample_camera: Callable[[jax.Array], cameras.Camera]) -> Generator3D:
  """`make` of the ConfigDict `model` of a config such as configs/eg3d.py."""
  return make(gan_networks.eg3d_generator(config), config.z_dim, front,
              sample_camera)


def official_camera(loaded: nvidia.Loaded) -> dict:
  """The typical camera (see inference.Trained) of an official network.

  Args:
    loaded: by nvidia.load, with an `orbit`.
  """
  cars = loaded.network.rendering.white_background
  return {'elevation': 0.0, **(_CARS if cars else _FACES),
          'distance': loaded.orbit.get('radius') or _RADIUS,
          'pivot': tuple(loaded.orbit.get('pivot') or (0, 0, 0))}


def _map(module, front, variables, z, camera=None, psi=1.0, cutoff=None):
  if camera is None:
    camera = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (len(z), *x.shape)), front)
  return module.apply(
      variables, z, cameras.to_label(camera), psi, cutoff, method='map')


def _synthesize(module, variables, ws, noise='const', key=None):
  rngs = {} if key is None else {'noise': key}
  return module.apply(variables, ws, noise, method='planes', rngs=rngs)


def _render(module, variables, planes, ws, camera, size, key=None):
  jitter = eg3d.ray_jitter(key, len(ws), size, module.rendering)
  return Generated(*module.apply(
      variables, planes, ws, cameras.to_label(camera), size, jitter,
      method='render'))


def _compiled_field(module):
  """(variables, planes, points [N, 3]) -> (density [N], colors [N, 3])."""

  @jax.jit
  def field(variables, planes, points):
    density, values = module.apply(
        variables, planes, points[None], method='query')
    # The density activation of the renderer, see models.eg3d.
    return nn.softplus(density[0] - 1), jnp.clip(values[0, :, :3], 0, 1)

  return field


def _mesh(field, module, variables, planes, resolution):
  return mesh.extract(functools.partial(field, variables, planes),
                      module.rendering.box_warp / 2, resolution)


def _image_size(super_resolution, size):
  size = (super_resolution.size if super_resolution.shrink
          else max(super_resolution.size, size))
  return size * 2 ** sum(super_resolution.up)


def _backbone_noise(variables):
  """Without the buffers of the super-resolution, which adds no noise."""
  return {path: x for path, x in noise_buffers(variables).items()
          if '/backbone/' in path}
