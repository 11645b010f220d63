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
from gen3d.diffusion import noise, teachers
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


def test_the_loss_of_the_right_answer_is_zero_and_of_silence_is_one():
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


def test_training_again_from_given_weights_starts_there(
    config, task, state, tmp_path):
  path, _ = assets.save(
      tmp_path / 'w.safetensors', state.params, {'config': config.to_dict()})
  again = config.copy_and_resolve_references()
  again.start_from = str(path)
  warm = text_to_image.make(again).init(jax.random.key(9))
  jax.tree.map(np.testing.assert_array_equal, warm.params, state.params)


def test_parts_of_given_weights_may_begin_anew(
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


def test_a_network_may_say_the_picture_instead_of_v(config):
  spoken = config.copy_and_resolve_references()
  spoken.model.prediction = 'x'
  model = text_to_image._model(spoken)
  params = jax.jit(model.init, static_argnums=1)(
      jax.random.key(0), assets.CAPTION_LENGTH)
  text = model.embed(params, *assets.tokenizer().encode(['a red car']))
  x_t, t = jax.random.normal(jax.random.key(1), (1, 16, 16, 3)), jnp.array([.4])
  eps = jax.jit(model.denoise)(params, x_t, t, text)
  # A fresh network ends in zeros: it says that the picture is grey.
  np.testing.assert_allclose(
      noise.x_from_eps(model.schedule, x_t, eps, t), 0, atol=1e-5)
  spoken.model.prediction = 'u'
  with pytest.raises(ValueError, match="prediction 'u'.*'v'"):
    text_to_image.make(spoken)


def test_the_best_sketch_is_the_mean_of_what_is_told():
  truth = jax.random.normal(jax.random.key(0), (4, 5, 12))
  told = jnp.array([1., 1, 0, 1])
  loss = lambda seen: text_to_image.sketch_loss(
      jnp.broadcast_to(seen, truth.shape), truth, told)
  mean = (truth[0] + truth[1] + truth[3]) / 3
  np.testing.assert_allclose(loss(mean), jnp.mean(
      (truth[jnp.array([0, 1, 3])] - mean) ** 2), rtol=1e-5)
  assert jnp.abs(jax.grad(loss)(mean)).max() < 1e-7
  assert loss(mean + .1) > loss(mean) + .009


def test_the_mean_background_is_the_one_that_sketches_are_taught_on():
  keys = jax.random.split(jax.random.key(0), 2000)
  drawn = jax.vmap(lambda key: shapes_render.sample_background(key, 4))(keys)
  np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.03)


def test_some_patches_of_a_sketch_are_those_of_the_whole(config, state):
  model = text_to_image._model(config)
  params = jax.tree.map(lambda x: x + .05, state.params)
  text = model.embed(
      params, *assets.tokenizer().encode(['a red car', 'a cyan mug']))
  labels = cameras.to_label(cameras.orbit(
      jnp.array([30., 80.]), 10.0, 1.6, 1.3))
  whole = unet.space_to_depth(model.look(params, text, labels)['sketch'], 2)
  places = jnp.array([[0, 9, 63], [8, 1, 62]])
  some = model.sketch(params, text, labels, places)
  assert whole.shape[1] ** 2 == model.patches == 64
  for i, j in np.ndindex(2, 3):
    np.testing.assert_allclose(
        some[i, j], whole[i, places[i, j] // 8, places[i, j] % 8], atol=1e-5)
  np.testing.assert_allclose(some, text_to_image._patches(
      model, unet.depth_to_space(whole, 2), places), atol=1e-5)


def _moved_by(lessons, config, params):
  config = config.copy_and_resolve_references()
  config.update({'lessons': lessons, 'drop_caption': 0., 'drop_camera': 0.,
                 'optimizer': {'name': 'adam', 'weight_decay': 0.}})
  task = text_to_image.make(config)
  one = lambda tree: jax.tree.map(lambda x: x[None], tree)
  # What is zero at the start would hide the rest of the network.
  params = jax.tree.map(lambda x: x + .02, params)
  state = task.init(jax.random.key(0)).replace(params=params)
  new, losses = jax.pmap(task.step, 'devices')(
      one(state), one(next(task.batches(0, 0))), one(jax.random.key(1)))
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b[0]).max(),
                       params, new.params)
  return {part: max(jax.tree.leaves(moved[part])) for part in moved}, losses


