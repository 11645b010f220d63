"""Makes what a trained model makes: pictures of prompts, or objects of seeds.

python -m gen3d.generate --prompts='a red chair;a blue car, side view' \
  --num=4 --out=/tmp/samples
python -m gen3d.generate --teacher=stable_diffusion \
  --path=checkpoints/stable-diffusion-v1-5 --prompts='a squirrel' --out=/tmp/sd
python -m gen3d.generate --network=ffhq512-128.pkl --seeds=0-7 \
  --truncation=0.7 --out=/tmp/faces

The first samples a text-to-image model, the shipped one if no other is named:
a labeled grid; --sides=8 shows each prompt from that many. The last takes a
3-D GAN, one that gen3d trained (.safetensors) or an official EG3D pickle, and
writes a sheet of views, a turntable and colored meshes for each seed; with
--interpolate a film from seed to seed as well.
"""

import pathlib

import jax
import numpy as np
from absl import flags

from gen3d.choices import UserError
from gen3d.diffusion import loading, pixel_model, sampling
from gen3d.engine import cli
from gen3d.gan import inference
from gen3d.io import images as image_io

ETA = {'ddim': 0.0, 'ddpm': 1.0}
# (guidance scale, pictures at a time) where they are not given.
USUAL = {'shapes': (3.0, 16), 'stable_diffusion': (7.5, 1),
         'deepfloyd': (7.0, 4)}

_OUT = flags.DEFINE_string('out', None, 'Folder for what is made.')
_PROMPTS = flags.DEFINE_string(
    'prompts', ';'.join(pixel_model.PROMPTS), 'Prompts, with ; between.')
_NUM = flags.DEFINE_integer('num', 1, 'Samples of each prompt.', 1)
_SIDES = flags.DEFINE_integer(
    'sides', 0, 'See each prompt from so many sides; the shapes model only, '
    'for it knows cameras.', 0)
_NEGATIVE = flags.DEFINE_string(
    'negative_prompt', '', 'What to lead away from.')
_SCALE = flags.DEFINE_float(
    'guidance_scale', None, '1 is no guidance; what suits the model if not '
    'given.')
_SAMPLER = flags.DEFINE_enum('sampler', 'ddim', list(ETA), 'How to sample.')
_STEPS = flags.DEFINE_integer('steps', 40, 'Steps of the sampler.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the noise.')
_BATCH = flags.DEFINE_integer(
    'batch', None, 'Pictures at a time; what suits the model if not given.', 1)
_TEACHER = flags.DEFINE_enum(
    'teacher', 'shapes', list(loading.TEACHERS), 'Text-to-image model.')
_PATH = flags.DEFINE_string(
    'path', '', 'Of the shapes model: .safetensors, if not the shipped one. '
    'Of the others: the folder of a checkpoint or its id on the hub.')
flags.DEFINE_alias('weights', 'path')
_REVISION = flags.DEFINE_string('revision', '', "The hub's commit.")
_VARIANT = flags.DEFINE_string('variant', '', "Of a folder's weights: fp16.")
_DTYPE = flags.DEFINE_string('dtype', '', 'float32 or bfloat16.')

_NETWORK = flags.DEFINE_string(
    'network', None, 'A 3-D GAN: .safetensors, .pkl or a shipped name.')
_SEEDS = flags.DEFINE_string('seeds', '0-7', 'Objects, such as 0-7,12.')
_TRUNCATION = flags.DEFINE_float(
    'truncation', 1.0, 'Psi: 1 is none, less is closer to the mean object.')
_CUTOFF = flags.DEFINE_integer(
    'truncation_cutoff', None, 'Layers that truncation is for; all if not '
    'given.', 1)
_FRAMES = flags.DEFINE_integer('frames', 48, 'Of a turntable.', 8)
_RESOLUTION = flags.DEFINE_integer(
    'resolution', 128, "Grid points along a mesh's longest side.", 8)
_INTERPOLATE = flags.DEFINE_bool(
    'interpolate', False, 'Write a film from seed to seed, too.')


def main():
  cli.require('out')
  out = pathlib.Path(_OUT.value)
  asked = _NETWORK.value is not None
  for file in _objects(out) if asked else _pictures(out):
    print(file)


def _objects(out):
  seeds = inference.parse_seeds(_SEEDS.value)
  if not np.isfinite(_TRUNCATION.value):
    raise UserError(f'--truncation is {_TRUNCATION.value}; give a number.')
  network = inference.load(_NETWORK.value)
  written = inference.export(
      network, seeds, out, psi=_TRUNCATION.value, cutoff=_CUTOFF.value,
      frames=_FRAMES.value, resolution=_RESOLUTION.value)
  if _INTERPOLATE.value:
    written.append(inference.interpolate(
        network, seeds, out / 'interpolation.mp4', psi=_TRUNCATION.value,
        cutoff=_CUTOFF.value, frames=_FRAMES.value))
  return written


def _pictures(out):
  prompts = [p.strip() for p in _PROMPTS.value.split(';') if p.strip()]
  if not prompts:
    raise UserError("No prompt is given; say --prompts='a red chair'.")
  if _SIDES.value and _TEACHER.value != 'shapes':
    raise UserError('--sides is for a model that knows cameras; '
                    f'{_TEACHER.value} does not.')
  teacher = loading.make_teacher({
      'name': _TEACHER.value, 'path': _PATH.value, 'variant': _VARIANT.value,
      'revision': _REVISION.value, 'dtype': _DTYPE.value})
  if _SIDES.value and not teacher.camera_conditioned:
    raise UserError('--sides is for a model that knows cameras; that of '
                    f'{_PATH.value} was trained without.')
  prompts = [p for p in prompts for _ in range(_NUM.value)]
  views = None
  if _SIDES.value:
    prompts, views = pixel_model.around(prompts, _SIDES.value)
  scale, batch = USUAL[_TEACHER.value]
  images = sampling.sample(
      jax.random.key(_SEED.value), teacher, prompts, labels=views,
      negative=_NEGATIVE.value,
      scale=scale if _SCALE.value is None else _SCALE.value,
      steps=_STEPS.value, eta=ETA[_SAMPLER.value],
      batch=_BATCH.value or batch)
  many = _SIDES.value or _NUM.value
  columns = many if many > 1 else min(8, len(prompts))
  image_io.save(out / 'grid.png', image_io.tile(images, columns, prompts))
  for i, image in enumerate(images):
    image_io.save(out / f'{i:04d}.png', image)
  return [out / 'grid.png']


if __name__ == '__main__':
  cli.run(main)
