"""Stable Diffusion in one file, and LoRA files: the folder's weights again."""

import json
import shutil
import time

import checkpoint_folders
import numpy as np
import pytest
import single_files
import torch_state
from official_pickles import Name
from PIL import Image
from safetensors import numpy as safetensors

from gen3d.choices import UserError
from gen3d.diffusion import pretrained
from gen3d.evaluation import samples
from gen3d.models import autoencoder, clip
from gen3d.models import stable_diffusion as sd
from gen3d.weights import hub, lora, single_file

PARTS = ('unet', 'vae', 'text_encoder')
LEVELS = {'block_out_channels': [32, 64, 64, 96], 'layers_per_block': 2}


@pytest.fixture(scope='module', params=['1.x', '2.x'])
def folder(request, tmp_path_factory):
  """A small Stable Diffusion with the heads that single files imply."""
  second = request.param == '2.x'
  path = tmp_path_factory.mktemp('sd')
  unet = LEVELS | {'cross_attention_dim': 128, 'sample_size': 64} | (
      {'attention_head_dim': [1, 1, 1, 1], 'use_linear_projection': True}
      if second else {'attention_head_dim': 8})
  checkpoint_folders.write_pipeline(
      path, unet, {'block_out_channels': [32, 64, 64], 'layers_per_block': 1,
                   'sample_size': 512},
      {'hidden_size': 128, 'intermediate_size': 512, 'num_hidden_layers': 2,
       'num_attention_heads': 2,
       'hidden_act': 'gelu' if second else 'quick_gelu'})
  return path


@pytest.fixture(scope='module')
def single(folder, tmp_path_factory):
  file = tmp_path_factory.mktemp('single') / 'v1-5.safetensors'
  single_files.write(file, folder)
  return file


def check_equal(file, folder):
  for part in PARTS:
    ours, theirs = hub.read_part(file, part), hub.read(folder / part)
    extra = {'position_ids'}
    assert {*ours.tensors} == {*theirs.tensors} - extra
    for name in theirs.tensors:
      np.testing.assert_array_equal(
          ours.tensors[name], theirs.tensors[name], err_msg=name)
    read = {'unet': sd.unet_config, 'vae': autoencoder.autoencoder_config,
            'text_encoder': clip.text_config}[part]
    assert read(ours) == read(theirs)


def test_a_single_file_has_the_tensors_and_configs_of_the_folder(
    single, folder):
  check_equal(single, folder)


def test_a_checkpoint_of_lightning_is_read_and_runs_nothing(single, folder):
  tensors = safetensors.load_file(single)
  file = torch_state.save(
      single.with_suffix('.ckpt'), tensors, 'state_dict', global_step=5,
      callbacks={Name('pytorch_lightning.callbacks.model_checkpoint',
                      'ModelCheckpoint'): {'best': 1}})
  check_equal(file, folder)


def test_configs_of_a_pipeline_beside_the_file_are_used(
    single, folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / 'sd')
  shutil.copy(single, copy / 'v1-5.safetensors')
  config = copy / 'unet' / 'config.json'
  content = json.loads(config.read_text())
  config.write_text(json.dumps(content | {'sample_size': 24}))
  found = hub.read_part(copy / 'v1-5.safetensors', 'unet')
  assert found.config['sample_size'] == 24
  assert pretrained.stable_diffusion_teacher(
      copy / 'v1-5.safetensors').latent == (24, 24, 4)


def test_a_teacher_of_a_single_file_needs_the_tokenizer_beside_it(
    single, folder, monkeypatch):
  second = hub.read_part(single, 'unet').config['use_linear_projection']
  options = {'prediction': 'v_prediction'} if second else {}
  monkeypatch.setattr(hub, '_download', lambda *args: _raise_offline())
  with pytest.raises(UserError, match='holds no tokenizer.*tokenizer. into'):
    pretrained.stable_diffusion_teacher(single, **options)
  shutil.copytree(folder / 'tokenizer', single.parent / 'tokenizer')
  teacher = pretrained.stable_diffusion_teacher(single, **options)
  assert teacher.latent == ((96, 96, 4) if second else (64, 64, 4))
  if second:
    with pytest.raises(UserError, match='prediction=v_prediction'):
      pretrained.stable_diffusion_teacher(single)


def _raise_offline():
  raise UserError('the hub cannot be reached.')


@pytest.mark.parametrize('lose, words', [
    ('first_stage_model.', 'no autoencoder'),
    ('cond_stage_model.', 'no text encoder'),
    ('model.diffusion_model.', 'no U-Net'),
    ('model.diffusion_model.output_blocks.', 'no tensor output_blocks')])