def test_the_light_field_is_taught_by_its_own_lesson_alone(config, state):
  moved, losses = _moved_by(
      {'v': 1., 'reading': 0., 'sketch': 0.}, config, state.params)
  assert losses.keys() == {'loss/v'}
  assert moved['unet'] > 0 and moved['light_field'] == moved['reader'] == 0
  moved, losses = _moved_by(
      {'v': 0., 'reading': 0., 'sketch': 1.}, config, state.params)
  assert losses.keys() == {'loss/sketch'}
  assert moved['light_field'] > 0 and moved['unet'] == moved['reader'] == 0


def test_a_sketch_is_of_a_known_camera_only(config, state):
  model = text_to_image._model(config)
  params = jax.tree.map(lambda x: x + .05, state.params)
  text = model.embed(
      params, *assets.tokenizer().encode(['a red car', 'a red car']))
  assert jnp.abs(text['sketch']).max() == 0
  label = cameras.to_label(cameras.orbit(30.0, 10.0, 1.6, 1.3))
  seen = model.look(params, text, jnp.stack([label, 0 * label]))['sketch']
  assert jnp.abs(seen[0]).max() > 0 and jnp.abs(seen[1]).max() == 0
  # The U-Net is given it.
  x_t, t = jnp.zeros((2, 16, 16, 3)), jnp.array([.9, .9])
  say = lambda text: model.predict_v(params, x_t, t, text)
  other = text | {'sketch': seen}
  assert jnp.abs(say(other) - say(text))[0].max() > 1e-4


def test_reading_is_judged_by_what_captions_say():
  meaning = captions.meaning(['a red car with blue wheels', 'the cat', ''])
  names = list(captions.COLORS)
  assert meaning.tolist() == [
      [1 + captions.CATEGORIES.index('car'), 1 + names.index('red'),
       1 + names.index('blue')],
      [1 + captions.CATEGORIES.index('cat'), 0, 0], [0, 0, 0]]
  classes = {'category': 27, 'main': 13, 'second': 13}
  # Three pooled states, each its own direction; a reader that knows them.
  text = {'states': 40 * jnp.eye(3)[:, None], 'mask': jnp.ones((3, 1))}
  knows = {name: jnp.zeros((3, n)).at[jnp.arange(3), meaning[:, i]].set(30.)
           for i, (name, n) in enumerate(classes.items())}
  guesses = jax.tree.map(jnp.zeros_like, knows)
  loss = lambda reader: text_to_image.reading_loss(reader, text, meaning)
  np.testing.assert_allclose(
      loss(guesses), np.log(27) + 2 * np.log(13), rtol=1e-6)
  assert loss(knows) < 1e-6


def test_a_small_encoder_learns_which_color_is_whose(config):
  # Bags of words are equal; only their order differs.
  pair = ['a green tree with brown trunk', 'a brown tree with green trunk']
  tokens, mask = assets.tokenizer().encode(pair)
  task = text_to_image.make(config)
  state = task.init(jax.random.key(0))
  model = text_to_image._model(config)
  meaning = captions.meaning(pair)

  optimizer = optax.adam(0.01)

  @jax.jit
  def learn(params, opt_state):
    loss = lambda params: text_to_image.reading_loss(
        params['reader'], model.embed(params, tokens, mask), meaning)
    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return value, optax.apply_updates(params, updates), opt_state

  params = {name: state.params[name] for name in ('t5', 'reader')}
  opt_state = optimizer.init(params)
  for _ in range(300):
    value, params, opt_state = learn(params, opt_state)
  assert value < 0.1


def test_the_record_tells_of_what_went_before(
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


def test_times_of_little_noise_are_drawn_less_often():
  schedule = noise.cosine_schedule()
  even = (jnp.arange(200_000) + .5) / 200_000
  t = text_to_image.spread_times(even, schedule, 4.0, 1.0)
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
      text_to_image.spread_times(even, schedule, jnp.inf, 1.0), even,
      atol=1e-4)


def test_times_of_much_noise_are_drawn_more_often():
  even = (jnp.arange(200_000) + .5) / 200_000
  t = text_to_image.spread_times(even, noise.cosine_schedule(), jnp.inf, 30.0)
  count, edges = np.histogram(t, 50, (0, 1))
  middle = (edges[1:] + edges[:-1]) / 2
  np.testing.assert_allclose(
      count[0] / count, 1 - 29 / 30 * middle, rtol=.03, atol=.02)


