"""Volume rendering: densities along rays become pixels.

Vocabulary. A field is a function (Gaussian samples [..., 3], unit directions
[..., 3]) -> (density [...], values [..., C]). `distances` [..., D] along a ray
increase; N = D - 1 intervals lie between them. `interval_weights` [..., N] and
`weights` [..., S] are the contributions of the intervals and of the samples to
the pixel; the remainder to 1 is the background's.

A `Quadrature` turns the rendering integral into a sum. Papers differ in it:
NeRF (2003.08934, eq. 3) has one sample and one constant density in each
interval (`edge_quadrature`); EG3D (2112.07945) has samples at the distances
and gives an interval the mean of its two ends (`midpoint_quadrature`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.ops import cameras, encodings

# (samples [..., 3], directions [..., 3]) -> (density [...], values [..., C]);
# samples are what the quadrature's `cast` gives, a record with `mean`.
Field = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
# A field's density [...] -> density per unit of length.
Activation = Callable[[jax.Array], jax.Array]
# (rays, distances [..., D]) -> RaySamples, or what is computed of them
Pass = Callable[[cameras.Rays, jax.Array], Any]
# (distances [..., D], result of the first pass) -> distances of the second one
Resample = Callable[[jax.Array, Any], jax.Array]


class Quadrature(NamedTuple):
  """A rule that turns the rendering integral into a sum over samples.

  Attributes:
    cast: (rays, distances [..., D]) -> Gaussian samples [..., S, 3].
    interval_weights: (density [..., S] of the field, distances [..., D]) ->
      [..., N].
    sample_weights: interval weights [..., N] -> weights of the samples'
      values, [..., S].
  """
  cast: Callable[[cameras.Rays, jax.Array], encodings.Gaussian]
  interval_weights: Callable[[jax.Array, jax.Array], jax.Array]
  sample_weights: Callable[[jax.Array], jax.Array]


class RaySamples(NamedTuple):
  """Samples along rays, with what a field has there."""
  samples: Any           # Gaussian [..., S, 3]
  edges: Any             # [..., N + 1], the bounds of the intervals
  density: Any           # [..., S], as the field returns it
  values: Any            # [..., S, C]
  interval_weights: Any  # [..., N]
  weights: Any           # [..., S]


def edge_quadrature(
    activation: Activation | None = None,
    cast: Callable = encodings.conical_frustums) -> Quadrature:
  """The Quadrature of NeRF and Mip-NeRF: intervals of constant density.

  Args:
    activation: of the field's density; None if the field has applied it.
    cast: (rays, edges) -> one Gaussian for each interval.
  """
  def interval_weights(density, edges):
    return alpha_weights(activation(density) if activation else density, edges)

  return Quadrature(cast, interval_weights, lambda weights: weights)


def midpoint_quadrature(activation: Activation) -> Quadrature:
  """The Quadrature of EG3D: samples are the ends of the intervals.

  An interval has the activation of the mean of its two ends' densities, and
  the mean of their values: a sample counts for half of the intervals beside
  it.

  Args:
    activation: of the averaged density. The field returns it raw.
  """
  def interval_weights(density, distances):
    return alpha_weights(activation(midpoints(density)), distances)

  def sample_weights(weights):
    ends = [(0, 0)] * (weights.ndim - 1) + [(1, 1)]
    return midpoints(jnp.pad(weights, ends))

  return Quadrature(encodings.points_at, interval_weights, sample_weights)


def march(field: Field, rays: cameras.Rays, distances: jax.Array,
          quadrature: Quadrature | None = None) -> RaySamples:
  """Evaluates a field along rays.

  Args:
    field: Field.
    rays: Rays [..., 3].
    distances: [..., D].
    quadrature: None for `edge_quadrature()`.
  """
  quadrature = quadrature or edge_quadrature()
  samples = quadrature.cast(rays, distances)
  directions = jnp.broadcast_to(
      rays.directions[..., None, :], samples.mean.shape)
  density, values = field(samples, directions)
  interval_weights = quadrature.interval_weights(density, distances)
  return RaySamples(samples, distances, density, values, interval_weights,
                    quadrature.sample_weights(interval_weights))


def coarse_to_fine(
    first: Pass, second: Pass, rays: cameras.Rays, distances: jax.Array,
    resample: Resample) -> tuple[Any, Any]:
  """Computes two passes along rays.

  The second pass samples where the first one has high weights (NeRF, section
  5.2). No gradient flows from its distances to the first pass. A pass is
  `march` with its field and quadrature, or a function with another result,
  such as one that evaluates a part of the rays or composites at once.

  Args:
    first: the first Pass.
    second: the second Pass.
    rays: Rays [..., 3].
    distances: [..., D] of the first pass.
    resample: (distances, result of the first pass) -> distances of the second
      one.

  Returns:
    The results of the first and of the second pass.
  """
  coarse = first(rays, distances)
  return coarse, second(
      rays, resample(distances, jax.lax.stop_gradient(coarse)))


def union(first: RaySamples, second: RaySamples,
          quadrature: Quadrature) -> tuple[RaySamples, RaySamples]:
  """Two passes with the intervals and weights of all their samples (EG3D).

  Both records then have the intervals between the samples of both passes, and
  each record has its own samples' weights among all. Values stay in the order
  of their pass: sorting them would move C numbers for each sample, so that
  instead the weights, one number for each sample, are put back into that
  order.

  Args:
    first: of the first pass.
    second: of the second pass.
    quadrature: of both, one with a sample at every distance.
  """
  passes = (first, second)
  distances, density = (
      jnp.concatenate(x, axis=-1)
      for x in zip(*((p.edges, p.density) for p in passes), strict=True))
  order = jnp.argsort(distances, axis=-1)
  distances, density = (jnp.take_along_axis(x, order, axis=-1)
                        for x in (distances, density))
  interval_weights = quadrature.interval_weights(density, distances)
  weights = quadrature.sample_weights(interval_weights)
  weights = jnp.put_along_axis(
      jnp.zeros_like(weights), order, weights, axis=-1, inplace=False)
  weights = jnp.split(weights, [first.density.shape[-1]], axis=-1)
  first, second = (
      p._replace(edges=distances, interval_weights=interval_weights, weights=w)
      for p, w in zip(passes, weights))
  return first, second


def alpha_weights(density: jax.Array, edges: jax.Array) -> jax.Array:
  """Weights [..., N] = T_i (1 - exp(-sigma_i delta_i)), NeRF's eq. 3."""
  thickness = density * jnp.diff(edges, axis=-1)
  # T as exp of one sum: a product of (1 - alpha) would round to zero early,
  # and its gradient divides by what is left.
  total = jnp.cumsum(thickness, axis=-1)
  before = jnp.concatenate(
      [jnp.zeros_like(total[..., :1]), total[..., :-1]], axis=-1)
  return -jnp.expm1(-thickness) * jnp.exp(-before)


