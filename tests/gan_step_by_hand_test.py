"""The adversarial step against the papers' formulas, with two parameters.

The generator multiplies a pattern by `a` and by z, the discriminator is `b`
times a weighted sum of its input: every gradient has a closed form, and all
factors, schedules and orders of a step affect the two parameters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen3d.engine import sharding
from gen3d.gan import networks as gan_networks
from gen3d.gan import schedule as gan_schedule
from gen3d.gan import step as gan_step

SIZE, COUNT, STEPS = 8, 4, 6
SCHEDULE = gan_schedule.Schedule(
    r1_gamma=0.3, d_reg_interval=3, g_reg_interval=2, pose_swap_prob=0.5,
    pose_swap_fade_images=10, blur_init_sigma=1.0, blur_fade_images=14,
    ema_images=9, ema_ramp=0.6)
SGD_RATE = 0.01
RATES = {'generator': 0.02, 'discriminator': 0.03}
RNG = np.random.default_rng(0)
PATTERN, WEIGHTS, RAW_WEIGHTS = RNG.normal(
    size=(3, SIZE, SIZE, 3)).astype(np.float32) / 9


def networks():
  """GANNetworks of (a, b); the raw image equals the image."""
  variables = lambda name, x: {
      'params': {name: jnp.float32(x)}, 'buffers': {'w': jnp.zeros(())}}

  def generate(variables, latents, size):
    assert size == SIZE
    # The swapping of cameras affects the image, too.
    unswapped = jnp.all(latents.mapping_camera == latents.label, axis=1)
    amount = latents.z[:, 0] + unswapped
    image = (variables['params']['a'] * amount)[:, None, None, None] * PATTERN
    return {'image': image, 'image_raw': image}, latents.z

  return gan_networks.GANNetworks(
      init=lambda key: {'generator': variables('a', 1.5),
                        'discriminator': variables('b', 0.5)},
      generate=generate,
      prepare_reals=lambda x, size: {'image': x, 'image_raw': x},
      discriminate=lambda variables, x, label: variables['params'][
          'b'] * jnp.sum(WEIGHTS * x['image'] + RAW_WEIGHTS * x['image_raw'],
                         axis=(1, 2, 3)),
      regularize=lambda variables, latents, pl_mean: (
          jnp.mean((variables['params']['a'] * latents.z[:, 1]) ** 2),
          pl_mean + 1),
      update_w_avg=lambda variables, w: variables, z_dim=2)


def batch_of(step):
  rng = np.random.default_rng(step)
  return {'image': rng.integers(
              255, size=(COUNT, SIZE, SIZE, 3), dtype=np.uint8),
          'label': np.zeros((COUNT, 25), np.float32),
          'sampled_cameras': rng.normal(size=(COUNT, 3, 25)).astype(np.float32),
          'index': np.arange(COUNT, dtype=np.int32)}


def fade(images_seen, images):
  return max(1 - images_seen / images, 0)


def blurred(x, sigma):
  """Blur of [N, H, W, 3] by 2^-(i / sigma)^2 up to 3 sigma."""
  radius = int(3 * sigma)
  taps = np.exp2(-(np.arange(-radius, radius + 1) / max(sigma, 1e-9)) ** 2)
  taps = taps / taps.sum()
  for axis in (1, 2):
    edges = [(0, 0)] * 4
    edges[axis] = radius, radius
    padded = np.pad(x, edges)
    x = sum(tap * np.take(padded, np.arange(SIZE) + i, axis)
            for i, tap in enumerate(taps))
  return x


class Adam:
  """b1 = 0: the gradient over the root of its mean square, bias corrected."""

  def __init__(self, rate, interval):
    lazy = interval / (interval + 1)
    self.rate, self.b2, self.mean, self.count = rate * lazy, .99 ** lazy, 0, 0

  def update(self, gradient):
    self.count += 1
    self.mean = self.b2 * self.mean + (1 - self.b2) * gradient ** 2
    corrected = self.mean / (1 - self.b2 ** self.count)
    return -self.rate * gradient / (np.sqrt(corrected) + 1e-8)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


class Reference:
  """The same training, written out."""

  def __init__(self):
    self.a = self.average = 1.5
    self.b = 0.5
    self.adam = {'a': Adam(RATES['generator'], SCHEDULE.g_reg_interval),
                 'b': Adam(RATES['discriminator'], SCHEDULE.d_reg_interval)}

  def step(self, step, key):
    batch, images_seen = batch_of(step), step * COUNT
    sigma = SCHEDULE.blur_init_sigma * fade(
        images_seen, SCHEDULE.blur_fade_images)
    swap = .5 + .5 * fade(
        images_seen, SCHEDULE.pose_swap_fade_images)
    amounts, squares = [], []
    for phase in range(3):
      latents = gan_step.sample_latents(
          jax.random.fold_in(key, phase), jax.tree.map(jnp.asarray, batch),
          phase, swap, 0.0, 2)
      unswapped = np.all(
          np.asarray(latents.mapping_camera == latents.label), axis=1)
      amounts.append(np.asarray(latents.z[:, 0], float) + unswapped)
      squares.append(float(np.mean(latents.z[:, 1] ** 2)))
    # The image of a fake is blurred, its raw image is not.
    pattern = (np.sum(WEIGHTS * blurred(PATTERN[None], sigma))
               + np.sum(RAW_WEIGHTS * PATTERN))

    logit = self.a * self.b * amounts[0] * pattern
    slope = -sigmoid(-logit) * self.b * amounts[0] * pattern
    self.a += self.adam['a'].update(np.mean(slope))
    if step % SCHEDULE.g_reg_interval == 0:
      self.a += self.adam['a'].update(
          SCHEDULE.g_reg_interval * 2 * self.a * squares[1])

    real = blurred(batch['image'] / 127.5 - 1, sigma)
    real = np.sum(WEIGHTS * real + RAW_WEIGHTS * real, axis=(1, 2, 3))
    fake = self.a * amounts[2] * pattern
    slope = (np.mean(sigmoid(self.b * fake) * fake)
             - np.mean(sigmoid(-self.b * real) * real))
    self.b += self.adam['b'].update(slope)
    penalty = 0.0
    if step % SCHEDULE.d_reg_interval == 0:
      power = (np.sum(blurred(WEIGHTS[None], sigma) ** 2)
               + np.sum(RAW_WEIGHTS ** 2))
      penalty = self.b ** 2 * power
      # Half of gamma, times the interval, times the derivative of b^2.
      self.b += self.adam['b'].update(
          .5 * SCHEDULE.r1_gamma * SCHEDULE.d_reg_interval
          * 2 * self.b * power)

    half_life = max(min(
        SCHEDULE.ema_images, images_seen * SCHEDULE.ema_ramp), 1e-8)
    decay = .5 ** (COUNT / half_life)
    self.average = self.a + decay * (self.average - self.a)
    return {'swap': swap, 'sigma': sigma, 'penalty': penalty}


def test_blur_of_the_reference_on_a_point():
  x = np.zeros((1, SIZE, SIZE, 1))
  x[0, 4, 4] = 1
  np.testing.assert_allclose(blurred(x, 1.0).sum(), 1)
  np.testing.assert_allclose(
      blurred(x, 1.0)[0, 4, 4:6, 0] / blurred(x, 1.0)[0, 4, 4, 0], [1, .5])
  np.testing.assert_array_equal(blurred(x, 0.0), x)


def test_every_phase_follows_the_formulas():
  optimizers = {
      'generator': gan_step.lazy_adam(
          RATES['generator'], SCHEDULE.g_reg_interval),
      'discriminator': gan_step.lazy_adam(
          RATES['discriminator'], SCHEDULE.d_reg_interval)}
  ours, mesh = networks(), sharding.device_mesh(COUNT)
  state = sharding.replicate(gan_step.create(
      jax.random.key(0), ours, optimizers), mesh)
  advance = sharding.pmap(
      functools.partial(gan_step.step, networks=ours, optimizers=optimizers,
                        schedule=SCHEDULE), mesh)
  reference, expected = Reference(), []
  for step in range(STEPS):
    key = jax.random.key(7)
    state, metrics = advance(
        state, sharding.to_devices(batch_of(step), mesh),
        sharding.replicate(key, mesh),
        gan_schedule.in_turn(gan_schedule.due_phases(step, SCHEDULE), SIZE))
    expected.append(reference.step(step, jax.random.fold_in(key, step)))
    trained = sharding.unreplicate(state)
    np.testing.assert_allclose(
        [trained.params['generator']['params']['a'],
         trained.params['discriminator']['params']['b'],
         trained.ema['params']['a']],
        [reference.a, reference.b, reference.average], rtol=2e-5)
    # Reported times the interval: its mean is that of steps with a penalty.
    np.testing.assert_allclose(
        metrics['loss/r1'],
        SCHEDULE.d_reg_interval * expected[-1]['penalty'], rtol=1e-4)
  assert float(trained.extra['pl_mean']) == STEPS / SCHEDULE.g_reg_interval
  # The schedules cover their whole range.
  first, last = expected[0], expected[-1]
  assert first == pytest.approx({**first, 'swap': 1.0, 'sigma': 1.0})
  assert last == pytest.approx({**last, 'swap': 0.5, 'sigma': 0.0})


def amounts_of(key, step, batch):
  """Amounts of the pattern in the fakes of generator and discriminator."""
  return [1 + np.asarray(gan_step.sample_latents(
      jax.random.fold_in(jax.random.fold_in(key, step), phase),
      jax.tree.map(jnp.asarray, batch), phase, 0.0, 0.0, 2).z[:, 0], float)
          for phase in (0, 2)]


def one_step(ours, schedule, step):
  """(batch, key, parameters a and b, metrics) after one step by SGD."""
  optimizers = {name: optax.sgd(SGD_RATE) for name in RATES}
  mesh, key = sharding.device_mesh(COUNT), jax.random.key(7)
  state = gan_step.create(jax.random.key(0), ours, optimizers)
  state = sharding.replicate(state.replace(step=jnp.int32(step)), mesh)
  batch = batch_of(0)
  state, metrics = sharding.pmap(functools.partial(
      gan_step.step, networks=ours, optimizers=optimizers, schedule=schedule),
      mesh)(state, sharding.to_devices(batch, mesh),
            sharding.replicate(key, mesh),
            gan_schedule.Static(SIZE))
  params = sharding.unreplicate(state).params
  return batch, key, [params['generator']['params']['a'],
                      params['discriminator']['params']['b']], metrics


def test_joint_r1_top_k_and_the_networks_of_a_step():
  """pi-GAN's step: half of the fakes; R1 and a loss on fakes in one update."""
  base, step, gamma = networks(), 69, .3
  ours = base._replace(at=lambda step: base._replace(
      discriminate_fakes=lambda variables, fakes, latents: (
          base.discriminate(variables, fakes, latents.label),
          step / 100 * variables['params']['b'] ** 2)))
  batch, key, trained, metrics = one_step(ours, gan_schedule.Schedule(
      r1_gamma=gamma, d_reg_interval=0, g_reg_interval=0, joint_r1=True,
      top_k_interval=1, top_k_floor=.1), step)

  amounts = amounts_of(key, step, batch)
  a, b, pattern = 1.5, .5, np.sum((WEIGHTS + RAW_WEIGHTS) * PATTERN)
  logits = a * b * amounts[0] * pattern
  # .99^69 is a little less than a half: two of the four.
  kept = np.argsort(logits)[2:]
  np.testing.assert_allclose(
      metrics['loss/generator'], np.mean(np.log1p(np.exp(-logits[kept]))),
      rtol=1e-5)
  a += SGD_RATE * np.mean(
      sigmoid(-logits[kept]) * b * amounts[0][kept] * pattern)
  real = np.sum((WEIGHTS + RAW_WEIGHTS) * (batch['image'] / 127.5 - 1),
                axis=(1, 2, 3))
  fake = a * amounts[1] * pattern
  power = np.sum(WEIGHTS ** 2) + np.sum(RAW_WEIGHTS ** 2)
  np.testing.assert_allclose(metrics['loss/r1'], b ** 2 * power, rtol=1e-5)
  b -= SGD_RATE * (np.mean(sigmoid(b * fake) * fake)
               - np.mean(sigmoid(-b * real) * real)
               + gamma * b * power + 2 * step / 100 * b)
  np.testing.assert_allclose(trained, [a, b], rtol=1e-5)