def test_a_prompt_is_seen_from_all_sides(task, state, config):
  prompts, labels = text_to_image.around(['a red car', 'a cyan mug'], 4)
  assert prompts[:4] == [f'a red car, {side} view' for side in (
      'front', 'side', 'back', 'side')]
  assert prompts[4] == 'a cyan mug, front view'
  position = np.asarray(cameras.from_label(labels).c2w)[:, :3, 3]
  azimuth, elevation, _ = cameras.angles(position)
  np.testing.assert_allclose(azimuth % 360, [0, 90, 180, 270] * 2, atol=1e-3)
  np.testing.assert_allclose(elevation, 20, atol=1e-3)
  # A fresh network says nothing.
  model = text_to_image._model(config)
  knows = jax.tree.map(lambda x: x + .05, state.ema)
  draw = lambda labels: text_to_image.sample(
      jax.random.key(1), model, knows, prompts[:1], labels=labels, steps=2,
      batch=1)
  front, other = draw(labels[:1]), draw(labels[1:2])
  assert not np.array_equal(front, other)
  assert not np.array_equal(front, draw(None))


def test_a_model_trained_without_cameras_says_so(task, state, config):
  model = text_to_image._model(config)
  shape = model.unet.shape._replace(rays=False)
  without = model._replace(unet=model.unet.clone(shape=shape),
                           light_field=None)
  knows, not_told = (
      teachers.pixel_teacher(m, state.ema, text_to_image._tokenize)
      for m in (model, without))
  assert knows.knows_cameras and not not_told.knows_cameras
  text = knows.embed(['a red car'])
  label = cameras.to_label(cameras.orbit(30.0, 10.0, 1.6, 1.3))[None]
  assert not_told.look({}, text, label) is text
  seen = knows.look(knows.load(), text, label)
  np.testing.assert_array_equal(seen['camera'], label)


def test_samples_do_not_depend_on_how_many_are_asked_for(task, state, config):
  model = text_to_image._model(config)
  prompts = ['a red car', 'a blue duck', 'a green tree']
  key = jax.random.key(1)
  draw = lambda n, **kwargs: text_to_image.sample(
      key, model, state.ema, prompts[:n], steps=3, batch=2, **kwargs)
  three = draw(3)
  assert three.shape == (3, 16, 16, 3) and three.dtype == np.uint8
  np.testing.assert_array_equal(three[:2], draw(2))
  assert not np.array_equal(three, draw(3, eta=1.0))


def test_the_shipped_teacher_speaks_eps_and_hears_words():
  teacher = text_to_image.teacher()
  text = teacher.embed(['a red car', ''])
  assert text['states'].shape[:2] == (2, assets.CAPTION_LENGTH)
  image = jnp.full((2, 32, 32, 3), 0.5)
  weights = teacher.load()
  x = teacher.encode(weights, image, jax.random.key(0))
  assert x.shape == (2, *teacher.latent)
  np.testing.assert_allclose(x, 0, atol=1e-6)
  np.testing.assert_allclose(teacher.decode(weights, x), 0.5, atol=1e-6)
  eps = jax.random.normal(jax.random.key(1), x.shape)
  t = jnp.full(2, 0.9)
  x_t = noise.diffuse(teacher.schedule, x, eps, t)
  told = jax.jit(teacher.denoise)(weights, x_t, t, text)
  # A trained model finds the noise in a grey picture.
  assert jnp.mean((told - eps) ** 2) < 0.1
  assert jnp.abs(told[0] - told[1]).max() > 1e-3


def test_the_shipped_teacher_hears_which_color_is_whose():
  teacher = text_to_image.teacher()
  text = teacher.embed(['a green tree with brown trunk, side view',
                        'a brown tree with green trunk, side view',
                        'a green tree with brown trunk, back view'])
  pooled = unet.masked_mean(text['states'], text['mask'])
  apart = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(a)
  # As far as another view: a bag of words would not move at all.
  assert apart(pooled[0], pooled[1]) > 0.5 * apart(pooled[0], pooled[2])


def test_strange_words_are_named_once(caplog):
  text_to_image._tokenize(['a red zebra, front view', ''])
  assert "'zebra'" in caplog.text
