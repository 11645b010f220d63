"""From noise to images: DDIM and ancestral DDPM, with guidance.

A sampler takes `predict(x_t [B, ...], t [B]) -> eps`, so it knows nothing of
networks, texts or guidance; `guided` makes such a function from a denoiser.
"""

import jax
import jax.numpy as jnp

from gen3d.diffusion import noise


def guided(denoise, weights, text, null, scale):
  """Classifier-free guidance eps_u + scale (eps_c - eps_u) as `predict`.

  Args:
    denoise: (weights, x_t, t, text) -> eps.
    weights: the denoiser's.
    text: embedding pytree with leading axis B.
    null: embedding of '' with leading axis B.
    scale: guidance scale; 1 is no guidance.

  Returns:
    (x_t, t) -> eps; both predictions in one call of the denoiser.
  """
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), text, null)

  def predict(x_t, t):
    eps = denoise(weights, jnp.concatenate([x_t, x_t]),
                  jnp.concatenate([t, t]), both)
    conditional, unconditional = jnp.split(eps, 2)
    return unconditional + scale * (conditional - unconditional)
  return predict


def sample(key, predict, schedule, shape, steps=40, eta=0.0, clip=1.0,
           t_start=1.0):
  """Draws samples [B, ...] by `steps` evenly spaced steps from t_start to 0.

  Args:
    key: PRNG key.
    predict: (x_t, t [B]) -> eps.
    schedule: noise.Schedule.
    shape: (B, ...).
    steps: how many calls of `predict`.
    eta: 0 is DDIM (Song et al. 2021), 1 ancestral DDPM (Ho et al. 2020), in
      between as in DDIM's equation 16.
    clip: bound on the predicted clean sample, or None.
    t_start: where the noise begins.

  Returns:
    The clean samples, `shape`.
  """
  key_start, key_steps = jax.random.split(key)
  times = jnp.linspace(t_start, 0.0, steps + 1)

  def step(x_t, inputs):
    key, t, s = inputs
    t, s = jnp.full(shape[:1], t), jnp.full(shape[:1], s)
    eps = predict(x_t, t)
    x = noise.x_from_eps(schedule, x_t, eps, t)
    if clip is not None:
      x = jnp.clip(x, -clip, clip)
      eps = noise.eps_from_x(schedule, x_t, x, t)
    # DDIM's equations 12 and 16, with this step's own standard deviation.
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    jump = eta * (sigma_s / sigma_t) * jnp.sqrt(jnp.maximum(
        1 - (alpha_t / alpha_s) ** 2, 0))
    kept = jnp.sqrt(jnp.maximum(sigma_s ** 2 - jump ** 2, 0))
    spread = lambda a: a.reshape(-1, *(1,) * (len(shape) - 1))
    x_s = spread(alpha_s) * x + spread(kept) * eps + (
        spread(jump) * jax.random.normal(key, shape))
    return x_s, x

  start = jax.random.normal(key_start, shape)
  _, clean = jax.lax.scan(step, start, (
      jax.random.split(key_steps, steps), times[:-1], times[1:]))
  return clean[-1]
