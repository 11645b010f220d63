"""Folders of checkpoints: files, downloads, configs and error messages."""

import json

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_folders import (
    AUTOENCODER,
    CLIP_L14,
    SMALL,
    T5_XXL,
    TEXT_ENCODER,
    random_tensors,
    write_network,
    write_tokenizer,
)

from gen3d.choices import UserError
from gen3d.models import autoencoder, clip, stable_diffusion, t5
from gen3d.weights import hub, tokenizing

COMMIT = 'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd'


def assert_same(folder, other):
  """The tensors of two folders have the same names, types and values."""
  assert set(folder.tensors) == set(other.tensors)
  for name, tensor in folder.tensors.items():
    assert tensor.dtype == other.tensors[name].dtype
    np.testing.assert_array_equal(tensor, other.tensors[name])


def write_shards(path, tensors, shards=3, stem='model', dot=''):
  path.mkdir(exist_ok=True, parents=True)
  (path / 'config.json').write_text('{}')
  files = [f'{stem}{dot}-{i + 1:05}-of-{shards:05}.safetensors'
           for i in range(shards)]
  homes = {name: files[i % shards] for i, name in enumerate(tensors)}
  for file in files:
    safetensors.numpy.save_file(
        {k: v for k, v in tensors.items() if homes[k] == file}, path / file)
  (path / f'{stem}.safetensors.index{dot}.json').write_text(
      json.dumps({'weight_map': homes}))
  return files


@pytest.mark.parametrize('stem', ['model', 'diffusion_pytorch_model'])
@pytest.mark.parametrize('dot', ['', '.fp16'])
def test_shards_are_read_like_a_single_file(tmp_path, stem, dot):
  tensors = random_tensors()
  write_network(tmp_path / 'one', tensors)
  write_shards(tmp_path / 'many', tensors, stem=stem, dot=dot)
  assert_same(hub.read(tmp_path / 'one'), hub.read(tmp_path / 'many'))
  assert set(hub.read(tmp_path / 'one').tensors) == set(tensors)


def test_the_requested_variant_is_preferred(tmp_path):
  full, half = random_tensors(), random_tensors(np.float16)
  write_network(tmp_path, full, 'model.safetensors')
  kind = lambda **options: hub.read(
      tmp_path, **options).tensors['position'].dtype
  assert kind() == kind(variant='fp16') == np.float32
  write_network(tmp_path, half, 'model.fp16.safetensors')
  write_network(tmp_path, half, 'model.non_ema.safetensors')
  assert kind() == np.float32 and kind(variant='fp16') == np.float16
  (tmp_path / 'model.safetensors').unlink()
  assert kind() == np.float16


@pytest.mark.parity
def test_a_pytorch_file_is_read_without_safetensors(tmp_path):
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  tensors = random_tensors()
  write_network(tmp_path / 'new', tensors)
  write_network(tmp_path / 'old', {'x': np.zeros(1)})
  torch.save({k: torch.tensor(v) for k, v in tensors.items()},
             tmp_path / 'old' / 'pytorch_model.bin')
  assert set(hub.read(tmp_path / 'old').tensors) == {'x'}
  (tmp_path / 'old' / 'model.safetensors').unlink()
  assert_same(hub.read(tmp_path / 'old'), hub.read(tmp_path / 'new'))


def test_other_files_of_a_checkpoint_are_optional(tmp_path):
  write_network(tmp_path / 'unet', random_tensors())
  checkpoint = hub.locate(tmp_path, subfolders=('unet',))
  assert checkpoint == (tmp_path, str(tmp_path), '')
  assert hub.read_scheduler(checkpoint.path) == {}
  (tmp_path / 'safety_checker').mkdir()
  (tmp_path / 'scheduler').mkdir()
  (tmp_path / 'scheduler' / 'scheduler_config.json').write_text(
      '{"prediction_type": "v_prediction"}')
  assert hub.locate(tmp_path, subfolders=('unet',)) == checkpoint
  assert hub.read_scheduler(tmp_path) == {
      'prediction_type': 'v_prediction'}


