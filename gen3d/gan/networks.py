"""The networks of a GAN as functions, and what their builders have in common.

Each paper has a module with a builder of GANNetworks (gan/eg3d.py,
gan/stylegan2.py, gan/giraffe.py, gan/pigan.py); gan/build.py selects it. All
share the training step, gan/step.py, and its terms.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Variables = Any  # {'params', 'buffers'} of a Flax module
ImageDict = dict[str, jax.Array]  # fakes or reals, {name: [N, H, W, 3]}


class Latents(NamedTuple):
  """Random inputs of a generator for N examples of M objects.

  M is N, unless a network renders several views of an object: N / M
  consecutive examples are then of one object.
  """
  key: Any     # for noise and ray sampling, the same on all devices
  index: Any   # [N], of the examples in the batch; folded into the key
  z: Any       # [M, Z]
  mapping_camera: Any  # [M, L], label of the mapping network
  label: Any   # [N, L], of the view that is rendered
  z_mix: Any = None       # [M, Z], of the later layers if styles are mixed
  mix_cutoff: Any = None  # [M], first such layer as a part of all; 1: none


class GANNetworks(NamedTuple):
  """A generator and a discriminator as functions of their Variables.

  Attributes:
    init: key -> {'generator': Variables, 'discriminator': Variables}.
    generate: (variables, latents, render_size) -> (fakes, w [M, D]), w from
      the mapping network. `render_size` is the resolution of the neural
      rendering, without meaning in 2-D.
    prepare_reals: (images [N, R, R, 3], render_size) -> reals.
    discriminate: (variables, fakes or reals, label) -> logits [N].
    regularize: (variables, latents, pl_mean) -> (loss, pl_mean), or None.
      `pl_mean` is the running mean of path lengths.
    update_w_avg: (generator's variables, w [N, D]) -> variables with the
      running mean of w updated; within the mapped axis 'devices'.
    z_dim: Z.
    is_3d: whether the generator makes objects, which have several views.
    samples_per_ray: (coarse, fine) of the neural rendering, or None.
    parts: (params, batch size, render_size) -> {name: function without
      arguments}, parts of a step for the benchmark; or None.
    discriminate_fakes: (variables, fakes, latents) -> (logits [N], loss []),
      for a discriminator that has a loss of its own on fakes, such as
      pi-GAN's error of the camera; None for `discriminate` without one.
    at: step [] -> the networks of that step, where they change in the course
      of a training (noise that is annealed, layers that fade in); or None.
  """
  init: Callable[[jax.Array], dict[str, Variables]]
  generate: Callable[[Variables, Latents, int], tuple[ImageDict, jax.Array]]
  prepare_reals: Callable[[jax.Array, int], ImageDict]
  discriminate: Callable[[Variables, ImageDict, jax.Array], jax.Array]
  regularize: Callable[
      [Variables, Latents, jax.Array], tuple[jax.Array, jax.Array]] | None
  update_w_avg: Callable[[Variables, jax.Array], Variables]
  z_dim: int
  is_3d: bool = False
  samples_per_ray: tuple[int, int] | None = None
  parts: Callable[[Any, int, int], dict[str, Callable]] | None = None
  discriminate_fakes: Callable[
      [Variables, ImageDict, Latents], tuple[jax.Array, jax.Array]
  ] | None = None
  at: Callable[[jax.Array], 'GANNetworks'] | None = None


def mix_styles(
    mapping: Callable[[jax.Array, jax.Array], jax.Array], latents: Latents
) -> jax.Array:
  """ws [N, L, D] with the later layers from another z (StyleGAN, 3.1).

  The first layer always has the style of z itself.

  Args:
    mapping: (z [N, Z], label [N, C]) -> ws.
    latents: Latents.
  """
  ws = mapping(latents.z, latents.mapping_camera)
  if latents.z_mix is None:
    return ws
  num_ws = ws.shape[1]
  # Layers from `first` to the end: a cutoff in [0, 1) gives 1 to L - 1, and 1
  # gives L, which is past the last layer.
  first = 1 + jnp.floor(latents.mix_cutoff * (num_ws - 1))
  later = jnp.arange(num_ws) >= first[:, None]
  return jnp.where(
      later[..., None], mapping(latents.z_mix, latents.mapping_camera), ws)


def keys_of(key: jax.Array, index: jax.Array) -> jax.Array:
  """Keys [N] of the examples by their index, the same on any device."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def apply_module(
    generator: nn.Module, variables: Variables, *args: Any, method: Any,
    key: jax.Array | None = None) -> Any:
  """A method of a Flax module, with the key of its noise where it has one."""
  rngs = {} if key is None else {'noise': key}
  return generator.apply(variables, *args, method=method, rngs=rngs)


def compiled_parts(
    parts: dict[str, tuple[Any, ...]]) -> dict[str, Callable[[], Any]]:
  """{name: compiled function without arguments} for GANNetworks.parts.

  Args:
    parts: {name: (function, its arguments)}.
  """
  # The inputs are arguments: XLA would fold a function of constants.
  return {name: functools.partial(jax.jit(part), *arguments)
          for name, (part, *arguments) in parts.items()}


def update_w_avg(
    path: Sequence[str], rate: float, variables: Variables, w: jax.Array
) -> Variables:
  """Variables with an updated running mean of w; within axis 'devices'.

  Args:
    path: of the module whose buffer `w_avg` is updated, in the buffers.
    rate: of the running mean.
    variables: of the generator.
    w: [N, ...] of the step.
  """
  # The mean over the whole batch, of which each device has a part.
  mean = jax.lax.pmean(jnp.mean(jax.lax.stop_gradient(w), axis=0), 'devices')

  # Flax's variables are nested dictionaries; those on the path are copied.
  def update(buffers, path):
    if not path:
      old = buffers['w_avg']
      return {**buffers, 'w_avg': old + rate * (mean - old)}
    first, *rest = path
    return {**buffers, first: update(buffers[first], rest)}

  return {**variables, 'buffers': update(variables['buffers'], path)}
