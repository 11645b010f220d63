"""EG3D (Chan et al., 2112.07945): a StyleGAN2 that generates tri-planes.

Vocabulary. A label [N, 25] is a camera: camera-to-world (OpenCV axes, 16
numbers) and intrinsics (9), row by row; `cameras.from_label` reads it. Points
are in world units; the planes span the cube of side `box_warp`. Density is
raw, before its activation. Images are [N, H, W, C] in about [-1, 1].

Modules and parameters carry the official names (models/stylegan2.py).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.choices import UserError
from gen3d.models import fields, stylegan2, stylegan2_layers
from gen3d.ops import cameras, encodings, images, sampling, volume

# Applied to the mean of neighboring samples' raw densities.
density_activation = fields.shifted_softplus


class Generated(NamedTuple):
  """Images that a generator of 3-D objects renders."""
  image: Any      # [N, R, R, 3]
  image_raw: Any  # [N, r, r, 3] as rendered, before super-resolution
  depth: Any      # [N, r, r] along the ray
  opacity: Any    # [N, r, r] in [0, 1]


class RenderingConfig(NamedTuple):
  """Sampling of rays.

  Attributes:
    samples_coarse, samples_fine: of each ray, in the first and second pass.
    ray_start, ray_end: distances between which rays are sampled; 'auto' for
      where they enter and leave the cube.
    box_warp: side of the cube that the planes span.
    axes: key of encodings.AXES; 'eg3d_legacy' for released networks.
    white_background: white instead of black behind the object.
    disparity: whether the first pass is evenly spaced in 1 / distance.
    chunk: rays at a time, for each image; 0 for all. The memory of a training
      step is about chunk * (samples_coarse + samples_fine) * (2 * 3 * 32 + 64
      + 33) floats where chunks are recomputed in the backward pass.
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
    size: of its input; another rendering resolution is resized to it.
    features: channels of the two blocks.
    up: whether each doubles the size.
    shrink: whether a larger rendering is resized too.
    antialias: whether resizing filters.
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
    'Deepfp32': SuperResolutionConfig(
        128, (128, 64), (False, True), shrink=False, antialias=False),
}


class RayJitter(NamedTuple):
  """Random numbers in [0, 1) that place the samples along rays.

  Attributes:
    coarse: [N, rays, samples_coarse], positions within the strata.
    fine: [N, rays, samples_fine], quantiles of the importance sampling.
  """
  coarse: Any
  fine: Any


class RenderedRays(NamedTuple):
  """Rays [...] after volume rendering."""
  values: Any    # [..., C] in [-1, 1]
  depth: Any     # [...] mean distance, not yet clamped
  opacity: Any   # [...] accumulated alpha
  nearest: Any   # [...] distance of the first sample
  farthest: Any  # [...] and of the last one


def ray_jitter(key: jax.Array | None, count: int, resolution: int,
               rendering: RenderingConfig) -> RayJitter:
  """RayJitter of images; without a key the middles, which jitter nothing.

  Args:
    key: of the random numbers, or None.
    count: of images.
    resolution: of the rendering; resolution^2 rays.
    rendering: RenderingConfig.
  """
  shapes = [(count, resolution ** 2, number)
            for number in (rendering.samples_coarse, rendering.samples_fine)]
  if key is None:
    fine = (jnp.arange(rendering.samples_fine) + 0.5) / max(
        rendering.samples_fine, 1)
    return RayJitter(jnp.full(shapes[0], 0.5),
                     jnp.broadcast_to(fine, shapes[1]))
  return RayJitter(*map(jax.random.uniform, jax.random.split(key), shapes))


def render_rays(
    field: volume.Field, rays: cameras.Rays, near: jax.Array, far: jax.Array,
    jitter: RayJitter, rendering: RenderingConfig) -> RenderedRays:
  """Renders rays [..., P] in one or two passes.

  Args:
    field: its density is raw, before `density_activation`.
    rays: Rays [..., P].
    near, far: [..., P, 1].
    jitter: RayJitter [..., P, .].
    rendering: RenderingConfig.

  Raises:
    UserError: a ray has too few samples for its passes.
  """
  if rendering.samples_coarse < (4 if rendering.samples_fine else 2):
    raise UserError(
        f'A ray has {rendering.samples_coarse} samples, but two passes need at '
        'least 4 in the first, and one pass 2; raise '
        'model.rendering.samples_coarse.')
  quadrature = volume.midpoint_quadrature(density_activation)
  march = functools.partial(volume.march, field, quadrature=quadrature)
  distances = sampling.stratified_points(
      jitter.coarse, near, far, rendering.disparity)
  if rendering.samples_fine:
    passes = volume.union(*volume.coarse_to_fine(
        march, march, rays, distances,
        functools.partial(_resample, quantiles=jitter.fine)), quadrature)
  else:
    passes = (march(rays, distances),)
  # All passes have the same intervals, those between the samples of all.
  weights, edges = passes[0].interval_weights, passes[0].edges
  opacity = jnp.sum(weights, axis=-1)
  color = sum(volume.composite(p.weights, p.values) for p in passes)
  if rendering.white_background:
    color += 1 - opacity[..., None]
  # Empty rays are infinitely deep here; the caller clamps them to the farthest
  # sample of the image.
  depth = jnp.where(
      opacity > 0, jnp.sum(weights * volume.midpoints(edges), axis=-1)
      / jnp.where(opacity > 0, opacity, 1.0), jnp.inf)
  return RenderedRays(
      2 * color - 1, depth, opacity, edges[..., 0], edges[..., -1])


