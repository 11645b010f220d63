"""Volume rendering: from densities along rays to what is seen.

Vocabulary. `edges` [..., N + 1] are distances along a ray, `density` [..., N]
is constant between them, `weights` [..., N] say how much of what is seen is in
each interval, and what they leave of 1 is the background's. A field is
(Gaussian samples [..., 3], unit directions [..., 3]) -> (density [...],
values [..., C]).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.ops import encodings


class RaySamples(NamedTuple):
  """What a field answered along rays."""
  samples: Any  # Gaussian [..., N, 3]
  edges: Any    # [..., N + 1]
  density: Any  # [..., N]
  values: Any   # [..., N, C]
  weights: Any  # [..., N]


def march(field, rays, edges, cast=encodings.conical_frustums):
  """Asks `field` along `rays` and weighs the answers.

  Args:
    field: see above.
    rays: Rays [..., 3].
    edges: [..., N + 1].
    cast: (rays, edges) -> Gaussian [..., N, 3]; `encodings.midpoints` for
      fields of points.
  """
  samples = cast(rays, edges)
  directions = jnp.broadcast_to(
      rays.directions[..., None, :], samples.mean.shape)
  density, values = field(samples, directions)
  return RaySamples(samples, edges, density, values, alpha_weights(density, edges))


def alpha_weights(density, edges):
  """Weights [..., N] = T_i (1 - exp(-sigma_i delta_i)), NeRF's eq. 3."""
  thickness = density * jnp.diff(edges, axis=-1)
  # T as exp of one sum: a product of (1 - alpha) would round to zero early,
  # and its gradient divides by what is left.
  total = jnp.cumsum(thickness, axis=-1)
  before = jnp.concatenate(
      [jnp.zeros_like(total[..., :1]), total[..., :-1]], axis=-1)
  return -jnp.expm1(-thickness) * jnp.exp(-before)


def composite(weights, values, background=None):
  """Expected value [..., C] of values [..., N, C] seen with `weights`.

  `background` [..., C] gets what the weights leave of 1; None adds nothing.
  """
  seen = jnp.einsum('...n,...nc->...c', weights, values)
  if background is None:
    return seen
  return seen + (1 - jnp.sum(weights, axis=-1, keepdims=True)) * background


def expected_depth(weights, edges):
  """Mean distance [...] of what is seen; the mean edge if nothing is."""
  middle = (edges[..., 1:] + edges[..., :-1]) / 2
  opacity = jnp.sum(weights, axis=-1)
  seen = jnp.sum(weights * middle, axis=-1) / jnp.maximum(opacity, 1e-6)
  return jnp.where(opacity > 1e-6, seen, jnp.mean(middle, axis=-1))


def map_rays(render, rays, chunk, axes=2):
  """`render` applied to `chunk` rays at a time, for memory's sake.

  Args:
    render: Rays [chunk, ...] -> pytree of arrays [chunk, ...].
    rays: a pytree of arrays [H, W, ...].
    chunk: rays at once; the peak grows with it, not with the image.
    axes: how many leading axes the rays have, if not two.

  Returns:
    The pytree of `render` with leading axes [H, W].
  """
  leading = jax.tree.leaves(rays)[0].shape[:axes]
  count = math.prod(leading)
  chunk = min(chunk, count)
  chunks = -(-count // chunk)

  def split(x):
    flat = x.reshape(count, *x.shape[axes:])
    # The last chunk is filled up with repetitions of the last ray.
    fill = jnp.broadcast_to(
        flat[-1:], (chunks * chunk - count, *flat.shape[1:]))
    return jnp.concatenate([flat, fill]).reshape(
        chunks, chunk, *flat.shape[1:])

  join = lambda x: x.reshape(chunks * chunk, *x.shape[2:])[:count].reshape(
      *leading, *x.shape[2:])
  return jax.tree.map(join, jax.lax.map(render, jax.tree.map(split, rays)))


def in_chunks(render, rays, chunk, axes=2):
  """`map_rays`, but at once where that is no more than `chunk` rays.

  What is between a chunk's rays and its result is computed again on the way
  back instead of kept.
  """
  leading = jax.tree.leaves(rays)[0].shape[:axes]
  if math.prod(leading) <= chunk:
    return render(rays)
  return map_rays(jax.checkpoint(render), rays, chunk, axes)
