"""The pixel model: camera conditioning, and the shipped weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import text_to_image as config_file
from gen3d import assets
from gen3d.choices import UserError
from gen3d.diffusion import noise, pixel_model, sampling
from gen3d.models import unet
from gen3d.ops import cameras


def test_ray_features_encode_direction_and_nearest_point():
  labels = jnp.stack([
      cameras.to_label(cameras.orbit(40.0, 20.0, 1.6, 1.3, (0.1, 0.0, 0.05))),
      jnp.zeros(25)])
  features = np.asarray(pixel_model.ray_features(labels, 6))
  assert features.shape == (2, 6, 6, 18)
  np.testing.assert_array_equal(features[1], 0)
  camera = cameras.from_label(labels[0])
  rays = cameras.rays(camera, 6, 6)
  for i, j in np.ndindex(6, 6):
    o, d = np.asarray(rays.origins[i, j]), np.asarray(rays.directions[i, j])
    # By trying all points of the ray.
    far = np.linspace(0, 4, 40_001)[:, None]
    points = o + far * d
    nearest = points[np.argmin(np.linalg.norm(points, axis=1))] / 0.6
    ray = features[0, i, j]
    np.testing.assert_allclose(ray[:3], d, atol=1e-5)
    np.testing.assert_allclose(ray[3:6], nearest, atol=5e-4)
    angles = np.pi * np.concatenate([nearest, 2 * nearest])
    np.testing.assert_allclose(ray[6:12], np.sin(angles), atol=3e-3)
    np.testing.assert_allclose(ray[12:], np.cos(angles), atol=3e-3)


def test_x_prediction_of_a_fresh_network_is_gray():
  config = config_file.get_config('tiny').model
  config.prediction = 'x'
  model = pixel_model.build(config, assets.tokenizer().vocab_size)
  params = jax.jit(model.init, static_argnums=1)(
      jax.random.key(0), assets.CAPTION_LENGTH)
  text = model.embed(params, *assets.tokenizer().encode(['a red car']))
  x_t, t = jax.random.normal(jax.random.key(1), (1, 16, 16, 3)), jnp.array([.4])
  eps = jax.jit(model.denoise)(params, x_t, t, text)
  # The output of a fresh network is zero: its predicted image is gray.
  np.testing.assert_allclose(
      noise.x_from_eps(model.schedule, x_t, eps, t), 0, atol=1e-5)
  config.prediction = 'u'
  with pytest.raises(UserError, match="prediction 'u'.*'v'"):
    pixel_model.build(config, assets.tokenizer().vocab_size)


def test_prior_image_is_zero_for_an_unknown_camera(tiny_pixel_model):
  model, params = tiny_pixel_model
  params = jax.tree.map(lambda x: x + .05, params)
  text = model.embed(
      params, *assets.tokenizer().encode(['a red car', 'a red car']))
  assert jnp.abs(text['prior_image']).max() == 0
  label = cameras.to_label(cameras.orbit(30.0, 10.0, 1.6, 1.3))
  image = model.add_camera(
      params, text, jnp.stack([label, 0 * label]))['prior_image']
  assert jnp.abs(image[0]).max() > 0 and jnp.abs(image[1]).max() == 0
  # It changes the U-Net's output.
  x_t, t = jnp.zeros((2, 16, 16, 3)), jnp.array([.9, .9])
  predict = lambda text: model.predict_v(params, x_t, t, text)
  other = text | {'prior_image': image}
  assert jnp.abs(predict(other) - predict(text))[0].max() > 1e-4


def test_around_gives_view_words_and_cameras(tiny_pixel_model):
  model, params = tiny_pixel_model
  prompts, labels = pixel_model.around(['a red car', 'a cyan mug'], 4)
  assert prompts[:4] == [f'a red car, {side} view' for side in (
      'front', 'side', 'back', 'side')]
  assert prompts[4] == 'a cyan mug, front view'
  position = np.asarray(cameras.from_label(labels).c2w)[:, :3, 3]
  azimuth, elevation, _ = cameras.angles(position)
  np.testing.assert_allclose(azimuth % 360, [0, 90, 180, 270] * 2, atol=1e-3)
  np.testing.assert_allclose(elevation, 20, atol=1e-3)
  # The output of a fresh network is zero, whatever the camera.
  params = jax.tree.map(lambda x: x + .05, params)
  draw = lambda labels: sampling.sample(
      jax.random.key(1), pixel_model.to_teacher(model, params), prompts[:1],
      labels=labels, steps=2, batch=1)
  front, other = draw(labels[:1]), draw(labels[1:2])
  assert not np.array_equal(front, other)
  assert not np.array_equal(front, draw(None))


def test_a_model_without_rays_is_not_camera_conditioned(tiny_pixel_model):
  model, params = tiny_pixel_model
  shape = model.unet.shape._replace(rays=False)
  no_rays = model._replace(unet=model.unet.clone(shape=shape),
                           light_field=None)
  with_camera, without_camera = (
      pixel_model.to_teacher(m, params) for m in (model, no_rays))
  assert with_camera.camera_conditioned
  assert not without_camera.camera_conditioned
  text = with_camera.embed(['a red car'])
  label = cameras.to_label(cameras.orbit(30.0, 10.0, 1.6, 1.3))[None]
  assert without_camera.add_camera({}, text, label) is text
  conditioned = with_camera.add_camera(with_camera.load(), text, label)
  np.testing.assert_array_equal(conditioned['camera'], label)


def test_shipped_teacher_predicts_eps_and_depends_on_the_text():
  teacher = pixel_model.teacher()
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
  output = jax.jit(teacher.denoise)(weights, x_t, t, text)
  # A trained model predicts the noise of a noised gray image.
  assert jnp.mean((output - eps) ** 2) < 0.1
  assert jnp.abs(output[0] - output[1]).max() > 1e-3


def test_shipped_text_encoder_distinguishes_word_order():
  teacher = pixel_model.teacher()
  text = teacher.embed(['a green tree with brown trunk, side view',
                        'a brown tree with green trunk, side view',
                        'a green tree with brown trunk, back view'])
  pooled = unet.masked_mean(text['states'], text['mask'])
  distance = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(a)
  # As far apart as two views; with a bag of words the distance is zero.
  assert distance(pooled[0], pooled[1]) > 0.5 * distance(pooled[0], pooled[2])


def test_unknown_words_are_warned_about(caplog):
  pixel_model.tokenize(['a red zebra, front view', ''])
  assert "'zebra'" in caplog.text


@pytest.fixture(scope='module')
def controlled():
  """(model, params) of a tiny model with a ControlNet, far from zero."""
  config = config_file.get_config('depth_tiny').model
  model = pixel_model.build(config, assets.tokenizer().vocab_size)
  rng = np.random.default_rng(0)
  return model, jax.tree.map(
      lambda x: rng.normal(0.05, 0.1, x.shape).astype(x.dtype),
      jax.eval_shape(lambda key: model.init(key, assets.CAPTION_LENGTH),
                     jax.random.key(0)))


def test_depth_changes_the_prediction_and_a_map_of_zeros_does_not(controlled):
  model, params = controlled
  teacher = pixel_model.to_teacher(model, params)
  without = pixel_model.to_teacher(model._replace(control=None), params)
  assert teacher.depth_conditioned and not without.depth_conditioned
  text = without.embed(['a red car', 'a red car'])
  assert without.add_depth({}, text, None) is text
  # A map of another size is resized.
  maps = jnp.zeros((2, 32, 32, 1)).at[0, 8:20].set(0.7)
  x_t = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  predict = lambda teacher, text: jax.jit(teacher.denoise)(
      params, x_t, jnp.array([.4, .4]), text)
  plain = predict(without, text)
  np.testing.assert_array_equal(predict(teacher, text), plain)
  eps = predict(teacher, teacher.add_depth(params, text, maps))
  assert jnp.abs(eps - plain)[0].max() > 1e-3
  np.testing.assert_allclose(eps[1], plain[1], atol=1e-5)


def test_samples_of_a_depth_map(controlled):
  model, params = controlled
  teacher = pixel_model.to_teacher(model, params)
  draw = lambda maps: sampling.sample(
      jax.random.key(1), teacher, ['a red car', 'a cyan mug'], depth=maps,
      steps=2, batch=1)
  none = draw(jnp.zeros((2, 16, 16, 1)))
  np.testing.assert_array_equal(none, draw(None))
  some = draw(jnp.zeros((2, 16, 16, 1)).at[1, :8].set(1.0))
  np.testing.assert_array_equal(some[0], none[0])
  assert not np.array_equal(some[1], none[1])


def test_a_control_net_of_other_weights_is_refused(controlled, tmp_path):
  model, params = controlled
  config = {'task': 'text_to_image',
            'model': config_file.get_config('depth_tiny').model.to_dict()}
  base = {name: params[name] for name in params if name != 'control'}
  path, _ = assets.save(tmp_path / 'base.safetensors', base, {
      'config': config | {'model': {
          key: value for key, value in config['model'].items()
          if key != 'control'}}})
  digest = assets.load(path)[1]['sha256']
  for name, belongs_to in (('good', digest), ('bad', 'another')):
    assets.save(tmp_path / f'{name}.safetensors',
                {'control': params['control']},
                {'config': config, 'base': belongs_to})
  teacher = pixel_model.teacher(path, tmp_path / 'good.safetensors')
  assert teacher.depth_conditioned
  jax.tree.map(np.testing.assert_array_equal, teacher.load()['control'],
               params['control'])
  for name, words in (('bad', 'bad.safetensors .*other weights'),
                      ('none', 'none.safetensors; train one')):
    with pytest.raises(UserError, match=words):
      pixel_model.teacher(path, tmp_path / f'{name}.safetensors')


def test_control_net_of_the_shipped_weights_begins_as_their_copy():
  config = config_file.get_config('depth').model
  model = pixel_model.build(config, assets.tokenizer().vocab_size)
  _, shipped, record = pixel_model.load()
  assert set(record['config']['model']) == set(config) - {'control'}
  fresh = jax.eval_shape(lambda key: model.init(key, assets.CAPTION_LENGTH),
                         jax.random.key(0))['control']
  size = sum(np.prod(x.shape) for x in jax.tree.leaves(fresh))
  assert 2 * size < 3e6  # bytes of the file, in half precision
  start = unet.copy_parameters(fresh, shipped['unet'])
  same = lambda a, b: a.shape == b.shape
  assert all(jax.tree.leaves(jax.tree.map(same, start, fresh)))
  new = {name.split('_')[0] for name, layer in start['params'].items()
         if any(isinstance(x, jax.ShapeDtypeStruct)
                for x in jax.tree.leaves(layer))}
  assert new == {'hint', 'residual'}
