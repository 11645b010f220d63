"""Small right files of every kind that gen3d reads, and what it reads."""

import json
import pathlib
import shutil
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import checkpoint_folders
import jax
import jax.numpy as jnp
import numpy as np
import official_pickles
import posed_layouts
import torch_state
import toy_config
import toy_task
import trimesh
from PIL import Image
from safetensors import numpy as safetensors

from gen3d import assets
from gen3d.data.captures import posed
from gen3d.data.images import dataset, label_files
from gen3d.diffusion import pretrained
from gen3d.engine import checkpoints, loop
from gen3d.gan import inference
from gen3d.io import meshes
from gen3d.models import nvidia, stylegan2
from gen3d.ops.mesh import Mesh
from gen3d.weights import hub, tokenizing, torch_files


class Subject(NamedTuple):
  """A kind of input.

  Attributes:
    make: writes right files into a folder.
    read: folder -> what gen3d reads, which is compared.
  """
  make: Callable[[pathlib.Path], Any]
  read: Callable[[pathlib.Path], Any]


def _capture(write, cameras):
  def make(folder):
    folder.mkdir(exist_ok=True)
    c2w = cameras()
    write(folder, c2w, posed_layouts.points_in_front(c2w)[0])
  return Subject(make, read_capture)


def _dialect(folder):
  folder.mkdir(exist_ok=True)
  posed_layouts.write_dialect(folder, posed_layouts.around())


def read_capture(folder):
  scene = posed.open_posed(folder)
  return tuple(scene.camera), scene.images, scene.near, scene.far, scene.box


def write_images(folder, count=6, side=16):
  rng = np.random.default_rng(0)
  labels = []
  for i in range(count):
    name = f'00000/img{i:08d}.png'
    path = folder / 'set' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(path)
    pose = np.eye(4)
    pose[:3, 3] = rng.normal(size=3)
    labels.append([name, [*pose.ravel().tolist(), 1.5, 0, 0.5, 0, 1.5, 0.5, 0,
                          0, 1]])
  (folder / 'set' / 'dataset.json').write_text(json.dumps({'labels': labels}))


def write_zip(folder):
  write_images(folder)
  with zipfile.ZipFile(folder / 'set.zip', 'w') as archive:
    for file in sorted((folder / 'set').rglob('*.*')):
      archive.write(file, file.relative_to(folder / 'set'))
  shutil.rmtree(folder / 'set')


def read_images(folder):
  path = folder / 'set'
  images = dataset.open_images(path if path.is_dir() else folder / 'set.zip')
  dataset.check(images)
  return images.labels, [images.pixels(i) for i in range(len(images.names))]


def read_label(folder):
  return tuple(label_files.read_camera(
      folder / 'set' / 'dataset.json', 'x/00000/img00000001.png'))


def _write_weights(folder):
  rng = np.random.default_rng(0)
  assets.save(folder / 'w.safetensors', {
      'a': {'kernel': rng.normal(size=(4, 5)), 'bias': np.zeros(5)}},
      {'model': 'w', 'config': {'task': 'gan', 'size': 5}, 'steps': 9})


def _write_network(folder):
  """The smallest shipped generator, with a record of an earlier version."""
  for suffix in ('.safetensors', '.json'):
    content = (assets.FOLDER / f'giraffe_cats{suffix}').read_bytes()
    if suffix == '.json':
      record = json.loads(content)
      record.pop('digest', None)
      content = json.dumps(record).encode()
    (folder / f'network{suffix}').write_bytes(content)


def _read_network(folder):
  trained = inference.load(folder / 'network.safetensors')
  return trained.variables, trained.size, trained.camera


def _write_official(folder):
  generator = stylegan2.Generator(
      {'resolution': 16, 'image_channels': 3, 'channel_base': 64,
       'channel_max': 8, 'clamp': 256},
      {'width': 8, 'layers': 2, 'labeled': False, 'latent': True})
  variables = checkpoint_folders.random_params(
      generator, (jnp.zeros((1, 6)), None))
  shapes = jax.eval_shape(generator.init, jax.random.key(0),
                          jnp.zeros((1, 6)), None)
  buffers = jax.tree.map(lambda x: np.ones(x.shape, np.float32),
                         shapes['buffers'])
  weights = nvidia.tensors(variables | {'buffers': buffers})
  (folder / 'n.pkl').write_bytes(official_pickles.dumps({
      'G_ema': official_pickles.module(
          'Generator', weights, z_dim=6, c_dim=0, w_dim=8, img_resolution=16,
          img_channels=3, _init_kwargs={
              'channel_base': 64, 'channel_max': 8, 'num_fp16_res': 4,
              'conv_clamp': 256, 'mapping_kwargs': {'num_layers': 2}})}))


def _write_torch(folder):
  tensors = checkpoint_folders.random_tensors()
  torch_state.save(folder / 'a.pth', tensors)
  safetensors.save_file(tensors, folder / 'a.safetensors')
  np.savez(folder / 'a.npz', **tensors)