def _resample(distances, first, *, quantiles):
  """Distances [..., samples_fine] of the second pass."""
  # The official code takes the midpoints of the samples for the bounds of the
  # weights' intervals, so that the first and last weight and the last midpoint
  # stay unused. Released networks were trained so.
  weights = sampling.blur_weights(first.interval_weights)
  return sampling.sample_pdf(
      volume.midpoints(distances)[..., :-1], weights[..., 1:-1] + 1e-5,
      quantiles)


def ray_bounds(rays: cameras.Rays, rendering: RenderingConfig
               ) -> tuple[jax.Array, jax.Array]:
  """Distances (near, far) [..., 1] between which rays are sampled.

  With 'auto' those of the cube; rays that miss it are sampled between the
  least and the largest start of those that do not, as in the official code.
  There it is the least of the batch, here of the image, so that an image does
  not depend on the others.
  """
  like = rays.origins[..., :1]
  if rendering.ray_start != 'auto':
    return (jnp.full_like(like, rendering.ray_start),
            jnp.full_like(like, rendering.ray_end))
  near, far, hit = sampling.intersect_box(rays, rendering.box_warp / 2)
  least = jnp.min(jnp.where(hit, near, jnp.inf))
  largest = jnp.max(jnp.where(hit, near, -jnp.inf))
  any_hit = jnp.any(hit)
  return (jnp.where(hit, near, jnp.where(any_hit, least, 0.0)),
          jnp.where(hit, far, jnp.where(any_hit, largest, 1.0)))


@jax.custom_vjp
def _softplus(x):
  """log(1 + exp(x)) to within float32's rounding of 1.

  A third of nn.softplus's time on a CPU, which also represents tiny results
  for very negative x and handles infinite ones. The slope is
  1 - exp(-softplus), so that only the result is stored for the backward pass.
  """
  return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


def _softplus_forward(x):
  y = _softplus(x)
  return y, y


_softplus.defvjp(
    _softplus_forward,
    lambda y, cotangent: (cotangent * (1 - jnp.exp(-y)),))


class Decoder(nn.Module):
  """Features of the planes [..., F] to raw density and values [..., C].

  Attributes:
    values: the number of values, C.
    width: of the hidden layer.
    lr_mul: learning-rate multiplier of StyleGAN2's dense layers.
  """
  values: int = 32
  width: int = 64
  lr_mul: float = 1.0

  @nn.compact
  def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    # 'net.0' and 'net.2' are the official names.
    dense = lambda width, name: stylegan2_layers.Dense(
        width, lr_mul=self.lr_mul, name=name)
    # As rows between the layers, too: a rendering and its gradient take 6 %
    # more time on a CPU where there are more axes.
    x = features.reshape(-1, features.shape[-1])
    x = _softplus(dense(self.width, 'net.0')(x))
    x = dense(1 + self.values, 'net.2')(x)
    density, values = jnp.split(
        x.reshape(*features.shape[:-1], 1 + self.values), [1], axis=-1)
    # A sigmoid a little too wide, as in Mip-NeRF: colors can saturate.
    return density[..., 0], nn.sigmoid(values) * 1.002 - 0.001


class SuperResolution(nn.Module):
  """Features [N, r, r, C], whose first three are the raw image, to images.

  Attributes:
    shape: SuperResolutionConfig.
    clamp: of activations, or None.
    half: whether to compute in bfloat16.
  """
  shape: SuperResolutionConfig
  clamp: Any = None
  half: bool = False

  @nn.compact
  def __call__(self, features: jax.Array, w: jax.Array) -> jax.Array:
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
          name=f'block{i}')(x, image, ws, ('none', 'none'))
    return image


