"""The text-to-image task at toy size: batches, loss, samples, weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import text_to_image as config_file
from gen3d import assets
from gen3d.data.shapes import captions
from gen3d.data.shapes import render as shapes_render
from gen3d.diffusion import noise, pixel_model
from gen3d.engine import release
from gen3d.models import unet
from gen3d.ops import cameras
from gen3d.tasks import text_to_image


@pytest.fixture(scope='module')
def config():
  return config_file.get_config('tiny')


@pytest.fixture(scope='module')
def task(config):
  return text_to_image.make(config)


@pytest.fixture(scope='module')
def state(task):
  return task.init(jax.random.key(0))


def test_batches_begin_at_any_step_and_drop_some_captions(config, task):
  first = list(itertools.islice(task.batches(0, 0), 3))
  later = next(task.batches(0, 2))
  jax.tree.map(np.testing.assert_array_equal, first[2], later)
  assert not np.array_equal(first[0]['tokens'], first[1]['tokens'])
  many = config.copy_and_resolve_references()
  many.batch = 400
  batch = next(text_to_image.batches(0, 0, config=many))
  empty = (batch['mask'].sum(1) == 1).mean()
  assert 0.05 < empty < 0.17
  assert 0.05 < batch['textureless'].mean() < 0.17


def test_v_loss_is_zero_at_the_true_v_and_one_at_zero():
  class Model:
    schedule = noise.cosine_schedule()
    predict_v = staticmethod(lambda params, x_t, t, text: params * text)

  x, eps = jax.random.normal(jax.random.key(0), (2, 64, 8, 8, 3))
  t = jnp.linspace(0.01, 0.99, 64)
  v = noise.to_v(Model.schedule, x, eps, t)
  loss = lambda scale: text_to_image.v_loss(Model, scale, x, eps, t, v)
  assert loss(1.0) < 1e-10
  # v of unit-variance data and noise has unit variance at every t.
  np.testing.assert_allclose(loss(0.0), 1.0, atol=0.03)


def test_start_from_initializes_with_the_given_weights(
    config, task, state, tmp_path):
  path, _ = assets.save(
      tmp_path / 'w.safetensors', state.params, {'config': config.to_dict()})
  again = config.copy_and_resolve_references()
  again.start_from = str(path)
  warm = text_to_image.make(again).init(jax.random.key(9))
  jax.tree.map(np.testing.assert_array_equal, warm.params, state.params)


def test_start_parts_selects_the_initialized_parts(
    config, task, state, tmp_path):
  path, _ = assets.save(
      tmp_path / 'w.safetensors', state.params, {'config': config.to_dict()})
  again = config.copy_and_resolve_references()
  again.update({'start_from': str(path), 'start_parts': ('unet',)})
  warm = text_to_image.make(again).init(jax.random.key(9))
  jax.tree.map(np.testing.assert_array_equal,
               warm.params['unet'], state.params['unet'])
  assert jnp.any(warm.params['t5']['params']['embed']['embedding']
                 != state.params['t5']['params']['embed']['embedding'])
  again.start_parts = ('unet', 'vae')
  with pytest.raises(ValueError, match="'vae'.*'light_field'"):
    text_to_image.make(again).init(jax.random.key(9))


def test_start_from_a_model_of_other_sizes_is_refused(config):
  again = config.copy_and_resolve_references()
  again.start_from = str(assets.TEXT_TO_IMAGE)
  with pytest.raises(ValueError, match='shapes.* is of another model'):
    text_to_image.make(again).init(jax.random.key(9))
  again.start_from = str(assets.CLIP)
  with pytest.raises(ValueError, match="of the task 'clip'"):
    text_to_image.make(again)


def test_prior_image_loss_is_least_at_the_mean_of_known_cameras():
  truth = jax.random.normal(jax.random.key(0), (4, 5, 12))
  known = jnp.array([1., 1, 0, 1])
  loss = lambda image: text_to_image.prior_image_loss(
      jnp.broadcast_to(image, truth.shape), truth, known)
  mean = (truth[0] + truth[1] + truth[3]) / 3
  np.testing.assert_allclose(loss(mean), jnp.mean(
      (truth[jnp.array([0, 1, 3])] - mean) ** 2), rtol=1e-5)
  assert jnp.abs(jax.grad(loss)(mean)).max() < 1e-7
  assert loss(mean + .1) > loss(mean) + .009


def test_mean_background_is_gray_as_in_the_prior_image_loss():
  keys = jax.random.split(jax.random.key(0), 2000)
  drawn = jax.vmap(lambda key: shapes_render.sample_background(key, 4))(keys)
  np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.03)


def test_prior_image_by_patches_equals_the_whole_image(config, state):
  model = text_to_image.build_model(config)
  params = jax.tree.map(lambda x: x + .05, state.params)
  text = model.embed(
      params, *assets.tokenizer().encode(['a red car', 'a cyan mug']))
  labels = cameras.to_label(cameras.orbit(
      jnp.array([30., 80.]), 10.0, 1.6, 1.3))
  image = model.add_camera(params, text, labels)['prior_image']
  whole = unet.space_to_depth(image, 2)
  places = jnp.array([[0, 9, 63], [8, 1, 62]])
  some = model.prior_image(params, text, labels, places)
  assert whole.shape[1] ** 2 == model.patches == 64
  for i, j in np.ndindex(2, 3):
    np.testing.assert_allclose(
        some[i, j], whole[i, places[i, j] // 8, places[i, j] % 8], atol=1e-5)
  np.testing.assert_allclose(some, model.patches_at(
      unet.depth_to_space(whole, 2), places), atol=1e-5)


def _moved_by(loss_weights, config, params):
  config = config.copy_and_resolve_references()
  config.update({'loss_weights': loss_weights, 'drop_caption': 0.,
                 'drop_camera': 0.,
                 'optimizer': {'name': 'adam', 'weight_decay': 0.}})
  task = text_to_image.make(config)
  one = lambda tree: jax.tree.map(lambda x: x[None], tree)
  # Layers that are initialized with zeros would block all other gradients.
  params = jax.tree.map(lambda x: x + .02, params)
  state = task.init(jax.random.key(0)).replace(params=params)
  new, losses = jax.pmap(task.step, 'devices')(
      one(state), one(next(task.batches(0, 0))), one(jax.random.key(1)))
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b[0]).max(),
                       params, new.params)
  return {part: max(jax.tree.leaves(moved[part])) for part in moved}, losses


def test_light_field_has_gradients_of_its_own_loss_only(config, state):
  moved, losses = _moved_by(
      {'v': 1., 'text_probe': 0., 'prior_image': 0.}, config, state.params)
  assert losses.keys() == {'loss/v'}
  assert moved['unet'] > 0 and moved['light_field'] == moved['reader'] == 0
  moved, losses = _moved_by(
      {'v': 0., 'text_probe': 0., 'prior_image': 1.}, config, state.params)
  assert losses.keys() == {'loss/prior_image'}
  assert moved['light_field'] > 0 and moved['unet'] == moved['reader'] == 0


def test_text_probe_loss_of_uniform_and_of_correct_predictions():
  meaning = captions.meaning(['a red car with blue wheels', 'the cat', ''])
  names = list(captions.COLORS)
  assert meaning.tolist() == [
      [1 + captions.CATEGORIES.index('car'), 1 + names.index('red'),
       1 + names.index('blue')],
      [1 + captions.CATEGORIES.index('cat'), 0, 0], [0, 0, 0]]
  classes = {'category': 27, 'main': 13, 'second': 13}
  # Three pooled states, each its own direction; a probe that classifies them.
  text = {'states': 40 * jnp.eye(3)[:, None], 'mask': jnp.ones((3, 1))}
  correct = {name: jnp.zeros((3, n)).at[jnp.arange(3), meaning[:, i]].set(30.)
           for i, (name, n) in enumerate(classes.items())}
  uniform = jax.tree.map(jnp.zeros_like, correct)
  loss = lambda probe: text_to_image.text_probe_loss(probe, text, meaning)
  np.testing.assert_allclose(
      loss(uniform), np.log(27) + 2 * np.log(13), rtol=1e-6)
  assert loss(correct) < 1e-6


def test_text_encoder_learns_word_order_by_the_probe_loss(config):
  # Bags of words are equal; only their order differs.
  pair = ['a green tree with brown trunk', 'a brown tree with green trunk']
  tokens, mask = assets.tokenizer().encode(pair)
  task = text_to_image.make(config)
  state = task.init(jax.random.key(0))
  model = text_to_image.build_model(config)
  meaning = captions.meaning(pair)

  optimizer = optax.adam(0.01)

  @jax.jit
  def learn(params, opt_state):
    loss = lambda params: text_to_image.text_probe_loss(
        params['reader'], model.embed(params, tokens, mask), meaning)
    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return value, optax.apply_updates(params, updates), opt_state

  params = {name: state.params[name] for name in ('t5', 'reader')}
  opt_state = optimizer.init(params)
  for _ in range(300):
    value, params, opt_state = learn(params, opt_state)
  assert value < 0.1


def test_release_record_contains_the_earlier_stages(
    config, task, state, tmp_path):
  path, _ = assets.save(
      tmp_path / 'w.safetensors', state.params,
      {'config': {'batch': 1}, 'images_seen': 100, 'hours': 1.5})
  again = config.copy_and_resolve_references()
  again.start_from = str(path)
  later = state.replace(step=jnp.array(5))
  for stage in (1, 2):
    path, _ = release.save_release(
        assets.TEXT_TO_IMAGE, again, later, tmp_path / f'stage{stage}')
    _, record = assets.load(path)
    assert record['images_seen'] == 100 + stage * 5 * config.batch
    assert record['hours'] == 1.5
    assert len(record['earlier']) == stage
    assert record['earlier'][0]['config'] == {'batch': 1}
    assert record['config']['start_from'] == record['earlier'][-1]['sha256']
    assert 'earlier' not in record['earlier'][-1]
    again.start_from = str(path)

  path, _ = assets.save(tmp_path / 'bare.safetensors', state.params, {})
  again.start_from = str(path)
  path, _ = release.save_release(
      assets.TEXT_TO_IMAGE, again, later, tmp_path / 'stage3')
  assert assets.load(path)[1]['images_seen'] == 5 * config.batch


def test_max_snr_weight_bounds_density_times_weight():
  schedule = noise.cosine_schedule()
  even = (jnp.arange(200_000) + .5) / 200_000
  t = text_to_image.sample_times(even, schedule, 4.0, 1.0)
  count, edges = np.histogram(t, 50, (0, 1))
  middle = (edges[1:] + edges[:-1]) / 2
  # v's own weight of an image's error is 1 + SNR.
  weight = count * (1 + (schedule.alpha(middle) / schedule.sigma(middle)) ** 2)
  expected = np.where(
      middle < 1 / 3, 1.0, .25 / schedule.sigma(middle) ** 2)
  # The first bins are too wide for their middle to stand for them.
  np.testing.assert_allclose(
      weight[3:] / weight[3], expected[3:], rtol=.03)
  np.testing.assert_allclose(
      text_to_image.sample_times(even, schedule, jnp.inf, 1.0), even,
      atol=1e-4)


def test_high_noise_oversampling_is_the_density_ratio():
  even = (jnp.arange(200_000) + .5) / 200_000
  t = text_to_image.sample_times(even, noise.cosine_schedule(), jnp.inf, 30.0)
  count, edges = np.histogram(t, 50, (0, 1))
  middle = (edges[1:] + edges[:-1]) / 2
  np.testing.assert_allclose(
      count[0] / count, 1 - 29 / 30 * middle, rtol=.03, atol=.02)


def test_only_the_control_net_of_a_frozen_model_is_trained(
    config, task, state, tmp_path):
  path, _ = assets.save(
      tmp_path / 'w.safetensors', {
          part: x for part, x in state.params.items() if part != 'reader'},
      {'config': config.to_dict()})
  depth = config_file.get_config('depth_tiny')
  depth.start_from = str(path)
  task = text_to_image.make(depth)
  first = task.init(jax.random.key(3))
  assert set(first.params) == {'control'}
  assert set(first.frozen) == {'t5', 'unet', 'light_field', 'reader'}
  jax.tree.map(np.testing.assert_allclose, first.frozen['unet'],
               state.params['unet'])
  np.testing.assert_array_equal(
      first.params['control']['params']['encode_1_0']['conv_in']['kernel'],
      first.frozen['unet']['params']['encode_1_0']['conv_in']['kernel'])

  one = lambda tree: jax.tree.map(lambda x: x[None], tree)
  step = jax.pmap(task.step, 'devices')
  # The output of the tiny frozen model ends in zeros.
  frozen = jax.tree.map(lambda x: x + .02, first.frozen)
  new, losses = step(one(first.replace(frozen=frozen)),
                     one(next(task.batches(0, 0))), one(jax.random.key(1)))
  assert losses.keys() == {'loss/v'}
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), frozen,
               new.frozen)
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b[0]).max(),
                       first.params['control'], new.params['control'])
  assert moved['params']['residual_0_0']['kernel'] > 0

  files = task.finish(jax.tree.map(lambda x: x[0], new), tmp_path / 'run')
  saved, record = assets.load(files[0])
  assert files[0].name == assets.TEXT_TO_IMAGE_DEPTH.name
  assert set(saved) == {'control'}
  assert record['base'] == assets.load(path)[1]['sha256']
  assert record['images_seen'] == depth.batch and 'earlier' not in record


def test_the_shipped_control_net_lowers_the_error_by_the_right_map_only():
  teacher = pixel_model.teacher(control='depth')
  weights = teacher.load()
  views, specs = text_to_image.shapes_world.load_views(0, 'seen', 8, 64)
  keys = jax.random.split(jax.random.key(0), 2 * 8).reshape(2, 8)
  images = jax.jit(jax.vmap(lambda key, view: shapes_render.sample_image(
      key, view, 0.0)))(keys[0], views)
  eps = jax.vmap(lambda key: jax.random.normal(key, (64, 64, 3)))(keys[1])
  t = jnp.full(8, 0.7)
  x_t = noise.diffuse(teacher.schedule, 2 * images - 1, eps, t)
  # With the camera, from which the silhouette of a known shape follows.
  text = jax.jit(teacher.add_camera)(
      weights, teacher.embed([captions.plain(spec) for spec in specs]),
      cameras.to_label(views.camera))
  maps = text_to_image.depth_maps(views)
  denoise = jax.jit(teacher.denoise)
  error = lambda maps: float(jnp.mean((denoise(
      weights, x_t, t, teacher.add_depth(weights, text, maps)) - eps) ** 2))
  right, none = error(maps), error(jnp.zeros_like(maps))
  other = error(jnp.roll(maps, 1, axis=0))
  assert right < 0.9 * none and other > 1.2 * none


def test_an_unknown_trained_part_is_an_error(config):
  wrong = config.copy_and_resolve_references()
  wrong.trained_parts = ('control',)
  with pytest.raises(ValueError, match="'control'.*'light_field'"):
    text_to_image.make(wrong)


def test_depth_maps_of_views_are_those_of_their_surface(config):
  views, _ = text_to_image.shapes_world.load_views(0, 'train', 4, 16)
  maps = np.asarray(text_to_image.depth_maps(views))
  covered = views.coverage > 127
  np.testing.assert_allclose(maps[..., 0][~covered], 10 / 255, rtol=1e-6)
  for i in range(4):
    inside = np.where(covered[i], maps[i, ..., 0], np.nan)
    np.testing.assert_allclose(
        [np.nanmin(inside), np.nanmax(inside)], [50 / 255, 1], rtol=1e-5)
    # The nearest pixel is the brightest one.
    z = cameras.axial_depth(
        jax.tree.map(lambda x, i=i: x[i], views.camera),
        jnp.float32(views.depth[i]))
    assert np.nanargmax(inside) == np.argmin(np.where(covered[i], z, np.inf))
