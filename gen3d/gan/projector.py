"""Inversion of a 3-D GAN: projection into its latent space, pivotal tuning.

`project` is the projector of StyleGAN2 (1912.04958, appendix D): it optimizes
w, or one w for each layer (w+), and the noise buffers, so that the image from
the target's camera matches the target. `pivotal_tuning` (2106.05744) then
optimizes the generator's weights at that w. The paper's locality
regularization is left out, as in its official program for single images.

Vocabulary. A perceptual loss embeds images so that squared distances of the
embeddings are perceptual distances.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from gen3d import notices
from gen3d.gan import inference
from gen3d.models import perceptual
from gen3d.ops import cameras

# Of the official projector. Learning rate, and the fractions of the steps over
# which it rises and falls.
LEARNING_RATE, LR_RAMPUP, LR_RAMPDOWN = 0.1, 0.05, 0.25
# Standard deviation of the noise added to w, in units of that of w, and the
# fraction of the steps after which there is none.
W_NOISE, W_NOISE_END = 0.05, 0.75
NOISE_WEIGHT = 1e5  # of noise_regularization
PIXEL_WEIGHT = 1.0  # of the mean squared difference, beside the perceptual loss
TUNING_LEARNING_RATE = 3e-4


class Target(NamedTuple):
  """An image and the camera that it was taken from."""
  image: Any   # [R, R, 3] in [-1, 1]
  camera: Any  # ops.cameras.Camera, without leading axes


class PerceptualLoss(NamedTuple):
  """Features whose squared distances are perceptual distances.

  Attributes:
    weights: pytree.
    embed: (weights, images [N, R, R, 3] in [0, 1]) -> tuple of maps [N, h, w,
      C]; perceptual.distance compares two of them.
  """
  weights: Any
  embed: Callable[[Any, jax.Array], tuple[jax.Array, ...]]


def render_image(trained: inference.Trained, variables: Any, ws: jax.Array,
                 camera: cameras.Camera) -> jax.Array:
  """The image [R, R, 3] of ws [L, D] in [-1, 1], differentiable.

  Args:
    trained: Trained, whose variables are not used.
    variables: of the generator.
    ws: [L, D].
    camera: Camera without leading axes.
  """
  generator = trained.generator
  representation = generator.synthesize(variables, ws[None], 'const', None)
  camera = jax.tree.map(lambda x: x[None], camera)
  return generator.render(variables, representation, ws[None], camera,
                          trained.size, None).image[0]


def w_statistics(trained: inference.Trained, count: int = 10_000,
                 seed: int = 0) -> tuple[jax.Array, jax.Array]:
  """Mean [D] and standard deviation [] of w.

  The deviation is the root of the mean squared distance from the mean.

  Args:
    trained: Trained.
    count: number of latents.
    seed: of the latents.
  """

  @jax.jit
  def map_all(variables, z):
    return trained.generator.map(variables, z, None, 1.0, None)[:, 0]

  z = jax.random.normal(
      jax.random.key(seed), (count, trained.generator.z_dim))
  w = map_all(trained.variables, z)
  mean = jnp.mean(w, axis=0)
  return mean, jnp.sqrt(jnp.mean(jnp.sum((w - mean) ** 2, axis=1)))


def project(
    trained: inference.Trained, target: Target, loss: PerceptualLoss, *,
    steps: int = 1000, w_plus: bool = False, seed: int = 0
) -> tuple[jax.Array, Any, np.ndarray]:
  """Optimizes ws and noise buffers so that the image matches the target.

  Args:
    trained: Trained.
    target: Target.
    loss: PerceptualLoss.
    steps: of Adam.
    w_plus: whether each layer gets a w of its own (w+): a closer match, but
      further from the distribution of the generator.
    seed: of the noise added to w.

  Returns:
    (ws [L, D], variables with the optimized noise buffers, losses [steps]).
  """
  mean, deviation = w_statistics(trained)
  num_ws = trained.generator.num_ws

  # All that another target or number of steps changes is an argument, so that
  # one compiled program serves every target of a generator.
  @jax.jit
  def step(optimized, opt_state, i, steps, deviation, variables, weights,
           target, target_features):
    key = jax.random.fold_in(jax.random.key(seed), i)
    w_noise = deviation * W_NOISE * jnp.maximum(
        0, 1 - i / steps / W_NOISE_END) ** 2

    def objective(optimized):
      w = optimized['w'] + w_noise * jax.random.normal(
          key, optimized['w'].shape)
      image = render_image(
          trained, with_noise_buffers(variables, optimized['noise']),
          jnp.broadcast_to(w, (num_ws, w.shape[-1])), target.camera)
      value = image_loss(loss, weights, image, target.image, target_features)
      penalty = sum(map(noise_regularization, optimized['noise'].values()))
      return value + NOISE_WEIGHT * penalty, value

    (_, value), grads = jax.value_and_grad(objective, has_aux=True)(optimized)
    updates, opt_state = _projector_adam(steps).update(grads, opt_state)
    updated: Any = optax.apply_updates(optimized, updates)
    # Official: noise stays of mean 0 and variance 1.
    noise = {path: (x - jnp.mean(x)) / jnp.sqrt(jnp.var(x) + 1e-8)
             for path, x in updated['noise'].items()}
    return {'w': updated['w'], 'noise': noise}, opt_state, value

  # From the mean of w and the buffers as trained.
  optimized: dict[str, Any] = {
      'w': jnp.tile(mean, (num_ws if w_plus else 1, 1)),
      'noise': trained.generator.noise_buffers(trained.variables)}
  opt_state, losses = _projector_adam(steps).init(optimized), []
  target_features = embed_target(loss, target)
  for i in notices.track(range(steps), 'Projecting'):
    optimized, opt_state, value = step(
        optimized, opt_state, i, steps, deviation, trained.variables,
        loss.weights, target, target_features)
    losses.append(value)  # On the device: no wait for each step.
  return (jnp.broadcast_to(optimized['w'], (num_ws, len(mean))),
          with_noise_buffers(trained.variables, optimized['noise']),
          np.array(losses))


def pivotal_tuning(
    trained: inference.Trained, target: Target, loss: PerceptualLoss,
    ws: jax.Array, *, steps: int = 350) -> tuple[Any, np.ndarray]:
  """Optimizes the weights so that the image of ws matches the target.

  Args:
    trained: Trained, with the variables to start from.
    target: Target.
    loss: PerceptualLoss.
    ws: [L, D], the pivot.
    steps: of Adam.

  Returns:
    (variables, losses [steps]).
  """
  optimizer = optax.adam(TUNING_LEARNING_RATE)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, buffers, weights, ws, target, target_features):
    # Only the weights are optimized; w and the buffers stay.
    def objective(params):
      image = render_image(
          trained, {**buffers, 'params': params}, ws, target.camera)
      return image_loss(loss, weights, image, target.image, target_features)

    value, grads = jax.value_and_grad(objective)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, value

  # A copy, for the step donates its parameters.
  params = jax.tree.map(jnp.array, trained.variables['params'])
  buffers = {name: x for name, x in trained.variables.items()
             if name != 'params'}
  opt_state, losses = optimizer.init(params), []
  target_features = embed_target(loss, target)
  for _ in notices.track(range(steps), 'Tuning the generator'):
    params, opt_state, value = step(
        params, opt_state, buffers, loss.weights, ws, target, target_features)
    losses.append(value)
  return {'params': params, **buffers}, np.array(losses)


def lr_schedule(t: jax.Array) -> jax.Array:
  """Factor of the learning rate at t in [0, 1]: linear rise, cosine fall."""
  fall = jnp.minimum(1.0, (1 - t) / LR_RAMPDOWN)
  return ((0.5 - 0.5 * jnp.cos(jnp.pi * fall))
          * jnp.minimum(1.0, t / LR_RAMPUP))


def noise_regularization(noise: jax.Array) -> jax.Array:
  """Autocorrelation of a noise buffer [H, H] (1912.04958, appendix D).

  The sum over scales down to 8 pixels of the squared mean products of
  neighbors. It keeps the content of the target out of the noise.
  """
  total = jnp.zeros((), noise.dtype)
  while True:
    for axis in (0, 1):
      total += jnp.mean(noise * jnp.roll(noise, 1, axis)) ** 2
    size = noise.shape[0]
    if size <= 8:
      return total
    noise = jnp.mean(noise.reshape(size // 2, 2, size // 2, 2), axis=(1, 3))


def with_noise_buffers(variables: Any, noise: dict[str, jax.Array]) -> Any:
  """Variables with these buffers, by path as Generator3D.noise_buffers."""
  flat = traverse_util.flatten_dict(variables, sep='/', keep_empty_nodes=True)
  return traverse_util.unflatten_dict({**flat, **noise}, sep='/')


def embed_target(
    loss: PerceptualLoss, target: Target) -> tuple[jax.Array, ...]:
  """Perceptual features of the target, computed once."""
  return jax.jit(loss.embed)(loss.weights, target.image[None] / 2 + 0.5)


def image_loss(loss: PerceptualLoss, weights: Any, image: jax.Array,
               target: jax.Array, target_features: Any) -> jax.Array:
  """Perceptual plus pixel loss of images [R, R, 3] in [-1, 1].

  Args:
    loss: PerceptualLoss.
    weights: of the loss, an argument of the compiled step.
    image, target: [R, R, 3].
    target_features: by `embed_target`.
  """
  features = loss.embed(weights, image[None] / 2 + 0.5)
  return (perceptual.distance(features, target_features)[0]
          + PIXEL_WEIGHT * jnp.mean((image - target) ** 2))


def _projector_adam(steps):
  return optax.adam(lambda step: LEARNING_RATE * lr_schedule(step / steps))
