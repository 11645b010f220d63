"""Noise schedules in continuous time, and what a network may predict.

Vocabulary: x_t = alpha(t) x + sigma(t) eps with alpha^2 + sigma^2 = 1 and t
in [0, 1]. A network predicts eps, x, or v = alpha eps - sigma x; outside a
network everything here speaks eps.

Published networks know N = 1000 steps k = 0, ..., N - 1 instead, after each
of which alpha^2 has a tabulated value. Step k ends at time t = (k + 1) / N,
so that t = 0 is still the clean image.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Schedule(NamedTuple):
  """alpha and sigma as functions of t in [0, 1], any shape."""
  alpha: Callable
  sigma: Callable


def cosine_schedule(clip=1e-3):
  """alpha = cos(pi t / 2) (Nichol & Dhariwal 2021; continuous as in Imagen).

  `clip` keeps t away from both ends, where alpha or sigma would be zero.
  """
  angle = lambda t: 0.5 * jnp.pi * jnp.clip(t, clip, 1 - clip)
  return Schedule(lambda t: jnp.cos(angle(t)), lambda t: jnp.sin(angle(t)))


def scaled_linear(first=0.00085, last=0.012, steps=1000):
  """alpha^2 [steps] of Stable Diffusion: sqrt(beta) grows evenly."""
  betas = np.linspace(first ** 0.5, last ** 0.5, steps, dtype=np.float64) ** 2
  return np.cumprod(1 - betas)


def squared_cosine(steps=1000):
  """alpha^2 [steps] of DeepFloyd IF (Nichol & Dhariwal 2021, equation 17).

  One step takes at most 0.999 of alpha^2 away.
  """
  u = np.arange(steps + 1, dtype=np.float64) / steps
  f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def discrete_schedule(squared):
  """A Schedule that takes the value of the nearest of N steps.

  Between steps it is constant: a network that is asked at `to_step` of a time
  meets just the noise that it knows from that step.

  Args:
    squared: alpha^2 [N] after each step.
  """
  # After t = 0 no step has been made.
  squared = np.concatenate([[1.0], squared])
  steps = len(squared) - 1
  alphas = jnp.asarray(np.sqrt(squared), jnp.float32)
  sigmas = jnp.asarray(np.sqrt(1 - squared), jnp.float32)
  return Schedule(lambda t: alphas[to_step(t, steps) + 1],
                  lambda t: sigmas[to_step(t, steps) + 1])


def to_step(t, steps=1000):
  """The step int32 k in [-1, steps) nearest to times t; -1 is t = 0."""
  return jnp.clip(jnp.round(t * steps), 0, steps).astype(jnp.int32) - 1


def from_step(k, steps=1000):
  """The time at which step k ends; see `to_step`."""
  return (k + 1) / steps


def _levels(schedule, t, like):
  """alpha and sigma of t [B], shaped to multiply `like` [B, ...]."""
  shape = jnp.shape(t) + (1,) * (like.ndim - jnp.ndim(t))
  return (schedule.alpha(t).reshape(shape), schedule.sigma(t).reshape(shape))


def diffuse(schedule, x, eps, t):
  """x_t of clean x [B, ...], noise eps [B, ...] and t [B]."""
  alpha, sigma = _levels(schedule, t, x)
  return alpha * x + sigma * eps


def to_v(schedule, x, eps, t):
  """v = alpha eps - sigma x (Salimans & Ho 2022)."""
  alpha, sigma = _levels(schedule, t, x)
  return alpha * eps - sigma * x


def v_from_x(schedule, x_t, x, t, least=0.05):
  """v = (alpha x_t - x) / sigma, sigma no smaller than `least`.

  What a network that predicts x says as v. Where there is next to no noise
  the quotient would only magnify the network's error, so the divisor is
  bounded, as in 2511.13720.
  """
  alpha, sigma = _levels(schedule, t, x_t)
  return (alpha * x_t - x) / jnp.maximum(sigma, least)


def eps_from_v(schedule, x_t, v, t):
  """eps = alpha v + sigma x_t."""
  alpha, sigma = _levels(schedule, t, x_t)
  return alpha * v + sigma * x_t


def x_from_eps(schedule, x_t, eps, t):
  """x = (x_t - sigma eps) / alpha."""
  alpha, sigma = _levels(schedule, t, x_t)
  return (x_t - sigma * eps) / alpha


def eps_from_x(schedule, x_t, x, t):
  """eps = (x_t - alpha x) / sigma."""
  alpha, sigma = _levels(schedule, t, x_t)
  return (x_t - alpha * x) / sigma
