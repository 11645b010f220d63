"""Sampling along rays.

Vocabulary. `near` and `far` [..., 1] bound the part of a ray that is sampled;
`edges` [..., N + 1] increase along it and bound N intervals; `weights`
[..., N] are the intervals' contributions to the pixel (ops/volume.py). A ray
that misses the scene gets near == far: its intervals are empty and their
weights are zero.
"""

import jax
import jax.numpy as jnp

from gen3d.ops import cameras


def intersect_sphere(
    rays: cameras.Rays, radius: float, closest: float | jax.Array = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Distances between which rays are in a sphere around the origin.

  Args:
    rays: Rays [...] with unit directions.
    radius: of the sphere.
    closest: the least distance from the camera, which may be inside.

  Returns:
    near, far [..., 1] and whether the ray hits the sphere, [..., 1].
  """
  b = jnp.sum(rays.origins * rays.directions, axis=-1, keepdims=True)
  c = jnp.sum(rays.origins**2, axis=-1, keepdims=True) - radius**2
  discriminant = b * b - c
  root = jnp.sqrt(jnp.maximum(discriminant, 1e-12))
  return _clip(-b - root, -b + root, discriminant > 1e-12, closest)


def intersect_box(
    rays: cameras.Rays, bound: float, closest: float | jax.Array = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Distances between which rays are in the cube [-bound, bound]^3.

  Args and results are those of `intersect_sphere`.
  """
  near, far = slabs(rays, bound)
  return _clip(near, far, far > near, closest)


def slabs(rays: cameras.Rays, bound: float) -> tuple[jax.Array, jax.Array]:
  """near, far [..., 1] of lines and [-bound, bound]^3; near > far at a miss.

  Args:
    rays: Rays [...].
    bound: half-width of the cube.
  """
  direction = jnp.where(
      jnp.abs(rays.directions) < 1e-9, 1e-9, rays.directions)
  a = (-bound - rays.origins) / direction
  b = (bound - rays.origins) / direction
  near = jnp.max(jnp.minimum(a, b), axis=-1, keepdims=True)
  far = jnp.min(jnp.maximum(a, b), axis=-1, keepdims=True)
  return near, far


def stratified(key: jax.Array | None, near: jax.Array, far: jax.Array,
               count: int, disparity: bool = False) -> jax.Array:
  """Edges [..., count + 1], evenly spaced from near to far.

  Args:
    key: moves the inner edges by up to half an interval; None for no jitter.
    near, far: [..., 1].
    count: of intervals.
    disparity: evenly in 1 / distance instead, for unbounded scenes (near must
      not be zero).
  """
  fractions = jnp.linspace(0.0, 1.0, count + 1)
  fractions = jnp.broadcast_to(fractions, (*near.shape[:-1], count + 1))
  if key is not None:
    jitter = jax.random.uniform(
        key, fractions.shape, minval=-0.5, maxval=0.5) / count
    fractions += jitter.at[..., 0].set(0.0).at[..., -1].set(0.0)
  return _between(near, far, fractions, disparity)


def stratified_points(uniform: jax.Array, near: jax.Array, far: jax.Array,
                      disparity: bool = False) -> jax.Array:
  """Distances [..., S] of points, one in each stratum (EG3D).

  As in EG3D's code the strata begin at S evenly spaced distances from near to
  far, so that the last one lies beyond far.

  Args:
    uniform: [..., S] in [0, 1), the position within each stratum.
    near, far: [..., 1].
    disparity: evenly in 1 / distance.
  """
  count = uniform.shape[-1]
  fractions = (jnp.arange(count) + uniform) / (count - 1)
  return _between(near, far, fractions, disparity)


def importance(key: jax.Array | None, edges: jax.Array, weights: jax.Array,
               count: int) -> jax.Array:
  """Importance samples: distances [..., count] from a piecewise constant pdf.

  Inverse transform sampling at evenly spaced quantiles; the result increases
  along the ray. No gradient flows through it.

  Args:
    key: jitters each quantile within its stratum; None for no jitter.
    edges: [..., N + 1].
    weights: [..., N], not normalized. Where all are zero the pdf is uniform
      over the intervals.
    count: of samples.
  """
  shape = (*edges.shape[:-1], count)
  offset = 0.5 if key is None else jax.random.uniform(key, shape)
  quantiles = jnp.broadcast_to((jnp.arange(count) + offset) / count, shape)
  return sample_pdf(edges, weights + 1e-5 / weights.shape[-1], quantiles)


def sample_pdf(edges: jax.Array, weights: jax.Array,
               quantiles: jax.Array) -> jax.Array:
  """The inverse CDF [..., M] of a piecewise constant pdf at `quantiles`.

  No gradient flows through it.

  Args:
    edges: [..., N + 1], the bounds of the pdf's pieces.
    weights: [..., N], their probabilities, not normalized.
    quantiles: [..., M] in [0, 1].
  """
  weights, edges = jax.lax.stop_gradient((weights, edges))
  cdf = jnp.cumsum(weights, axis=-1)
  cdf = cdf / cdf[..., -1:]
  cdf = jnp.concatenate([jnp.zeros_like(cdf[..., :1]), cdf], axis=-1)
  # The interval of a quantile is the number of inner boundaries below it.
  index = jnp.sum(quantiles[..., None] >= cdf[..., None, 1:-1], axis=-1)
  take = lambda x, i: jnp.take_along_axis(x, i, axis=-1)
  low, high = take(cdf, index), take(cdf, index + 1)
  fraction = jnp.clip((quantiles - low) / jnp.maximum(high - low, 1e-12), 0, 1)
  start, end = take(edges, index), take(edges, index + 1)
  return start + fraction * (end - start)


def blur_weights(weights: jax.Array, padding: float = 0.01) -> jax.Array:
  """Weights [..., N] made safe for resampling: blurred, then padded.

  Mip-NeRF (2103.13415), eq. 18.
  """
  padded = jnp.concatenate(
      [weights[..., :1], weights, weights[..., -1:]], axis=-1)
  pairs = jnp.maximum(padded[..., :-1], padded[..., 1:])
  return 0.5 * (pairs[..., :-1] + pairs[..., 1:]) + padding


def sort_union(*distances: jax.Array) -> jax.Array:
  """All the distances [..., sum of N] of a ray in increasing order."""
  return jnp.sort(jnp.concatenate(distances, axis=-1), axis=-1)


def _between(near, far, fractions, disparity):
  """Distances at fractions of the way from near to far."""
  if disparity:
    return 1 / ((1 - fractions) / near + fractions / far)
  return near + (far - near) * fractions


def _clip(near, far, hit, closest):
  near, far = jnp.maximum(near, closest), jnp.maximum(far, closest)
  hit = hit & (far > near)
  # Not zero, where the Gaussian of a frustum would be undefined.
  return jnp.where(hit, near, 1.0), jnp.where(hit, far, 1.0), hit
