"""Samples images from the shipped text-to-image model: a labelled grid.

python -m gen3d.generate --prompts='a red chair;a blue car, side view' \
  --num=4 --out=/tmp/samples
"""

import pathlib

import jax
from absl import flags

from gen3d.engine import cli
from gen3d.io import pictures
from gen3d.tasks import text_to_image

ETA = {'ddim': 0.0, 'ddpm': 1.0}

_PROMPTS = flags.DEFINE_string(
    'prompts', ';'.join(text_to_image.PROMPTS), 'Prompts, with ; between.')
_NUM = flags.DEFINE_integer('num', 1, 'Samples of each prompt.', 1)
_SCALE = flags.DEFINE_float('guidance_scale', 3.0, '1 is no guidance.')
_SAMPLER = flags.DEFINE_enum('sampler', 'ddim', list(ETA), 'How to sample.')
_STEPS = flags.DEFINE_integer('steps', 40, 'Steps of the sampler.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the noise.')
_WEIGHTS = flags.DEFINE_string(
    'weights', str(text_to_image.ASSET), 'Weights, .safetensors.')
_OUT = flags.DEFINE_string('out', None, 'Folder for grid.png and the samples.')


def main():
  cli.require('out')
  prompts = [p.strip() for p in _PROMPTS.value.split(';') if p.strip()]
  if not prompts:
    raise ValueError("No prompt is given; say --prompts='a red chair'.")
  model, params, _ = text_to_image.load(_WEIGHTS.value)
  out = pathlib.Path(_OUT.value)
  labels = [p for p in prompts for _ in range(_NUM.value)]
  images = text_to_image.sample(
      jax.random.key(_SEED.value), model, params, labels, scale=_SCALE.value,
      steps=_STEPS.value, eta=ETA[_SAMPLER.value])
  columns = _NUM.value if _NUM.value > 1 else min(8, len(labels))
  pictures.save(out / 'grid.png', pictures.tile(images, columns, labels))
  for i, image in enumerate(images):
    pictures.save(out / f'{i:04d}.png', image)
  print(out / 'grid.png')


if __name__ == '__main__':
  cli.run(main)
