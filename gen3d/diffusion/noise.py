"""Noise schedules in continuous time, and what a network may predict.

Vocabulary: x_t = alpha(t) x + sigma(t) eps with alpha^2 + sigma^2 = 1 and t
in [0, 1]. A network predicts eps, x, or v = alpha eps - sigma x; outside a
network everything here speaks eps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp


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
