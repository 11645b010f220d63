"""CLIP: parity of the towers with transformers, the loss against loops."""

import dataclasses
import json

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen3d.models import clip, loading
from gen3d.weights import hub, port

SMALL = clip.CLIPConfig(
    clip.ImageConfig(resolution=24, patch=8, width=32, layers=3, heads=4),
    clip.TextConfig(vocab=50, length=11, width=24, layers=2, heads=3, eot=49),
    features=20)


# OpenCLIP's ViT-H/14, whose text tower without its last layer is the text
# encoder of Stable Diffusion 2.
H14 = clip.CLIPConfig(
    clip.ImageConfig(224, 14, 1280, 32, 16, clip.gelu),
    clip.TextConfig(49408, 77, 1024, 24, 16, 49407, clip.gelu), 1024)


def with_activation(config, activation):
  return dataclasses.replace(
      config, image=dataclasses.replace(config.image, activation=activation),
      text=dataclasses.replace(config.text, activation=activation))


def text_config(activation):
  text = SMALL.text
  return {'vocab_size': text.vocab, 'max_position_embeddings': text.length,
          'hidden_size': text.width, 'intermediate_size': 4 * text.width,
          'num_hidden_layers': text.layers, 'hidden_act': activation,
          'num_attention_heads': text.heads, 'bos_token_id': 48,
          'eos_token_id': text.eot}


def make_peer(activation):
  """A random transformers CLIPModel of the size SMALL, and its tensors."""
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  import transformers
  torch.manual_seed(0)
  image = SMALL.image
  model = transformers.CLIPModel(transformers.CLIPConfig(
      text_config=text_config(activation),
      vision_config={
          'image_size': image.resolution, 'patch_size': image.patch,
          'hidden_size': image.width, 'intermediate_size': 4 * image.width,
          'num_hidden_layers': image.layers, 'hidden_act': activation,
          'num_attention_heads': image.heads},
      projection_dim=SMALL.features)).eval()
  with torch.no_grad():
    for p in model.parameters():  # biases of zero would hide their absence
      p.add_(0.1 * torch.randn_like(p))
  return model, {k: v.numpy() for k, v in model.state_dict().items()}


def pictures(batch, seed=0):
  rng = np.random.default_rng(seed)
  return rng.random((batch, 24, 24, 3), np.float32)