def _read_torch(folder):
  return [torch_files.read(folder / f'a{suffix}')
          for suffix in ('.pth', '.safetensors', '.npz')]


def _write_pipeline(folder):
  checkpoint_folders.write_small_stable_diffusion(folder)
  scheduler = folder / 'sd' / 'scheduler'
  scheduler.mkdir()
  (scheduler / 'scheduler_config.json').write_text(json.dumps({
      'beta_start': 0.00085, 'beta_end': 0.012, 'prediction_type': 'epsilon',
      'beta_schedule': 'scaled_linear', 'num_train_timesteps': 1000}))


def read_pipeline(folder):
  path = folder / 'sd'
  teacher = pretrained.stable_diffusion_teacher(
      path, control=folder / 'control')
  tokens, _ = tokenizing.load_tokenizer(
      path / 'tokenizer', 57)(['a dog', 'dog on a do'])
  levels = teacher.schedule.alpha(jnp.linspace(0, 1, 50))
  text = dict(hub.read_part(path, 'text_encoder').tensors)
  return teacher.load(), tokens, levels, text, teacher.latent


def _write_meshes(folder):
  sphere: Any = trimesh.creation.icosphere(1)
  rng = np.random.default_rng(0)
  plain = Mesh(sphere.vertices, sphere.faces, colors=rng.random(
      sphere.vertices.shape))
  for name in ('glb', 'ply', 'obj'):
    meshes.save(folder / f'a.{name}', plain)
  sphere.export(folder / 'a.stl')
  uv = rng.random((len(sphere.vertices), 2))
  meshes.save(folder / 't.obj', Mesh(
      sphere.vertices, sphere.faces, uv=uv,
      texture=rng.integers(0, 255, (8, 8, 3), np.uint8)))


def _read_meshes(folder):
  return [[tuple(x for x in mesh if x is not None)
           for mesh in meshes.load(folder / name)]
          for name in ('a.glb', 'a.ply', 'a.obj', 'a.stl', 't.obj')]


def _write_run(folder):
  _train(folder / 'run', 4)


def _train(workdir, steps):
  config = toy_config.get_config()
  config.update({'steps': steps, 'checkpoint_every': 2, 'eval_every': 0,
                 'log_every': 1})
  return loop.run(toy_task.make(config), config, workdir)[0]


def _resume(folder):
  """Goes on from the newest checkpoint."""
  state = _train(folder / 'run', 6)
  return state.params, state.opt_state, state.ema


def _read_run(folder):
  return (checkpoints.load_config(folder / 'run').to_dict(),
          checkpoints.load_tree(folder / 'run', 'ema'))


def _write_tokenizer(folder):
  (folder / 'tokenizer.json').write_bytes(
      (assets.FOLDER / 'tokenizer.json').read_bytes())


def _read_tokenizer(folder):
  return assets.Tokenizer(folder / 'tokenizer.json').encode(
      ['a red chair', 'a cyan mug, side view'])


def _write_cache(folder):
  pretrained.disk_cached(['x', 'y'], lambda rows: np.ones((2, 3, 4)), folder)


def _read_cache(folder):
  return pretrained.disk_cached(
      ['x', 'y'], lambda rows: np.ones((len(rows), 3, 4)), folder)


SUBJECTS = {
    'blender': _capture(posed_layouts.write_blender, posed_layouts.around),
    'dialect': Subject(_dialect, read_capture),
    'llff': _capture(posed_layouts.write_llff, posed_layouts.ahead),
    'colmap_txt': _capture(posed_layouts.write_colmap_txt,
                           posed_layouts.around),
    'colmap_bin': _capture(posed_layouts.write_colmap_bin,
                           posed_layouts.around),
    'nsvf': _capture(posed_layouts.write_nsvf, posed_layouts.around),
    'nerfpp': _capture(posed_layouts.write_nerfpp, posed_layouts.around),
    'images': Subject(write_images, read_images),
    'zip': Subject(write_zip, read_images),
    'label': Subject(write_images, read_label),
    'weights': Subject(_write_weights, lambda folder: assets.load(
        folder / 'w.safetensors')),
    'network': Subject(_write_network, _read_network),
    'official': Subject(_write_official, lambda folder: nvidia.load(
        folder / 'n.pkl').variables),
    'torch': Subject(_write_torch, _read_torch),
    'pipeline': Subject(_write_pipeline, read_pipeline),
    'meshes': Subject(_write_meshes, _read_meshes),
    'run': Subject(_write_run, _read_run),
    'resumed': Subject(_write_run, _resume),
    'tokenizer': Subject(_write_tokenizer, _read_tokenizer),
    'cache': Subject(_write_cache, _read_cache)}
# Those of which a trial takes a fraction of a second.
QUICK = ('blender', 'dialect', 'colmap_txt', 'colmap_bin', 'nsvf', 'images',
         'zip', 'label', 'weights', 'torch', 'meshes', 'tokenizer', 'cache')
