"""The T5 encoder: parity with transformers, offset buckets, padding."""

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen3d.models import loading, t5
from gen3d.weights import hub, port

SMALL = t5.T5Config(vocab=60, layers=3, width=32, heads=4, head_dim=6,
                    ff_width=40)
XXL = t5.T5Config(vocab=32128, layers=24, width=4096, heads=64, head_dim=64,
                  ff_width=10240)


@pytest.fixture(scope='module')
def peer():
  """A random transformers encoder of the size SMALL, and its tensors."""
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  import transformers
  torch.manual_seed(0)
  model = transformers.T5EncoderModel(transformers.T5Config(
      vocab_size=SMALL.vocab, num_layers=SMALL.layers, d_model=SMALL.width,
      num_heads=SMALL.heads, d_kv=SMALL.head_dim, d_ff=SMALL.ff_width,
      feed_forward_proj='gated-gelu', attn_implementation='eager')).eval()
  with torch.no_grad():
    for p in model.parameters():  # norms of one would hide a swap of theirs
      p.add_(0.3 * torch.randn_like(p) * p.std().nan_to_num(1.0))
      p.mul_(1 + 0.2 * torch.randn_like(p))
  return model, {k: v.numpy() for k, v in model.state_dict().items()}


def captions(batch, length, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, SMALL.vocab, (batch, length)).astype(np.int32)
  mask = (np.arange(length) < rng.integers(1, length + 1, (batch, 1)))
  return tokens, mask.astype(np.float32)


@pytest.mark.parity
@pytest.mark.parametrize('length', [7, 150])
def test_states_equal_those_of_transformers(peer, length):
  import torch
  model, tensors = peer
  tokens, mask = captions(3, length)
  with torch.no_grad():
    theirs = model(torch.tensor(tokens).long(), torch.tensor(mask)
                   ).last_hidden_state.numpy()
  ours = t5.T5Encoder(SMALL).apply(
      t5.from_torch(tensors, SMALL), tokens, mask)
  real = mask > 0
  assert np.abs(theirs[real]).max() > 0.5
  np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4)


@pytest.mark.parity
def test_a_saved_encoder_is_loaded(peer, tmp_path):
  model, tensors = peer
  model.save_pretrained(tmp_path, max_shard_size='20KB')
  assert len(list(tmp_path.glob('*.safetensors'))) > 1
  encoder, params = t5.load(tmp_path)
  assert encoder.config == SMALL
  jax.tree.map(np.testing.assert_array_equal, params,
               t5.from_torch(tensors, SMALL))

  # The table of embeddings may be stored under its other name alone.
  for file in tmp_path.glob('*.safetensors'):
    file.unlink()
  saved = dict(tensors)
  saved['encoder.embed_tokens.weight'] = saved.pop('shared.weight')
  safetensors.numpy.save_file(saved, tmp_path / 'model.safetensors')
  jax.tree.map(np.testing.assert_array_equal, params, t5.load(tmp_path)[1])


@pytest.mark.parity
def test_full_size_names_and_shapes_are_those_of_transformers(tmp_path):
  pytest.importorskip('torch')
  import transformers
  config = transformers.T5Config(**folders.T5_XXL)
  config.architectures = ['T5EncoderModel']
  config.save_pretrained(tmp_path)
  ours = t5.t5_config(hub.Folder(
      tmp_path, hub.read_config(tmp_path), {}))
  assert ours == XXL
  model = folders.on_meta(lambda: transformers.T5EncoderModel(config))
  theirs = folders.names_and_shapes(model)
  like = loading.shapes(t5.T5Encoder(ours), t5.inputs(), jnp.bfloat16)
  # One table of embeddings, under two names.
  assert theirs.pop('encoder.embed_tokens.weight') == (32128, 4096)
  assert folders.expected_names(like, t5.encoder_sources(ours)) == theirs


@pytest.mark.parametrize('changes, words', [
    ({'feed_forward_proj': None}, 'relu'),  # T5 before v1.1
    ({'relative_attention_num_buckets': 64}, 'num_buckets = 64'),
    ({'architectures': ['BertModel']}, 'BertModel'),
])
def test_a_config_of_another_network_is_refused(tmp_path, changes, words):
  config = {'architectures': ['T5EncoderModel'], **folders.T5_XXL, **changes}
  config = {k: v for k, v in config.items() if v is not None}
  with pytest.raises(ValueError, match=words):
    t5.t5_config(hub.Folder(tmp_path, config, {}))


@pytest.mark.parity
def test_missing_unused_and_misshaped_tensors_are_listed(peer):
  _, tensors = peer
  tensors = dict(tensors)
  gone = 'encoder.block.1.layer.0.SelfAttention.q.weight'
  shape = 'encoder.block.2.layer.1.DenseReluDense.wo.weight'
  del tensors[gone]
  tensors['surplus.weight'] = np.zeros(3)
  tensors[shape] = np.zeros((5, 6, 7))
  with pytest.raises(port.PortingError) as error:
    t5.from_torch(tensors, SMALL)
  for words in (f'1 missing: {gone}', '1 unused: surplus.weight',
                f'1 mis-shaped: {shape} [5, 6, 7]'):
    assert words in str(error.value)


def test_offset_buckets_equal_the_definition():
  def slow(offset):
    side, n = (16, offset) if offset > 0 else (0, -offset)
    if n < 8:
      return side + n
    return side + min(15, 8 + int(np.float32(np.log(np.float32(n / 8)))
                                  / np.float32(np.log(16)) * 8))
  offsets = np.arange(-300, 301)
  np.testing.assert_array_equal(
      t5.buckets(offsets), [slow(int(o)) for o in offsets])


def test_states_do_not_depend_on_padding():
  encoder = t5.T5Encoder(SMALL)
  tokens, mask = captions(2, 9)
  mask[:, 5:] = 0
  params = encoder.init(jax.random.key(0), tokens, mask)
  states = encoder.apply(params, tokens, mask)
  changed = np.where(mask > 0, tokens, 1)
  other = encoder.apply(params, changed, mask)
  cut = encoder.apply(params, tokens[:, :5], mask[:, :5])
  real = mask > 0
  np.testing.assert_allclose(states[real], other[real], atol=1e-6)
  valid = real[:, :5]
  np.testing.assert_allclose(states[:, :5][valid], cut[valid], atol=1e-5)
  assert np.isfinite(np.asarray(states)).all()


def test_bfloat16_stays_near_float32():
  tokens, mask = captions(2, 9)
  params = t5.T5Encoder(SMALL).init(jax.random.key(0), tokens, mask)
  full = t5.T5Encoder(SMALL).apply(params, tokens, mask)
  half = t5.T5Encoder(SMALL, jnp.bfloat16).apply(params, tokens, mask)
  assert half.dtype == jnp.bfloat16
  assert np.abs(np.float32(half) - full).mean() < 0.05
