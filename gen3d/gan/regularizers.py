"""Regularization terms of GANs, as functions of functions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def r1_penalty(
    discriminate: Callable[[Any], jax.Array], reals: Any
) -> jax.Array:
  """R1, the mean over N of |d logit / d reals|^2 (1801.04406, eq. 9).

  Args:
    discriminate: reals -> logits [N].
    reals: pytree of images [N, H, W, C]; its squares are added up. For R2
      (the same paper, eq. 10) the fakes.
  """
  # The gradient of the sum of logits has each example's own in its row, where
  # logits do not depend on other examples.
  gradients = jax.grad(lambda x: jnp.sum(discriminate(x)))(reals)
  count = len(jax.tree.leaves(reals)[0])
  return functools.reduce(jnp.add, (
      jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradients))) / count


def path_length(
    synthesize: Callable[[jax.Array], jax.Array], ws: jax.Array,
    keys: jax.Array, pl_mean: jax.Array, decay: float = 0.01
) -> tuple[jax.Array, jax.Array]:
  """StyleGAN2's path length penalty (1912.04958, eq. 4).

  Args:
    synthesize: ws [N, L, D] -> images [N, H, W, C].
    ws: [N, L, D].
    keys: [N], of the random images y.
    pl_mean: running mean of the lengths |J^T y|.
    decay: rate of the running mean.

  Returns:
    (penalty, updated pl_mean).
  """
  images, vjp = jax.vjp(synthesize, ws)
  _, *shape = images.shape
  # J^T y without the Jacobian J: a vector-Jacobian product.
  y = jax.vmap(lambda key: jax.random.normal(key, shape))(keys) / jnp.sqrt(
      shape[0] * shape[1])
  gradients, = vjp(y)
  # Mean over the layers L, as in the official code.
  lengths = jnp.sqrt(jnp.mean(jnp.sum(gradients ** 2, axis=2), axis=1))
  pl_mean = pl_mean + decay * (
      jnp.mean(jax.lax.stop_gradient(lengths)) - pl_mean)
  return jnp.mean((lengths - pl_mean) ** 2), pl_mean


def density_variation(
    density: Callable[[jax.Array], jax.Array], keys: jax.Array,
    points: int = 1000, distance: float = 0.004
) -> jax.Array:
  """EG3D's density regularization (2112.07945, supplement).

  The mean absolute difference of the density, before its activation, between
  random points of [-1, 1]^3 and points near them.

  Args:
    density: points [N, P, 3] -> [N, P].
    keys: [N], of each image's points.
    points: P / 2.
    distance: standard deviation of the distance along each axis.
  """
  @jax.vmap
  def sample_pairs(key):
    key_first, key_second = jax.random.split(key)
    first = jax.random.uniform(key_first, (points, 3), minval=-1.0)
    second = first + distance * jax.random.normal(key_second, first.shape)
    return jnp.concatenate([first, second])

  values = density(sample_pairs(keys))
  return jnp.mean(jnp.abs(values[:, :points] - values[:, points:]))
