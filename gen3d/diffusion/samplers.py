"""Samplers: DDIM and ancestral DDPM, with classifier-free guidance.

A sampler takes `predict(x_t [B, ...], t [B]) -> eps`, so that it is
independent of networks, texts and guidance; `guided` makes such a function of
a denoiser.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gen3d.diffusion import noise
from gen3d.diffusion.teachers import Denoise, Text, Weights

Predict = Callable[[jax.Array, jax.Array], jax.Array]


def guided(denoise: Denoise, weights: Weights, text: Text, null: Text,
           scale: float | jax.Array) -> Predict:
  """Classifier-free guidance eps_u + scale (eps_c - eps_u) as `predict`.

  Args:
    denoise: of a teachers.Teacher.
    weights: of the teacher.
    text: embedding of the prompts, leading axis B.
    null: embedding of the empty prompt, leading axis B.
    scale: guidance scale; 1 is no guidance.

  Returns:
    (x_t, t) -> eps; both predictions by one call of the denoiser.
  """
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), text, null)

  def predict(x_t, t):
    eps = denoise(weights, jnp.concatenate([x_t, x_t]),
                  jnp.concatenate([t, t]), both)
    conditional, unconditional = jnp.split(eps, 2)
    return unconditional + scale * (conditional - unconditional)
  return predict


def sample(key: jax.Array, predict: Predict, schedule: noise.Schedule,
           shape: Sequence[int], steps: int = 40,
           eta: float | jax.Array = 0.0, clip: float | None = 1.0,
           t_start: float = 1.0) -> jax.Array:
  """Draws samples [B, ...] by `steps` evenly spaced steps from t_start to 0.

  Args:
    key: PRNG key.
    predict: (x_t, t [B]) -> eps.
    schedule: noise.Schedule.
    shape: (B, ...).
    steps: number of calls of `predict`.
    eta: 0 is DDIM (Song et al. 2021), 1 ancestral DDPM (Ho et al. 2020), in
      between as in DDIM's equation 16.
    clip: bound on the predicted clean sample, or None.
    t_start: time of the initial noise.

  Returns:
    The clean samples, `shape`.
  """
  key_start, key_steps = jax.random.split(key)
  start = jax.random.normal(key_start, shape)
  return denoise(key_steps, predict, schedule, start,
                 jnp.full(shape[:1], t_start), steps, eta, clip)


def denoise(key: jax.Array, predict: Predict, schedule: noise.Schedule,
            x_t: jax.Array, t: jax.Array, steps: int,
            eta: float | jax.Array = 0.0,
            clip: float | None = 1.0) -> jax.Array:
  """Clean samples [B, ...] of noisy ones.

  Args:
    key: PRNG key; unused where eta is 0.
    predict: (x_t, t [B]) -> eps.
    schedule: noise.Schedule.
    x_t: [B, ...].
    t: [B] times of x_t; `steps` evenly spaced steps go from t to 0.
    steps, eta, clip: see `sample`.
  """
  fractions = jnp.linspace(1.0, 0.0, steps + 1)

  def step(x_t, inputs):
    key, t, s = inputs
    eps = predict(x_t, t)
    x = noise.x_from_eps(schedule, x_t, eps, t)
    if clip is not None:
      x = jnp.clip(x, -clip, clip)
      eps = noise.eps_from_x(schedule, x_t, x, t)
    # DDIM's equations 12 and 16: `added` is the standard deviation of the new
    # noise, `remaining` the part of sigma_s that the predicted noise keeps.
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    added = eta * (sigma_s / sigma_t) * jnp.sqrt(jnp.maximum(
        1 - (alpha_t / alpha_s) ** 2, 0))
    remaining = jnp.sqrt(jnp.maximum(sigma_s ** 2 - added ** 2, 0))
    per_sample = lambda a: a.reshape(-1, *(1,) * (x_t.ndim - 1))
    x_s = per_sample(alpha_s) * x + per_sample(remaining) * eps + (
        per_sample(added) * jax.random.normal(key, x_t.shape))
    return x_s, x

  inputs = (jax.random.split(key, steps), fractions[:-1, None] * t,
            fractions[1:, None] * t)
  # The result is the last predicted x, not x_s: at s = 0 sigma is not zero
  # under every schedule.
  (_, clean), _ = jax.lax.scan(
      lambda carry, inputs: (step(carry[0], inputs), None), (x_t, x_t), inputs)
  return clean


def invert(predict: Predict, schedule: noise.Schedule, x: jax.Array,
           t_start: jax.Array, t_end: jax.Array, steps: int) -> jax.Array:
  """DDIM inversion: x_t [B, ...] of images at an earlier time.

  Args:
    predict: (x_t, t [B]) -> eps.
    schedule: noise.Schedule.
    x: [B, ...] at t_start.
    t_start, t_end: [B] times, between which there are `steps` even steps.
    steps: number of calls of `predict`.
  """
  times = t_start + jnp.linspace(0.0, 1.0, steps + 1)[:, None] * (
      t_end - t_start)

  def step(x_t, times):
    t, later = times
    eps = predict(x_t, t)
    clean = noise.x_from_eps(schedule, x_t, eps, t)
    return noise.diffuse(schedule, clean, eps, later), None

  return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]