def spoil_config(path):
  (path / 'config.json').unlink()


def garble_config(path):
  (path / 'config.json').write_text('{')


def list_config(path):
  (path / 'config.json').write_text('[]')


def truncate(path):
  file = path / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-3])


def stop_in_header(path):
  file = path / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:40])


def lose_weights(path):
  (path / 'model.safetensors').rename(path / 'model.onnx')


def spoil_pickle(path):
  (path / 'model.safetensors').rename(path / 'pytorch_model.bin')


@pytest.mark.parametrize('spoil, words', [
    (spoil_config, ['has no config.json']),
    (garble_config, ['config.json is not JSON']),
    (list_config, ['config.json contains no JSON object']),
    (truncate, ['model.safetensors is not a complete', 'download it again']),
    (stop_in_header, ['model.safetensors is not a complete']),
    (lose_weights, ['has no weights', 'pytorch_model.bin']),
    (spoil_pickle, ['pytorch_model.bin']),
])
def test_a_broken_folder_is_a_user_error(tmp_path, spoil, words):
  write_network(tmp_path, random_tensors())
  hub.read(tmp_path)
  spoil(tmp_path)
  with pytest.raises(ValueError) as error:
    hub.read(tmp_path)
  for word in words:
    assert word in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
  files = write_shards(tmp_path, random_tensors())
  (tmp_path / files[1]).unlink()
  with pytest.raises(ValueError, match='3 files, of which 1 are missing: '
                     'model-00002-of-00003.safetensors'):
    hub.read(tmp_path)


def test_a_config_is_checked_key_by_key(tmp_path):
  folder = hub.Folder(tmp_path, {'a': 1, 'b': 2}, {})
  hub.expect(folder, {'a': (1,), 'b': (1, 2), 'absent': (None,)})
  with pytest.raises(ValueError) as error:
    hub.expect(folder, {'a': (3,), 'b': (2,), 'c': (5,)})
  assert 'a = 1 (supported: 3)' in str(error.value)
  assert 'b =' not in str(error.value) and 'c =' not in str(error.value)
  with pytest.raises(ValueError, match='nameless.*x reads T5 or UL2'):
    hub.expect_class(folder, ('T5', 'UL2'), 'x')


# What a Stable Diffusion repository holds.
LISTING = [
    'README.md', 'model_index.json', 'v1-5-pruned.safetensors',
    'scheduler/scheduler_config.json', 'safety_checker/model.safetensors',
    'safety_checker/config.json', 'text_encoder/config.json',
    'text_encoder/model.safetensors', 'text_encoder/model.fp16.safetensors',
    'text_encoder/pytorch_model.bin', 'tokenizer/vocab.json',
    'tokenizer/merges.txt', 'unet/config.json',
    'unet/diffusion_pytorch_model.bin',
    'unet/diffusion_pytorch_model.safetensors',
    'unet/diffusion_pytorch_model.fp16.safetensors',
    'unet/diffusion_pytorch_model.non_ema.safetensors',
    'image_encoder/config.json', 'image_encoder/pytorch_model.bin',
    'text_encoder_2/model.safetensors.index.json',
    'text_encoder_2/model.safetensors.index.fp16.json',
    'text_encoder_2/model-00001-of-00002.safetensors',
    'text_encoder_2/model.fp16-00001-of-00002.safetensors']


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
  """A hub of one model, reached through huggingface_hub's own filter."""
  huggingface_hub = pytest.importorskip('huggingface_hub')
  from huggingface_hub.utils import filter_repo_objects
  calls = []

  def snapshot_download(name, revision=None, allow_patterns=None):
    files = list(filter_repo_objects(LISTING, allow_patterns=allow_patterns))
    calls.append((name, revision, files))
    folder = tmp_path / 'snapshots' / COMMIT
    for file in files:
      (folder / file).parent.mkdir(parents=True, exist_ok=True)
      (folder / file).touch()
    return str(folder)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  return calls


