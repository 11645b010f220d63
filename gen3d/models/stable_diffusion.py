"""The U-Net of Stable Diffusion 1.x and 2.x (Rombach et al., 2112.10752).

Vocabulary. B latents of H x W x C, a text of L states of D numbers. A *level*
halves the one above it. Each level has residual blocks that add the time
embedding, and at most levels each is followed by a *transformer*: pixels
attend to one another, then to the text, then go through a gated MLP.

The skeleton is shared with DeepFloyd IF (gen3d/models/deepfloyd.py), whose
blocks are another value of `Parts`. Submodules carry the names that they have
in diffusers' files, so that pretrained.fill finds their weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.choices import UserError
from gen3d.models.unet import time_features
from gen3d.weights import hub

# Keys of diffusers' config that neither family makes use of.
_UNUSED = ('center_input_sample', 'only_cross_attention',
           'mid_block_only_cross_attention', 'num_attention_heads',
           'dual_cross_attention', 'class_embed_type',
           'class_embeddings_concat', 'num_class_embeds',
           'resnet_skip_time_act', 'time_embedding_dim',
           'time_embedding_act_fn', 'timestep_post_act', 'time_cond_proj_dim',
           'reverse_transformer_layers_per_block')


class UNetSize(NamedTuple):
  """The numbers that make one U-Net, as its config.json has them.

  Attributes:
    side: H and W that it was trained at.
    in_channels: C of what is denoised.
    out_channels: of the prediction.
    channels: of each level, finest first.
    blocks: residual blocks of each level on the way down (one more going up).
    attention: whether each level has attention.
    heads: of each level's attention.
    states: D of the text's states.
    groups: of the normalizations.
    epsilon: of the normalizations.
    linear: transformers are entered and left by matrices (Stable Diffusion
      2), not by convolutions of one pixel: the same map, another shape.
    text_width: that states are projected to first (DeepFloyd IF).
    pooling_heads: of the attention that pools the states (DeepFloyd IF).
  """
  side: int
  in_channels: int
  out_channels: int
  channels: tuple
  blocks: tuple
  attention: tuple
  heads: tuple
  states: int
  groups: int = 32
  epsilon: float = 1e-5
  linear: bool = False
  text_width: int = 0
  pooling_heads: int = 0


class Parts(NamedTuple):
  """What differs between families of U-Nets.

  Attributes:
    activation: of the residual blocks, the time embedding and the output.
    scale_shift: time scales and shifts the second norm, it is not added.
    attention: (size, heads, dtype, flash, name) -> module of (x, states,
      mask).
    down: (residual block, channels, dtype, name) -> function of (x, time)
      that halves.
    up: the same that doubles.
    text: (size, states, dtype) -> (states for the attention, what is added to
      the time embedding).
  """
  activation: Callable
  scale_shift: bool
  attention: Callable
  down: Callable
  up: Callable
  text: Callable


class UNet(nn.Module):
  """(x [B, H, W, C], t [B], states [B, L, D], mask) -> [B, H, W, out].

  What the output means (noise, v) is the caller's business.

  Attributes:
    size: UNetSize.
    parts: Parts.
    dtype: of the computation; norms' statistics and the softmax stay in
      float32. The output is float32.
    remat: the backward pass computes the blocks again: less memory.
    flash: pixels attend to one another by cuDNN's flash attention, which
      takes NVIDIA GPUs, a half-precision dtype and heads of at most 128
      channels (256 on Hopper).
  """
  size: UNetSize
  parts: Parts
  dtype: Any = jnp.float32
  remat: bool = False
  flash: bool = False

  @nn.compact
  def __call__(self, x, t, states, mask=None):
    """Prediction at the steps t in [0, 1000) of the noise schedule.

    Args:
      x: [B, H, W, C]; H and W divisible by 2^(levels - 1).
      t: [B], steps, not times in [0, 1]; need not be whole.
      states: [B, L, D].
      mask: [B, L], 0 where a state is not to be seen; None shows all, as
        these networks were trained.

    Raises:
      UserError: image or text do not fit this network.
    """
    size, parts = self.size, self.parts
    self._check(x, states)
    lift = nn.remat if self.remat else lambda module: module
    attention = lift(parts.attention)
    x, states = x.astype(self.dtype), states.astype(self.dtype)
    time = self._time(t)
    states, pooled = parts.text(size, states, self.dtype)
    time = time if pooled is None else time + pooled

    def residual(channels, name, resample=None):
      return lift(ResidualBlock)(
          channels, size.groups, size.epsilon, parts.activation,
          parts.scale_shift, resample, self.dtype, name=name)

    def block(h, level, name, i):
      h = residual(size.channels[level], f'{name}.resnets.{i}')(h, time)
      if size.attention[level]:
        h = attention(size, size.heads[level], self.dtype, self.flash,
                      name=f'{name}.attentions.{i}')(h, states, mask)
      return h

    h = conv(size.channels[0], self.dtype, 'conv_in')(x)
    skips = [h]
    last = len(size.channels) - 1
    for level, channels in enumerate(size.channels):
      name = f'down_blocks.{level}'
      for i in range(size.blocks[level]):
        h = block(h, level, name, i)
        skips.append(h)
      if level < last:
        h = parts.down(residual, channels, self.dtype,
                       f'{name}.downsamplers.0')(h, time)
        skips.append(h)

    h = residual(size.channels[-1], 'mid_block.resnets.0')(h, time)
    h = attention(size, size.heads[-1], self.dtype, self.flash,
                  name='mid_block.attentions.0')(h, states, mask)
    h = residual(size.channels[-1], 'mid_block.resnets.1')(h, time)

    for k, level in enumerate(reversed(range(last + 1))):
      name = f'up_blocks.{k}'
      for i in range(size.blocks[level] + 1):
        h = block(jnp.concatenate([h, skips.pop()], -1), level, name, i)
      if level:
        h = parts.up(residual, size.channels[level], self.dtype,
                     f'{name}.upsamplers.0')(h, time)
    h = parts.activation(group_norm(
        size.groups, size.epsilon, self.dtype, 'conv_norm_out')(h))
    return conv(size.out_channels, self.dtype, 'conv_out')(h).astype(
        jnp.float32)

  def _check(self, x, states):
    size = self.size
    side = 2 ** (len(size.channels) - 1)
    if (x.shape[-1] != size.in_channels or x.shape[1] % side
        or x.shape[2] % side):
      raise UserError(
          f'The U-Net takes [B, H, W, {size.in_channels}] with H and W '
          f'divisible by {side}, not {list(x.shape)}.')
    width = size.text_width or size.states
    if states.shape[-1] != width:
      raise UserError(
          f'The U-Net takes text states of {width} numbers, not '
          f'{states.shape[-1]}: the text encoder is another model\'s.')

  def _time(self, t):
    width = 4 * self.size.channels[0]
    # The pixel models' times end at 1, these at 1000.
    time = time_features(jnp.asarray(t, jnp.float32) / 1000,
                         self.size.channels[0]).astype(self.dtype)
    time = nn.Dense(width, dtype=self.dtype,
                    name='time_embedding.linear_1')(time)
    return nn.Dense(width, dtype=self.dtype, name='time_embedding.linear_2')(
        self.parts.activation(time))


class ResidualBlock(nn.Module):
  """norm-act-conv, time, norm-act-conv, plus x.

  Attributes:
    channels: of the output.
    groups: of the norms.
    epsilon: of the norms.
    activation: a function.
    scale_shift: see Parts.
    resample: [B, H, W, C] -> another H and W, or None; between the first
      norm and convolution, and on x.
    dtype: of the computation.
  """
  channels: int
  groups: int = 32
  epsilon: float = 1e-5
  activation: Callable = nn.silu
  scale_shift: bool = False
  resample: Callable = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, time=None):
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


class Transformer(nn.Module):
  """Pixels attend to one another and to the text, plus x."""
  size: UNetSize
  heads: int
  dtype: Any = jnp.float32
  flash: bool = False

  @nn.compact
  def __call__(self, x, states, mask):
    """x [B, H, W, C], states [B, L, D], mask [B, L] or None -> like x."""
    b, height, width, c = x.shape

    def project(name):
      if self.size.linear:
        return nn.Dense(c, dtype=self.dtype, name=name)
      return conv(c, self.dtype, name, side=1)

    h = group_norm(self.size.groups, 1e-6, self.dtype, 'norm')(x)
    h = project('proj_in')(h).reshape(b, height * width, c)
    h = _TransformerBlock(self.heads, self.dtype, self.flash,
                          name='transformer_blocks.0')(h, states, mask)
    return x + project('proj_out')(h.reshape(x.shape))


def attend(q, k, v, heads, mask=None, flash=False):
  """Attention with several heads.

  Args:
    q: [B, Q, heads * K].
    k: [B, L, heads * K].
    v: like k.
    heads: how many.
    mask: [B, L], 0 where a key is not to be seen, or None.
    flash: by cuDNN.

  Returns:
    [B, Q, heads * K].
  """
  split = lambda y: y.reshape(*y.shape[:2], heads, -1)
  seen = None if mask is None else mask[:, None, None] > 0
  out = jax.nn.dot_product_attention(
      split(q), split(k), split(v), mask=seen,
      implementation='cudnn' if flash else None)
  return out.reshape(q.shape)


def conv(channels, dtype, name, side=3, stride=1, padding=None):
  """A convolution that pads with zeros, by side // 2 if not told."""
  padding = ((side // 2,) * 2,) * 2 if padding is None else padding
  return nn.Conv(channels, (side, side), (stride, stride), padding,
                 dtype=dtype, name=name)


def group_norm(groups, epsilon, dtype, name):
  """Group normalization over [B, ..., C].

  The variance is that of the differences from the mean: trained networks have
  channels whose mean is far larger than their deviation.
  """
  return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype,
                      use_fast_variance=False, name=name)


def double(x):
  """[B, H, W, C] -> [B, 2 H, 2 W, C], each pixel four times."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def no_pooling(size, states, dtype):
  """Parts.text of Stable Diffusion: the states as they are."""
  del size, dtype
  return states, None


PARTS = Parts(
    activation=nn.silu, scale_shift=False, attention=Transformer,
    down=lambda residual, channels, dtype, name: (
        lambda x, time: conv(channels, dtype, f'{name}.conv', stride=2)(x)),
    up=lambda residual, channels, dtype, name: (
        lambda x, time: conv(channels, dtype, f'{name}.conv')(double(x))),
    text=no_pooling)


def load_unet(path, dtype=jnp.float32, variant='', **options):
  """A U-Net and its parameters out of diffusers' folder `unet`.

  Args:
    path: folder with config.json and safetensors.
    dtype: of the parameters and of the computation.
    variant: see pretrained.read.
    **options: remat and flash of UNet.

  Returns:
    (UNet, {'params'}).

  Raises:
    UserError: the folder does not fit; says how.
  """
  folder = hub.read(path, variant)
  network = UNet(unet_size(folder), PARTS, dtype, **options)
  return network, fill(network, folder, dtype)


def fill(network, folder, dtype):
  """{'params'} of a UNet from its pretrained.Folder."""
  return hub.fill(network, inputs(network.size), folder.tensors, dtype)


def inputs(size):
  """Shapes of what a UNet takes."""
  shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
  return (shape(1, size.side, size.side, size.in_channels), shape(1),
          shape(1, 77, size.text_width or size.states))


def unet_size(folder):
  """UNetSize of Stable Diffusion's config.json.

  Raises:
    UserError: the config is for another network.
  """
  size = shared_size(folder, 'CrossAttn', ('CrossAttnDownBlock2D',
                                           'DownBlock2D'),
                     'stable_diffusion')
  hub.expect(folder, {
      'act_fn': ('silu', 'swish'), 'resnet_time_scale_shift': ('default',),
      'addition_embed_type': (None,), 'encoder_hid_dim': (None,),
      'encoder_hid_dim_type': (None,), 'cross_attention_norm': (None,),
      'transformer_layers_per_block': (1, [1] * len(size.channels)),
      'use_linear_projection': (False, True)})
  config = folder.config
  # diffusers' name is a mistake that it keeps: these are numbers of heads.
  return size._replace(
      heads=per_level(config.get('attention_head_dim', 8), size.channels),
      states=config.get('cross_attention_dim', 1280),
      linear=config.get('use_linear_projection', False))


def shared_size(folder, mark, down_types, reader):
  """The part of UNetSize that both families read in the same way.

  Args:
    folder: pretrained.Folder.
    mark: what tells a block type with attention.
    down_types: names of a level's block types on the way down.
    reader: name of the module, for the sentences.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('UNet2DConditionModel',), reader)
  config, file = folder.config, folder.path / 'config.json'
  down = config.get('down_block_types') or ()
  unknown = sorted(set(down) - set(down_types))
  if unknown or not down:
    raise UserError(
        f'{file} has blocks {unknown or "of no type"}; {reader} knows '
        f'{list(down_types)}. Stable Diffusion is read by stable_diffusion, '
        'DeepFloyd IF by deepfloyd.')
  # Both families go up as they came down.
  up = [name.replace('Down', 'Up') for name in reversed(down)]
  middle = f'UNetMidBlock2D{mark}'
  hub.expect(folder, {
      'up_block_types': (up,), 'mid_block_type': (middle,),
      'time_embedding_type': ('positional',), 'flip_sin_to_cos': (True,),
      'freq_shift': (0,), 'downsample_padding': (1,), 'conv_in_kernel': (3,),
      'conv_out_kernel': (3,), 'mid_block_scale_factor': (1,),
      'resnet_out_scale_factor': (1.0,), 'attention_type': ('default',),
      'upcast_attention': (False, True, None)}
                    | dict.fromkeys(_UNUSED, (None, False)))
  channels = tuple(config.get('block_out_channels', ()))
  if len(channels) != len(down):
    raise UserError(f'{file} has {len(down)} block types for '
                    f'{len(channels)} block_out_channels.')
  return UNetSize(
      side=config.get('sample_size') or 64,
      in_channels=config.get('in_channels', 4),
      out_channels=config.get('out_channels', 4), channels=channels,
      blocks=per_level(config.get('layers_per_block', 2), channels),
      attention=tuple(mark in name for name in down), heads=(), states=0,
      groups=config.get('norm_num_groups', 32),
      epsilon=config.get('norm_eps', 1e-5))


def per_level(value, channels):
  """A config's number or list of numbers as a tuple for the levels."""
  if isinstance(value, int):
    return (value,) * len(channels)
  return tuple(value)


class _TransformerBlock(nn.Module):
  heads: int
  dtype: Any
  flash: bool

  @nn.compact
  def __call__(self, x, states, mask):
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
    y = norm('norm1')(x)
    x = x + self._attention(y, y, None, self.flash, 'attn1')
    x = x + self._attention(norm('norm2')(x), states, mask, False, 'attn2')
    c = x.shape[-1]
    y, gate = jnp.split(nn.Dense(
        8 * c, dtype=self.dtype, name='ff.net.0.proj')(norm('norm3')(x)), 2, -1)
    return x + nn.Dense(c, dtype=self.dtype, name='ff.net.2')(
        y * jax.nn.gelu(gate, approximate=False))

  def _attention(self, x, states, mask, flash, name):
    project = lambda y, which: nn.Dense(
        x.shape[-1], use_bias=False, dtype=self.dtype,
        name=f'{name}.to_{which}')(y)
    y = attend(project(x, 'q'), project(states, 'k'), project(states, 'v'),
               self.heads, mask, flash)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name=f'{name}.to_out.0')(y)
