"""A small random CLIP in a folder as transformers has the published ones."""

import json

import pytest

_LETTERS = 'abcdefghijklmnopqrstuvwxyz'
_VOCAB = ('!', *_LETTERS, '.', *(f'{c}</w>' for c in f'{_LETTERS}.'),
          '<|startoftext|>', '<|endoftext|>')


def save(path, resolution=24):
  """Saves model and tokenizer in the folder `path`; returns the model.

  Its parameters are large, so that the features of two texts or images differ.
  """
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  import transformers
  torch.manual_seed(0)
  tower = {'hidden_size': 32, 'intermediate_size': 128,
           'num_hidden_layers': 2, 'num_attention_heads': 4}
  model = transformers.CLIPModel(transformers.CLIPConfig(
      text_config=tower | {
          'vocab_size': len(_VOCAB), 'max_position_embeddings': 20,
          'bos_token_id': len(_VOCAB) - 2, 'eos_token_id': len(_VOCAB) - 1},
      vision_config=tower | {'image_size': resolution, 'patch_size': 8},
      projection_dim=16)).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.2 * torch.randn_like(p))
  model.save_pretrained(path)
  save_tokenizer(path)
  return model


def save_tokenizer(path, end='<|endoftext|>'):
  """Saves a tokenizer of letters; a text ends with the token `end`."""
  (path / 'vocab.json').write_text(json.dumps(
      {name: i for i, name in enumerate(_VOCAB)}))
  (path / 'merges.txt').write_text('#version: 0.2\n')
  (path / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'CLIPTokenizer', 'pad_token': '!',
      'bos_token': '<|startoftext|>', 'eos_token': end,
      'unk_token': '<|endoftext|>', 'model_max_length': 20}))
