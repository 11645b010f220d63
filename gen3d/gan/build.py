"""The networks and generators of a config, by the name of its `networks`."""

from collections.abc import Callable
from typing import Any

import jax

from gen3d.choices import pick
from gen3d.gan import Generator3D, eg3d, giraffe, lifting, pigan, stylegan2
from gen3d.gan.networks import GANNetworks, Variables
from gen3d.ops import schedules
from gen3d.ops.cameras import Camera

# (config.model, resolution, width of the labels) -> GANNetworks
NETWORKS: dict[str, Callable[[Any, int, int], GANNetworks]] = {
    'eg3d': eg3d.networks, 'giraffe': giraffe.networks,
    'pigan': pigan.networks, 'stylegan2': stylegan2.networks}
# (config.model, front camera, key -> camera) -> Generator3D, for the kinds
# that generate 3-D objects
GENERATORS: dict[str, Callable[
    [Any, Camera, Callable[[jax.Array], Camera]], Generator3D]] = {
        'eg3d': eg3d.generator, 'giraffe': giraffe.generator,
        'lifted_gan': lifting.generator, 'pigan': pigan.generator}
# config.model -> typical camera (gan/inference.py) of the networks that draw
# cameras from a prior, for images without cameras
CAMERAS: dict[str, Callable[[Any], dict[str, Any]]] = {
    'giraffe': lambda model: giraffe.typical_camera(
        giraffe.from_config(model).prior),
    'pigan': lambda model: pigan.typical_camera(
        pigan.rendering.CameraPrior(**model.camera))}


def networks(config: Any, label_width: int = 25) -> GANNetworks:
  """The GANNetworks of a config.

  Args:
    config: ConfigDict with `networks`, `model` and `resolution`.
    label_width: of the images' labels; 25 for cameras, 0 for none.

  Raises:
    UserError: there are no such networks, or they do not fit the images.
  """
  builder = pick('kind of networks', NETWORKS, config.networks)
  return builder(_in_steps(config), config.resolution, label_width)


def _in_steps(config):
  """A config's `model` with the times of pi-GAN's stages in steps."""
  if 'fade_from' not in config.model:
    return config.model
  model = config.model.copy_and_resolve_references()
  model.fade_from = tuple(schedules.step_of(time, config.steps)
                          for time in model.fade_from)
  return model


def new_generator(networks: GANNetworks, key: jax.Array) -> Variables:
  """Variables of an untrained generator, without those of a discriminator."""
  return jax.jit(lambda key: networks.init(key)['generator'])(key)
