"""2-D StyleGAN2 generators from files: gen3d's, NVIDIA's and rosinality's."""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d import assets
from gen3d.choices import UserError, pick
from gen3d.models import nvidia, stylegan2, stylegan2_rosinality
from gen3d.weights import pickles

SHIPPED = assets.FOLDER / 'stylegan2_cats.safetensors'
_CHUNK = 1000  # latents at a time for `statistics`


class Generator2D(NamedTuple):
  """An architecture, as `build` takes it, and the variables of the network."""
  config: dict[str, Any]
  variables: Any


def build(config: Any) -> stylegan2.Generator:
  """The network of an architecture.

  Args:
    config: ConfigDict with `resolution`, `synthesis` and `mapping`, keywords of
      stylegan2.Synthesis and Mapping; and `z_dim`.
  """
  return stylegan2.Generator(
      {'resolution': config['resolution'], **config['synthesis']},
      dict(config['mapping']))


def untrained(config: Any, key: jax.Array) -> Generator2D:
  """A generator with random variables, for tests."""
  variables = jax.jit(build(config).init)(
      key, jnp.zeros((1, config['z_dim'])), jnp.zeros((1, 0)))
  return Generator2D(config.to_dict(), variables)


def load(path: str | os.PathLike) -> Generator2D:
  """The averaged generator of a file.

  Args:
    path: .safetensors of configs/stylegan2.py, NVIDIA's .pkl, or .pt of
      rosinality's stylegan2-pytorch; or 'stylegan2_cats', which ships.

  Raises:
    UserError: there is no such file, it is damaged, or it is another network.
  """
  path = pathlib.Path(path)
  if str(path) == SHIPPED.stem:
    path = SHIPPED
  if not path.is_file():
    raise UserError(f'There is no file {path}; give the weights of a 2-D '
                    'generator by --config.generator.')
  loaders = {'.safetensors': _ours, '.pkl': nvidia.load,
             '.pt': stylegan2_rosinality.load}
  read = pick('kind of file', loaders, path.suffix)
  with pickles.reported_damage(path):
    loaded = read(path)
  if not isinstance(loaded.network, stylegan2.Generator) or loaded.label_width:
    raise UserError(f'{path} is no StyleGAN2 of images without labels; give '
                    'one that was trained without conditions.')
  synthesis = dict(loaded.network.synthesis_config)
  if synthesis.get('image_channels', 3) != 3:
    raise UserError(f'{path} makes images of {synthesis["image_channels"]} '
                    'channels; give a generator of RGB images.')
  return Generator2D(
      {'resolution': synthesis.pop('resolution'), 'synthesis': synthesis,
       'mapping': dict(loaded.network.mapping_config), 'z_dim': loaded.z_dim},
      loaded.variables)


def _ours(path) -> nvidia.Loaded:
  """A generator of configs/stylegan2.py."""
  variables, record = assets.load(path, 'gan')
  config = record['config']
  if config['networks'] != 'stylegan2':
    raise UserError(f'{path} is of the networks {config["networks"]!r}; give '
                    'weights of configs/stylegan2.py.')
  model = config['model']
  network = build({'resolution': config['resolution'], **model})
  label_width = 25 if config['conditional'] else 0
  if not label_width:
    assets.check_fits(path, variables, jax.eval_shape(
        network.init, jax.random.key(0), jnp.zeros((1, model['z_dim'])),
        jnp.zeros((1, 0))), 'generator')
  return nvidia.Loaded(network, jax.tree.map(jnp.asarray, variables),
                       model['z_dim'], label_width)


def map_latents(network: stylegan2.Generator, variables: Any, z: jax.Array,
                psi: Any = 1.0, cutoff: int | None = None) -> jax.Array:
  """w [N, L, D] of latents z [N, Z], truncated by the buffer w_avg."""
  ws: Any = network.apply(variables, z, None, psi, cutoff,
                          method=lambda g, *args: g.mapping(*args))
  return ws


def with_statistics(network: stylegan2.Generator, variables: Any, z_dim: int,
                    count: int = 50_000) -> tuple[Any, jax.Array, jax.Array]:
  """The distribution of w, estimated from random latents (2011.13126).

  Args:
    network, variables: of the generator.
    z_dim: of the latents.
    count: of latents.

  Returns:
    (variables whose buffer w_avg is the mean, the mean [D], precision []:
    one half by the square of the mean standard deviation).
  """
  def chunk(key):
    z = jax.random.normal(key, (_CHUNK, z_dim))
    return map_latents(network, variables, z)[:, 0]

  # Always the same latents, so that a training that resumes has the same.
  w = jax.lax.map(chunk, jax.random.split(
      jax.random.key(0), -(-count // _CHUNK)))
  w = w.reshape(-1, w.shape[-1])
  mean = jnp.mean(w, axis=0)
  precision = 0.5 / jnp.mean(jnp.std(w, axis=0, ddof=1))**2
  buffers = variables['buffers']
  mapping = {**buffers['mapping'], 'w_avg': mean}
  return ({**variables, 'buffers': {**buffers, 'mapping': mapping}}, mean,
          precision)
