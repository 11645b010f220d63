"""CLIP as guidance, against the formula, finite differences and files."""

import clip_folders
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from gen3d import assets
from gen3d.choices import UserError
from gen3d.guidance import clip as guidance_clip
from gen3d.guidance import prompts
from gen3d.models import clip, clip_pair
from gen3d.ops import cameras
from gen3d.scenes import Render

CONFIG = {'image': {'resolution': 16, 'patch': 8, 'width': 16, 'layers': 1,
                    'heads': 2},
          'text': {'width': 16, 'layers': 1, 'heads': 2}, 'features': 12}
WHOLE = {'name': 'whole', 'kernel': 'cubic', 'edges': 'normalized'}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """The path of a random CLIP pair of the size CONFIG."""
  model = clip.CLIP(clip_pair.pair_config(CONFIG))
  params = jax.jit(model.init)(
      jax.random.key(0), jnp.zeros((1, 16, 16, 3)),
      jnp.zeros((1, assets.CAPTION_LENGTH), jnp.int32))
  # Large, so that the features of two texts or images differ.
  params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(
      jax.random.key(x.size), x.shape), params)
  path = tmp_path_factory.mktemp('clip') / 'pair.safetensors'
  assets.save(path, params, {'config': {'task': 'clip', **CONFIG}})
  return path


def make_config(path, **settings):
  return ml_collections.ConfigDict({'guidance': {
      'path': str(path), 'view_prompts': {}, 'augment': dict(WHOLE),
      'image_feature': {'path': '', 'weight': 0.0}, **settings}})


def render_of(image):
  return Render(image, jnp.ones(image.shape[:2]), *(None,) * 4)


def loss_of(guidance, prompt='a red chair', camera=None):
  frozen = guidance.load(prompt, '')
  text = guidance.condition(frozen, camera)
  return jax.jit(lambda image: guidance.loss(
      {}, frozen, jax.random.key(0), render_of(image), text, 0))


def test_loss_is_minus_the_cosine_of_the_pair_s_features(weights):
  image = jax.random.uniform(jax.random.key(3), (16, 16, 3))
  loss, metrics = loss_of(
      guidance_clip.from_config(make_config(weights)))(image)
  pair = clip_pair.load(weights)
  cosine = float(pair.image_features(np.asarray(image)[None])[0]
                 @ pair.text_features(['a red chair'])[0])
  np.testing.assert_allclose(loss, -cosine, atol=1e-5)
  np.testing.assert_allclose(metrics['clip/cosine'], cosine, atol=1e-5)


def test_gradient_flows_through_augmentations_and_image_tower(weights):
  augment = {'name': 'crops', 'count': 3, 'crop': 14, 'composite': 'over',
             'perspective': 0.1,
             'background': {'squares': 4, 'blur_radius': 2, 'blur_max': 1.0}}
  loss = loss_of(guidance_clip.from_config(
      make_config(weights, augment=augment)))
  image = jax.random.uniform(jax.random.key(3), (20, 20, 3))
  direction = jax.random.normal(jax.random.key(4), image.shape)
  slope = jnp.sum(direction * jax.grad(lambda x: loss(x)[0])(image))
  ahead, behind = (loss(image + s * direction)[0] for s in (0.01, -0.01))
  np.testing.assert_allclose(slope, (ahead - behind) / 0.02, rtol=0.05)


def test_prompt_of_the_camera_s_view(weights):
  pair = clip_pair.load(weights)
  config = make_config(weights, view_prompts={'front': 45.0, 'overhead': 60.0})
  guidance = guidance_clip.from_config(config)
  frozen = guidance.load('a red chair', '')
  for azimuth, elevation, view in ((10, 0, 'front'), (100, 0, 'side'),
                                   (180, 30, 'back'), (10, 80, 'overhead')):
    text = guidance.condition(
        frozen, cameras.orbit(azimuth, elevation, 2.0, 1.0))
    np.testing.assert_allclose(text, pair.text_features(
        [f'a red chair, {view} view'])[0], atol=1e-5)
  assert len(prompts.VIEWS) == len(frozen.texts)


def test_image_feature_from_a_file_is_weighted(weights, tmp_path):
  feature = np.linspace(-3, 5, 12, dtype=np.float32)
  np.save(tmp_path / 'prior.npy', feature[None])
  image = jax.random.uniform(jax.random.key(3), (16, 16, 3))
  both, metrics = loss_of(guidance_clip.from_config(make_config(
      weights, image_feature={'path': str(tmp_path / 'prior.npy'),
                              'weight': 0.33})))(image)
  own = clip_pair.load(weights).image_features(np.asarray(image)[None])[0]
  near = own @ feature / np.linalg.norm(feature)
  np.testing.assert_allclose(
      both, -metrics['clip/cosine'] - 0.33 * near, atol=1e-5)
  np.testing.assert_allclose(metrics['clip/image_cosine'], near, atol=1e-5)


@pytest.mark.parametrize('content, message', [
    (None, 'There is no file'), (b'text', 'no .npy file'),
    (np.zeros(5), '12 finite numbers'), (np.full(12, np.nan), '12 finite')])
def test_bad_image_features(weights, tmp_path, content, message):
  path = tmp_path / 'prior.npy'
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content is not None:
    np.save(path, content)
  with pytest.raises(UserError, match=message):
    guidance_clip.from_config(make_config(
        weights, image_feature={'path': str(path), 'weight': 1.0}))


def test_weights_of_another_model_are_named(weights, tmp_path):
  with pytest.raises(UserError, match='There is no folder'):
    guidance_clip.from_config(make_config(tmp_path / 'nowhere'))
  with pytest.raises(UserError, match='holds no CLIP pair'):
    guidance_clip.from_config(make_config(
        assets.FOLDER / 'eg3d_shapes.safetensors'))
  with pytest.raises(UserError, match="Unknown augmentation 'crop'"):
    guidance_clip.from_config(make_config(weights, augment={'name': 'crop'}))


def test_clip_in_a_folder_of_transformers(tmp_path):
  model = clip_folders.save(tmp_path)
  guidance = guidance_clip.from_config(make_config(tmp_path))
  image = jax.random.uniform(jax.random.key(3), (24, 24, 3))
  cosine = loss_of(guidance, 'a cat')(image)[1]['clip/cosine']
  import torch
  import transformers
  tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
      ['a cat'], padding='max_length', max_length=20, return_tensors='pt')
  pixels = (np.asarray(image) - clip.PIXEL_MEAN) / clip.PIXEL_STD
  with torch.no_grad():
    output = model(**tokens, pixel_values=torch.tensor(
        pixels[None].transpose(0, 3, 1, 2), dtype=torch.float32))
  expected = (output.image_embeds @ output.text_embeds.T).item()
  np.testing.assert_allclose(cosine, expected, atol=1e-4)
