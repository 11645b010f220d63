"""Open models as teachers: what they say, and whole runs of small ones."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import dreamfusion
from gen3d.diffusion import noise, open_teachers, pretrained
from gen3d.tasks import text_to_3d

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = ['a dog', 'a dog, front view', '']
# Two levels of each family: tests/models_* have all of them.
UNET = folders.SMALL['1.5'] | {
    'block_out_channels': [32, 64], 'sample_size': 8,
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D']}
PIXEL_UNET = folders.SMALL['if'] | {
    'block_out_channels': [32, 64], 'sample_size': 8,
    'down_block_types': ['ResnetDownsampleBlock2D',
                         'SimpleCrossAttnDownBlock2D'],
    'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D']}


def _scheduler(path, **config):
  (path / 'scheduler').mkdir(exist_ok=True)
  (path / 'scheduler/scheduler_config.json').write_text(json.dumps(config))


@pytest.fixture(scope='module')
def stable_diffusion(tmp_path_factory):
  """(folder, {part: PyTorch network}) of a small random pipeline."""
  path = tmp_path_factory.mktemp('checkpoints') / 'sd'
  unet = folders.save_unet(path / 'unet', UNET)
  vae = folders.save_autoencoder(path / 'vae')
  import transformers
  ids = folders.write_tokenizer(path / 'tokenizer', '<|endoftext|>')
  text = folders.jitter(transformers.CLIPTextModel(
      transformers.CLIPTextConfig(
          vocab_size=len(ids), hidden_size=24, intermediate_size=96,
          num_hidden_layers=2, num_attention_heads=3,
          eos_token_id=len(ids) - 1)))
  text.save_pretrained(path / 'text_encoder')
  _scheduler(path, beta_schedule='scaled_linear', beta_start=0.00085,
             beta_end=0.012)
  return path, {'unet': unet, 'vae': vae, 'text': text}


@pytest.fixture(scope='module')
def deepfloyd(tmp_path_factory):
  """The same of DeepFloyd IF."""
  path = tmp_path_factory.mktemp('checkpoints') / 'if'
  unet = folders.save_unet(path / 'unet', PIXEL_UNET)
  import tokenizers
  import transformers
  words = ['<pad>', '</s>', '<unk>', 'a', 'dog', ',', 'front', 'side', 'back',
           'overhead', 'view']
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='<unk>'))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  inner.post_processor = tokenizers.processors.TemplateProcessing(
      single='$A </s>', special_tokens=[('</s>', 1)])
  transformers.PreTrainedTokenizerFast(
      tokenizer_object=inner, pad_token='<pad>', eos_token='</s>',
      unk_token='<unk>').save_pretrained(path / 'tokenizer')
  text = folders.jitter(transformers.T5EncoderModel(transformers.T5Config(
      vocab_size=len(words), num_layers=2, d_model=128, num_heads=4, d_kv=8,
      d_ff=64, feed_forward_proj='gated-gelu')))
  text.save_pretrained(path / 'text_encoder')
  return path, {'unet': unet, 'text': text}


def test_a_pipeline_written_without_pytorch_is_a_teacher(tmp_path):
  folders.write_pipeline(
      tmp_path, UNET, {'block_out_channels': [32, 64], 'layers_per_block': 1,
                       'sample_size': 16},
      {'hidden_size': 24, 'intermediate_size': 96, 'num_hidden_layers': 2,
       'num_attention_heads': 3})
  teacher = pretrained.stable_diffusion_teacher(tmp_path)
  weights, text = teacher.load(), teacher.embed(TEXTS)
  x = jax.jit(teacher.encode)(
      weights, jnp.full((3, 16, 16, 3), 0.5), jax.random.key(0))
  eps = jax.jit(teacher.denoise)(weights, x, jnp.full(3, 0.5), text)
  assert x.shape == eps.shape == (3, *teacher.latent)
  assert bool(jnp.all(jnp.isfinite(eps))) and float(jnp.std(eps)) > 1e-3


@pytest.mark.parity
def test_stable_diffusion_sees_hears_and_says_what_diffusers_do(
    stable_diffusion):
  import torch
  path, peers = stable_diffusion
  teacher = pretrained.stable_diffusion_teacher(path)
  weights = teacher.load()
  tokenize = pretrained.pretrained.load_tokenizer(path / 'tokenizer', 57)
  with torch.no_grad():
    states = peers['text'](torch.tensor(tokenize(TEXTS)[0]).long())[0].numpy()
  text = teacher.embed(TEXTS)
  folders.assert_near(text['states'], states)

  images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
  key = jax.random.key(1)
  z, pull = jax.vjp(jax.jit(lambda images: teacher.encode(
      weights, images, key)), images)
  assert z.shape == (3, *teacher.latent) == (3, 8, 8, 4)
  seen = folders.to_torch(images).requires_grad_()
  large = torch.nn.functional.interpolate(seen, (32, 32), mode='bilinear')
  found = peers['vae'].encode(2 * large - 1).latent_dist
  draw = np.array(jax.random.normal(key, z.shape))
  latents = 0.18215 * (found.mean + found.std * folders.to_torch(draw))
  theirs = folders.from_torch(latents)
  folders.assert_near(z, theirs)
  latents.backward(folders.to_torch(draw))
  folders.assert_near(pull(draw)[0], folders.from_torch(seen.grad))
  with torch.no_grad():
    back = peers['vae'].decode(folders.to_torch(theirs) / 0.18215).sample
  folders.assert_near(jax.jit(teacher.decode)(weights, theirs),
                      folders.from_torch(back) / 2 + 0.5)

  steps = np.array([20, 500, 979])
  x_t = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)
  eps = jax.jit(teacher.denoise)(
      weights, x_t, noise.from_step(steps), {'states': states})
  with torch.no_grad():
    said = peers['unet'](folders.to_torch(x_t), torch.tensor(steps),
                         torch.tensor(states)).sample
  folders.assert_near(eps, folders.from_torch(said))
  import diffusers
  theirs = diffusers.DDIMScheduler(
      beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)
  np.testing.assert_allclose(
      teacher.schedule.alpha(noise.from_step(steps)) ** 2,
      theirs.alphas_cumprod[steps], rtol=1e-4)


@pytest.mark.parity
def test_deepfloyd_hears_and_says_what_diffusers_do(deepfloyd):
  import torch
  path, peers = deepfloyd
  teacher = pretrained.deepfloyd_teacher(path)
  tokenize = pretrained.pretrained.load_tokenizer(path / 'tokenizer', 11)
  tokens, mask = tokenize(TEXTS)
  assert mask.sum(1).tolist() == [3, 6, 1]
  with torch.no_grad():
    states = peers['text'](torch.tensor(tokens).long(), torch.tensor(
        mask)).last_hidden_state.numpy()
  text = teacher.embed(TEXTS)
  folders.assert_near(text['states'], states)
  steps = np.array([20, 500, 979])
  x_t = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
  eps = jax.jit(teacher.denoise)(
      teacher.load(), x_t, noise.from_step(steps), text)
  with torch.no_grad():
    said = peers['unet'](folders.to_torch(x_t), torch.tensor(steps),
                         torch.tensor(states)).sample
  folders.assert_near(eps, folders.from_torch(said[:, :3]))
  images = jnp.full((1, 4, 4, 3), 0.25)
  np.testing.assert_allclose(
      teacher.encode({}, images, None), np.full((1, 8, 8, 3), -0.5))


def test_a_network_may_say_v(tmp_path):
  unet = SimpleNamespace(
      config=SimpleNamespace(side=4, in_channels=3),
      apply=lambda weights, x, step, states: 2 * x)
  _scheduler(tmp_path, prediction_type='v_prediction',
             beta_schedule='squaredcos_cap_v2')
  schedule, prediction = pretrained._noise(tmp_path, 'scaled_linear', '')
  teacher = pretrained.network_teacher(
      unet, None, schedule, prediction, None, None)
  x_t, t = np.random.default_rng(0).normal(size=(2, 4, 4, 3)), np.array(
      [0.3, 0.6])
  squared = noise.squared_cosine()[[299, 599]][:, None, None, None]
  np.testing.assert_allclose(
      teacher.denoise({'unet': {}}, x_t, t, {'states': None}),
      np.sqrt(squared) * 2 * x_t + np.sqrt(1 - squared) * x_t, rtol=1e-5)
  # The user's word counts for more than the folder's.
  assert pretrained._noise(tmp_path, 'scaled_linear', 'epsilon')[1] == (
      'epsilon')
  with pytest.raises(ValueError, match="'sample'.*'v_prediction'"):
    pretrained._noise(tmp_path, 'scaled_linear', 'sample')


@pytest.mark.parity
def test_the_text_encoder_is_let_go_of(deepfloyd):
  path, peers = deepfloyd
  teacher = pretrained.deepfloyd_teacher(path)
  size = lambda: sum(x.nbytes for x in jax.live_arrays())
  before = size()
  text = teacher.embed(TEXTS)
  encoder = 4 * sum(p.numel() for p in peers['text'].parameters())
  assert size() - before < text['states'].nbytes + encoder / 10


def test_texts_are_remembered(tmp_path):
  asked = []

  def make(rows):
    asked.append(rows.tolist())
    return np.stack([np.full((2, 3), row, np.float32) for row in rows])

  remember = lambda *names: open_teachers.remember(
      list(names), make, tmp_path)[:, 0, 0].tolist()
  assert remember('a', 'b', 'b') == [0, 2, 2]
  assert remember('b', 'c', 'a') == [2, 1, 0]
  assert remember('b', 'a') == [2, 0]
  assert asked == [[0, 2], [1]]
  (tmp_path / 'b.npz').write_bytes(b'PK not a whole file')
  assert remember('b', 'a') == [0, 0]


@pytest.mark.parity
def test_another_encoder_or_dtype_is_another_memory(
    stable_diffusion, tmp_path):
  path = shutil.copytree(stable_diffusion[0], tmp_path / 'sd')
  seen = []

  def remember(names, make):
    seen.append(names)
    return np.zeros((len(names), 77, 24), np.float32)

  def ask(**options):
    pretrained.stable_diffusion_teacher(
        path, remember=remember, **options).embed(['a dog', 'dog'])
    return seen[-1]

  first = ask()
  assert ask() == first and first[0] != first[1]
  assert ask(dtype=jnp.bfloat16)[0] != first[0]
  folders.jitter(stable_diffusion[1]['text']).save_pretrained(
      path / 'text_encoder')
  assert ask()[0] != first[0]


@pytest.mark.parity
@pytest.mark.parametrize('break_it, words', [
    (lambda p: (p / 'unet/config.json').unlink(), 'unet has no config.json'),
    (lambda p: shutil.rmtree(p / 'vae'), 'has no folder vae'),
    (lambda p: (p / 'tokenizer/vocab.json').unlink(), 'no tokenizer that'),
    (lambda p: _edit(p / 'vae/config.json', latent_channels=8), '8 channels'),
    (lambda p: _edit(p / 'unet/config.json', cross_attention_dim=32),
     'width 24 .* takes 32')])
def test_folders_that_do_not_fit(stable_diffusion, tmp_path, break_it, words):
  path = shutil.copytree(stable_diffusion[0], tmp_path / 'sd')
  break_it(path)
  with pytest.raises(ValueError, match=words):
    open_teachers.stable_diffusion(path=str(path))


def _edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parity
def test_the_other_family_gets_a_sentence(stable_diffusion, deepfloyd):
  with pytest.raises(ValueError, match='DeepFloyd IF by deepfloyd'):
    open_teachers.deepfloyd(path=str(stable_diffusion[0]))
  with pytest.raises(ValueError, match='no folder vae'):
    open_teachers.stable_diffusion(path=str(deepfloyd[0]))
  with pytest.raises(ValueError, match='bfloat16 on an NVIDIA GPU'):
    open_teachers.deepfloyd(path=str(deepfloyd[0]), flash=True)
  with pytest.raises(ValueError, match="dtype 'float8'"):
    open_teachers.deepfloyd(path=str(deepfloyd[0]), dtype='float8')


SMALL = {'steps': 2, 'views': 2, 'scene.samples': 6, 'scene.size': 16,
         'scene.importance.samples': 4, 'scene.field.resolution': 8,
         'scene.field.features': 4, 'export.resolution': 16,
         'export.size': 16, 'export.frames': 8}


def _run(module, *flags, cache):
  done = subprocess.run(
      [sys.executable, '-m', f'gen3d.{module}', *flags], cwd=ROOT,
      capture_output=True, text=True, timeout=600,
      env={**os.environ, 'GEN3D_CACHE': str(cache)})
  assert done.returncode == 0, done.stderr[-3000:]
  return done


@pytest.mark.parity
@pytest.mark.parametrize('variant', ['sd', 'if'])
def test_from_a_checkpoints_folder_to_an_object(variant, request, tmp_path):
  name = dreamfusion.get_config(variant).teacher.name
  path = shutil.copytree(request.getfixturevalue(name)[0], tmp_path / name)
  workdir = tmp_path / 'run'
  done = _run(
      'train', f'--config=configs/dreamfusion.py:{variant}',
      f'--config.teacher.path={path}', '--config.prompt=a dog',
      f'--workdir={workdir}',
      *(f'--config.{key}={value}' for key, value in SMALL.items()),
      cache=tmp_path / 'cache')
  assert 'on 2 cpu device(s)' in done.stderr
  files = [pathlib.Path(line) for line in done.stdout.splitlines()]
  assert [f.name for f in files] == ['turntable.mp4', 'preview.png',
                                     'mesh.glb', 'mesh.ply']
  assert all(f.stat().st_size > 100 for f in files)
  scalars = [json.loads(line) for line in
             (workdir / 'scalars.jsonl').read_text().splitlines()]
  norms = [line['sds/grad_norm'] for line in scalars if 'sds/grad_norm' in line]
  assert norms and min(norms) > 0.1
  # Four views and the empty prompt, which is the negative one, too.
  assert len(list((tmp_path / 'cache/embeddings').glob('*.npz'))) == 5
  shutil.rmtree(path)
  scene, params, config = text_to_3d.load_run(workdir)
  assert config.teacher.name == name
  assert scene.query(params, jnp.zeros((1, 3)))[0][0] > 1


@pytest.mark.parity
def test_generate_samples_an_open_model(stable_diffusion, tmp_path):
  _run('generate', '--teacher=stable_diffusion', '--prompts=a dog;dog',
       f'--path={stable_diffusion[0]}', '--negative_prompt=a', '--steps=2',
       f'--out={tmp_path}/out', cache=tmp_path / 'cache')
  first, second = (np.asarray(Image.open(tmp_path / f'out/{i:04d}.png'))
                   for i in range(2))
  assert first.shape == (32, 32, 3) and first.std() > 1
  assert np.abs(first.astype(int) - second).max() > 5