def test_relativistic_losses_with_r1_and_r2():
  """R3GAN's step: each fake beside a real image, both gradients penalized."""
  images = 12
  step = images // COUNT
  batch, key, trained, metrics = one_step(networks(), gan_schedule.Schedule(
      r1_gamma=.4, r1_gamma_final=.1, r1_gamma_fade_images=3 * images,
      d_reg_interval=0, g_reg_interval=0, joint_r1=True, r2=True,
      relativistic=True), step)

  amounts = amounts_of(key, step, batch)
  a, b, pattern = 1.5, .5, np.sum((WEIGHTS + RAW_WEIGHTS) * PATTERN)
  real = np.sum((WEIGHTS + RAW_WEIGHTS) * (batch['image'] / 127.5 - 1),
                axis=(1, 2, 3))
  difference = b * (a * amounts[0] * pattern - real)
  np.testing.assert_allclose(
      metrics['loss/generator'], np.mean(np.log1p(np.exp(-difference))),
      rtol=1e-5)
  a += SGD_RATE * np.mean(sigmoid(-difference) * b * amounts[0] * pattern)
  difference = real - a * amounts[1] * pattern
  # The gradient at fakes is that at reals: the discriminator is linear.
  power = 2 * (np.sum(WEIGHTS ** 2) + np.sum(RAW_WEIGHTS ** 2))
  np.testing.assert_allclose(metrics['loss/r1'], b ** 2 * power, rtol=1e-5)
  # A third of the half period: cos(60 degrees).
  gamma = .1 + .75 * (.4 - .1)
  b += SGD_RATE * (np.mean(sigmoid(-b * difference) * difference)
               - gamma * b * power)
  np.testing.assert_allclose(trained, [a, b], rtol=1e-5)


