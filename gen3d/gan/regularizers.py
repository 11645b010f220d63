"""Penalties of adversarial training, as functions of functions."""

import jax
import jax.numpy as jnp


def r1_penalty(judge, reals):
  """Mean over N of |d logit / d reals|^2 (Mescheder et al., 1801.04406)."""
  slopes = jax.grad(lambda x: jnp.sum(judge(x)))(reals)
  count = len(jax.tree.leaves(reals)[0])
  return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(slopes)) / count


def path_length(images_of, ws, keys, mean, decay=0.01):
  """StyleGAN2's path length penalty (1912.04958, section 3.2).

  Args:
    images_of: ws [N, L, D] -> images [N, H, W, C].
    ws: [N, L, D].
    keys: [N], of the random images y.
    mean: running mean of the lengths |J^T y|.
    decay: how fast it follows.

  Returns:
    (penalty, mean brought forward).
  """
  made, pull = jax.vjp(images_of, ws)
  _, *shape = made.shape
  y = jax.vmap(lambda key: jax.random.normal(key, shape))(keys) / jnp.sqrt(
      shape[0] * shape[1])
  slopes, = pull(y)
  lengths = jnp.sqrt(jnp.mean(jnp.sum(slopes ** 2, axis=2), axis=1))
  mean = mean + decay * (jnp.mean(jax.lax.stop_gradient(lengths)) - mean)
  return jnp.mean((lengths - mean) ** 2), mean


def density_variation(density, keys, points=1000, spread=0.004):
  """EG3D's regularizer: densities nearby are alike.

  Mean absolute difference of raw density at random points of [-1, 1]^3 and
  at places beside them.

  Args:
    density: points [N, P, 3] -> [N, P].
    keys: [N], of each image's points.
    points: P / 2.
    spread: standard deviation of the distance.
  """
  @jax.vmap
  def draw(key):
    key_here, key_there = jax.random.split(key)
    here = jax.random.uniform(key_here, (points, 3), minval=-1.0)
    there = here + spread * jax.random.normal(key_there, here.shape)
    return jnp.concatenate([here, there])

  both = density(draw(keys))
  return jnp.mean(jnp.abs(both[:, :points] - both[:, points:]))
