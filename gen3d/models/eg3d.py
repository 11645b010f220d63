"""EG3D (Chan et al., 2112.07945): a StyleGAN2 that paints tri-planes.

Vocabulary. A label [N, 25] is a camera: camera-to-world (OpenCV axes, 16
numbers) and intrinsics (9), row by row; `cameras.from_label` reads it. Points
are in world units, the cube of side `box` is what the planes span. Density is
raw, before softplus. Images are [N, H, W, C] in about [-1, 1].

Modules and parameters carry the official names (models/stylegan2.py).
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.models import stylegan2
from gen3d.ops import cameras, encodings, images, sampling, volume


class Generated(NamedTuple):
  """What a generator of 3-D objects makes."""
  image: Any      # [N, R, R, 3]
  image_raw: Any  # [N, r, r, 3] as rendered, before super-resolution
  depth: Any      # [N, r, r] along the ray
  opacity: Any    # [N, r, r] in [0, 1]


class RenderingConfig(NamedTuple):
  """How rays are looked along.

  Attributes:
    samples_coarse, samples_fine: of the first and second pass, for each ray.
    ray_start, ray_end: distances between which to look, or 'auto': the cube's.
    box_warp: side of the cube that the planes span.
    axes: key of encodings.AXES; 'eg3d_legacy' for released networks.
    white_background: whether what lies behind is white rather than black.
    disparity: whether the first pass is even in 1 / distance.
    chunk: rays at once, for each image; 0 for all. The memory of a training
      step is about chunk * (samples + importance) * (2 * 3 * 32 + 64 + 33)
      floats where chunks are recomputed on the way back.
  """
  samples_coarse: int = 48
  samples_fine: int = 48
  ray_start: Any = 2.25
  ray_end: Any = 3.3
  box_warp: float = 1.0
  axes: str = 'xy_xz_yz'
  white_background: bool = False
  disparity: bool = False
  chunk: int = 0


class SuperResolutionConfig(NamedTuple):
  """A super-resolution network: two StyleGAN2 blocks on the features.

  Attributes:
    size: what it takes; another rendering resolution is resized to it.
    features: of the two blocks.
    up: whether each doubles the size.
    shrink: whether a larger rendering is resized too.
    antialias: of that.
  """
  size: int
  features: tuple
  up: tuple
  shrink: bool = True
  antialias: bool = True


# The official variants, by name.
SUPER_RESOLUTIONS = {
    '8XDC': SuperResolutionConfig(128, (256, 128), (True, True)),
    '8X': SuperResolutionConfig(128, (128, 64), (True, True)),
    '4X': SuperResolutionConfig(128, (128, 64), (False, True), shrink=False),
    '2X': SuperResolutionConfig(64, (128, 64), (False, True)),
    'Deepfp32': SuperResolutionConfig(128, (128, 64), (False, True), shrink=False,
                          antialias=False),
}


class Draws(NamedTuple):
  """The uniform numbers of one rendering, in [0, 1)."""
  coarse: Any  # [N, rays, samples]
  fine: Any    # [N, rays, importance]


class Seen(NamedTuple):
  """What rays [...] have found."""
  values: Any   # [..., C] in [-1, 1]
  depth: Any    # [...] mean distance, not yet clamped
  opacity: Any  # [...] what is not seen through
  nearest: Any  # [...] sample
  farthest: Any


def draw(key, count, resolution, rendering):
  """Draws for `count` images; without a key the middle of every interval."""
  shapes = [(count, resolution ** 2, number)
            for number in (rendering.samples_coarse, rendering.samples_fine)]
  if key is None:
    fine = (jnp.arange(rendering.samples_fine) + 0.5) / max(
        rendering.samples_fine, 1)
    return Draws(jnp.full(shapes[0], 0.5), jnp.broadcast_to(fine, shapes[1]))
  return Draws(*map(jax.random.uniform, jax.random.split(key), shapes))


def march(field, rays, near, far, draws, rendering):
  """Renders rays [..., P] in two passes.

  Args:
    field: points [..., P, S, 3] -> (raw density [..., P, S], values [..., P,
      S, C]).
    rays: cameras.Rays [..., P].
    near, far: [..., P, 1].
    draws: Draws [..., P, .].
    rendering: RenderingConfig.

  Returns:
    Seen [..., P].

  Raises:
    UserError: a ray has too few samples for its passes.
  """
  if rendering.samples_coarse < (4 if rendering.samples_fine else 2):
    raise UserError(
        f'A ray has {rendering.samples_coarse} samples, but two passes need at least '
        '4 in the first, and one pass 2; raise model.rendering.samples_coarse.')

  def look(distances):
    points = (rays.origins[..., None, :]
              + distances[..., None] * rays.directions[..., None, :])
    return distances, *field(points)

  seen = [look(_spread(near, far, draws.coarse, rendering.disparity))]
  if rendering.samples_fine:
    weights = sampling.blur_weights(_weigh(*seen[0][:2]))
    # The first and last weight and the last midpoint stay unused: released
    # networks were trained so.
    fine = sampling.sample_pdf(
        _between(seen[0][0])[..., :-1], weights[..., 1:-1] + 1e-5, draws.fine)
    seen.append(look(fine))
  distances, density = (
      jnp.concatenate(passes, axis=-1)
      for passes in zip(*(one[:2] for one in seen), strict=True))
  order = jnp.argsort(distances, axis=-1)
  distances, density = (jnp.take_along_axis(x, order, axis=-1)
                        for x in (distances, density))
  weights = _weigh(distances, density)
  opacity = jnp.sum(weights, axis=-1)
  color = _composite(weights, order, [values for _, _, values in seen])
  if rendering.white_background:
    color += 1 - opacity[..., None]
  depth = jnp.where(
      opacity > 0, jnp.sum(weights * _between(distances), axis=-1)
      / jnp.where(opacity > 0, opacity, 1.0), jnp.inf)
  return Seen(2 * color - 1, depth, opacity, distances[..., 0],
              distances[..., -1])


def _composite(weights, order, values):
  """What is seen [..., C] of several passes' values [..., S, C].

  An interval is of the mean of its two ends' values, so that a sample counts
  for half of the intervals beside it. Those shares are brought back to the
  passes' own order: they are a number a sample, and values are many.

  Args:
    weights: [..., S - 1] of the intervals between all samples.
    order: [..., S] places of the samples in one pass after the other.
    values: of each pass.
  """
  ends = [(0, 0)] * (weights.ndim - 1) + [(1, 1)]
  shares = _between(jnp.pad(weights, ends))
  shares = jnp.put_along_axis(
      jnp.zeros_like(shares), order, shares, axis=-1, inplace=False)
  passes = np.cumsum([x.shape[-2] for x in values])[:-1]
  return sum(map(volume.composite, jnp.split(shares, passes, axis=-1), values))


def _weigh(distances, density):
  """Weights of the intervals between samples of raw density."""
  return volume.alpha_weights(nn.softplus(_between(density) - 1), distances)


def _between(x):
  return (x[..., 1:] + x[..., :-1]) / 2


def _spread(near, far, uniform, disparity):
  """Distances [P, S], one drawn in each stratum from near to far [P, 1]."""
  count = uniform.shape[-1]
  t = (jnp.arange(count) + uniform) / (count - 1)
  if disparity:
    return 1 / ((1 - t) / near + t / far)
  return near + (far - near) * t


def bounds(rays, rendering):
  """Distances (near, far) [..., 1] between which rays are looked along.

  With 'auto' those of the cube; rays that miss it are looked along between
  the least and the largest start of those that do not, as official. But of
  one image: officially of the batch, so that an image depends on the others.
  """
  like = rays.origins[..., :1]
  if rendering.ray_start != 'auto':
    return (jnp.full_like(like, rendering.ray_start),
            jnp.full_like(like, rendering.ray_end))
  near, far, hit = sampling.intersect_box(rays, rendering.box_warp / 2)
  least = jnp.min(jnp.where(hit, near, jnp.inf))
  largest = jnp.max(jnp.where(hit, near, -jnp.inf))
  some = jnp.any(hit)
  return (jnp.where(hit, near, jnp.where(some, least, 0.0)),
          jnp.where(hit, far, jnp.where(some, largest, 1.0)))


@jax.custom_vjp
def _softplus(x):
  """log(1 + exp(x)) to within float32's rounding of 1.

  A third of nn.softplus's time on a CPU, which is as exact for very negative
  x and cares for infinite ones; its slope is 1 - exp(-softplus), so that
  nothing but the result is kept.
  """
  return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


def _softplus_forward(x):
  y = _softplus(x)
  return y, y


_softplus.defvjp(_softplus_forward, lambda y, pull: (pull * (1 - jnp.exp(-y)),))


class Decoder(nn.Module):
  """Features of the planes [..., F] to raw density and values [..., C]."""
  values: int = 32
  width: int = 64
  lr_mul: float = 1.0

  @nn.compact
  def __call__(self, features):
    # 'net.0' and 'net.2' are the official names.
    dense = lambda width, name: stylegan2.Dense(
        width, lr_mul=self.lr_mul, name=name)
    # As rows between the layers, too: a rendering and its gradient take 6 %
    # more time on a CPU where there are more axes.
    x = features.reshape(-1, features.shape[-1])
    x = _softplus(dense(self.width, 'net.0')(x))
    x = dense(1 + self.values, 'net.2')(x)
    density, values = jnp.split(
        x.reshape(*features.shape[:-1], 1 + self.values), [1], axis=-1)
    # A sigmoid a little too wide, as Mip-NeRF: colors can saturate.
    return density[..., 0], nn.sigmoid(values) * 1.002 - 0.001


class SuperResolution(nn.Module):
  """Features [N, r, r, C], whose first three are the raw image, to images."""
  shape: SuperResolutionConfig
  clamp: Any = None
  half: bool = False

  @nn.compact
  def __call__(self, features, w):
    shape = self.shape
    size = features.shape[1]
    if size < shape.size or (size > shape.size and shape.shrink):
      features = images.resize(features, shape.size, shape.antialias)
    x, image = features, features[..., :3]
    ws = jnp.repeat(w[:, None], 3, axis=1)
    for i, (width, up) in enumerate(zip(shape.features, shape.up)):
      x, image = stylegan2.SynthesisBlock(
          width, 3, up, clamp=self.clamp,
          dtype=jnp.bfloat16 if self.half else jnp.float32,
          name=f'block{i}')(x, image, ws, 'none')
    return image


class Generator(nn.Module):
  """(z [N, Z], label [N, 25], camera label [N, 25]) -> Generated.

  Attributes:
    synthesis_config, mapping_config: keywords of stylegan2.Synthesis (without
      `image_channels`) and Mapping.
    rendering: RenderingConfig.
    super_resolution: SuperResolutionConfig.
    features: channels of a plane, and of what is rendered.
    pose_conditioning: what the mapping network's label is multiplied by; 0 for a
      generator that is not told the pose.
    decoder_rate: learning-rate multiplier of the decoder.
    super_resolution_clamp: of the super-resolution's activations.
    super_resolution_half: whether it computes in bfloat16.
  """
  synthesis_config: Any
  mapping_config: Any
  rendering: RenderingConfig
  super_resolution: SuperResolutionConfig
  features: int = 32
  pose_conditioning: float = 1.0
  decoder_rate: float = 1.0
  super_resolution_clamp: Any = None
  super_resolution_half: bool = False

  def setup(self):
    self.backbone = stylegan2.Generator(
        {**self.synthesis_config, 'image_channels': 3 * self.features},
        {**self.mapping_config, 'labeled': True})
    self.decoder = Decoder(self.features, lr_mul=self.decoder_rate)
    self.superresolution = SuperResolution(
        self.super_resolution, self.super_resolution_clamp, self.super_resolution_half)

  def __call__(self, z, label, camera_label, resolution, draws, *, psi=1.0,
               cutoff=None, noise='random'):
    ws = self.map(z, label, psi, cutoff)
    return self.render(self.planes(ws, noise), ws, camera_label, resolution,
                       draws)

  def map(self, z, label, psi=1.0, cutoff=None):
    """ws [N, L, D]; `label` says from where the object is expected seen."""
    return self.backbone.mapping(z, self.pose_conditioning * label, psi, cutoff)

  def planes(self, ws, noise='random'):
    """Tri-planes [N, R, R, 3, F]."""
    planes = self.backbone.synthesis(ws, noise)
    return planes.reshape(*planes.shape[:3], 3, self.features)

  def query(self, planes, points):
    """Raw density [N, P] and values [N, P, F] at points [N, P, 3]."""
    return self._field(self._decoder(), planes, points)

  def features_at(self, planes, camera_label, resolution, draws):
    """What is seen: values [N, r, r, F], depth and opacity [N, r, r]."""
    count = len(planes)
    rays = cameras.rays(
        cameras.from_label(camera_label), resolution, resolution)
    rays = jax.tree.map(
        lambda x: x.reshape(count, resolution ** 2, -1), rays)
    inputs = (rays, *jax.vmap(functools.partial(
        bounds, rendering=self.rendering))(rays), draws)
    field = functools.partial(self._field, self._decoder(), planes)
    look = lambda inputs: march(field, *inputs, self.rendering)
    if self.rendering.chunk and self.rendering.chunk < resolution ** 2:
      # Rays before images, for it is rays that are taken in turn.
      swap = functools.partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
      some = jax.checkpoint(lambda inputs: swap(look(swap(inputs))))
      seen = swap(volume.map_rays(
          some, swap(inputs), self.rendering.chunk, axes=1))
    else:
      seen = look(inputs)
    depth = jnp.clip(
        seen.depth, jnp.min(seen.nearest), jnp.max(seen.farthest))
    image = lambda x: x.reshape(count, resolution, resolution, *x.shape[2:])
    return image(seen.values), image(depth), image(seen.opacity)

  def render(self, planes, ws, camera_label, resolution, draws):
    """Generated from planes that are there already."""
    values, *geometry = self.features_at(
        planes, camera_label, resolution, draws)
    image = self.superresolution(values, ws[:, -1])
    return Generated(image, values[..., :3], *geometry)

  def _field(self, decode, planes, points):
    """Raw density [N, ...] and values [N, ..., F] at points [N, ..., 3]."""
    return decode(encodings.triplanes(
        planes, points * (2 / self.rendering.box_warp), reduce='mean',
        outside='zero', axes=self.rendering.axes))

  def _decoder(self):
    """The decoder as a function that JAX may transform."""
    if self.is_initializing():
      self.decoder(jnp.zeros((1, self.features)))
    decoder, variables = self.decoder.unbind()
    return lambda features: decoder.apply(variables, features)


def dual_image(image, image_raw):
  """What the dual discriminator sees: [N, R, R, 6], the raw image resized."""
  return jnp.concatenate(
      [image, images.resize(image_raw, image.shape[1])], axis=-1)
