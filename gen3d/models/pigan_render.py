"""pi-GAN's rendering (2012.00926, section 3.2): cameras, samples, compositing.

Vocabulary. A pose is (pitch, yaw) in radians: phi from the y axis to the
camera, theta from the x axis around y, both pi / 2 where the camera is in
front, on the z axis. N images have M = size^2 rays of S samples each.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.choices import UserError, check
from gen3d.ops import cameras, encodings, sampling, volume

ACTIVATIONS = {'relu': nn.relu, 'softplus': nn.softplus}
DISTRIBUTIONS = ('gaussian', 'uniform', 'spherical_uniform')

# Length of the interval behind the last sample.
_INFINITE = 1e10

# (points [N, M, S, 3], directions [N, M, 3]) -> (density [N, M, S], colors)
Field = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class CameraPrior(NamedTuple):
  """The distribution of the cameras, on a sphere around the origin.

  Attributes:
    distribution: of the pose, one of DISTRIBUTIONS.
    yaw, pitch: standard deviations, or half the widths of ranges, in radians.
      With 'spherical_uniform', those of pi times the part of the sphere's
      area that is above the camera take the place of the pitch's.
    yaw_mean, pitch_mean: centers.
    radius: of the sphere.
    fov: field of view, in degrees.
  """
  distribution: str = 'gaussian'
  yaw: float = 0.3
  pitch: float = 0.155
  yaw_mean: float = math.pi / 2
  pitch_mean: float = math.pi / 2
  radius: float = 1.0
  fov: float = 12.0


class RenderingConfig(NamedTuple):
  """Sampling and compositing of rays.

  Attributes:
    samples: S, of the first pass, and of the second one if there is one.
    near, far: distances of the first and last sample from a camera on the
      prior's sphere; moved along with a camera that is elsewhere.
    hierarchical: whether a second pass samples where the first has weights.
    activation: of the density, a key of ACTIVATIONS.
    white_background: white behind the object.
    last_background: the last sample of a ray fills what is not opaque; for
      images that are covered by objects and background. With a white
      background too, both are added, as in the official code.
    lock_direction: all directions of view count as -z, so that colors do not
      depend on them.
    corner_pixels: the corner pixels are at the corners of the field of view,
      as in the official code, instead of half a pixel inside.
    chunk: rays of each image at a time, to bound the memory; 0: all. The
      gradient then computes a chunk's samples a second time.
  """
  samples: int = 12
  near: float = 0.88
  far: float = 1.12
  hierarchical: bool = True
  activation: str = 'relu'
  white_background: bool = False
  last_background: bool = False
  lock_direction: bool = False
  corner_pixels: bool = True
  chunk: int = 0


class Draws(NamedTuple):
  """Random numbers of the rays.

  Attributes:
    depth: [N, M, S] in [0, 1), of the first pass.
    quantile: [N, M, S] in [0, 1], of the second pass.
    first_noise, final_noise: normal, times a deviation added to the densities:
      [N, M, S] for the weights of the first pass, [N, M, 2S] for those of the
      image, first the samples of the first pass. None for no noise.
  """
  depth: Any
  quantile: Any
  first_noise: Any = None
  final_noise: Any = None


class Samples(NamedTuple):
  """Samples of rays [N, M], in any order along the ray."""
  distances: Any  # [N, M, S]
  density: Any    # [N, M, S], as the field returns it
  colors: Any     # [N, M, S, 3]


class RenderedRays(NamedTuple):
  """Rays [N, M] after volume rendering."""
  colors: Any   # [N, M, 3] in [0, 1]
  depth: Any    # [N, M], sum of the weighted distances
  opacity: Any  # [N, M], without what fills the background


class Images(NamedTuple):
  """Images of rays, S pixels a side."""
  image: Any    # [N, S, S, 3] in [-1, 1]
  depth: Any    # [N, S, S] along the rays
  opacity: Any  # [N, S, S]


def pose(prior: CameraPrior, first: jax.Array, second: jax.Array) -> jax.Array:
  """Poses [..., 2] of random numbers [...] for yaw and pitch.

  The numbers are normal for 'gaussian', else uniform in [0, 1).

  Raises:
    UserError: there is no such distribution.
  """
  check('distribution of cameras', DISTRIBUTIONS, prior.distribution)
  if prior.distribution != 'gaussian':
    first, second = 2 * first - 1, 2 * second - 1
  yaw = prior.yaw_mean + prior.yaw * first
  pitch = prior.pitch_mean + prior.pitch * second
  if prior.distribution == 'spherical_uniform':
    # The part of the sphere above the camera's latitude is uniform.
    pitch = jnp.arccos(1 - 2 * jnp.clip(pitch / math.pi, 1e-5, 1 - 1e-5))
  return jnp.stack([jnp.clip(pitch, 1e-5, math.pi - 1e-5), yaw], axis=-1)


def sample_pose(key: jax.Array, prior: CameraPrior) -> jax.Array:
  """A random pose [2]."""
  draw = (jax.random.normal if prior.distribution == 'gaussian'
          else jax.random.uniform)
  return pose(prior, *draw(key, (2,)))


def camera_at(poses: jax.Array, prior: CameraPrior) -> cameras.Camera:
  """Cameras [...] at poses [..., 2], facing the origin."""
  phi, theta = poses[..., 0], poses[..., 1]
  position = prior.radius * jnp.stack([
      jnp.sin(phi) * jnp.cos(theta), jnp.cos(phi),
      jnp.sin(phi) * jnp.sin(theta)], axis=-1)
  up = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), position.shape)
  focal = 0.5 / math.tan(math.radians(prior.fov) / 2)
  return cameras.Camera(
      cameras.look_at(position, jnp.zeros_like(position), up),
      cameras.pinhole(jnp.full(phi.shape, focal)))


def image_rays(
    camera: cameras.Camera, size: int, corner_pixels: bool) -> cameras.Rays:
  """Rays [N, size^2, .] of square images, row by row.

  Args:
    camera: Camera [N].
    size: pixels a side.
    corner_pixels: see RenderingConfig.
  """
  if not corner_pixels:
    rays = cameras.rays(camera, size, size)
  else:
    y, x = jnp.meshgrid(*[jnp.linspace(0.0, 1.0, size)] * 2, indexing='ij')
    every = jax.tree.map(lambda a: a[..., None, None, :, :], camera)
    rays = cameras.rays_through(every, jnp.stack([x, y], axis=-1), size)
  return jax.tree.map(lambda a: a.reshape(len(a), size ** 2, -1), rays)


def sample_draws(
    key: jax.Array, size: int, rendering: RenderingConfig, noisy: bool
) -> Draws:
  """Random Draws of one image, without the axis N.

  Args:
    key: of the image.
    size: pixels a side.
    rendering: RenderingConfig.
    noisy: whether the density gets noise.
  """
  rays, count = size ** 2, rendering.samples
  total = 2 * count if rendering.hierarchical else count
  keys = jax.random.split(key, 4)
  draws = Draws(jax.random.uniform(keys[0], (rays, count)),
                jax.random.uniform(keys[1], (rays, count)))
  if not noisy:
    return draws
  return draws._replace(
      first_noise=jax.random.normal(keys[2], (rays, count)),
      final_noise=jax.random.normal(keys[3], (rays, total)))


def middle_draws(count: int, size: int, rendering: RenderingConfig) -> Draws:
  """Draws of `count` images that place the samples without randomness."""
  shape = (count, size ** 2, rendering.samples)
  middles = (jnp.arange(rendering.samples) + 0.5) / rendering.samples
  return Draws(jnp.full(shape, 0.5), jnp.broadcast_to(middles, shape))


def ray_weights(density: jax.Array, distances: jax.Array) -> jax.Array:
  """Weights [..., S] of samples in any order along a ray.

  A sample's density lasts until the next sample, and that of the last one for
  ever: where it is positive, the ray is opaque.

  Args:
    density: [..., S], after the activation.
    distances: [..., S].
  """
  # Which sample (last axis) comes before which: S^2 comparisons are less work
  # than a sort and the scatter that undoes it, and much less than the field.
  own, other = distances[..., :, None], distances[..., None, :]
  index = jnp.arange(distances.shape[-1])
  first = (other < own) | ((other == own) & (index < index[:, None]))
  # By its index: XLA may compute a distance twice, with another rounding, so
  # that it is less than itself.
  different = index != index[:, None]
  before, after = first & different, ~first & different
  following = jnp.min(jnp.where(after, other, jnp.inf), axis=-1)
  interval = jnp.where(
      jnp.isinf(following), _INFINITE, following - distances)
  thickness = density * interval
  passed = jnp.sum(jnp.where(before, thickness[..., None, :], 0.0), axis=-1)
  return -jnp.expm1(-thickness) * jnp.exp(-passed)


def first_distances(
    draws: Draws, near: jax.Array, far: jax.Array) -> jax.Array:
  """Distances [N, M, S]: evenly spaced, each moved by up to half a spacing.

  Args:
    draws: Draws.
    near, far: [..., 1], which broadcast against [N, M, S].
  """
  count = draws.depth.shape[-1]
  fractions = jnp.linspace(0.0, 1.0, count)
  return near + (far - near) * (
      fractions + (draws.depth - 0.5) / max(count - 1, 1))


def resample(distances: jax.Array, weights: jax.Array, quantile: jax.Array
             ) -> jax.Array:
  """Distances of the second pass, from the weights of the first.

  Args:
    distances: [..., S], increasing.
    weights: [..., S] at the distances.
    quantile: [..., F] in [0, 1], of the samples.
  """
  # The bounds of a weight are the midpoints to the samples beside it, which
  # the first and the last sample do not have. The official code adds 1e-5
  # twice, here and in its inverse transform sampling.
  return sampling.sample_pdf(
      volume.midpoints(distances), weights[..., 1:-1] + 2e-5, quantile)


def render_rays(field: Field, rays: cameras.Rays, distances: jax.Array,
                draws: Draws, rendering: RenderingConfig,
                noise: jax.Array | float = 0.0) -> RenderedRays:
  """Renders rays in one or two passes.

  Args:
    field: Field.
    rays: Rays [N, M].
    distances: [N, M, S] of the first pass.
    draws: Draws.
    rendering: RenderingConfig.
    noise: deviation of the density's noise, for draws that have noise.

  Raises:
    UserError: there is no such activation, or a ray has too few samples.
  """
  check('activation of the density', ACTIVATIONS, rendering.activation)
  if rendering.samples < (3 if rendering.hierarchical else 2):
    raise UserError(f'A ray has {rendering.samples} samples; set model.'
                    'rendering.samples to at least 3, or 2 in one pass.')
  # One direction for all samples of a ray, which saves work in the field.
  direction = rays.directions
  if rendering.lock_direction:
    direction = jnp.broadcast_to(jnp.array([0.0, 0.0, -1.0]), direction.shape)

  def activate(density, draw):
    density = density if draw is None else density + noise * draw
    return ACTIVATIONS[rendering.activation](density)

  def march(rays, distances):
    samples = encodings.points_at(rays, distances).mean
    return Samples(distances, *field(samples, direction))

  def second_distances(distances, first):
    weights = ray_weights(
        activate(first.density, draws.first_noise), distances)
    return resample(distances, weights, draws.quantile)

  if not rendering.hierarchical:
    samples = march(rays, distances)
  else:
    passes = volume.coarse_to_fine(
        march, march, rays, distances, second_distances)
    samples = Samples(*(jnp.concatenate(x, axis=2) for x in zip(*passes)))
  weights = ray_weights(
      activate(samples.density, draws.final_noise), samples.distances)
  return composite(samples, weights, rendering)


def composite(samples: Samples, weights: jax.Array, rendering: RenderingConfig
              ) -> RenderedRays:
  """Colors, depth and opacity of samples with weights [N, M, S]."""
  opacity = jnp.sum(weights, axis=-1)
  if rendering.last_background:
    # The farthest sample is the last one of the first pass: the second pass
    # ends at the midpoint before it.
    last = rendering.samples - 1
    weights = weights.at[..., last].add(1 - opacity)
  colors = volume.composite(weights, samples.colors)
  if rendering.white_background:
    colors += 1 - opacity[..., None]
  return RenderedRays(
      colors, jnp.sum(weights * samples.distances, axis=-1), opacity)


def render(field: Field, camera: cameras.Camera, size: int, draws: Draws,
           rendering: RenderingConfig, radius: float = 1.0,
           noise: jax.Array | float = 0.0) -> Images:
  """Images of `size` pixels a side.

  Args:
    field: Field of N objects.
    camera: Camera [N].
    size: pixels a side.
    draws: Draws [N].
    rendering: RenderingConfig.
    radius: of the sphere of cameras, to which its distances refer.
    noise: deviation of the density's noise, for draws that have noise.
  """
  rays = image_rays(camera, size, rendering.corner_pixels)
  offset = jnp.linalg.norm(rays.origins, axis=-1, keepdims=True) - radius
  distances = first_distances(
      draws, rendering.near + offset, rendering.far + offset)

  def render_chunk(inputs):
    rays, distances, draws = inputs
    return render_rays(field, rays, distances, draws, rendering, noise)

  inputs = rays, distances, draws
  if 0 < rendering.chunk < size ** 2:
    # Chunks are of rays, so that rays become the leading axis.
    swap = functools.partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
    rendered = swap(volume.map_rays(
        jax.checkpoint(lambda inputs: swap(render_chunk(swap(inputs)))),
        swap(inputs), rendering.chunk, axes=1))
  else:
    rendered = render_chunk(inputs)
  to_images = lambda x: x.reshape(len(x), size, size, *x.shape[2:])
  colors, depth, opacity = map(to_images, rendered)
  return Images(2 * colors - 1, depth, opacity)
