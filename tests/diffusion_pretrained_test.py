"""Published models as teachers: parity with diffusers, and complete runs."""

import json
import os
import pathlib
import shutil
from types import SimpleNamespace

import checkpoint_folders as folders
import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import dreamfusion
from gen3d.diffusion import noise, pretrained
from gen3d.tasks import text_to_3d
from gen3d.weights import tokenizing

TEXTS = ['a dog', 'a dog, front view', '']
# Two levels of each family: tests/models_* have all of them.
UNET = folders.SMALL['1.5'] | {
    'block_out_channels': [32, 64], 'sample_size': 8,
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D']}


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
  return path, folders.save_small_deepfloyd(path)


def test_a_pipeline_without_pytorch_files_is_a_teacher(tmp_path):
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
def test_stable_diffusion_teacher_equals_diffusers(
    stable_diffusion):
  import torch
  path, peers = stable_diffusion
  teacher = pretrained.stable_diffusion_teacher(path)
  weights = teacher.load()
  tokenize = tokenizing.load_tokenizer(path / 'tokenizer', 57)
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
      weights, x_t, (steps + 1) / 1000, {'states': states})
  with torch.no_grad():
    output = peers['unet'](folders.to_torch(x_t), torch.tensor(steps),
                         torch.tensor(states)).sample
  folders.assert_near(eps, folders.from_torch(output))
  import diffusers
  theirs = diffusers.DDIMScheduler(
      beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)
  np.testing.assert_allclose(
      teacher.schedule.alpha((steps + 1) / 1000) ** 2,
      theirs.alphas_cumprod[steps], rtol=1e-4)


CONTROL = {key: value for key, value in UNET.items()
           if key not in ('up_block_types', 'sample_size')} | {
               'conditioning_embedding_out_channels': [4, 8, 12]}


@pytest.mark.parity
def test_depth_conditioned_teacher_equals_diffusers(
    stable_diffusion, tmp_path):
  import torch
  path, peers = stable_diffusion
  peer = folders.save_control(tmp_path / 'control', CONTROL)
  teacher = pretrained.stable_diffusion(
      path=str(path), control=str(tmp_path / 'control'))
  weights = teacher.load()
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  x_t, states, steps = draw(2, 8, 8, 4), draw(2, 7, 24), np.array([20, 979])
  maps = rng.random((2, 32, 32, 1), np.float32)
  maps[1] = 0
  text = teacher.add_depth(weights, {'states': states}, maps)
  eps = jax.jit(teacher.denoise)(weights, x_t, (steps + 1) / 1000, text)
  with torch.no_grad():
    inputs = (folders.to_torch(x_t), torch.tensor(steps),
              torch.tensor(states))
    down, middle = peer(*inputs, folders.to_torch(maps.repeat(3, -1)),
                        return_dict=False)
    theirs = peers['unet'](*inputs, down_block_additional_residuals=down,
                           mid_block_additional_residual=middle).sample
    plain = peers['unet'](*inputs).sample
  # A map of zeros is no condition.
  theirs[1] = plain[1]
  folders.assert_near(eps, folders.from_torch(theirs))
  assert (theirs - plain)[0].abs().max() > 1e-2
  folders.assert_near(jax.jit(teacher.denoise)(
      weights, x_t, (steps + 1) / 1000, {'states': states}),
      folders.from_torch(plain))


@pytest.mark.parity
@pytest.mark.parametrize('changes, words', [
    ({'cross_attention_dim': 32}, 'cross_attention_dim 32 .*24'),
    ({'_class_name': 'T2IAdapter'}, "'T2IAdapter'"),
    ({'addition_embed_type': 'text_time'}, 'addition_embed_type')])
def test_a_control_net_of_another_family_raises(
    stable_diffusion, tmp_path, changes, words):
  (tmp_path / 'config.json').write_text(json.dumps(
      CONTROL | {'_class_name': 'ControlNetModel'} | changes))
  # Without weights: none are read before the config is checked.
  (tmp_path / 'model.safetensors').write_bytes(
      b'\x02\0\0\0\0\0\0\0{}')
  with pytest.raises(ValueError, match=words):
    pretrained.stable_diffusion(
        path=str(stable_diffusion[0]), control=str(tmp_path))
  with pytest.raises(ValueError, match='There is no folder'):
    pretrained.stable_diffusion(
        path=str(stable_diffusion[0]), control=str(tmp_path / 'none'))


@pytest.mark.parity
def test_deepfloyd_teacher_equals_diffusers(deepfloyd):
  import torch
  path, peers = deepfloyd
  teacher = pretrained.deepfloyd_teacher(path)
  tokenize = tokenizing.load_tokenizer(path / 'tokenizer', 11)
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
      teacher.load(), x_t, (steps + 1) / 1000, text)
  with torch.no_grad():
    output = peers['unet'](folders.to_torch(x_t), torch.tensor(steps),
                         torch.tensor(states)).sample
  folders.assert_near(eps, folders.from_torch(output[:, :3]))
  images = jnp.full((1, 4, 4, 3), 0.25)
  np.testing.assert_allclose(
      teacher.encode({}, images, None), np.full((1, 8, 8, 3), -0.5))


