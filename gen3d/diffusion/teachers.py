"""A teacher: a frozen text-to-image diffusion model as a record of functions.

The weights are an argument of the functions, so that they are data of a
compiled program and not constants in it. pixel_model.py has the model that
gen3d trains, pretrained.py the published ones; loading.py makes a teacher by
name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gen3d.diffusion import noise

Weights = Any  # pytree of arrays
Text = Any     # pytree of arrays with leading axis N, of N prompts
Denoise = Callable[[Weights, jax.Array, jax.Array, Text], jax.Array]
Encode = Callable[[Weights, jax.Array, jax.Array | None], jax.Array]
Decode = Callable[[Weights, jax.Array], jax.Array]
Embed = Callable[[list[str]], Text]
AddCamera = Callable[[Weights, Text, jax.Array], Text]
AddDepth = Callable[[Weights, Text, jax.Array], Text]


def without_camera(weights: Weights, text: Text, labels: jax.Array) -> Text:
  """Teacher.add_camera of a model without camera conditioning."""
  del weights, labels
  return text


def without_depth(weights: Weights, text: Text, maps: jax.Array) -> Text:
  """Teacher.add_depth of a model without depth conditioning."""
  del weights, maps
  return text


class Teacher(NamedTuple):
  """A frozen diffusion model.

  Attributes:
    schedule: noise.Schedule.
    encode: (weights, images [B, H, W, 3] in [0, 1], key) -> x [B, *latent]
      in about [-1, 1]; differentiable.
    decode: (weights, x [B, *latent]) -> images [B, H, W, 3], about in [0, 1].
    denoise: (weights, x_t [B, *latent], t [B], text) -> eps.
    embed: list of N prompts -> text, a pytree with leading axis N. Called once
      per run and before `load`, so that a large text encoder and the rest of
      the model are not in memory together.
    latent: shape of one x.
    bound: on the absolute values of a clean x; None where there is none.
    load: () -> weights, a pytree for the other functions.
    add_camera: (weights, text, labels [N, 25] of ops.cameras.to_label) ->
      text with camera conditioning; the text itself for a model without.
    camera_conditioned: whether the model has camera conditioning.
    add_depth: (weights, text, maps [N, H, W, 1] of ops.images.depth_map, of
      any size) -> text with depth conditioning; the text itself for a model
      without. `denoise` of a text without a map, or with one of zeros, is that
      of the model without depth conditioning.
    depth_conditioned: whether the model has depth conditioning.
    fits: whether the text encoder takes all of a prompt.
  """
  schedule: noise.Schedule
  encode: Encode
  decode: Decode
  denoise: Denoise
  embed: Embed
  latent: tuple[int, ...]
  bound: float | None
  load: Callable[[], Weights]
  add_camera: AddCamera = without_camera
  camera_conditioned: bool = False
  add_depth: AddDepth = without_depth
  depth_conditioned: bool = False
  fits: Callable[[str], bool] = lambda prompt: True


def unit_images(weights: Weights, x: jax.Array) -> jax.Array:
  """Teacher.decode of a model on pixels: [-1, 1] to [0, 1]."""
  del weights
  return x / 2 + 0.5
