"""Penalties on rendered volumes: one function each, one number per ray."""

import functools

import jax
import jax.numpy as jnp


def orientation(weights: jax.Array, normals: jax.Array,
                directions: jax.Array) -> jax.Array:
  """Visible normals that face away, [...] (Ref-NeRF, 2112.03907, eq. 11).

  sum_i w_i max(0, n_i . d)^2. No gradient flows to the weights: normals that
  face away are to turn, not to vanish (DreamFusion, section 3.2).

  Args:
    weights: [..., N].
    normals: [..., N, 3], unit.
    directions: [..., 3], of the rays.
  """
  cosine = jnp.sum(normals * directions[..., None, :], axis=-1)
  return jnp.sum(
      jax.lax.stop_gradient(weights) * jnp.maximum(0.0, cosine)**2, axis=-1)


def sparsity(opacity: jax.Array) -> jax.Array:
  """sqrt(o^2 + 0.01) of a ray's opacity o [...], which prefers empty space.

  DreamFusion, appendix: against filling the whole bounding volume.
  """
  return jnp.sqrt(opacity**2 + 0.01)


def opacity_entropy(opacity: jax.Array, epsilon: float = 1e-3) -> jax.Array:
  """Binary entropy [...] of a ray's opacity, in nats: opaque or empty.

  The opacity is clamped to [epsilon, 1 - epsilon], where the logarithms and
  their gradients are bounded.
  """
  p = jnp.clip(opacity, epsilon, 1 - epsilon)
  return -(p * jnp.log(p) + (1 - p) * jnp.log1p(-p))


def depth_variance(weights: jax.Array, edges: jax.Array) -> jax.Array:
  """Variance [...] of the depth along a ray: thin surfaces, no fog.

  sum_i w_i (t_i - mean)^2 with the weights scaled to sum to one, as in HiFA
  (2305.18766), times the opacity without gradient, so that empty rays are
  not penalized.

  Args:
    weights: [..., N].
    edges: [..., N + 1].
  """
  middle = (edges[..., 1:] + edges[..., :-1]) / 2
  opacity = jnp.sum(weights, axis=-1, keepdims=True)
  # Bounded below, for a ray without weights has no mean.
  normalized = weights / jnp.maximum(opacity, 1e-3)
  mean = jnp.sum(normalized * middle, axis=-1, keepdims=True)
  variance = jnp.sum(normalized * (middle - mean)**2, axis=-1)
  return jax.lax.stop_gradient(opacity[..., 0]) * variance


def normal_smoothness(normals: jax.Array, opacity: jax.Array) -> jax.Array:
  """Differences between the normals of neighboring pixels, [H, W].

  Half the squared difference from the pixels below and to the right, where
  both pixels are opaque.

  Args:
    normals: [H, W, 3].
    opacity: [H, W]; no gradient flows to it.
  """
  opacity = jax.lax.stop_gradient(opacity)
  down = opacity[1:] * opacity[:-1] * jnp.sum(
      jnp.diff(normals, axis=0)**2, axis=-1)
  right = opacity[:, 1:] * opacity[:, :-1] * jnp.sum(
      jnp.diff(normals, axis=1)**2, axis=-1)
  return 0.5 * (jnp.pad(down, ((0, 1), (0, 0)))
                + jnp.pad(right, ((0, 0), (0, 1))))


# The differences, as large as the grid for each axis, are recomputed in the
# backward pass instead of stored.
@functools.partial(jax.checkpoint, static_argnums=1)
def total_variation(grid: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Mean squared difference [] of neighbors in a grid of features.

  Args:
    grid: any array.
    axes: those along which neighbors are close in space.
  """
  return functools.reduce(jnp.add, (
      jnp.mean(jnp.square(jnp.diff(grid, axis=axis)))
      for axis in axes)) / len(axes)