@pytest.mark.parametrize('variant, dot', [('', ''), ('fp16', '.fp16')])
def test_only_the_needed_files_are_downloaded(fake_hub, variant, dot):
  result = hub.locate(
      'owner/model', ('unet', 'tokenizer', 'text_encoder_2'), 'main', variant)
  assert result.revision == result.path.name == COMMIT
  (name, revision, files), = fake_hub
  assert (name, revision) == ('owner/model', 'main')
  assert set(files) == {
      'model_index.json', 'scheduler/scheduler_config.json',
      'tokenizer/vocab.json', 'tokenizer/merges.txt', 'unet/config.json',
      f'unet/diffusion_pytorch_model{dot}.safetensors',
      f'text_encoder_2/model.safetensors.index{dot}.json',
      f'text_encoder_2/model{dot}-00001-of-00002.safetensors'}


def test_a_single_model_includes_its_tokenizer(fake_hub, monkeypatch):
  alone = ['config.json', 'model.safetensors', 'vocab.json', 'merges.txt',
           'tokenizer.json', 'tokenizer_config.json', 'flax_model.msgpack']
  monkeypatch.setitem(globals(), 'LISTING', [*LISTING, *alone])
  hub.locate('owner/model')
  assert set(fake_hub[0][2]) == {'model_index.json', *alone[:-1],
                            'scheduler/scheduler_config.json'}


def test_a_model_without_safetensors_is_downloaded_as_a_pytorch_file(fake_hub):
  hub.locate('owner/model', ('image_encoder', 'unet'))
  assert [revision for _, revision, _ in fake_hub] == [None, COMMIT]
  assert 'unet/diffusion_pytorch_model.safetensors' in fake_hub[0][2]
  assert fake_hub[1][2] == ['image_encoder/pytorch_model.bin']


def test_a_deleted_id_is_an_error_without_a_request_to_the_hub(fake_hub):
  for name, words in (
      ('runwayml/stable-diffusion-v1-5', 'use stable-diffusion-v1-5/'),
      ('stabilityai/stable-diffusion-2-1-base', 'use sd2-community/')):
    with pytest.raises(ValueError, match=words):
      hub.locate(name)
  assert not fake_hub


@pytest.mark.parametrize('kind, words', [
    ('GatedRepoError', 'accept its license.*hf auth login'),
    ('RevisionNotFoundError', "no revision 'v9'"),
    ('RepositoryNotFoundError', 'neither a local folder nor a model'),
    ('LocalEntryNotFoundError', 'cannot be reached'),
    ('OfflineModeIsEnabled', 'cannot be reached'),
])
def test_errors_of_the_hub_are_user_errors(monkeypatch, kind, words):
  huggingface_hub = pytest.importorskip('huggingface_hub')
  from huggingface_hub import errors
  error = getattr(errors, kind)
  error = error.__new__(error)

  def snapshot_download(*args, **kwargs):
    raise error
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  with pytest.raises(ValueError, match=words):
    hub.locate('owner/model', revision='v9')


def test_missing_folders_are_named(tmp_path, fake_hub):
  (tmp_path / 'vae').mkdir()
  with pytest.raises(ValueError, match='has no folder unet'):
    hub.locate(tmp_path, ('vae', 'unet'))
  with pytest.raises(ValueError, match='no folder .*nowhere'):
    hub.locate(tmp_path / 'nowhere')
  assert not fake_hub