def captions(batch, seed=0):
  """Tokens with the end at various places and padding after it."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 48, (batch, 11)).astype(np.int32)
  for row, end in enumerate(rng.integers(2, 11, batch)):
    tokens[row, end:] = [49] + [0] * (10 - end)
  return tokens


@pytest.mark.parity
@pytest.mark.parametrize('name', ['quick_gelu', 'gelu'])
def test_features_equal_those_of_transformers(name):
  model, tensors = make_peer(name)
  import torch
  config = with_activation(SMALL, getattr(clip, name))
  params = clip.from_torch(tensors, config)
  images, tokens = pictures(3), captions(5)
  ours = clip.CLIP(config).apply(params, images, tokens)
  pixels = (images - np.array(clip.PIXEL_MEAN)) / np.array(clip.PIXEL_STD)
  with torch.no_grad():
    theirs = model(input_ids=torch.tensor(tokens).long(),
                   pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2),
                                             dtype=torch.float32))
  image, text = theirs.image_embeds.numpy(), theirs.text_embeds.numpy()
  np.testing.assert_allclose(clip.normalize(ours[0]), image, atol=1e-4)
  np.testing.assert_allclose(clip.normalize(ours[1]), text, atol=1e-4)
  np.testing.assert_allclose(
      ours[2] * clip.normalize(ours[0]) @ clip.normalize(ours[1]).T,
      theirs.logits_per_image.numpy(), atol=1e-3)
  # Pictures and captions must differ, or a constant would pass.
  assert np.abs(image[0] - image[1]).max() > 1e-2
  assert np.abs(text[0] - text[1]).max() > 1e-2


@pytest.mark.parity
def test_a_saved_clip_model_is_loaded(tmp_path):
  model, tensors = make_peer('gelu')
  model.save_pretrained(tmp_path)
  network, params = clip.load(tmp_path)
  config = with_activation(SMALL, clip.gelu)
  assert network.config == config
  jax.tree.map(np.testing.assert_array_equal, params,
               clip.from_torch(tensors, config))


@pytest.mark.parity
@pytest.mark.parametrize('name', ['quick_gelu', 'gelu'])
def test_the_text_tower_of_stable_diffusion_equals_transformers(
    tmp_path, name):
  torch = pytest.importorskip('torch')
  import transformers
  # As in Stable Diffusion 2, whose config has neither 49407 nor a 24th
  # layer; its states are those after the last norm.
  config = text_config(name) | {'eos_token_id': 2}
  model = folders.jitter(transformers.CLIPTextModel(
      transformers.CLIPTextConfig(**config)))
  model.save_pretrained(tmp_path)
  tower, params = clip.load_text(tmp_path)
  assert tower.config == dataclasses.replace(
      SMALL.text, activation=getattr(clip, name))
  tokens = captions(4)
  with torch.no_grad():
    theirs = model(torch.tensor(tokens).long()).last_hidden_state.numpy()
  folders.assert_near(tower.apply(params, tokens), theirs)

  # transformers 5 drops the tower's name, the published files have it.
  file = tmp_path / 'model.safetensors'
  tensors = {k.removeprefix('text_model.'): v
             for k, v in safetensors.numpy.load_file(file).items()}
  for prefix in ('', 'text_model.'):
    saved = {prefix + k: v for k, v in tensors.items()}
    saved[f'{prefix}embeddings.position_ids'] = np.arange(11)[None]
    safetensors.numpy.save_file(saved, file)
    jax.tree.map(np.testing.assert_array_equal, params,
                 clip.load_text(tmp_path)[1])


@pytest.mark.parity
def test_full_size_names_and_shapes_are_those_of_transformers(tmp_path):
  pytest.importorskip('torch')
  import transformers
  config = transformers.CLIPConfig(**folders.CLIP_L14)
  config.architectures = ['CLIPModel']
  config.save_pretrained(tmp_path)
  ours = clip.clip_config(hub.Folder(
      tmp_path, hub.read_config(tmp_path), {}))
  assert ours == clip.L14
  model = folders.on_meta(lambda: transformers.CLIPModel(config))
  theirs = folders.names_and_shapes(model)
  like = loading.shapes(clip.CLIP(ours), clip.inputs(ours), jnp.float32)
  assert folders.expected_names(like, clip.sources(ours)) == {
      k: v for k, v in theirs.items() if 'position_ids' not in k}


@pytest.mark.parity
def test_names_and_shapes_of_the_text_tower_of_stable_diffusion_2(tmp_path):
  pytest.importorskip('torch')
  import transformers
  config = transformers.CLIPTextConfig(
      hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
      num_hidden_layers=23, hidden_act='gelu', projection_dim=512)
  model = folders.on_meta(lambda: transformers.CLIPTextModel(config))
  config.architectures = ['CLIPTextModel']
  config.save_pretrained(tmp_path)
  tower = clip.text_config(hub.Folder(
      tmp_path, hub.read_config(tmp_path), {}))
  assert tower == dataclasses.replace(H14.text, layers=23)
  like = loading.shapes(clip.TextTower(tower), clip.text_inputs(tower),
                        jnp.float32)
  ours = folders.expected_names(like, clip.text_sources(tower))
  plain = lambda tree: {k.removeprefix('text_model.'): v
                        for k, v in tree.items() if 'position_ids' not in k}
  assert plain(ours) == plain(folders.names_and_shapes(model))


def published(path, **changes):
  config = {'architectures': ['CLIPModel'], **folders.CLIP_L14, **changes}
  (path / 'config.json').write_text(json.dumps(config))
  return hub.Folder(path, hub.read_config(path), {})


def test_hyperparameters_of_published_configs(tmp_path):
  assert clip.clip_config(published(tmp_path)) == clip.L14
  # What a config leaves out is as in ViT-B/32.
  assert clip.clip_config(published(
      tmp_path, text_config={}, vision_config=None,
      projection_dim=512)) == clip.B32
  assert clip.clip_config(published(
      tmp_path, text_config={}, vision_config={'patch_size': 8},
      vision_config_dict={'patch_size': 16},
      projection_dim=512)) == clip.B16


@pytest.mark.parametrize('changes, words', [
    ({'architectures': ['SiglipModel']}, 'SiglipModel'),
    ({'text_config': {'hidden_act': 'relu'}}, "hidden_act = 'relu'"),
    ({'vision_config': {'intermediate_size': 99}}, 'intermediate_size = 99'),
    ({'vision_config': {'num_channels': 1}}, 'num_channels'),
])
def test_a_config_of_another_network_is_refused(tmp_path, changes, words):
  with pytest.raises(ValueError, match=words):
    clip.clip_config(published(tmp_path, **changes))


@pytest.mark.parity
def test_the_two_activations_give_different_features():
  _, tensors = make_peer('gelu')
  features = [
      clip.CLIP(size).apply(clip.from_torch(tensors, size), pictures(2),
                            method='encode_image')
      for size in (SMALL, with_activation(SMALL, clip.gelu))]
  assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.parity
def test_missing_unused_and_misshaped_tensors_are_listed():
  _, tensors = make_peer('gelu')
  gone = 'text_model.encoder.layers.1.mlp.fc1.bias'
  shape = 'vision_model.embeddings.patch_embedding.weight'
  del tensors[gone]
  tensors['surplus.weight'] = np.zeros(3)
  tensors[shape] = tensors[shape][:, :2]
  with pytest.raises(port.PortingError) as error:
    clip.from_torch(tensors, SMALL)
  for words in (f'1 missing: {gone}', '1 unused: surplus.weight',
                f'1 mis-shaped: {shape} [32, 2, 8, 8]'):
    assert words in str(error.value)


def test_parameter_counts_are_the_published_ones():
  # From the models' own cards: 151 M, 150 M, 428 M and 986 M.
  for size, millions in ((clip.B32, 151.3), (clip.B16, 149.6),
                         (clip.L14, 427.6), (H14, 986.1)):
    tree = jax.eval_shape(
        clip.CLIP(size).init, jax.random.key(0),
        jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 77), jnp.int32))
    count = sum(x.size for x in jax.tree.leaves(tree))
    assert abs(count / 1e6 - millions) < 0.1


def test_the_text_feature_ignores_tokens_after_the_end():
  model = clip.CLIP(SMALL)
  tokens = captions(4)
  params = jax.jit(model.init)(jax.random.key(0), pictures(1), tokens)
  other = tokens.copy()
  ends = np.argmax(tokens == 49, axis=1)
  for row, end in enumerate(ends):
    other[row, end + 1:] = 49  # as with OpenAI's padding by the end token
  assert (other != tokens).any()
  features = [clip.text_features(model, params, t) for t in (tokens, other)]
  np.testing.assert_allclose(*features, atol=1e-6)
  np.testing.assert_allclose(
      np.linalg.norm(features[0], axis=-1), 1, atol=1e-5)


def test_contrastive_loss_equals_a_loop():
  rng = np.random.default_rng(0)
  queries = clip.normalize(rng.normal(size=(4, 6)))
  candidates = clip.normalize(rng.normal(size=(7, 6)))
  positive = np.array([2, 0, 6, 3])
  ignored = rng.random((4, 7)) < 0.4
  ignored[0, 2] = True  # a query's own, which counts all the same
  losses, best = [], []
  for i in range(4):
    scores = {j: 5.0 * float(np.dot(queries[i], candidates[j]))
              for j in range(7) if j == positive[i] or not ignored[i, j]}
    total = sum(np.exp(s) for s in scores.values())
    losses.append(-np.log(np.exp(scores[positive[i]]) / total))
    best.append(max(scores, key=scores.get) == positive[i])
  loss, share = clip.contrastive_loss(
      queries, candidates, positive, 5.0, ignored)
  np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
  assert float(share) == np.mean(best)
  gradient = jax.grad(lambda q: clip.contrastive_loss(
      q, candidates, positive, 5.0, ignored)[0])(queries)
  assert np.isfinite(gradient).all()


def test_images_of_another_resolution_are_refused():
  with pytest.raises(ValueError, match='24, 24, 3'):
    clip.CLIP(SMALL).init(jax.random.key(0), np.zeros((1, 32, 32, 3)),
                          captions(1))
