"""The adversarial step against the papers' formulas, on two numbers.

A generator multiplies a pattern by `a` and by z, a discriminator weighs what
it sees and multiplies that by `b`: every gradient is a line, and all of a
step's factors, schedules and orders show in how the two numbers move.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.engine import sharding
from gen3d.gan import networks as gan_networks
from gen3d.gan import step as gan_step

SIZE, COUNT, STEPS = 8, 4, 6
SCHEDULE = gan_step.Schedule(
    r1_gamma=0.3, d_reg_interval=3, g_reg_interval=2, pose_swap_prob=0.5, pose_swap_fade_images=10,
    blur_init_sigma=1.0, blur_fade_images=14, ema_images=9, ema_ramp=0.6)
RATES = {'generator': 0.02, 'discriminator': 0.03}
RNG = np.random.default_rng(0)
PATTERN, SEEN, RAW = RNG.normal(size=(3, SIZE, SIZE, 3)).astype(np.float32) / 9


def networks():
  """Of (a, b); the raw image is the image, the weights of the two differ."""
  variables = lambda name, x: {
      'params': {name: jnp.float32(x)}, 'buffers': {'w': jnp.zeros(())}}

  def generate(variables, latents, size):
    assert size == SIZE
    # Which camera was told shows, too.
    told = jnp.all(latents.mapping_camera == latents.label, axis=1)
    amount = latents.z[:, 0] + told
    image = (variables['params']['a'] * amount)[:, None, None, None] * PATTERN
    return {'image': image, 'raw': image}, latents.z

  return gan_networks.GANNetworks(
      init=lambda key: {'generator': variables('a', 1.5),
                        'discriminator': variables('b', 0.5)},
      generate=generate,
      prepare_reals=lambda x, size: {'image': x, 'raw': x},
      discriminate=lambda variables, x, label: variables['params']['b'] * jnp.sum(
          SEEN * x['image'] + RAW * x['raw'], axis=(1, 2, 3)),
      regularize=lambda variables, latents, memory: (
          jnp.mean((variables['params']['a'] * latents.z[:, 1]) ** 2),
          memory + 1),
      update_w_avg=lambda variables, w: variables, z_dim=2)


def batch_of(step):
  rng = np.random.default_rng(step)
  return {'image': rng.integers(
              255, size=(COUNT, SIZE, SIZE, 3), dtype=np.uint8),
          'label': np.zeros((COUNT, 25), np.float32),
          'sampled_cameras': rng.normal(size=(COUNT, 3, 25)).astype(np.float32),
          'index': np.arange(COUNT, dtype=np.int32),
          'grid': np.zeros((COUNT, SIZE), np.uint8),
          'due': gan_step.due(step, COUNT, SCHEDULE)}


def left(seen, images):
  return max(1 - seen / images, 0)


def blurred(x, sigma):
  """[N, H, W, 3], by the kernel 2^-(i / sigma)^2 of 3 sigma each way."""
  reach = int(3 * sigma)
  taps = np.exp2(-(np.arange(-reach, reach + 1) / max(sigma, 1e-9)) ** 2)
  taps = taps / taps.sum()
  for axis in (1, 2):
    edges = [(0, 0)] * 4
    edges[axis] = reach, reach
    wide = np.pad(x, edges)
    x = sum(tap * np.take(wide, np.arange(SIZE) + i, axis)
            for i, tap in enumerate(taps))
  return x


class Adam:
  """b1 = 0: the gradient over the root of its mean square, bias corrected."""

  def __init__(self, rate, every):
    lazy = every / (every + 1)
    self.rate, self.b2, self.mean, self.count = rate * lazy, .99 ** lazy, 0, 0

  def move(self, gradient):
    self.count += 1
    self.mean = self.b2 * self.mean + (1 - self.b2) * gradient ** 2
    corrected = self.mean / (1 - self.b2 ** self.count)
    return -self.rate * gradient / (np.sqrt(corrected) + 1e-8)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


class Slow:
  """The same training, written out."""

  def __init__(self):
    self.a = self.average = 1.5
    self.b = 0.5
    self.adam = {'a': Adam(RATES['generator'], SCHEDULE.g_reg_interval),
                 'b': Adam(RATES['discriminator'], SCHEDULE.d_reg_interval)}

  def step(self, step, key):
    batch, seen = batch_of(step), step * COUNT
    sigma = SCHEDULE.blur_init_sigma * left(seen, SCHEDULE.blur_fade_images)
    swap = .5 + .5 * left(seen, SCHEDULE.pose_swap_fade_images)
    amounts, spread = [], []
    for phase in range(3):
      drawn = gan_step._latents(jax.random.fold_in(key, phase), jax.tree.map(
          jnp.asarray, batch), phase, swap, 0.0, 2)
      own = np.all(np.asarray(drawn.mapping_camera == drawn.label), axis=1)
      amounts.append(np.asarray(drawn.z[:, 0], float) + own)
      spread.append(float(np.mean(drawn.z[:, 1] ** 2)))
    # What is seen of the pattern: its image blurred, its raw image not.
    pattern = (np.sum(SEEN * blurred(PATTERN[None], sigma))
               + np.sum(RAW * PATTERN))

    logit = self.a * self.b * amounts[0] * pattern
    slope = -sigmoid(-logit) * self.b * amounts[0] * pattern
    self.a += self.adam['a'].move(np.mean(slope))
    if step % SCHEDULE.g_reg_interval == 0:
      self.a += self.adam['a'].move(
          SCHEDULE.g_reg_interval * 2 * self.a * spread[1])

    real = blurred(batch['image'] / 127.5 - 1, sigma)
    real = np.sum(SEEN * real + RAW * real, axis=(1, 2, 3))
    fake = self.a * amounts[2] * pattern
    slope = (np.mean(sigmoid(self.b * fake) * fake)
             - np.mean(sigmoid(-self.b * real) * real))
    self.b += self.adam['b'].move(slope)
    penalty = 0.0
    if step % SCHEDULE.d_reg_interval == 0:
      power = np.sum(blurred(SEEN[None], sigma) ** 2) + np.sum(RAW ** 2)
      penalty = self.b ** 2 * power
      # Half of gamma, times the steps between, of b^2's slope.
      self.b += self.adam['b'].move(
          .5 * SCHEDULE.r1 * SCHEDULE.d_reg_interval * 2 * self.b * power)

    half_life = max(min(SCHEDULE.ema_images, seen * SCHEDULE.ema_ramp), 1e-8)
    decay = .5 ** (COUNT / half_life)
    self.average = self.a + decay * (self.average - self.a)
    return {'swap': swap, 'sigma': sigma, 'penalty': penalty}


def test_blur_of_the_slow_step_spreads_a_point():
  x = np.zeros((1, SIZE, SIZE, 1))
  x[0, 4, 4] = 1
  np.testing.assert_allclose(blurred(x, 1.0).sum(), 1)
  np.testing.assert_allclose(
      blurred(x, 1.0)[0, 4, 4:6, 0] / blurred(x, 1.0)[0, 4, 4, 0], [1, .5])
  np.testing.assert_array_equal(blurred(x, 0.0), x)


def test_every_phase_moves_as_the_formulas_say():
  optimizers = {
      'generator': gan_step.lazy_adam(
          RATES['generator'], SCHEDULE.g_reg_interval),
      'discriminator': gan_step.lazy_adam(
          RATES['discriminator'], SCHEDULE.d_reg_interval)}
  ours, mesh = networks(), sharding.device_mesh(COUNT)
  state = sharding.replicate(gan_step.create(
      jax.random.key(0), ours, optimizers), mesh)
  advance = sharding.pmap(
      lambda state, batch, key: gan_step.step(
          state, batch, key, networks=ours, optimizers=optimizers,
          schedule=SCHEDULE), mesh)
  slow, told = Slow(), []
  for step in range(STEPS):
    key = jax.random.key(7)
    state, metrics = advance(
        state, sharding.to_devices(batch_of(step), mesh),
        sharding.replicate(key, mesh))
    told.append(slow.step(step, jax.random.fold_in(key, step)))
    found = sharding.unreplicate(state)
    np.testing.assert_allclose(
        [found.params['generator']['params']['a'],
         found.params['discriminator']['params']['b'],
         found.ema['params']['a']], [slow.a, slow.b, slow.average], rtol=2e-5)
    # Reported times the steps between: its mean is that of steps with one.
    np.testing.assert_allclose(
        metrics['loss/r1'], SCHEDULE.d_reg_interval * told[-1]['penalty'], rtol=1e-4)
  assert float(found.params['pl_mean']) == STEPS / SCHEDULE.g_reg_interval
  # The schedules were walked through to their ends.
  assert told[0] == pytest.approx({**told[0], 'pose_swap_prob': 1.0, 'sigma': 1.0})
  assert told[-1] == pytest.approx({**told[-1], 'pose_swap_prob': 0.5, 'sigma': 0.0})


def test_a_phase_that_is_never_due():
  none = SCHEDULE._replace(d_reg_interval=0, g_reg_interval=0)
  for apart, columns in ((True, 0), (False, 2)):
    due = gan_step.due(0, COUNT, none, apart)
    assert {x.shape for x in due.values()} == {(COUNT, columns)}
    assert not any(x.any() for x in due.values())
