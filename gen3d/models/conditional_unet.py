"""The U-Net that Stable Diffusion and DeepFloyd IF have in common.

It is the UNet2DConditionModel of diffusers, with the layers that differ
between the two as a value of `Layers`. Submodules have the names of diffusers'
files, by which loading.fill finds their weights.

Vocabulary. B images or latents of H x W x C, L text states of D channels. Each
*level* has half the resolution of the level before.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d import schemas
from gen3d.choices import UserError
from gen3d.models.unet import time_features
from gen3d.weights import hub

Resample = Callable[[jax.Array], jax.Array]  # [B, H, W, C] to another H, W

# Keys of diffusers' configs that neither family uses.
_UNUSED = ('center_input_sample', 'only_cross_attention',
           'mid_block_only_cross_attention', 'num_attention_heads',
           'dual_cross_attention', 'class_embed_type',
           'class_embeddings_concat', 'num_class_embeds',
           'resnet_skip_time_act', 'time_embedding_dim',
           'time_embedding_act_fn', 'timestep_post_act', 'time_cond_proj_dim',
           'reverse_transformer_layers_per_block')


# Of U-Nets and ControlNets.
_LEVEL = schemas.whole(1, 1024)
VALUES = {
    'sample_size': schemas.optional(schemas.whole(1, 1024)),
    'in_channels': schemas.whole(1, 64), 'out_channels': schemas.whole(1, 64),
    'block_out_channels': schemas.each(schemas.whole(1, 8192), 1, 8),
    'down_block_types': schemas.each(schemas.TEXT, 0, 8),
    'layers_per_block': schemas.either(
        schemas.whole(1, 16), schemas.each(schemas.whole(1, 16), 1, 8)),
    'attention_head_dim': schemas.either(
        _LEVEL, schemas.each(_LEVEL, 1, 8)),
    'norm_num_groups': _LEVEL, 'norm_eps': schemas.real(0, 1),
    'cross_attention_dim': schemas.whole(1, 2 ** 16),
    'encoder_hid_dim': schemas.optional(schemas.whole(1, 2 ** 16)),
    'addition_embed_type_num_heads': _LEVEL,
    'use_linear_projection': schemas.FLAG,
    'conditioning_embedding_out_channels': schemas.optional(
        schemas.each(schemas.whole(1, 8192), 1, 8))}


class UNetConfig(NamedTuple):
  """The hyperparameters of a U-Net, from its config.json.

  Attributes:
    side: H and W of the training latents.
    in_channels: C.
    out_channels: of the prediction.
    channels: of each level, finest first.
    blocks: residual blocks of each level of the encoder; the decoder has one
      more.
    attention: whether each level has attention.
    heads: of the attention of each level.
    states: D.
    groups: of the normalizations.
    epsilon: of the normalizations.
    linear: the first and last layers of a transformer are dense (Stable
      Diffusion 2) and not 1 x 1 convolutions: the same map, other shapes.
    text_width: of the text encoder, whose states are projected to D
      (DeepFloyd IF); 0 without a projection.
    pooling_heads: of the attention that pools the states (DeepFloyd IF).
  """
  side: int
  in_channels: int
  out_channels: int
  channels: tuple[int, ...]
  blocks: tuple[int, ...]
  attention: tuple[bool, ...]
  heads: tuple[int, ...]
  states: int
  groups: int = 32
  epsilon: float = 1e-5
  linear: bool = False
  text_width: int = 0
  pooling_heads: int = 0


class Layers(NamedTuple):
  """The layers that differ between families of U-Nets.

  Attributes:
    activation: of the residual blocks, the time embedding and the output.
    scale_shift: the time embedding scales and shifts the second norm of a
      residual block; otherwise it is added before the norm.
    attention: (config, heads, dtype, flash, name) -> module of (x, states,
      mask).
    down: (residual block, channels, dtype, name) -> function of x that halves
      the resolution.
    up: the same that doubles it.
    text: (config, states, dtype) -> (states for the attention, addition to
      the time embedding or None).
  """
  activation: Callable
  scale_shift: bool
  attention: Callable
  down: Callable
  up: Callable
  text: Callable


class UNet(nn.Module):
  """(x [B, H, W, C], t [B], states [B, L, D], mask) -> [B, H, W, out].

  The checkpoint defines the output: the noise or v.

  Attributes:
    config: hyperparameters.
    layers: of the family.
    dtype: of the computation; the statistics of norms and the softmax stay in
      float32. The output is float32.
    remat: the backward pass computes the blocks again, which saves memory.
    flash: self-attention uses cuDNN's flash attention, which needs an NVIDIA
      GPU, a half-precision dtype and heads of at most 128 channels (256 on
      Hopper).
  """
  config: UNetConfig
  layers: Layers
  dtype: Any = jnp.float32
  remat: bool = False
  flash: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, t: jax.Array, states: jax.Array,
               mask: jax.Array | None = None,
               residuals: Sequence[jax.Array] | None = None) -> jax.Array:
    """Prediction at the steps t in [0, 1000) of the noise schedule.

    Args:
      x: [B, H, W, C]; H and W divisible by 2^(levels - 1).
      t: [B], steps and not times in [0, 1]; may be fractions of a step.
      states: [B, L, D].
      mask: [B, L], 0 where the attention ignores a state; None uses all, as
        in the training of these networks.
      residuals: outputs of a ControlNet, which are added to those of the
        encoder; None for none.

    Raises:
      UserError: the shape of the image or the text is that of another network.
    """
    config, layers = self.config, self.layers
    check_inputs(config, x, states)
    residual, block, encode = make_blocks(self, t, states, mask)
    h = conv(config.channels[0], self.dtype, 'conv_in')(x.astype(self.dtype))
    *skips, h = encode(h)
    if residuals is not None:
      *skips, h = (a + b for a, b in zip((*skips, h), residuals, strict=True))

    # Decoder.
    last = len(config.channels) - 1
    for k, level in enumerate(reversed(range(last + 1))):
      name = f'up_blocks.{k}'
      for i in range(config.blocks[level] + 1):
        h = block(jnp.concatenate([h, skips.pop()], -1), level, name, i)
      if level:
        h = layers.up(residual, config.channels[level], self.dtype,
                      f'{name}.upsamplers.0')(h)
    h = layers.activation(group_norm(
        config.groups, config.epsilon, self.dtype, 'conv_norm_out')(h))
    return conv(config.out_channels, self.dtype, 'conv_out')(h).astype(
        jnp.float32)


def make_blocks(network: Any, t: jax.Array, states: jax.Array,
                mask: jax.Array | None) -> tuple[Callable, Callable, Callable]:
  """The functions that a UNet and a ControlNet have in common.

  Their submodules belong to the module whose __call__ calls this function.

  Args:
    network: UNet or ControlNet.
    t, states, mask: see UNet.

  Returns:
    (residual: (channels, name, resample) -> function of h, a residual block;
    block: (h, level, name, index) -> h, with attention where the level has it;
    encode: first features -> list of the outputs of each layer of the encoder,
    and last of the coarsest level's middle).
  """
  config, layers, dtype = network.config, network.layers, network.dtype
  lift = nn.remat if network.remat else lambda module: module
  attention_module = lift(layers.attention)
  states = states.astype(dtype)
  time = _embed_time(config, layers, dtype, t)
  states, pooled = layers.text(config, states, dtype)
  time = time if pooled is None else time + pooled

  def residual(channels: int, name: str,
               resample: Resample | None = None) -> Callable:
    module = lift(ResidualBlock)(
        channels, config.groups, config.epsilon, layers.activation,
        layers.scale_shift, resample, dtype, name=name)
    return lambda h: module(h, time)

  def attention(h: jax.Array, level: int, name: str) -> jax.Array:
    return attention_module(config, config.heads[level], dtype, network.flash,
                            name=name)(h, states, mask)

  def block(h: jax.Array, level: int, name: str, i: int) -> jax.Array:
    h = residual(config.channels[level], f'{name}.resnets.{i}')(h)
    if config.attention[level]:
      h = attention(h, level, f'{name}.attentions.{i}')
    return h

  def encode(h: jax.Array) -> list[jax.Array]:
    outputs = [h]
    last = len(config.channels) - 1
    for level, channels in enumerate(config.channels):
      name = f'down_blocks.{level}'
      for i in range(config.blocks[level]):
        h = block(h, level, name, i)
        outputs.append(h)
      if level < last:
        h = layers.down(residual, channels, dtype, f'{name}.downsamplers.0')(h)
        outputs.append(h)
    h = residual(config.channels[-1], 'mid_block.resnets.0')(h)
    h = attention(h, last, 'mid_block.attentions.0')
    return [*outputs, residual(config.channels[-1], 'mid_block.resnets.1')(h)]

  return residual, block, encode


def check_inputs(config: UNetConfig, x: jax.Array, states: jax.Array) -> None:
  """Checks the shapes of the inputs of a network.

  Raises:
    UserError: they are those of another network.
  """
  side = 2 ** (len(config.channels) - 1)
  if (x.shape[-1] != config.in_channels or x.shape[1] % side
      or x.shape[2] % side):
    raise UserError(
        f'The U-Net takes [B, H, W, {config.in_channels}] with H and W '
        f'divisible by {side}, not {list(x.shape)}; resize the image.')
  width = config.text_width or config.states
  if states.shape[-1] != width:
    raise UserError(
        f'The U-Net takes text states of {width} channels, not '
        f'{states.shape[-1]}; use the text encoder of the same checkpoint.')


def _embed_time(config, layers, dtype, t):
  """Embedding [B, 4 * channels] of the steps t [B]."""
  width = 4 * config.channels[0]
  # time_features expects times in [0, 1].
  time = time_features(jnp.asarray(t, jnp.float32) / 1000,
                       config.channels[0]).astype(dtype)
  time = nn.Dense(width, dtype=dtype, name='time_embedding.linear_1')(time)
  return nn.Dense(width, dtype=dtype, name='time_embedding.linear_2')(
      layers.activation(time))


class ResidualBlock(nn.Module):
  """norm-act-conv, time embedding, norm-act-conv, plus x.

  Attributes:
    channels: of the output.
    groups: of the norms.
    epsilon: of the norms.
    activation: elementwise.
    scale_shift: see Layers.
    resample: [B, H, W, C] -> [B, H', W', C], or None; applied to x, and
      between the first norm and convolution.
    dtype: of the computation.
  """
  channels: int
  groups: int = 32
  epsilon: float = 1e-5
  activation: Callable = nn.silu
  scale_shift: bool = False
  resample: Resample | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array,
               time: jax.Array | None = None) -> jax.Array:
    """x [B, H, W, C], time [B, T] -> [B, H', W', channels]."""
    norm = lambda name: group_norm(self.groups, self.epsilon, self.dtype, name)
    h = self.activation(norm('norm1')(x))
    if self.resample:
      x, h = self.resample(x), self.resample(h)
    h = conv(self.channels, self.dtype, 'conv1')(h)
    scale, shift = 0, 0
    if time is not None:
      shift = nn.Dense((1 + self.scale_shift) * self.channels,
                       dtype=self.dtype, name='time_emb_proj')(
                           self.activation(time))[:, None, None]
    if self.scale_shift:
      scale, shift = jnp.split(shift, 2, -1)
      h = norm('norm2')(h) * (1 + scale) + shift
    else:
      h = norm('norm2')(h + shift)
    h = conv(self.channels, self.dtype, 'conv2')(self.activation(h))
    if x.shape[-1] != self.channels:
      x = conv(self.channels, self.dtype, 'conv_shortcut', side=1)(x)
    return x + h


def attend(q: jax.Array, k: jax.Array, v: jax.Array, heads: int,
           mask: jax.Array | None = None, flash: bool = False) -> jax.Array:
  """Attention with several heads.

  Args:
    q: [B, Q, heads * K].
    k: [B, L, heads * K].
    v: like k.
    heads: number of them.
    mask: [B, L], 0 where a key is ignored, or None.
    flash: uses cuDNN's flash attention.

  Returns:
    [B, Q, heads * K].
  """
  split = lambda y: y.reshape(*y.shape[:2], heads, -1)
  allowed = None if mask is None else mask[:, None, None] > 0
  out = jax.nn.dot_product_attention(
      split(q), split(k), split(v), mask=allowed,
      implementation='cudnn' if flash else None)
  return out.reshape(q.shape)


def conv(channels: int, dtype: Any, name: str, side: int = 3, stride: int = 1,
         padding: Sequence[tuple[int, int]] | None = None) -> nn.Conv:
  """A convolution with zero padding, by default of side // 2 pixels.

  Args:
    channels: of the output.
    dtype: of the computation.
    name: of the submodule.
    side: of the kernel.
    stride: in pixels.
    padding: (before, after) of H and W.
  """
  padding = ((side // 2,) * 2,) * 2 if padding is None else padding
  return nn.Conv(channels, (side, side), (stride, stride), padding,
                 dtype=dtype, name=name)


def group_norm(groups: int, epsilon: float, dtype: Any,
               name: str) -> nn.GroupNorm:
  """Group normalization over [B, ..., C]."""
  # The fast variance E[x^2] - E[x]^2 cancels: trained networks have channels
  # whose mean is far larger than their deviation.
  return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype,
                      use_fast_variance=False, name=name)


def upsample(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, 2 H, 2 W, C], by nearest neighbor."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def inputs(config: UNetConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the inputs of a UNet."""
  shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
  return (shape(1, config.side, config.side, config.in_channels), shape(1),
          shape(1, 77, config.text_width or config.states))


def shared_config(folder: hub.Folder, attention_mark: str,
                  down_types: Sequence[str], reader: str) -> UNetConfig:
  """The hyperparameters that both families read in the same way.

  Args:
    folder: of the U-Net.
    attention_mark: substring of the block types that have attention.
    down_types: block types that a level of the encoder may have.
    reader: module that reads the family, for error messages.

  Returns:
    UNetConfig with empty `heads` and `states`.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('UNet2DConditionModel',), reader)
  hub.check_values(folder, VALUES)
  # In both families the decoder mirrors the encoder.
  down = folder.config.get('down_block_types') or ()
  up = [name.replace('Down', 'Up') for name in reversed(down)]
  return encoder_config(
      folder, attention_mark, down_types, reader,
      {'up_block_types': (up,), 'conv_out_kernel': (3,),
       'resnet_out_scale_factor': (1.0,)})


def encoder_config(
    folder: hub.Folder, attention_mark: str, down_types: Sequence[str],
    reader: str, supported: Mapping[str, Sequence[Any]]) -> UNetConfig:
  """The hyperparameters of an encoder; of a U-Net or a ControlNet.

  Args:
    folder, attention_mark, down_types, reader: see `shared_config`; the config
      keeps VALUES.
    supported: values of further keys, see hub.expect.

  Returns and raises the same as `shared_config`.
  """
  config, file = folder.config, folder.path / 'config.json'
  down = config.get('down_block_types') or ()
  unknown = sorted(set(down) - set(down_types))
  if unknown or not down:
    raise UserError(
        f'{file} has blocks {unknown or "of no type"}; {reader} supports '
        f'{list(down_types)}. Stable Diffusion is read by stable_diffusion, '
        'DeepFloyd IF by deepfloyd.')
  hub.expect(folder, {
      **supported, 'mid_block_type': (f'UNetMidBlock2D{attention_mark}',),
      'time_embedding_type': ('positional',), 'flip_sin_to_cos': (True,),
      'freq_shift': (0,), 'downsample_padding': (1,), 'conv_in_kernel': (3,),
      'mid_block_scale_factor': (1,), 'attention_type': ('default',),
      'upcast_attention': (False, True, None)}
             | dict.fromkeys(_UNUSED, (None, False)))
  channels = tuple(config.get('block_out_channels', ()))
  if len(channels) != len(down):
    raise UserError(f'{file} has {len(down)} block types for '
                    f'{len(channels)} block_out_channels; get it again.')
  groups = config.get('norm_num_groups', 32)
  hub.check_divisors(folder, 'block_out_channels and norm_num_groups',
                     [groups] * len(channels), channels)
  return UNetConfig(
      side=config.get('sample_size') or 64,
      in_channels=config.get('in_channels', 4),
      out_channels=config.get('out_channels', 4), channels=channels,
      blocks=per_level(folder, 'layers_per_block', 2, channels),
      attention=tuple(attention_mark in name for name in down), heads=(),
      states=0,
      groups=groups,
      epsilon=config.get('norm_eps', 1e-5))


def per_level(folder: hub.Folder, key: str, default: int,
              channels: tuple[int, ...]) -> tuple[int, ...]:
  """A key's number, or its list of numbers, with one for each level.

  Raises:
    UserError: the list has another length.
  """
  value = folder.config.get(key, default)
  if isinstance(value, int):
    return (value,) * len(channels)
  if len(value) != len(channels):
    raise UserError(f'{folder.path / "config.json"} has {len(value)} {key} for '
                    f'{len(channels)} levels; get it again.')
  return tuple(value)
