"""Noise schedules in continuous time, and conversions between predictions.

Notation: x_t = alpha(t) x + sigma(t) eps with t in [0, 1]. A network predicts
eps, x, or a velocity: v = alpha eps - sigma x where alpha^2 + sigma^2 = 1, u =
eps - x of a rectified flow, where alpha + sigma = 1. All code outside the
networks uses eps and holds for both kinds of schedules.

Published networks are trained on N = 1000 discrete steps k = 0, ..., N - 1
with a tabulated alpha^2 after each step. Step k ends at time t = (k + 1) / N,
so that t = 0 is still the clean image.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Level = Callable[[jax.Array], jax.Array]


class Schedule(NamedTuple):
  """alpha and sigma as functions of t in [0, 1], any shape."""
  alpha: Level
  sigma: Level


def cosine_schedule(clip: float = 1e-3) -> Schedule:
  """alpha = cos(pi t / 2) (Nichol & Dhariwal 2021; continuous as in Imagen).

  `clip` keeps t away from both ends, where alpha or sigma would be zero.
  """
  angle = lambda t: 0.5 * jnp.pi * jnp.clip(t, clip, 1 - clip)
  return Schedule(lambda t: jnp.cos(angle(t)), lambda t: jnp.sin(angle(t)))


def rectified_flow(clip: float = 1e-3) -> Schedule:
  """alpha = 1 - t, sigma = t (Liu et al., 2209.03003).

  `clip` keeps t away from both ends, where alpha or sigma would be zero.
  """
  clipped = lambda t: jnp.clip(t, clip, 1 - clip)
  return Schedule(lambda t: 1 - clipped(t), clipped)


def scaled_linear(first: float = 0.00085, last: float = 0.012,
                  steps: int = 1000) -> np.ndarray:
  """alpha^2 [steps] of Stable Diffusion: sqrt(beta) is linear in the step."""
  betas = np.linspace(first ** 0.5, last ** 0.5, steps, dtype=np.float64) ** 2
  return np.cumprod(1 - betas)


def squared_cosine(steps: int = 1000) -> np.ndarray:
  """alpha^2 [steps] of DeepFloyd IF (Nichol & Dhariwal 2021, equation 17).

  beta is at most 0.999.
  """
  u = np.arange(steps + 1, dtype=np.float64) / steps
  f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def discrete_schedule(squared: np.ndarray) -> Schedule:
  """A Schedule that takes the value of the nearest of N steps.

  It is constant between steps, so that a network evaluated at `to_step(t)`
  gets exactly the noise level that it was trained on at that step.

  Args:
    squared: alpha^2 [N] after each step.
  """
  # Index 0 is t = 0, before the first step.
  squared = np.concatenate([[1.0], squared])
  steps = len(squared) - 1
  alphas = jnp.asarray(np.sqrt(squared), jnp.float32)
  sigmas = jnp.asarray(np.sqrt(1 - squared), jnp.float32)
  return Schedule(lambda t: alphas[to_step(t, steps) + 1],
                  lambda t: sigmas[to_step(t, steps) + 1])


def to_step(t: jax.Array, steps: int = 1000) -> jax.Array:
  """The step int32 k in [-1, steps) nearest to times t; -1 is t = 0."""
  return jnp.clip(jnp.round(t * steps), 0, steps).astype(jnp.int32) - 1


def _levels(schedule: Schedule, t: jax.Array, like: jax.Array):
  """alpha and sigma of t [B], shaped to multiply `like` [B, ...]."""
  shape = jnp.shape(t) + (1,) * (like.ndim - jnp.ndim(t))
  return (schedule.alpha(t).reshape(shape), schedule.sigma(t).reshape(shape))


def diffuse(schedule: Schedule, x: jax.Array, eps: jax.Array,
            t: jax.Array) -> jax.Array:
  """x_t of clean x [B, ...], noise eps [B, ...] and t [B]."""
  alpha, sigma = _levels(schedule, t, x)
  return alpha * x + sigma * eps


def to_v(schedule: Schedule, x: jax.Array, eps: jax.Array,
         t: jax.Array) -> jax.Array:
  """v = alpha eps - sigma x (Salimans & Ho 2022)."""
  alpha, sigma = _levels(schedule, t, x)
  return alpha * eps - sigma * x


def v_from_x(schedule: Schedule, x_t: jax.Array, x: jax.Array, t: jax.Array,
             min_sigma: float = 0.05) -> jax.Array:
  """v = (alpha x_t - x) / max(sigma, min_sigma), of a network that predicts x.

  Near t = 0 the quotient would magnify the network's error, so the divisor is
  bounded from below, as in JiT (2511.13720).
  """
  alpha, sigma = _levels(schedule, t, x_t)
  return (alpha * x_t - x) / jnp.maximum(sigma, min_sigma)


def eps_from_v(schedule: Schedule, x_t: jax.Array, v: jax.Array,
               t: jax.Array) -> jax.Array:
  """eps = alpha v + sigma x_t."""
  alpha, sigma = _levels(schedule, t, x_t)
  return alpha * v + sigma * x_t


def eps_from_flow(schedule: Schedule, x_t: jax.Array, u: jax.Array,
                  t: jax.Array) -> jax.Array:
  """eps = (x_t + alpha u) / (alpha + sigma), of the velocity u = eps - x."""
  alpha, sigma = _levels(schedule, t, x_t)
  return (x_t + alpha * u) / (alpha + sigma)


def x_from_eps(schedule: Schedule, x_t: jax.Array, eps: jax.Array,
               t: jax.Array) -> jax.Array:
  """x = (x_t - sigma eps) / alpha."""
  alpha, sigma = _levels(schedule, t, x_t)
  return (x_t - sigma * eps) / alpha


def eps_from_x(schedule: Schedule, x_t: jax.Array, x: jax.Array,
               t: jax.Array) -> jax.Array:
  """eps = (x_t - alpha x) / sigma."""
  alpha, sigma = _levels(schedule, t, x_t)
  return (x_t - alpha * x) / sigma