def test_phases_are_due_at_multiples_of_their_intervals():
  due = lambda step, **options: gan_schedule.due_phases(
      step, SCHEDULE._replace(d_reg_interval=6, g_reg_interval=4, **options))
  both = ['generator', 'regularize', 'discriminator', 'r1', 'end']
  neither = ['generator', 'discriminator', 'end']
  assert [due(step) for step in (0, 1, 4, 6, 12)] == [
      both, neither, [x for x in both if x != 'r1'],
      [x for x in both if x != 'regularize'], both]


@pytest.mark.parametrize('backend, static', [
    ('cpu', gan_schedule.in_turn(
        ['generator', 'discriminator', 'r1', 'end'], 8)),
    ('gpu', gan_schedule.Static(8)), ('tpu', gan_schedule.Static(8))])
def test_one_program_serves_all_phases_except_on_the_cpu(
    monkeypatch, backend, static):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  assert gan_schedule.static_of(3, SCHEDULE, 8) == static


@pytest.mark.parametrize('separate', [True, False])
def test_phases_with_interval_zero_never_run(separate):
  schedule = SCHEDULE._replace(d_reg_interval=0, g_reg_interval=0)
  due = gan_schedule.due_phases(0, schedule)
  assert due == ['generator', 'discriminator', 'end']
  ours, mesh = networks(), sharding.device_mesh(COUNT)
  optimizers = {name: optax.sgd(0.0) for name in RATES}
  state = sharding.replicate(gan_step.create(
      jax.random.key(0), ours, optimizers), mesh)
  state, metrics = sharding.pmap(functools.partial(
      gan_step.step, networks=ours, optimizers=optimizers, schedule=schedule),
      mesh)(state, sharding.to_devices(batch_of(0), mesh),
            sharding.replicate(jax.random.key(0), mesh),
            gan_schedule.in_turn(due, SIZE) if separate
            else gan_schedule.Static(SIZE))
  assert float(sharding.unreplicate(state).extra['pl_mean']) == 0
  assert metrics['loss/r1'] == metrics['loss/regularizer'] == 0
