"""From noise to images and back: DDIM, ancestral DDPM, with guidance.

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
  start = jax.random.normal(key_start, shape)
  return denoise(key_steps, predict, schedule, start,
                 jnp.full(shape[:1], t_start), steps, eta, clip)


def denoise(key, predict, schedule, x_t, t, steps, eta=0.0, clip=1.0):
  """Clean samples [B, ...] of noisy ones x_t [B, ...] at times t [B].

  `steps` evenly spaced steps lead each from its t to 0; the rest is as for
  `sample`.
  """
  left = jnp.linspace(1.0, 0.0, steps + 1)

  def step(x_t, inputs):
    key, t, s = inputs
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
    spread = lambda a: a.reshape(-1, *(1,) * (x_t.ndim - 1))
    x_s = spread(alpha_s) * x + spread(kept) * eps + (
        spread(jump) * jax.random.normal(key, x_t.shape))
    return x_s, x

  inputs = (jax.random.split(key, steps), left[:-1, None] * t,
            left[1:, None] * t)
  (_, clean), _ = jax.lax.scan(
      lambda carry, inputs: (step(carry[0], inputs), None), (x_t, x_t), inputs)
  return clean


def invert(predict, schedule, x, t, steps):
  """The noisy x_t [B, ...] from which DDIM would come to clean x [B, ...].

  DDIM's steps backwards (Song et al. 2021, section 4.3), `steps` evenly spaced
  ones from 0 to times t [B]; each asks for the noise at the time it goes to,
  for there is none to predict in a clean image.
  """
  def step(carry, done):
    x_s, s = carry
    r = done * t
    eps = predict(x_s, r)
    clean = noise.x_from_eps(schedule, x_s, eps, s)
    return (noise.diffuse(schedule, clean, eps, r), r), None

  (x_t, _), _ = jax.lax.scan(
      step, (x, jnp.zeros_like(t)), jnp.linspace(0.0, 1.0, steps + 1)[1:])
  return x_t