def test_files_of_a_part_are_refused_by_name(single, tmp_path, lose, words):
  file = tmp_path / 'part.safetensors'
  safetensors.save_file(
      {name: x for name, x in safetensors.load_file(single).items()
       if not name.startswith(lose)}, file)
  with pytest.raises(UserError, match=f'part.safetensors .*{words}'):
    hub.read_part(file, 'vae')


@pytest.mark.parametrize('name, words', [
    ('conditioner.embedders.0.x', 'Stable Diffusion XL'),
    ('unet.a.lora_A.weight', 'LoRA'), ('x', 'no U-Net')])
def test_other_single_files_are_named(tmp_path, name, words):
  safetensors.save_file({name: np.zeros(2, np.float32)},
                        tmp_path / 'a.safetensors')
  with pytest.raises(UserError, match=f'a.safetensors is .*{words}'):
    hub.read_part(tmp_path / 'a.safetensors', 'unet')
  with pytest.raises(UserError, match='a.safetensors is a file'):
    hub.locate(tmp_path / 'a.safetensors', ['unet', 'text_encoder'])


def lora_file(path, folder, style):
  """A LoRA of two matrices and a convolution; returns {part: {name: W}}."""
  rng = np.random.default_rng(0)
  unet = 'down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0'
  text = 'text_model.encoder.layers.1.mlp.fc1'
  conv = 'up_blocks.1.resnets.0.conv1'
  stored, expected = {}, {'unet': {}, 'text_encoder': {}}
  for part, name in (('unet', unet), ('unet', conv), ('text_encoder', text)):
    whole = np.float32(hub.read(folder / part).tensors[f'{name}.weight'])
    down = rng.normal(size=(3, *whole.shape[1:])).astype(np.float32)
    up = rng.normal(size=(len(whole), 3, *(1 for _ in whole.shape[2:]))).astype(
        np.float32)
    product = np.einsum('or,ri->oi', up.reshape(-1, 3), down.reshape(3, -1))
    alpha = 3.0
    if style == 'kohya':
      alpha = 1.5
      prefix = {'unet': 'lora_unet_', 'text_encoder': 'lora_te_'}[part]
      key = prefix + name.replace('.', '_')
      stored |= {f'{key}.alpha': np.array(alpha, np.float32),
                 f'{key}.lora_down.weight': down, f'{key}.lora_up.weight': up}
    elif style in ('peft', 'peft alone'):
      prefix = f'{part}.' if style == 'peft' else 'base_model.model.'
      stored |= {f'{prefix}{name}.lora_A.weight': down,
                 f'{prefix}{name}.lora_B.weight': up}
    elif style == 'attention processors' and name == unet:
      key = name.removesuffix('.to_out.0')
      stored |= {f'{key}.processor.to_out_lora.down.weight': down,
                 f'{key}.processor.to_out_lora.up.weight': up}
    elif style == 'diffusers':
      key = f'{part}.{name.removesuffix(".0")}'
      stored |= {f'{key}.lora.down.weight': down, f'{key}.lora.up.weight': up}
    else:
      continue
    expected[part][f'{name}.weight'] = (
        whole + 0.5 * alpha / 3 * product.reshape(whole.shape))
  safetensors.save_file(stored, path)
  return expected


@pytest.mark.parametrize('style', [
    'kohya', 'peft', 'peft alone', 'diffusers', 'attention processors'])
def test_a_lora_adds_its_products_and_nothing_else(folder, tmp_path, style):
  file = tmp_path / 'style.safetensors'
  expected = lora_file(file, folder, style)
  for part in PARTS:
    plain = hub.read(folder / part).tensors
    changed = hub.read_part(folder, part, changes=f'{file}:0.5').tensors
    assert {*plain} == {*changed}
    for name in plain:
      target = expected.get(part, {}).get(name)
      if target is None:
        np.testing.assert_array_equal(changed[name], plain[name])
      else:
        np.testing.assert_allclose(changed[name], target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name, other, words', [
    ('unet.down_blocks.9.to_q.lora_A.weight',
     'unet.down_blocks.9.to_q.lora_B.weight', 'changes down_blocks.9.to_q'),
    ('unet.down_blocks.0.to_q.lora_A.weight', 'unet.conv_in.lora_A.weight',
     'only one of two factors'),
    ('lora_te2_a.lora_down.weight', 'lora_te2_a.lora_up.weight',
     'not of a U-Net'),
    ('lora_unet_a.hada_w1_a', 'lora_unet_a.hada_w1_b', 'LoHa'),
    ('unet.conv_in.lora_A.weight', 'unet.conv_in.lora_B.weight',
     'LoRA of another model')])
def test_a_lora_that_does_not_fit_is_refused_by_name(
    folder, tmp_path, name, other, words):
  safetensors.save_file({x: np.ones((2, 2), np.float32)
                         for x in (name, other)}, tmp_path / 'a.safetensors')
  with pytest.raises(UserError, match=f'a.safetensors.*{words}'):
    dict(hub.read_part(
        folder, 'unet', changes=f'{tmp_path}/a.safetensors').tensors)


