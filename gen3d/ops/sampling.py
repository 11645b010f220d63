"""Where to look along rays.

Vocabulary. `near` and `far` [..., 1] bound the part of a ray that is looked
at; `edges` [..., N + 1] increase along it and bound N intervals; `weights`
[..., N] say how much of what is seen lies in each interval. A ray that misses
gets near == far: its intervals are empty and weigh nothing.
"""

import jax
import jax.numpy as jnp


def intersect_sphere(rays, radius, closest=0.0):
  """near, far [..., 1] of rays within a sphere around the origin, hit [..., 1].

  `closest` is the least distance from the camera, which may be inside.
  """
  b = jnp.sum(rays.origins * rays.directions, axis=-1, keepdims=True)
  c = jnp.sum(rays.origins**2, axis=-1, keepdims=True) - radius**2
  discriminant = b * b - c
  root = jnp.sqrt(jnp.maximum(discriminant, 1e-12))
  return _clip(-b - root, -b + root, discriminant > 1e-12, closest)


def intersect_box(rays, bound, closest=0.0):
  """near, far [..., 1] of rays within the cube [-bound, bound]^3, and hit."""
  direction = jnp.where(
      jnp.abs(rays.directions) < 1e-9, 1e-9, rays.directions)
  a = (-bound - rays.origins) / direction
  b = (bound - rays.origins) / direction
  near = jnp.max(jnp.minimum(a, b), axis=-1, keepdims=True)
  far = jnp.min(jnp.maximum(a, b), axis=-1, keepdims=True)
  return _clip(near, far, far > near, closest)


def stratified(key, near, far, count, disparity=False):
  """Edges [..., count + 1] evenly from near to far.

  With a key, the inner ones are moved by up to half an interval; None leaves
  them where they are. `disparity`: evenly in 1 / distance instead, for scenes
  without an end (near must not be zero).
  """
  fractions = jnp.linspace(0.0, 1.0, count + 1)
  fractions = jnp.broadcast_to(fractions, (*near.shape[:-1], count + 1))
  if key is not None:
    jitter = jax.random.uniform(
        key, fractions.shape, minval=-0.5, maxval=0.5) / count
    fractions += jitter.at[..., 0].set(0.0).at[..., -1].set(0.0)
  if disparity:
    return 1 / ((1 - fractions) / near + fractions / far)
  return near + (far - near) * fractions


def importance(key, edges, weights, count):
  """`count` distances [..., count] drawn from a piecewise constant density.

  Inverse of the cumulative weights at evenly spaced quantiles, which a key
  jitters within their stratum; the result increases along the ray. No
  gradient goes through it. Where all weights are zero the intervals count
  alike.
  """
  shape = (*edges.shape[:-1], count)
  offset = 0.5 if key is None else jax.random.uniform(key, shape)
  quantiles = jnp.broadcast_to((jnp.arange(count) + offset) / count, shape)
  return sample_pdf(edges, weights + 1e-5 / weights.shape[-1], quantiles)


def sample_pdf(edges, weights, quantiles):
  """Distances [..., M] at `quantiles` [..., M] of a piecewise constant density.

  The inverse of its cumulative weights; no gradient goes through it.
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


def blur_weights(weights, padding=0.01):
  """Weights made safe for resampling (Mip-NeRF, eq. 18): blurred, padded."""
  padded = jnp.concatenate(
      [weights[..., :1], weights, weights[..., -1:]], axis=-1)
  pairs = jnp.maximum(padded[..., :-1], padded[..., 1:])
  return 0.5 * (pairs[..., :-1] + pairs[..., 1:]) + padding


def sort_union(*distances):
  """All the distances [..., sum of N] of a ray in increasing order."""
  return jnp.sort(jnp.concatenate(distances, axis=-1), axis=-1)


def _clip(near, far, hit, closest):
  near, far = jnp.maximum(near, closest), jnp.maximum(far, closest)
  hit = hit & (far > near)
  # Not zero, where the Gaussian of a frustum would be undefined.
  return jnp.where(hit, near, 1.0), jnp.where(hit, far, 1.0), hit