@pytest.mark.parametrize('pad', ['!', '<|endoftext|>'])
def test_texts_are_padded_with_the_token_of_the_folder(tmp_path, pad):
  ids = write_tokenizer(tmp_path, pad)
  tokens, mask = tokenizing.load_tokenizer(tmp_path, len(ids), 7)(
      ['A dog', 'dog', 'z ' * 20])
  start, end, fill_in = (ids[k] for k in ('<|startoftext|>', '<|endoftext|>',
                                          pad))
  dog = ids['dog</w>']
  np.testing.assert_array_equal(tokens, [
      [start, ids['a</w>'], dog, end, *3 * [fill_in]],
      [start, dog, end, *4 * [fill_in]],
      [start, *5 * [ids['z</w>']], end]])
  np.testing.assert_array_equal(mask.sum(1), [4, 3, 7])
  assert (tokens.dtype, mask.dtype) == (np.int32, np.float32)


def test_texts_that_are_cut_are_told(tmp_path, caplog):
  ids = write_tokenizer(tmp_path, '!')
  tokenizer = tokenizing.load_tokenizer(tmp_path, len(ids), 7)
  assert tokenizer.fits('z ' * 5) and not tokenizer.fits('z ' * 6)
  tokenizer(['z ' * 5])
  assert not caplog.text
  tokenizer(['z ' * 6])
  assert 'takes 7 tokens' in caplog.text


def test_a_tokenizer_of_another_encoder_is_a_user_error(tmp_path):
  ids = write_tokenizer(tmp_path, '!')
  for vocab in (len(ids) - 1, 49408):
    with pytest.raises(ValueError, match='missing, or it belongs to another'):
      tokenizing.load_tokenizer(tmp_path, vocab)
  (tmp_path / 'vocab.json').unlink()
  with pytest.raises(ValueError, match='no tokenizer that transformers can'):
    tokenizing.load_tokenizer(tmp_path, len(ids))
  with pytest.raises(ValueError, match='no folder .*nowhere'):
    tokenizing.load_tokenizer(tmp_path / 'nowhere', len(ids))


@pytest.mark.parametrize('listed', [
    [], 5, None, {'a': 5}, {'a': None}, {'a': '../model.safetensors'},
    {'a': '/etc/passwd'}])
def test_an_index_of_something_else_is_a_user_error(tmp_path, listed):
  files = write_shards(tmp_path, random_tensors())
  assert len(files) == 3
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': listed}))
  with pytest.raises(UserError, match='index.json lists no weights beside it'):
    hub.read(tmp_path)


@pytest.mark.parametrize('name, value', [
    ('architectures', {'a': 1}), ('architectures', 5), ('_class_name', ['x']),
    ('_class_name', 10 ** 9)])
def test_a_class_of_another_type_is_a_user_error(tmp_path, name, value):
  with pytest.raises(UserError, match="is for a 'nameless'; x reads T5"):
    hub.expect_class(hub.Folder(tmp_path, {name: value}, {}), ('T5',), 'x')


@pytest.mark.parametrize('name, value', [
    ('beta_start', 'x'), ('beta_start', -1), ('beta_end', None),
    ('beta_schedule', ['x']), ('prediction_type', 5),
    ('num_train_timesteps', 10 ** 9)])
def test_a_noise_schedule_of_other_values_is_a_user_error(
    tmp_path, name, value):
  file = tmp_path / 'scheduler' / 'scheduler_config.json'
  file.parent.mkdir()
  file.write_text(json.dumps({name: value}))
  with pytest.raises(UserError, match=f"config.json: '{name}' is .* must be"):
    hub.read_scheduler(tmp_path)


@pytest.mark.parametrize('name, content', [
    ('vocab.json', '{"a": '), ('vocab.json', '[]'), ('vocab.json', ''),
    ('merges.txt', '#version: 0.2\nx y\n'), ('tokenizer_config.json', '[]'),
    ('tokenizer_config.json', '{"tokenizer_class": 5}'),
    ('tokenizer_config.json',
     '{"tokenizer_class": "CLIPTokenizer", "pad_token": null}')])
def test_a_damaged_tokenizer_is_a_user_error(tmp_path, name, content):
  path = tmp_path / 'tokenizer'
  ids = write_tokenizer(path, '!')
  tokenize = tokenizing.load_tokenizer(path, len(ids))
  with pytest.raises(UserError, match='has 3,000 characters'):
    tokenize(['a' * 3000])
  (path / name).write_text(content)
  with pytest.raises(UserError, match='again'):
    tokenizing.load_tokenizer(path, len(ids))