@pytest.mark.parametrize('changed, words', [
    ({'alpha': np.zeros(0)}, 'alpha is no finite number'),
    ({'alpha': np.array(np.nan)}, 'alpha is no finite number'),
    ({'lora_A.weight': np.zeros((0, 8)), 'lora_B.weight': np.zeros((8, 0))},
     'are no matrices'),
    ({'lora_B.weight': np.full((8, 4), np.nan)}, 'not finite'),
    ({'lora_A.weight': np.array(1.0)}, 'are no matrices')])
def test_factors_that_are_none_are_named(changed, words):
  factors = {'lora_A.weight': np.zeros((4, 8)),
             'lora_B.weight': np.zeros((8, 4)), **changed}
  with pytest.raises(UserError, match=f'a.safetensors: unet.x.*{words}'):
    lora.read('a.safetensors', {
        f'unet.x.{name}': x for name, x in factors.items()}, 1.0)


@pytest.mark.parametrize('change', [
    lambda names: {n: x for n, x in names.items() if 'attn2.to_k' not in n},
    lambda names: {n: x for n, x in names.items() if 'proj_in' not in n}])
def test_files_without_some_layers_are_named(single, change):
  stored = hub._stored(single)
  with pytest.raises(UserError, match='is cut off, or of another model'):
    single_file.parts('a.safetensors', change(stored))


def test_an_absurd_number_of_blocks_takes_no_time(single):
  stored = hub._stored(single)
  name = 'model.diffusion_model.output_blocks.300000000.0.bias'
  begin = time.process_time()
  parts = single_file.parts('a.safetensors', stored | {
      name: next(iter(stored.values()))})
  assert len(parts['unet'].readers) == 687
  assert time.process_time() - begin < 20


def test_the_scale_of_a_lora_follows_its_path():
  assert lora.parse('a/b.safetensors') == ('a/b.safetensors', 1.0)
  assert lora.parse('a/b.safetensors:0.75') == ('a/b.safetensors', 0.75)
  for setting in ('a.safetensors:x', 'a.safetensors:nan', ':1'):
    with pytest.raises(UserError, match='PATH:SCALE'):
      lora.parse(setting)


@pytest.mark.parametrize('stem', [
    'diffusion_pytorch_model', 'diffusion_pytorch_model.fp16',
    'pytorch_model', 'pytorch_model.fp16'])
def test_pytorch_files_of_both_stems_and_variants_are_read(tmp_path, stem):
  tensors = checkpoint_folders.random_tensors()
  checkpoint_folders.write_network(tmp_path, tensors)
  torch_state.save(tmp_path / f'{stem}.bin', {'x': np.zeros(2)})
  assert {*hub.read(tmp_path).tensors} == {*tensors}
  (tmp_path / 'model.safetensors').unlink()
  assert {*hub.read(tmp_path).tensors} == {'x'}


@pytest.mark.parametrize('folder', ['1.x'], indirect=True)
def test_a_single_file_gives_the_picture_of_the_folder_and_a_lora_another(
    single, folder, tmp_path):
  """By gen3d sample's own function, in few pixels."""
  folder = shutil.copytree(folder, tmp_path / 'folder')
  config = folder / 'unet' / 'config.json'
  config.write_text(json.dumps(
      json.loads(config.read_text()) | {'sample_size': 8}))
  file = tmp_path / 'model' / single.name
  shutil.copytree(folder / 'tokenizer', file.parent / 'tokenizer')
  (file.parent / 'unet').mkdir()
  shutil.copy(config, file.parent / 'unet')
  shutil.copy(single, file)
  lightning = torch_state.save(
      file.with_suffix('.ckpt'), safetensors.load_file(single), 'state_dict')
  rng = np.random.default_rng(0)
  layer = 'unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q'
  safetensors.save_file({
      f'{layer}.lora_A.weight': rng.normal(size=(2, 32)).astype(np.float32),
      f'{layer}.lora_B.weight': rng.normal(size=(32, 2)).astype(np.float32)},
      tmp_path / 'style.safetensors')

  def picture(path, lora=''):
    samples.export(
        {'name': 'stable_diffusion', 'path': str(path), 'lora': lora,
         'prediction': 'epsilon'}, ['a dog'], tmp_path / 'out',
        guidance_scale=1.0, steps=1)
    return np.asarray(Image.open(tmp_path / 'out' / '0000.png'), int)

  expected = picture(folder)
  assert expected.std() > 1
  np.testing.assert_array_equal(picture(file), expected)
  np.testing.assert_array_equal(picture(lightning), expected)
  other = picture(file, f'{tmp_path}/style.safetensors:0.5')
  assert np.abs(other - expected).max() > 1
