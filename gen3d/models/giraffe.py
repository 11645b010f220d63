"""GIRAFFE's networks (Niemeyer and Geiger, 2011.12100).

Vocabulary. G groups of P rays with S samples: a group is an object of a scene,
with its codes. Images are [N, H, W, C] with colors in [0, 1], features are
[N, r, r, M]. Scenes are those of models/giraffe_scene.py.

Modules and parameters carry the official names, with underscores for the dots
before numbers; `sources` lists the official ones.
"""

import functools
import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.models import giraffe_rendering
from gen3d.models import giraffe_scene as scene
from gen3d.models.giraffe_layers import (
    Conv,
    Linear,
    halving_correlate,
    positional,
    upsampled_correlate,
)
from gen3d.ops import cameras, images
from gen3d.weights import port

# Of a Gaussian whose three taps are 1/4, 1/2, 1/4.
_BLUR_SIGMA = (2 * math.log(2)) ** -0.5
_leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)


class Decoder(nn.Module):
  """The field of an object or of the background (supplement, figure 1).

  Attributes:
    features: M.
    width: of the hidden layers, H.
    layers: before the density.
    skips: numbers of the layers after which encoded position and shape code
      are added again.
    octaves, view_octaves: of the encodings of positions and directions.
    downscale: divides positions and unit directions, as in the official code.
  """
  features: int = 128
  width: int = 128
  layers: int = 8
  skips: tuple = (4,)
  octaves: int = 10
  view_octaves: int = 4
  downscale: float = 2.0

  def setup(self) -> None:
    dense = lambda count=1: [Linear(self.width) for _ in range(count)]
    self.fc_in, self.fc_z, self.feat_view, self.fc_z_view, self.fc_view = (
        dense(5))
    self.blocks = dense(self.layers - 1)
    skips = sum(0 < i < self.layers - 1 for i in self.skips)
    self.fc_z_skips, self.fc_p_skips = dense(skips), dense(skips)
    self.sigma_out = Linear(1)
    self.feat_out = Linear(self.features)

  def __call__(
      self, points: jax.Array, directions: jax.Array, shape: jax.Array,
      appearance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raw density [G, P, S] and hidden features [G, P, S, H].

    Args:
      points: [G, P, S, 3].
      directions: [G, P, 3] of the rays, of any length.
      shape, appearance: codes [G, Z].
    """
    per_group = lambda x: x[:, None, None]
    encoded = positional(points / self.downscale, self.octaves)
    y = nn.relu(self.fc_in(encoded) + per_group(self.fc_z(shape)))
    skips = iter(zip(self.fc_z_skips, self.fc_p_skips, strict=True))
    for i, block in enumerate(self.blocks, 1):
      y = nn.relu(block(y))
      if i in self.skips and i < len(self.blocks):
        of_shape, of_points = next(skips)
        y = y + per_group(of_shape(shape)) + of_points(encoded)
    density = self.sigma_out(y)[..., 0]
    # The direction is that of the ray: encoded once, not for each sample.
    view = self.fc_view(positional(
        cameras.normalize(directions) / self.downscale, self.view_octaves))
    hidden = nn.relu(self.feat_view(y) + view[:, :, None]
                     + per_group(self.fc_z_view(appearance)))
    return density, hidden

  def to_features(self, hidden: jax.Array, weight: jax.Array) -> jax.Array:
    """Features [..., M] of composited hidden features [..., H].

    Args:
      hidden: sum of weights times hidden features.
      weight: [...], sum of the weights, which is that of the bias.
    """
    bias = self.feat_out(jnp.zeros(hidden.shape[-1]))
    return self.feat_out(hidden) + (weight[..., None] - 1) * bias


class NeuralRenderer(nn.Module):
  """Features [N, r, r, M] to images [N, R, R, 3], R = r 2^blocks (figure 4).

  Attributes:
    width: channels at the resolution of the features.
    min_width: least number of channels; each block halves it.
    blocks: each doubles the resolution.
  """
  width: int = 128
  min_width: int = 32
  blocks: int = 2

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    x = features
    if x.shape[-1] != self.width:
      x = Conv(self.width, 1, name='conv_in')(x)
    rgb = upsample_rgb(Conv(3, name='conv_rgb_0')(features))
    for i in range(self.blocks):
      width = max(self.width // 2 ** (i + 1), self.min_width)
      x = _leaky_relu(Conv(width, apply_kernel=upsampled_correlate,
                           name=f'conv_layers_{i}')(x))
      rgb = rgb + Conv(3, name=f'conv_rgb_{i + 1}')(x)
      if i < self.blocks - 1:
        rgb = upsample_rgb(rgb)
    return nn.sigmoid(rgb)


def upsample_rgb(x: jax.Array) -> jax.Array:
  """[N, H, W, C] to twice the size: bilinear, then a blur by 1/4, 1/2, 1/4."""
  height, width = x.shape[1:3]
  x = jax.image.resize(
      x, (len(x), 2 * height, 2 * width, x.shape[-1]), 'linear')
  return images.reflected_blur(x, _BLUR_SIGMA, 1)


def uniform_color(params: Any, features: jax.Array) -> jax.Array:
  """Colors [..., 3] of endless images of one feature [..., M] each.

  There the neural renderer's convolutions are products with the sums of their
  taps, and resampling does nothing. So a point of a field, which has features
  only, gets a color without its surroundings.

  Args:
    params: of a NeuralRenderer.
    features: [..., M].
  """
  def apply(name, x):
    return x @ jnp.sum(params[name]['kernel'], (0, 1)) + params[name]['bias']

  x = apply('conv_in', features) if 'conv_in' in params else features
  rgb = apply('conv_rgb_0', features)
  for i in range(sum(name.startswith('conv_layers_') for name in params)):
    x = _leaky_relu(apply(f'conv_layers_{i}', x))
    rgb = rgb + apply(f'conv_rgb_{i + 1}', x)
  return nn.sigmoid(rgb)


class Discriminator(nn.Module):
  """Images [N, R, R, 3] in [0, 1] to logits [N], as in DCGAN (1511.06434).

  Attributes:
    resolution: R.
    width: channels at 4 x 4 pixels; each doubling of the size halves them.
  """
  resolution: int
  width: int = 512

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layers = int(math.log2(self.resolution)) - 2
    for i in range(layers):
      x = _leaky_relu(Conv(
          self.width // 2 ** (layers - 1 - i), 4, halving_correlate,
          bias=False, name=f'blocks_{i}')(x))
    # The last kernel covers the whole of 4 x 4 pixels.
    return Conv(1, 4, lambda x, kernel: jnp.tensordot(x, kernel, 3),
                bias=False, name='conv_out')(x)[:, 0]


class Generator(nn.Module):
  """Scenes to images.

  Attributes:
    decoder_config, background_config: keywords of the two Decoders, without
      `features`.
    renderer_config: keywords of the NeuralRenderer.
    features: M.
    rendering: giraffe_rendering.Rendering.
  """
  decoder_config: Any
  background_config: Any
  renderer_config: Any
  features: int
  rendering: giraffe_rendering.Rendering

  def setup(self) -> None:
    self.decoder = Decoder(self.features, **self.decoder_config)
    self.background_generator = Decoder(
        self.features, **self.background_config)
    self.neural_renderer = NeuralRenderer(**self.renderer_config)

  def __call__(
      self, codes: scene.Codes, layout: scene.Layout, camera: cameras.Camera,
      size: int, draws: giraffe_rendering.Draws | None = None) -> jax.Array:
    """Images [N, R, R, 3] in [0, 1]; the arguments are those of `render`."""
    return self.image(self.render(codes, layout, camera, size, draws).features)

  def render(
      self, codes: scene.Codes, layout: scene.Layout, camera: cameras.Camera,
      size: int, draws: giraffe_rendering.Draws | None = None,
      which: str = 'all') -> giraffe_rendering.Rendered:
    """Rendered, as images [N, size, size, ...]; see giraffe_rendering.render.

    Args:
      codes: scene.Codes.
      layout: scene.Layout.
      camera: Camera [N] of the scene's world.
      size: rays a side.
      draws: giraffe_rendering.Draws, or None for a deterministic rendering.
      which: of the entities.
    """
    rendered = giraffe_rendering.render(
        self.networks(codes), codes, layout, camera, size, draws,
        self.rendering, which)
    return jax.tree.map(
        lambda x: x.reshape(len(x), size, size, *x.shape[2:]), rendered)

  def image(self, features: jax.Array) -> jax.Array:
    """Images [N, R, R, 3] in [0, 1] of features [N, r, r, M]."""
    return self.neural_renderer(features)

  def at_points(
      self, codes: scene.Codes, layout: scene.Layout, points: jax.Array,
      directions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Density [N, Q] and features [N, Q, M] of the objects at points.

    The arguments are those of giraffe_rendering.at_points.
    """
    return giraffe_rendering.at_points(
        self.networks(codes), codes, layout, points, directions,
        self.rendering.composition)

  def networks(self, codes: scene.Codes) -> giraffe_rendering.Networks:
    """The fields as pure functions, which JAX may transform.

    Args:
      codes: of any scenes, for their widths.
    """
    fields, to_features = zip(
        _pure(self.decoder, codes.shape[0, :1]),
        _pure(self.background_generator, codes.background_shape[:1]),
        strict=True)
    return giraffe_rendering.Networks(*fields, *to_features)


def _pure(decoder, code):
  """(decoder, its to_features) as functions of arrays; `code` is [1, Z]."""
  if decoder.is_initializing():
    _, hidden = decoder(
        jnp.zeros((1, 1, 1, 3)), jnp.ones((1, 1, 3)), code, code)
    decoder.to_features(hidden, hidden[..., 0])
  module, variables = decoder.unbind()
  return (functools.partial(module.apply, variables),
          functools.partial(module.apply, variables, method='to_features'))


class Model(NamedTuple):
  """A generator of scenes and the distribution of these.

  Attributes:
    module: Generator.
    prior: of the scenes.
    code: width of each of an object's two codes.
    background_code: width of each of the background's.
  """
  module: Generator
  prior: scene.Prior
  code: int
  background_code: int

  @property
  def z_dim(self) -> int:
    """Z, the numbers of a scene."""
    return 2 * (self.prior.boxes * self.code + self.background_code)

  def split(self, z: jax.Array) -> scene.Codes:
    """Codes of z [N, Z]."""
    objects = self.prior.boxes * self.code
    shape, appearance, *background = jnp.split(
        z, np.cumsum([objects, objects, self.background_code]), axis=1)
    apart = lambda x: x.reshape(len(z), self.prior.boxes, self.code)
    return scene.Codes(apart(shape), apart(appearance), *background)

  def init(self, key: jax.Array) -> Any:
    """Variables of an untrained generator."""
    # The parameters do not depend on the resolution of rendering: 4 is cheap.
    return self.module.init(
        key, self.split(jnp.zeros((1, self.z_dim))),
        scene.middle_layout(self.prior, 1),
        scene.camera_at([0.5], 1.0, 40.0), 4)


def sources(like: Any) -> port.Sources:
  """The official name and layout of each leaf; see weights/port.py.

  Args:
    like: {'params': parameters} of a generator, of a discriminator, or of
      several networks by their names in an official file.
  """
  by_path = port.by_path(like)
  return {path: (re.sub(r'_(\d+)(?=\.)', r'.\1', name),
                 _OctaveLayout() if re.search('fc_(in|view|p_skips)', path)
                 and path.endswith('kernel') else layout)
          for path, (name, layout) in by_path.items()}


class _OctaveLayout(NamedTuple):
  """Layout [O, I] -> [I, O] of a layer whose input is an encoding.

  Official encodings have sines and cosines of one octave after the other, ours
  all sines first.
  """

  def __call__(self, tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim != 2 or tensor.shape[1] % 6:
      return tensor.ravel()  # of no shape that fits
    out = len(tensor)
    return tensor.reshape(out, -1, 2, 3).swapaxes(1, 2).reshape(out, -1).T

  def inverse(self, kernel: np.ndarray) -> np.ndarray:
    out = kernel.shape[1]
    return kernel.T.reshape(out, 2, -1, 3).swapaxes(1, 2).reshape(out, -1)
