"""Penalties on what a volume shows: one function, one number per ray."""

import functools

import jax
import jax.numpy as jnp


def orientation(weights, normals, directions):
  """Visible normals that face away, [...] (Ref-NeRF, 2112.03907, eq. 11).

  sum_i w_i max(0, n_i . d)^2, where no gradient goes to the weights: bent
  normals are to turn, not to vanish (DreamFusion, section 3.2).

  Args:
    weights: [..., N].
    normals: [..., N, 3], unit.
    directions: [..., 3], of the rays.
  """
  cosine = jnp.sum(normals * directions[..., None, :], axis=-1)
  return jnp.sum(
      jax.lax.stop_gradient(weights) * jnp.maximum(0.0, cosine)**2, axis=-1)


def sparsity(total):
  """sqrt(o^2 + 0.01) of a ray's opacity o [...]: empty space is preferred.

  DreamFusion, appendix: against filling the whole bounding volume.
  """
  return jnp.sqrt(total**2 + 0.01)


def entropy(total, epsilon=1e-3):
  """Binary entropy of a ray's opacity [...], in nats: neither fog nor glass.

  The opacity is clamped to [epsilon, 1 - epsilon], where the logarithms and
  their gradients are bounded.
  """
  p = jnp.clip(total, epsilon, 1 - epsilon)
  return -(p * jnp.log(p) + (1 - p) * jnp.log1p(-p))


def depth_variance(weights, edges):
  """Variance [...] of where along the ray it is seen: thin shells, no fog.

  sum_i w_i (t_i - mean)^2 with the weights scaled to sum to one, as HiFA
  (2305.18766) has it, times the opacity without gradient, so that empty rays
  are left alone.
  """
  middle = (edges[..., 1:] + edges[..., :-1]) / 2
  total = jnp.sum(weights, axis=-1, keepdims=True)
  share = weights / jnp.maximum(total, 1e-3)
  mean = jnp.sum(share * middle, axis=-1, keepdims=True)
  spread = jnp.sum(share * (middle - mean)**2, axis=-1)
  return jax.lax.stop_gradient(total[..., 0]) * spread


def normal_smoothness(normals, total):
  """How much the normals [H, W, 3] of neighboring pixels differ, [H, W].

  Half the squared difference from the pixels below and to the right, where
  both pixels have an opacity `total` [H, W]; no gradient goes to the latter.
  """
  total = jax.lax.stop_gradient(total)
  down = total[1:] * total[:-1] * jnp.sum(
      jnp.diff(normals, axis=0)**2, axis=-1)
  right = total[:, 1:] * total[:, :-1] * jnp.sum(
      jnp.diff(normals, axis=1)**2, axis=-1)
  return 0.5 * (jnp.pad(down, ((0, 1), (0, 0)))
                + jnp.pad(right, ((0, 0), (0, 1))))


# The differences, as large as the grid for each axis, are not kept for the
# way back.
@functools.partial(jax.checkpoint, static_argnums=1)
def total_variation(grid, axes):
  """Mean squared difference [] of neighbors in a grid of features.

  Args:
    grid: any array.
    axes: those along which neighbors are close in space.
  """
  return sum(jnp.mean(jnp.square(jnp.diff(grid, axis=axis)))
             for axis in axes) / len(axes)
