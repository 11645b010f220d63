"""Training of LiftedGAN on the tiny variant: losses, devices, resumption."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import task_steps

from configs import lifted_gan as config_file
from gen3d import assets
from gen3d.choices import UserError
from gen3d.engine import sharding
from gen3d.gan import generator2d, inference, lifting, lifting_losses
from gen3d.models import lifted_gan
from gen3d.tasks import lifting as task_module
from gen3d.weights import port, torch_files


@pytest.fixture(scope='module')
def config():
  """Without the clipping of gradients at contours.

  It tells zero gradients from others, and so makes a difference of rounding
  errors, between numbers of devices, a large one.
  """
  config = config_file.get_config('tiny')
  with config.unlocked():
    config.model.settings.clip_contours = False
  return config


@pytest.fixture(scope='module')
def task(config):
  return task_module.make(config)


@pytest.fixture(scope='module')
def state(task):
  return task.init(jax.random.key(0))


@pytest.fixture(scope='module')
def steps(task):
  """devices -> (compiled step, mesh)."""
  @functools.cache
  def compiled(count):
    mesh = task_steps.devices(count)
    return sharding.pmap(task.step, mesh), mesh

  return compiled


@pytest.fixture(scope='module')
def lifted(config):
  return lifting.build(config.model)


def _options(config, **weights):
  return task_module.Options(
      lifting_losses.Weights(**{**config.weights.to_dict(), **weights}),
      task_module.Perturbation(**config.perturbation), config.psi,
      config.rank_pooling, 6)


@pytest.fixture(scope='module')
def after_a_step(task, steps):
  """devices -> (state, metrics) after one step."""
  return {count: jax.device_get(task_steps.run(
      task, *steps(count), task_steps.start(task, steps(count)[1]), 1))
      for count in (1, 2)}


def test_losses_of_a_step_and_their_gradient_by_hand(
    config, lifted, state, after_a_step):
  """The terms of the paper, one rendering at a time."""

  def draw(key):
    # As in a step on one device.
    return jax.vmap(lambda index: task_module.draw(
        jax.random.fold_in(key, 0), index, lifted, _options(config),
        state.frozen['generator']), axis_name='devices')(
            jnp.arange(config.batch)[None])

  @jax.jit
  def by_hand(params, frozen, key):
    draws = jax.tree.map(lambda x: x[0], draw(key))

    def total(params):
      terms = _by_hand(params, frozen, draws, lifted)
      return sum(weight * x for weight, x in terms.values()), terms

    return jax.value_and_grad(total, has_aux=True)(params)

  (loss, terms), slope = by_hand(state.params, state.frozen, jax.random.key(1))
  after, metrics = after_a_step[1]
  assert metrics['loss/total'] == pytest.approx(float(loss), rel=1e-4)
  assert {f'loss/{name}' for name in terms} | {'loss/total'} == set(metrics)
  for name, (_, value) in terms.items():
    assert metrics[f'loss/{name}'] == pytest.approx(float(value), rel=1e-3)
  # Adam's first moment is a tenth of the gradient and its weight decay.
  moment = after.opt_state[1][0].mu
  jax.tree.map(lambda m, g, p: np.testing.assert_allclose(
      10 * m, g + config.weight_decay * p, rtol=1e-3, atol=1e-4),
      moment, slope, state.params)
  # Nothing uses the style of D.
  assert not any(x.any() for x in jax.tree.leaves(
      slope['decompose']['model_style']))


def _by_hand(params, frozen, draws, lifted):
  """{name: (weight, loss)}, of the weights of the tiny config."""
  settings, stop = lifted.settings, jax.lax.stop_gradient
  run = functools.partial(lifting.apply, lifted, params)
  made = lifting.estimate(lifted, params, frozen['generator'], draws.w)
  paint = lambda w: lifting.synthesize(lifted, frozen['generator'], w)[0]
  target = jnp.clip(paint(draws.w), -1, 1)
  light = stop(jnp.concatenate([
      made.light[draws.permutations[0], :2],
      made.light[draws.permutations[1], 2:]], axis=1))
  yaw, pitch, zero = draws.yaw / 60, draws.pitch / 60, 0 * draws.yaw
  view = jnp.stack([pitch, yaw, zero, zero, zero, zero], 1)
  style = run('compose', draws.w, light, view)
  _, light_read, view_read = run('decompose', style)

  def seen(scene):
    depth, relief, albedo, cover, light, view = scene
    return lifting.render(
        settings, depth, lifting.lit(settings, albedo, relief, light, cover),
        view, made.blend)

  mirror = lambda x: x[:, :, ::-1]
  shape = made.depth, made.relief, made.albedo, made.cover

  rendered = jax.lax.map(seen, jax.tree.map(
      lambda *x: jnp.stack(x),
      (*shape, made.light, made.view),
      (*map(mirror, shape), made.light, made.view),
      (*shape, light_read, view_read), (*shape, light, view)))
  own, mirrored, read, drawn = rendered.image
  mask = rendered.mask[0] * rendered.mask[1]
  masked = lambda x: jnp.sum(jnp.abs(x - target) * mask) / (3 * mask.sum())
  distance = lambda a, b: jnp.mean(jnp.abs(a - b))
  gray = made.albedo.mean(-1, keepdims=True)
  solid = (made.depth <= settings.border_depth - 0.01)[..., None]
  details = ((gray - lifting.blur(settings, gray)) * solid).reshape(
      4, 2, 4, 2, 4).mean((2, 4)).reshape(4, 4)
  return {
      'reconstruction': (5.0, masked(own) + 0.8 * masked(mirrored)),
      'perturbed_image': (2.0, distance(read, stop(paint(style)))),
      'regenerated_image': (2.0, distance(stop(drawn), paint(style))),
      'perturbed_parameters': (
          4.0, jnp.mean((light - light_read)**2)
          + jnp.mean((view - view_read)[:, :3]**2)),
      'style': (0.1, frozen['precision'] * jnp.mean(
          (style - frozen['mean'])**2)),
      'albedo_rank': (0.005, jnp.sum(
          jnp.linalg.svd(details, compute_uv=False)))}


def test_step_does_not_depend_on_the_number_of_devices(after_a_step):
  (alone, metrics), (divided, metrics_two) = (
      after_a_step[count] for count in (1, 2))
  for name, value in metrics.items():
    assert metrics_two[name] == pytest.approx(float(value), rel=1e-4)
  # Adam's first step is the gradient's sign: compare its first moment, too.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      b, a, rtol=1e-3, atol=1e-5), alone.opt_state, divided.opt_state)


def test_resumption_is_exact(task, steps, tmp_path):
  task_steps.assert_resumption_is_exact(task, *steps(2), tmp_path)


def test_the_release_renders_as_the_state(config, task, state, tmp_path):
  scalars, pictures = task.evaluate(state, None)
  assert np.isfinite(scalars['l1/own_view'])
  # Two objects, nine pictures each, with two pixels between.
  assert pictures['samples'].shape == (2 * 10 - 2, 9 * 10 - 2, 3)
  weights, _ = task.finish(state, tmp_path)
  assert weights.name == 'lifted_gan_tiny.safetensors'
  variables, record = assets.load(weights, 'lifting')
  assert record['config']['networks'] == 'lifted_gan'
  assert record['camera']['focal'] == pytest.approx(1.35)
  assert record['config']['render_size'] == ((0, 8),)
  trained = inference.load(weights)
  like = lifting.join(state.params, state.frozen['generator'])
  assets.check_fits(weights, variables, like)
  assert trained.size == 8 and trained.generator.z_dim == 6


def test_training_starts_from_an_official_checkpoint(
    config, state, monkeypatch):
  """Written by our names and read by theirs."""
  ours = {lifted_gan.NETWORKS[name]: params
          for name, params in state.params.items()}
  like = {'params': ours}
  transposed = {name: lifted_gan.TRANSPOSED
                for name, _ in port.by_path(like).values()
                if name.split('.')[1:3] == ['network', '0']}
  tensors = port.to_torch(like, port.by_path(like, transposed))
  sections = {network: {
      name.removeprefix(f'{network}.'): x for name, x in tensors.items()
      if name.startswith(f'{network}.')} for network in ours}
  monkeypatch.setattr(torch_files, 'read', lambda path, name: sections[name])
  config = config.copy_and_resolve_references()
  config.checkpoint = 'checkpoint_010.pth'
  started = task_module.make(config).init(jax.random.key(7))
  jax.tree.map(np.testing.assert_array_equal, started.params, state.params)
  del sections['netT']['mlp.0.bias']
  with pytest.raises(port.PortingError, match='_010.pth: .*1 missing'):
    task_module.make(config)


@pytest.mark.parametrize('change, sentence', [
    ({'weights.perceptual': 1.0}, r'give their path by --config\.vgg16, or set'
     r' --config\.weights\.perceptual=0'),
    ({'weights.identity': 1.0}, r'--config\.lresnet'),
    ({'batch': 0}, 'batch is 0; it must be at least 1'),
    ({'generator': '/gone.pt'}, 'There is no file /gone.pt'),
    ({'model.settings.border_depth': 2.0}, 'must be positive and rise')])
def test_bad_configs_are_refused(config, change, sentence):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(change)
  with pytest.raises(UserError, match=sentence):
    task_module.make(config)


def test_a_generator_is_needed():
  config = config_file.get_config('cats')
  config.generator = ''
  with pytest.raises(UserError, match='There is no 2-D generator to lift'):
    task_module.make(config)


def test_the_default_config_lifts_the_shipped_generator():
  name = config_file.get_config('cats').generator
  loaded = generator2d.load(name)
  assert loaded.config['resolution'] == 64
  stored, _ = assets.load(generator2d.SHIPPED)
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, stored)


def test_image_loss_adds_features_of_vgg(monkeypatch):
  images = np.random.default_rng(0).random((2, 2, 8, 8, 3), np.float32)
  maps = lambda self, variables, x: (0 * x, x, x ** 2, x ** 3, 1 * x)
  monkeypatch.setattr(task_module.perceptual.Features, 'apply', maps)
  options = task_module.Options(
      lifting_losses.Weights(perceptual=0.5), task_module.Perturbation(), 0.7,
      4, 6)
  features = lambda x: [x / 2 + 0.5, (x / 2 + 0.5)**2, (x / 2 + 0.5)**3]
  np.testing.assert_allclose(
      task_module.image_loss({'vgg16': None}, options, *images),
      np.abs(images[0] - images[1]).mean() + 0.5 * lifting_losses.perceptual(
          features, *images), rtol=1e-6)


def test_identity_is_a_term_where_there_is_an_embedding(
    config, lifted, state):
  draws = task_module.Draws(
      jnp.ones((2, 8)), jnp.zeros(2), jnp.zeros(2), np.array([[0, 1], [1, 0]]))

  class Embed:
    def apply(self, variables, x):
      return x.mean((1, 2)) * variables

  options = _options(config, identity=2.0)._replace(embed_face=Embed())
  weights = {}

  def terms(params, frozen):
    found = task_module.losses(params, frozen, draws, lifted, options)
    weights.update({name: weight for name, (weight, _) in found.items()})
    return {name: x for name, (_, x) in found.items()}

  shapes = jax.eval_shape(
      terms, state.params, {**state.frozen, 'face': jnp.ones(())})
  assert weights['identity'] == 2.0 and shapes['identity'].shape == ()