def composite(weights: jax.Array, values: jax.Array,
              background: jax.Array | None = None) -> jax.Array:
  """Expected value [..., C] along rays.

  Args:
    weights: [..., S].
    values: [..., S, C].
    background: [..., C], weighted by 1 minus the opacity; None adds nothing.
  """
  foreground = jnp.einsum('...n,...nc->...c', weights, values)
  if background is None:
    return foreground
  opacity = jnp.sum(weights, axis=-1, keepdims=True)
  return foreground + (1 - opacity) * background


def expected_depth(weights: jax.Array, edges: jax.Array) -> jax.Array:
  """Mean distance [...] of the intervals; unweighted where a ray is empty."""
  middle = midpoints(edges)
  opacity = jnp.sum(weights, axis=-1)
  depth = jnp.sum(weights * middle, axis=-1) / jnp.maximum(opacity, 1e-6)
  return jnp.where(opacity > 1e-6, depth, jnp.mean(middle, axis=-1))


def midpoints(x: jax.Array) -> jax.Array:
  """Means [..., N] of neighbors in [..., N + 1]."""
  return (x[..., 1:] + x[..., :-1]) / 2


def map_rays(render: Callable, rays: Any, chunk: int, axes: int = 2) -> Any:
  """Applies `render` to `chunk` rays at a time, to bound the memory.

  Args:
    render: Rays [chunk, ...] -> pytree of arrays [chunk, ...].
    rays: a pytree of arrays [H, W, ...].
    chunk: rays at a time; the peak grows with it, not with the image.
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


def in_chunks(render: Callable, rays: Any, chunk: int, axes: int = 2) -> Any:
  """`map_rays`, or one call where there are at most `chunk` rays.

  The intermediate values of a chunk are recomputed in the backward pass
  instead of stored. Args and results are those of `map_rays`.
  """
  leading = jax.tree.leaves(rays)[0].shape[:axes]
  if math.prod(leading) <= chunk:
    return render(rays)
  return map_rays(jax.checkpoint(render), rays, chunk, axes)