class Generator(nn.Module):
  """(z [N, Z], label [N, 25], camera label [N, 25]) -> Generated.

  Attributes:
    synthesis_config, mapping_config: keywords of stylegan2.Synthesis (without
      `image_channels`) and Mapping.
    rendering: RenderingConfig.
    super_resolution: SuperResolutionConfig.
    features: channels of a plane, and of the rendered feature image.
    pose_conditioning: factor of the mapping network's label; 0 for a generator
      that is not conditioned on the pose.
    decoder_rate: learning-rate multiplier of the decoder.
    super_resolution_clamp: of the super-resolution's activations.
    super_resolution_half: whether it computes in bfloat16.
    plane_depth: slices of a plane; more than 1 for PanoHead's tri-grids.
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
  plane_depth: int = 1

  def setup(self) -> None:
    self.backbone = stylegan2.Generator(
        {**self.synthesis_config,
         'image_channels': 3 * self.plane_depth * self.features},
        {**self.mapping_config, 'labeled': True})
    self.decoder = Decoder(self.features, lr_mul=self.decoder_rate)
    self.superresolution = SuperResolution(
        self.super_resolution, self.super_resolution_clamp,
        self.super_resolution_half)

  def __call__(
      self, z: jax.Array, label: jax.Array, camera_label: jax.Array,
      resolution: int, jitter: RayJitter, *, psi: float = 1.0,
      cutoff: int | None = None, noise: Any = 'random') -> Generated:
    """Generates images.

    Args:
      z: [N, Z].
      label: [N, 25], the pose that the mapping network is conditioned on.
      camera_label: [N, 25], the camera of the image.
      resolution: of the rendering.
      jitter: RayJitter of N images.
      psi, cutoff, noise: of stylegan2.Mapping and Synthesis.
    """
    ws = self.map(z, label, psi, cutoff)
    return self.render(self.planes(ws, noise), ws, camera_label, resolution,
                       jitter)

  def map(self, z: jax.Array, label: jax.Array, psi: float = 1.0,
          cutoff: int | None = None) -> jax.Array:
    """ws [N, L, D]; `label` [N, 25] is the pose of the conditioning."""
    return self.backbone.mapping(z, self.pose_conditioning * label, psi, cutoff)

  def planes(self, ws: jax.Array, noise: Any = 'random') -> jax.Array:
    """Tri-planes [N, R, R, 3, F], or tri-grids [N, R, R, 3 plane_depth, F]."""
    planes = self.backbone.synthesis(ws, noise)
    return planes.reshape(
        *planes.shape[:3], 3 * self.plane_depth, self.features)

  def query(self, planes: jax.Array, points: jax.Array
            ) -> tuple[jax.Array, jax.Array]:
    """Raw density [N, P] and values [N, P, F] at points [N, P, 3]."""
    field = self._field(self._decoder(), planes)
    return field(encodings.Gaussian(points, jnp.zeros_like(points)), points)

  def features_at(self, planes: jax.Array, camera_label: jax.Array,
                  resolution: int, jitter: RayJitter
                  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The feature image [N, r, r, F], depth and opacity [N, r, r]."""
    count = len(planes)
    rays = cameras.rays(
        cameras.from_label(camera_label), resolution, resolution)
    rays = jax.tree.map(
        lambda x: x.reshape(count, resolution ** 2, -1), rays)
    inputs = (rays, *jax.vmap(functools.partial(
        ray_bounds, rendering=self.rendering))(rays), jitter)
    field = self._field(self._decoder(), planes)
    render = lambda inputs: render_rays(
        field, *inputs, rendering=self.rendering)
    if self.rendering.chunk and self.rendering.chunk < resolution ** 2:
      # Chunks are of rays, so that rays become the leading axis.
      swap = functools.partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
      render_chunk = jax.checkpoint(lambda inputs: swap(render(swap(inputs))))
      rendered = swap(volume.map_rays(
          render_chunk, swap(inputs), self.rendering.chunk, axes=1))
    else:
      rendered = render(inputs)
    depth = jnp.clip(rendered.depth, jnp.min(rendered.nearest),
                     jnp.max(rendered.farthest))
    image = lambda x: x.reshape(count, resolution, resolution, *x.shape[2:])
    return image(rendered.values), image(depth), image(rendered.opacity)

  def render(self, planes: jax.Array, ws: jax.Array, camera_label: jax.Array,
             resolution: int, jitter: RayJitter) -> Generated:
    """Generated from tri-planes; the arguments are those of `features_at`."""
    values, *geometry = self.features_at(
        planes, camera_label, resolution, jitter)
    image = self.superresolution(values, ws[:, -1])
    return Generated(image, values[..., :3], *geometry)

  def _field(self, decode: Callable, planes: jax.Array) -> volume.Field:
    """The Field [N, ...] of N objects' planes, with raw density.

    It depends on the samples' means only, not on variance and direction.
    """
    def field(samples, directions):
      del directions
      return decode(encodings.triplanes(
          planes, samples.mean * (2 / self.rendering.box_warp), reduce='mean',
          outside='zero', axes=self.rendering.axes, depth=self.plane_depth))

    return field

  def _decoder(self) -> Callable:
    """The decoder as a pure function, which JAX may transform."""
    if self.is_initializing():
      self.decoder(jnp.zeros((1, self.features)))
    decoder, variables = self.decoder.unbind()
    return lambda features: decoder.apply(variables, features)


def dual_image(image: jax.Array, image_raw: jax.Array) -> jax.Array:
  """The dual discriminator's input [N, R, R, 6]: image and resized raw image.
  """
  return jnp.concatenate(
      [image, images.resize(image_raw, image.shape[1])], axis=-1)