@pytest.mark.parametrize('read, config', [
    (stable_diffusion.unet_config,
     {'_class_name': 'UNet2DConditionModel', **SMALL['1.5'],
      'down_block_types': [*['CrossAttnDownBlock2D'] * 3, 'DownBlock2D'],
      'up_block_types': ['UpBlock2D', *['CrossAttnUpBlock2D'] * 3]}),
    (autoencoder.autoencoder_config,
     {'_class_name': 'AutoencoderKL', **AUTOENCODER,
      'down_block_types': ['DownEncoderBlock2D'] * 4,
      'up_block_types': ['UpDecoderBlock2D'] * 4}),
    (clip.text_config, {'architectures': ['CLIPTextModel'], **TEXT_ENCODER}),
    (clip.clip_config, {'architectures': ['CLIPModel'], **CLIP_L14}),
    (t5.t5_config, {'architectures': ['T5EncoderModel'], **T5_XXL})],
    ids=['unet', 'autoencoder', 'text', 'clip', 't5'])
def test_numbers_of_configs_are_checked(tmp_path, read, config):
  """Every number and list of numbers, by values that no network has."""
  read(hub.Folder(tmp_path, config, {}))
  keys = [key for key, value in config.items() if isinstance(value, int)
          or isinstance(value, list) and isinstance(value[0], int)]
  assert keys
  for key in keys:
    for value in (0, -1, 10 ** 9, 'x', {}, [0], float('nan')):
      with pytest.raises(UserError, match=key):
        read(hub.Folder(tmp_path, {**config, key: value}, {}))


@pytest.mark.parametrize('merges', [
    '#version: 0.2\n', '#version: 0.2\nd o\n', ''])
def test_a_tokenizer_with_fewer_merges_than_words_is_refused(tmp_path, merges):
  ids = write_tokenizer(tmp_path, '!')
  (tmp_path / 'merges.txt').write_text(merges)
  with pytest.raises(UserError, match='lacks the merges of .* of the 2 words'):
    tokenizing.load_tokenizer(tmp_path, len(ids))


@pytest.mark.parametrize('change', [
    {'do': 1}, {'do': 99}, {'do': 'x'}, {'do': True}, {'do': -1}])
def test_a_vocabulary_of_other_numbers_is_refused(tmp_path, change):
  ids = write_tokenizer(tmp_path, '!')
  (tmp_path / 'vocab.json').write_text(json.dumps(ids | change))
  with pytest.raises(UserError, match='vocab.json does not number its 57'):
    tokenizing.load_tokenizer(tmp_path, len(ids))


def test_a_variant_that_no_file_has_is_told(tmp_path, caplog):
  write_network(tmp_path, random_tensors())
  hub.read(tmp_path)
  assert not caplog.text
  hub.read(tmp_path, 'fp16')
  assert 'no weights of the variant fp16; those of full' in caplog.text
  with pytest.raises(UserError, match="variant '../../x' is no part of a name"):
    hub.read(tmp_path, '../../x')


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_tokenizer_files_of_other_encodings_give_the_same_tokens(
    tmp_path, encoding):
  ids = write_tokenizer(tmp_path / 'utf-8', '!')
  write_tokenizer(tmp_path / 'other', '!')
  for name in ('vocab.json', 'merges.txt', 'tokenizer_config.json'):
    file = tmp_path / 'other' / name
    file.write_bytes(file.read_text().encode(encoding))
  (tmp_path / 'other' / 'model.safetensors').write_bytes(b'weights')
  tokens = [tokenizing.load_tokenizer(tmp_path / name, len(ids))(['a dog'])[0]
            for name in ('utf-8', 'other')]
  assert ids['dog</w>'] in tokens[0]
  np.testing.assert_array_equal(*tokens)