def test_v_prediction_is_converted_to_eps(tmp_path):
  unet = SimpleNamespace(
      config=SimpleNamespace(side=4, in_channels=3),
      apply=lambda weights, x, step, states: 2 * x)
  _scheduler(tmp_path, prediction_type='v_prediction',
             beta_schedule='squaredcos_cap_v2')
  schedule, prediction = pretrained.noise_schedule(
      tmp_path, 'scaled_linear', '')
  teacher = pretrained.network_teacher(
      unet, None, schedule, prediction, None, None)
  x_t, t = np.random.default_rng(0).normal(size=(2, 4, 4, 3)), np.array(
      [0.3, 0.6])
  squared = noise.squared_cosine()[[299, 599]][:, None, None, None]
  np.testing.assert_allclose(
      teacher.denoise({'unet': {}}, x_t, t, {'states': None}),
      np.sqrt(squared) * 2 * x_t + np.sqrt(1 - squared) * x_t, rtol=1e-5)
  # The user's setting takes precedence over the folder's.
  assert pretrained.noise_schedule(tmp_path, 'scaled_linear', 'epsilon')[1] == (
      'epsilon')
  with pytest.raises(ValueError, match="'sample'.*'v_prediction'"):
    pretrained.noise_schedule(tmp_path, 'scaled_linear', 'sample')


@pytest.mark.parity
def test_text_encoder_is_freed_after_embed(deepfloyd):
  path, peers = deepfloyd
  teacher = pretrained.deepfloyd_teacher(path)
  size = lambda: sum(x.nbytes for x in jax.live_arrays())
  before = size()
  text = teacher.embed(TEXTS)
  encoder = 4 * sum(p.numel() for p in peers['text'].parameters())
  assert size() - before < text['states'].nbytes + encoder / 10


def test_embeddings_are_cached_on_disk(tmp_path):
  computed = []

  def compute(rows):
    computed.append(rows.tolist())
    return np.stack([np.full((2, 3), row, np.float32) for row in rows])

  cached = lambda *names: pretrained.disk_cached(
      list(names), compute, tmp_path)[:, 0, 0].tolist()
  assert cached('a', 'b', 'b') == [0, 2, 2]
  assert cached('b', 'c', 'a') == [2, 1, 0]
  assert cached('b', 'a') == [2, 0]
  assert computed == [[0, 2], [1]]
  (tmp_path / 'b.npz').write_bytes(b'PK not a whole file')
  assert cached('b', 'a') == [0, 0]


@pytest.mark.parity
def test_cache_names_depend_on_encoder_and_dtype(
    stable_diffusion, tmp_path):
  path = shutil.copytree(stable_diffusion[0], tmp_path / 'sd')
  calls = []

  def cache(names, compute):
    calls.append(names)
    return np.zeros((len(names), 77, 24), np.float32)

  def names_of(**options):
    pretrained.stable_diffusion_teacher(
        path, cache=cache, **options).embed(['a dog', 'dog'])
    return calls[-1]

  first = names_of()
  assert names_of() == first and first[0] != first[1]
  assert names_of(dtype=jnp.bfloat16)[0] != first[0]
  folders.jitter(stable_diffusion[1]['text']).save_pretrained(
      path / 'text_encoder')
  assert names_of()[0] != first[0]


@pytest.mark.parity
@pytest.mark.parametrize('break_it, words', [
    (lambda p: (p / 'unet/config.json').unlink(), 'unet has no config.json'),
    (lambda p: shutil.rmtree(p / 'vae'), 'has no folder vae'),
    (lambda p: (p / 'tokenizer/vocab.json').unlink(), 'no tokenizer that'),
    (lambda p: _edit(p / 'vae/config.json', latent_channels=8), '8 channels'),
    (lambda p: _edit(p / 'unet/config.json', cross_attention_dim=32),
     'width 24 .* takes 32')])
def test_inconsistent_folders_raise(
    stable_diffusion, tmp_path, break_it, words):
  path = shutil.copytree(stable_diffusion[0], tmp_path / 'sd')
  break_it(path)
  with pytest.raises(ValueError, match=words):
    pretrained.stable_diffusion(path=str(path))


def _edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parity
def test_a_checkpoint_of_the_other_family_raises(stable_diffusion, deepfloyd):
  with pytest.raises(ValueError, match='DeepFloyd IF by deepfloyd'):
    pretrained.deepfloyd(path=str(stable_diffusion[0]))
  with pytest.raises(ValueError, match='no folder vae'):
    pretrained.stable_diffusion(path=str(deepfloyd[0]))
  with pytest.raises(ValueError, match='bfloat16 on an NVIDIA GPU'):
    pretrained.deepfloyd(path=str(deepfloyd[0]), flash=True)
  with pytest.raises(ValueError, match="dtype 'float8'"):
    pretrained.deepfloyd(path=str(deepfloyd[0]), dtype='float8')


SMALL = {'steps': 2, 'views': 2, 'scene.samples': 6, 'scene.size': 16,
         'scene.importance.samples': 4, 'scene.field.resolution': 8,
         'scene.field.features': 4, 'export.resolution': 16,
         'export.size': 16, 'export.frames': 8}


def _run(module, *flags, cache):
  done = commands.run(f'gen3d.{module}', *flags, env={
      **os.environ, 'GEN3D_CACHE': str(cache)})
  assert done.returncode == 0, done.stderr[-3000:]
  return done


@pytest.mark.parity
@pytest.mark.parametrize('variant', ['sd', 'if'])
def test_train_exports_an_object_from_a_checkpoint_folder(
    variant, request, tmp_path):
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
  assert len(scene.mesh(params, 16, 1.0).faces) > 0


@pytest.mark.parity
def test_samples_of_a_published_model(stable_diffusion, tmp_path):
  _run('sample', '--teacher=stable_diffusion', '--prompts=a dog;dog',
       f'--path={stable_diffusion[0]}', '--negative_prompt=a', '--steps=2',
       f'--out={tmp_path}/out', cache=tmp_path / 'cache')
  first, second = (np.asarray(Image.open(tmp_path / f'out/{i:04d}.png'))
                   for i in range(2))
  assert first.shape == (32, 32, 3) and first.std() > 1
  assert np.abs(first.astype(int) - second).max() > 5
