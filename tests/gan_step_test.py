"""The adversarial step with the smallest networks."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from gen3d.engine import checkpoints, sharding
from gen3d.gan import ada as gan_ada
from gen3d.gan import build as gan_build
from gen3d.gan import eg3d as gan_eg3d
from gen3d.gan import networks as gan_networks
from gen3d.gan import schedule as gan_schedule
from gen3d.gan import step as gan_step
from gen3d.ops import cameras, images

RESOLUTION = 8  # nearly all of the time is for compiling, layer by layer
SMALL = {'channel_base': 64, 'channel_max': 8}
DISCRIMINATOR = {**SMALL, 'mbstd_group': 1, 'mapping_layers': 1}
EG3D = ml_collections.ConfigDict({
    'z_dim': 6, 'synthesis': {**SMALL, 'resolution': 8},
    'mapping': {'width': 8, 'layers': 1},
    'rendering': {'samples_coarse': 4, 'samples_fine': 4},
    'super_resolution': {'size': 4, 'features': [8, 4], 'up': [False, True]},
    'features': 4, 'pose_conditioning': 1.0, 'super_resolution_clamp': 0.0,
    'super_resolution_half': False,
    'discriminator': DISCRIMINATOR, 'density_weight': 0.25})
STYLEGAN2 = ml_collections.ConfigDict({
    'z_dim': 6, 'synthesis': SMALL, 'mapping': {'width': 8, 'layers': 1},
    'discriminator': DISCRIMINATOR, 'path_weight': 2.0, 'path_shrink': 2})
SCHEDULE = gan_schedule.Schedule(
    r1_gamma=1.0, d_reg_interval=2, g_reg_interval=2, pose_swap_prob=0.5,
    pose_swap_fade_images=8, blur_init_sigma=10.0, blur_fade_images=8,
    ema_images=8, ema_ramp=0.05, style_mixing_prob=0.5,
    # A mean sign is never below -1: the probability rises by .1 a step.
    ada_target=-2.0, ada_interval=1, ada_images=80)


def labels(count, seed=0):
  rng = np.random.default_rng(seed)
  return np.asarray(cameras.to_label(cameras.orbit(
      jnp.array(rng.uniform(-90, 90, count), jnp.float32), 10., 2.7, 4.2)))


def make_batch(count=8, step=0):
  rng = np.random.default_rng(step)
  shape = count, RESOLUTION, RESOLUTION, 3
  return {'image': rng.integers(255, size=shape, dtype=np.uint8),
          'label': labels(count, step),
          'sampled_cameras': labels(3 * count, step + 50).reshape(count, 3, 25),
          'index': np.arange(count, dtype=np.int32)}


def optimizers():
  return {'generator': gan_step.lazy_adam(1e-3, SCHEDULE.g_reg_interval),
          'discriminator': gan_step.lazy_adam(1e-3, SCHEDULE.d_reg_interval)}


class Run:
  """A pair of networks and its compiled step, used by several tests."""

  def __init__(self, networks, mesh):
    self.mesh = mesh
    self._step = sharding.pmap(
        functools.partial(gan_step.step, networks=networks,
                          optimizers=optimizers(), schedule=SCHEDULE),
        self.mesh)
    self._start = jax.jit(lambda key: gan_step.create(
        key, networks, optimizers()))

  def start(self):
    state = self._start(jax.random.key(0))
    return sharding.replicate(state, self.mesh)

  def step(self, state, batch, seed, static=None):
    state, metrics = self._step(
        state, sharding.to_devices(batch, self.mesh),
        sharding.replicate(jax.random.key(seed), self.mesh),
        static or gan_schedule.Static(4))
    return state, {name: float(np.ravel(value)[0])
                   for name, value in metrics.items()}


def fetch(state):
  return jax.device_get(sharding.unreplicate(state))


@pytest.fixture(scope='module', params=['eg3d', 'stylegan2'])
def run(request):
  config = {'eg3d': EG3D, 'stylegan2': STYLEGAN2}[request.param]
  return Run(gan_build.NETWORKS[request.param](config, RESOLUTION, 25),
             sharding.device_mesh(len(make_batch()['index'])))


def test_every_phase_updates_its_network(run):
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
  assert metrics['loss/r1'] == metrics['loss/regularizer'] == 0


@pytest.mark.parametrize('run', ['stylegan2'], indirect=True)
def test_one_program_with_lax_cond_equals_one_program_per_phase(run):
  ends = []
  for separate in (True, False):
    state = run.start()
    for step in range(2):
      static = gan_schedule.in_turn(gan_schedule.due_phases(
          step, SCHEDULE), 4) if separate else None
      state, metrics = run.step(state, make_batch(step=step), step, static)
      assert (metrics['loss/r1'] > 0) == (step == 0)
    state = fetch(state)
    ends.append((state.params, state.ema, state.extra, state.step, metrics))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *ends)


def first_step(run):
  """(losses, all weights) after the first step with eight images."""
  state, metrics = run.step(run.start(), make_batch(8), 1)
  losses = {name: x for name, x in metrics.items() if 'loss/' in name}
  return losses, np.concatenate([
      np.ravel(x) for x in jax.tree.leaves(fetch(state).params)])


def print_first_step_on_eight_devices():
  """For a process of its own: `first_step` as JSON."""
  run = Run(gan_eg3d.networks(EG3D, RESOLUTION, 25), sharding.device_mesh())
  assert run.mesh.size == 8
  losses, weights = first_step(run)
  print(json.dumps([losses, weights.tolist()]))


@pytest.mark.parametrize('run', ['eg3d'], indirect=True)
def test_step_does_not_depend_on_the_number_of_devices(run, on_eight_devices):
  # That two devices follow the formulas is in gan_step_by_hand_test.py.
  assert run.mesh.size == 2
  done = on_eight_devices('gan_step_test', 'print_first_step_on_eight_devices')
  assert done.returncode == 0, done.stderr[-2000:]
  (two, weights), (eight, weights_of_eight) = first_step(run), json.loads(
      done.stdout)
  assert len(two) == 4 and all(two.values())
  for name, loss in two.items():
    np.testing.assert_allclose(eight[name], loss, rtol=1e-3, err_msg=name)
  # Adam's first step has the size of the learning rate for any gradient; where
  # a gradient is only rounding, its sign is arbitrary.
  assert np.mean(np.abs(np.array(weights_of_eight) - weights) > 1e-4) < 1e-3


def test_moving_average_follows_the_generator(run):
  state = run.start()
  start = fetch(state)
  for i in range(3):
    state, _ = run.step(state, make_batch(step=i), i)
  state = fetch(state)
  distance = lambda a, b: sum(float(np.sum((x - y) ** 2)) for x, y in zip(
      jax.tree.leaves(a['params']), jax.tree.leaves(b['params'])))
  generator = state.params['generator']
  assert 0 < distance(state.ema, generator) < distance(
      start.params['generator'], generator)
  np.testing.assert_array_equal(
      *(jax.tree.leaves(x['buffers'])[0] for x in (state.ema, generator)))


def test_learning_rates_with_lazy_regularization_are_the_official_ones():
  # lr 0.0025 with 4 and 0.002 with 16 steps between regularizations.
  grads = {'x': jnp.ones(1)}
  for rate, every, expected in ((.0025, 4, .002), (.002, 16, .0018824)):
    optimizer = gan_step.lazy_adam(rate, every)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(-updates['x'], expected, rtol=1e-4)


def test_mapping_camera_is_swapped_with_its_probability():
  batch = make_batch(512)
  batch = jax.tree.map(jnp.asarray, batch)
  labels = batch['sampled_cameras']
  draw = lambda swap_prob: gan_step.sample_latents(
      jax.random.key(0), batch, 1, swap_prob, 0.0, 4)
  unswapped = lambda swap_prob: float(np.mean(np.all(
      draw(swap_prob).mapping_camera == labels[:, 1], axis=1)))
  assert unswapped(0.0) == 1 and unswapped(1.0) == 0
  assert .4 < unswapped(.5) < .6
  np.testing.assert_array_equal(draw(1.0).label, labels[:, 1])
  np.testing.assert_array_equal(draw(1.0).mapping_camera, labels[:, 2])
  assert abs(float(draw(.5).z.std()) - 1) < .05


def test_style_mixing_has_its_probability_and_a_uniform_cutoff():
  batch = jax.tree.map(jnp.asarray, make_batch(512))
  draw = lambda mixing_prob: gan_step.sample_latents(
      jax.random.key(0), batch, 1, 0.0, mixing_prob, 4)
  assert draw(0.0).z_mix is None
  latents = draw(0.9)
  np.testing.assert_array_equal(latents.z, draw(0.0).z)
  assert not np.any(latents.z == latents.z_mix)
  # A mapping network by which each layer shows its latent.
  mapping = lambda z, label: jnp.repeat(z[:, None], 5, axis=1)
  ws = gan_networks.mix_styles(mapping, latents)
  own = np.all(ws == latents.z[:, None], axis=2)
  assert np.all(own | np.all(ws == latents.z_mix[:, None], axis=2))
  assert own[:, 0].all() and np.all(own[:, 1:] <= own[:, :-1])
  frequencies = np.bincount(own.sum(1), minlength=6) / 512
  np.testing.assert_allclose(frequencies, [0, *[.9 / 4] * 4, .1], atol=.06)
  unmixed = gan_networks.mix_styles(mapping, draw(0.0))
  np.testing.assert_array_equal(unmixed, mapping(latents.z, None))


def test_views_of_an_object_share_its_latent_and_its_planes():
  networks = gan_eg3d.networks(EG3D, RESOLUTION, 25)
  batch = jax.tree.map(jnp.asarray, make_batch(4))
  latents = gan_step.sample_latents(
      jax.random.key(0), batch, 0, 0.5, 0.0, networks.z_dim, views=2)
  assert len(latents.z) == len(latents.mapping_camera) == 2
  assert len(latents.label) == 4
  twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0),
                       (latents.z, latents.mapping_camera))
  variables = gan_build.new_generator(networks, jax.random.key(1))
  generate = jax.jit(lambda latents: networks.generate(variables, latents, 4))
  shared, w = generate(latents)
  each, w_each = generate(
      latents._replace(z=twice[0], mapping_camera=twice[1]))
  np.testing.assert_allclose(w, w_each[::2], atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
               shared, each)
  assert np.abs(shared['image'][0] - shared['image'][1]).max() > 1e-3


def test_ada_probability_by_hand():
  ada, strengths = {'p': 0.1, 'signs': 0.0}, []
  # The means of each two steps are .7, .6 -, .5, .9 and 0 three times.
  for step, sign in enumerate((.9, .5, .59, .59, 1., 0., .8, 1.,
                               0., 0., 0., 0., 0., 0.)):
    ada = gan_ada.update(gan_ada.record(ada, sign), step, target=.6,
                         interval=2, change=.08)
    strengths.append(float(ada['p']))
  np.testing.assert_allclose(strengths, [
      .1, .18, .18, .1, .1, .02, .02, .1, .1, .02, .02, 0, 0, 0], atol=1e-6)
  ada = gan_ada.update({'p': 0.99, 'signs': 1.0}, 0, target=.6, interval=1,
                       change=.08)
  assert ada['p'] == 1


def test_image_and_raw_image_have_the_same_augmentation():
  rng = np.random.default_rng(0)
  coordinates = np.mgrid[:32, :32] / 32
  x = 0
  for _ in range(4):  # smooth, and nothing like its mirror image
    frequency, phase = rng.normal(size=(3, 2)) * 3, rng.uniform(0, 6, (3, 1, 1))
    x = x + np.moveaxis(np.cos(
        np.tensordot(frequency, coordinates, 1) + phase), 0, -1) / 4
  x = jnp.tile(jnp.float32(x), (16, 1, 1, 1))
  raw = images.resize(x, 16)
  augmented = jax.jit(gan_ada.augment_examples)
  batch = augmented(
      jax.random.key(0), jnp.arange(16), {'image': x, 'image_raw': raw}, 1.0)
  change = float(np.abs(batch['image'] - x).mean())
  error = float(np.abs(images.resize(batch['image'], 16)
                       - batch['image_raw']).mean())
  assert change > .3 and error < change / 10
  alone = augmented(jax.random.key(0), jnp.arange(3, 4),
                    {'image': x[3:4], 'image_raw': raw[3:4]}, 1.0)
  np.testing.assert_allclose(
      alone['image_raw'][0], batch['image_raw'][3], atol=1e-5)


def test_training_resumed_from_a_checkpoint_is_bit_identical(run, tmp_path):
  state = run.start()
  for i in range(2):
    state, _ = run.step(state, make_batch(step=i), i)
  saved = checkpoints.Checkpoints(tmp_path)
  saved.save(state)
  saved.wait()
  state, metrics = run.step(state, make_batch(step=2), 2)
  resumed = saved.restore(run.start(), run.mesh)
  saved.close()
  np.testing.assert_allclose(
      fetch(resumed).extra['ada']['p'], .2, rtol=1e-5)
  resumed, again = run.step(resumed, make_batch(step=2), 2)
  assert metrics == again
  jax.tree.map(np.testing.assert_array_equal, fetch(state), fetch(resumed))


@pytest.mark.parametrize('change, message', [
    ({'label_width': 0}, 'these have none'),
    ({'resolution': 32}, 'makes images of 8 pixels, but the data have 32')])
def test_images_that_do_not_fit_the_networks(change, message):
  arguments = {'resolution': RESOLUTION, 'label_width': 25, **change}
  with pytest.raises(ValueError, match=message):
    gan_eg3d.networks(EG3D, **arguments)


def test_opacity_weight_penalizes_half_transparent_rays():
  latents = gan_networks.Latents(
      jax.random.key(1), jnp.arange(2), jnp.ones((2, 6)), labels(2), labels(2))
  make = lambda weight: gan_eg3d.networks(
      ml_collections.ConfigDict(
          {**EG3D, 'density_weight': 0.0, 'opacity_weight': weight}),
      RESOLUTION, 25)
  variables = make(0.0).init(jax.random.key(0))['generator']

  @functools.partial(jax.jit, static_argnums=0)
  def penalty(weight, density):
    # A density that is nearly the same everywhere, before its activation.
    params = dict(variables['params'])
    out = dict(params['decoder']['net.2'])
    out['bias'] = out['bias'].at[0].set(density)
    params['decoder'] = {**params['decoder'], 'net.2': out}
    return make(weight).regularize(
        {**variables, 'params': params}, latents, jnp.zeros(()))[0]

  empty, middle, opaque = (penalty(1.0, x) for x in (-30.0, 0.5, 200.0))
  assert middle > 0.05 and middle > 4 * empty and middle > 4 * opaque
  np.testing.assert_allclose(penalty(2.0, 0.5), 2 * middle, rtol=1e-5)
  assert make(0.0).regularize is None
