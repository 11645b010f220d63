"""The adversarial step on the smallest of networks."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from gen3d.engine import checkpoints, sharding
from gen3d.gan import networks as gan_networks
from gen3d.gan import step as gan_step
from gen3d.ops import cameras, images

RESOLUTION = 8  # what takes time is the compiler, and it takes it by layers
SMALL = {'channel_base': 64, 'channel_max': 8}
JUDGE = {**SMALL, 'mbstd_group': 1, 'mapping_layers': 1}
EG3D = ml_collections.ConfigDict({
    'z_dim': 6, 'synthesis': {**SMALL, 'resolution': 8},
    'mapping': {'width': 8, 'layers': 1},
    'rendering': {'samples_coarse': 4, 'samples_fine': 4},
    'super_resolution': {'size': 4, 'features': [8, 4], 'up': [False, True]},
    'features': 4, 'pose_conditioning': 1.0, 'super_resolution_clamp': 0.0,
    'super_resolution_half': False,
    'discriminator': JUDGE, 'density_weight': 0.25})
STYLEGAN2 = ml_collections.ConfigDict({
    'z_dim': 6, 'synthesis': SMALL, 'mapping': {'width': 8, 'layers': 1},
    'discriminator': JUDGE, 'path_weight': 2.0, 'path_shrink': 2})
SCHEDULE = gan_step.Schedule(
    r1_gamma=1.0, d_reg_interval=2, g_reg_interval=2, pose_swap_fade_images=8, blur_fade_images=8,
    ema_images=8, style_mixing_prob=0.5,
    # No discriminator is so unsure: the probability rises by .1 a step.
    ada_target=-2.0, ada_interval=1, ada_images=80)


def labels(count, seed=0):
  rng = np.random.default_rng(seed)
  return np.asarray(cameras.to_label(cameras.orbit(
      jnp.array(rng.uniform(-90, 90, count), jnp.float32), 10., 2.7, 4.2)))


def make_batch(count=8, size=4, step=0, apart=False):
  rng = np.random.default_rng(step)
  shape = count, RESOLUTION, RESOLUTION, 3
  return {'image': rng.integers(255, size=shape, dtype=np.uint8),
          'label': labels(count, step),
          'sampled_cameras': labels(3 * count, step + 50).reshape(count, 3, 25),
          'index': np.arange(count, dtype=np.int32),
          'grid': np.zeros((count, size), np.uint8),
          'due': gan_step.due(step, count, SCHEDULE, apart)}


def optimizers():
  return {'generator': gan_step.lazy_adam(1e-3, SCHEDULE.g_reg_interval),
          'discriminator': gan_step.lazy_adam(1e-3, SCHEDULE.d_reg_interval)}


class Run:
  """One pair of networks and its compiled step, shared by the tests."""

  def __init__(self, networks, mesh):
    self.mesh = mesh
    self._step = sharding.pmap(
        lambda state, batch, key: gan_step.step(
            state, batch, key, networks=networks, optimizers=optimizers(),
            schedule=SCHEDULE), self.mesh)
    self._start = jax.jit(lambda key: gan_step.create(
        key, networks, optimizers()))

  def start(self):
    state = self._start(jax.random.key(0))
    return sharding.replicate(state, self.mesh)

  def step(self, state, batch, seed):
    state, metrics = self._step(
        state, sharding.to_devices(batch, self.mesh),
        sharding.replicate(jax.random.key(seed), self.mesh))
    return state, {name: float(np.ravel(value)[0])
                   for name, value in metrics.items()}


def fetch(state):
  return jax.device_get(sharding.unreplicate(state))


@pytest.fixture(scope='module', params=['eg3d', 'stylegan2'])
def run(request):
  config = {'eg3d': EG3D, 'stylegan2': STYLEGAN2}[request.param]
  return Run(gan_networks.BUILDERS[request.param](config, RESOLUTION, 25),
             sharding.device_mesh(len(make_batch()['index'])))


def test_every_phase_moves_its_network(run):
  state = run.start()
  before = fetch(state)
  state, metrics = run.step(state, make_batch(), 1)
  after = fetch(state)
  assert after.step == 1
  moved = lambda name, part: {
      jax.tree_util.keystr(path) for path, changed in
      jax.tree_util.tree_flatten_with_path(jax.tree.map(
          lambda a, b: bool(np.any(a != b)), before.params[name][part],
          after.params[name][part]))[0] if changed}
  assert len(moved('generator', 'params')) > 20
  assert len(moved('discriminator', 'params')) > 10
  average, = moved('generator', 'buffers')
  assert average.endswith("['mapping']['w_avg']")
  assert np.isfinite(list(metrics.values())).all()
  assert metrics['loss/r1'] > 0 and metrics['loss/regularizer'] > 0
  np.testing.assert_allclose(metrics['augment/probability'], .1, rtol=1e-5)
  _, metrics = run.step(state, make_batch(step=1), 2)
  assert metrics['loss/r1'] == 0


@pytest.mark.parametrize('run', ['stylegan2'], indirect=True)
def test_one_program_of_all_phases_does_what_several_do(run):
  ends = []
  for apart in (True, False):
    state = run.start()
    for step in range(2):
      state, metrics = run.step(
          state, make_batch(step=step, apart=apart), step)
      assert (metrics['loss/r1'] > 0) == (step == 0)
    ends.append(fetch(state).params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *ends)


def compare_spreadings():
  """One device and eight, fed the same images (in a subprocess)."""
  networks, ends = gan_networks.eg3d(EG3D, RESOLUTION, 25), []
  for devices in (1, 8):
    run = Run(networks, jax.make_mesh(
        (devices,), ('devices',), devices=jax.devices()[:devices]))
    state, metrics = run.step(run.start(), make_batch(8), 1)
    losses = {name: x for name, x in metrics.items() if 'loss/' in name}
    ends.append((losses, np.concatenate([
        np.ravel(x) for x in jax.tree.leaves(fetch(state).params)])))
  (one, weights), (eight, others) = ends
  assert len(one) == 4 and all(one.values())
  for name, loss in one.items():
    np.testing.assert_allclose(eight[name], loss, rtol=1e-3, err_msg=name)
  # Adam's first step has the size of its rate whatever the gradient: where
  # that is no more than rounding it may go either way.
  assert np.mean(np.abs(others - weights) > 1e-4) < 1e-3


def test_a_step_does_not_depend_on_how_many_chips_share_it(on_eight_devices):
  done = on_eight_devices('gan_step_test', 'compare_spreadings')
  assert done.returncode == 0, done.stderr[-2000:]


def test_the_average_follows_the_generator(run):
  state = run.start()
  start = fetch(state)
  for i in range(3):
    state, _ = run.step(state, make_batch(step=i), i)
  state = fetch(state)
  distance = lambda a, b: sum(float(np.sum((x - y) ** 2)) for x, y in zip(
      jax.tree.leaves(a['params']), jax.tree.leaves(b['params'])))
  here = state.params['generator']
  assert 0 < distance(state.ema, here) < distance(
      start.params['generator'], here)
  np.testing.assert_array_equal(
      *(jax.tree.leaves(x['buffers'])[0] for x in (state.ema, here)))


def test_lazy_rates_are_the_official_ones():
  # lr 0.0025 with 4 and 0.002 with 16 steps between regularizations.
  grads = {'x': jnp.ones(1)}
  for rate, every, expected in ((.0025, 4, .002), (.002, 16, .0018824)):
    optimizer = gan_step.lazy_adam(rate, every)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(-updates['x'], expected, rtol=1e-4)


def test_the_camera_that_is_told_is_another_ones_as_often_as_said():
  batch = make_batch(512)
  batch = jax.tree.map(jnp.asarray, batch)
  draw = lambda swap: gan_step._latents(
      jax.random.key(0), batch, 1, swap, 0.0, 4)
  told = lambda swap: float(np.mean(np.all(
      draw(swap).mapping_camera == batch['sampled_cameras'][:, 1], axis=1)))
  assert told(0.0) == 1 and told(1.0) == 0 and .4 < told(.5) < .6
  np.testing.assert_array_equal(draw(1.0).label, batch['sampled_cameras'][:, 1])
  np.testing.assert_array_equal(draw(1.0).mapping_camera, batch['sampled_cameras'][:, 2])
  assert abs(float(draw(.5).z.std()) - 1) < .05


def test_styles_are_mixed_from_any_layer_on_as_often_as_said():
  batch = jax.tree.map(jnp.asarray, make_batch(512))
  draw = lambda mix: gan_step._latents(
      jax.random.key(0), batch, 1, 0.0, mix, 4)
  assert draw(0.0).z_mix is None
  latents = draw(0.9)
  np.testing.assert_array_equal(latents.z, draw(0.0).z)
  assert not np.any(latents.z == latents.z_mix)
  # Each layer tells whose it is.
  to_ws = lambda z, told: jnp.repeat(z[:, None], 5, axis=1)
  ws = gan_networks.mixed(to_ws, latents)
  own = np.all(ws == latents.z[:, None], axis=2)
  assert np.all(own | np.all(ws == latents.z_mix[:, None], axis=2))
  assert own[:, 0].all() and np.all(own[:, 1:] <= own[:, :-1])
  shares = np.bincount(own.sum(1), minlength=6) / 512
  np.testing.assert_allclose(shares, [0, *[.9 / 4] * 4, .1], atol=.06)
  none = gan_networks.mixed(to_ws, draw(0.0))
  np.testing.assert_array_equal(none, to_ws(latents.z, None))


def test_the_probability_of_augmentation_by_hand():
  memory, found = {'p': 0.1, 'signs': 0.0}, []
  # The means of each two steps are .7, .6 -, .5, .9 and 0 three times.
  for step, sign in enumerate((.9, .5, .59, .59, 1., 0., .8, 1.,
                               0., 0., 0., 0., 0., 0.)):
    memory = gan_step.adjusted(
        memory, sign, step, target=.6, every=2, change=.08)
    found.append(float(memory['p']))
  np.testing.assert_allclose(found, [
      .1, .18, .18, .1, .1, .02, .02, .1, .1, .02, .02, 0, 0, 0], atol=1e-6)
  memory = {'p': 0.99, 'signs': 0.0}
  memory = gan_step.adjusted(memory, 1., 0, target=.6, every=1, change=.08)
  assert memory['p'] == 1


def test_image_and_raw_image_are_augmented_alike():
  rng = np.random.default_rng(0)
  places = np.mgrid[:32, :32] / 32
  x = 0
  for _ in range(4):  # smooth, and nothing like its mirror image
    frequency, phase = rng.normal(size=(3, 2)) * 3, rng.uniform(0, 6, (3, 1, 1))
    x = x + np.moveaxis(np.cos(
        np.tensordot(frequency, places, 1) + phase), 0, -1) / 4
  x = jnp.tile(jnp.float32(x), (16, 1, 1, 1))
  raw = images.resize(x, 16)
  augmented = jax.jit(gan_step.augmented)
  found = augmented(
      jax.random.key(0), jnp.arange(16), {'image': x, 'raw': raw}, 1.0)
  moved = float(np.abs(found['image'] - x).mean())
  apart = float(np.abs(images.resize(found['image'], 16)
                       - found['raw']).mean())
  assert moved > .3 and apart < moved / 10
  one = augmented(jax.random.key(0), jnp.arange(3, 4),
                  {'image': x[3:4], 'raw': raw[3:4]}, 1.0)
  np.testing.assert_allclose(one['raw'][0], found['raw'][3], atol=1e-5)


def test_a_training_resumed_from_disk_is_the_same(run, tmp_path):
  state = run.start()
  for i in range(2):
    state, _ = run.step(state, make_batch(step=i), i)
  kept = checkpoints.Checkpoints(tmp_path)
  kept.save(state)
  kept.wait()
  state, metrics = run.step(state, make_batch(step=2), 2)
  resumed = kept.restore(run.start(), run.mesh)
  kept.close()
  np.testing.assert_allclose(
      fetch(resumed).params['augment']['p'], .2, rtol=1e-5)
  resumed, again = run.step(resumed, make_batch(step=2), 2)
  assert metrics == again
  jax.tree.map(np.testing.assert_array_equal, fetch(state), fetch(resumed))


@pytest.mark.parametrize('change, said', [
    ({'label_width': 0}, 'these have none'),
    ({'resolution': 32}, 'makes images of 8 pixels, but the data have 32')])
def test_data_that_do_not_fit_are_refused(change, said):
  arguments = {'resolution': RESOLUTION, 'label_width': 25, **change}
  with pytest.raises(ValueError, match=said):
    gan_networks.eg3d(EG3D, **arguments)
