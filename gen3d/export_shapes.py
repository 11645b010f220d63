"""Writes a slice of the shapes world as PNG files, captions and cameras.

python -m gen3d.export_shapes --split=train --first=0 --count=1000 --size=128 \
  --out=/tmp/shapes
python -m gen3d.export_shapes --sheet --out=/tmp/sheet
python -m gen3d.export_shapes --config=configs/eg3d.py --split=seen --count=8 \
  --out=/tmp/cars

dataset.json has EG3D's labels ([file, 25 numbers]: the 4 x 4 camera-to-world
matrix with x right, y down, z forward, then the 3 x 3 normalized intrinsics)
and, beside them, captions and what each object is. --sheet writes one labeled
picture with an object of every category instead. With the --config of a GAN
the pictures are like those that it learns from: its categories and cameras,
one light, a white background; those of the splits seen and unseen are new to
it.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from gen3d import files
from gen3d.choices import UserError
from gen3d.data.images import open as opening
from gen3d.data.shapes import captions
from gen3d.data.shapes import world as shapes_world
from gen3d.engine import cli
from gen3d.io import images as image_io

_SPLIT = flags.DEFINE_enum('split', 'train', list(shapes_world.SPLITS), 'Which.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the world.')
_FIRST = flags.DEFINE_integer('first', 0, 'First example.', 0)
_COUNT = flags.DEFINE_integer('count', 100, 'How many.', 1)
_SIZE = flags.DEFINE_integer(
    'size', None, "Pixels a side; the config's, or else 128.", 8)
_SHEET = flags.DEFINE_bool('sheet', False, 'One picture of all categories.')
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Of a GAN that learns from the shapes world.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write into.')


def main():
  cli.require('out')
  out = pathlib.Path(_OUT.value)
  if _SHEET.value:
    images, labels = shapes_world.contact_sheet(_SEED.value, _SIZE.value or 128)
    image_io.save(out / 'shapes.png', image_io.tile(images, 7, labels))
    print(out / 'shapes.png')
    return
  listing = {'labels': [], 'captions': {}, 'objects': {}}
  for index, image, text, spec, label in (
      _likes_of(_CONFIG.value) if _CONFIG.value else shapes_world.pictures(
          _SEED.value, _SPLIT.value, _FIRST.value, _COUNT.value,
          _SIZE.value or 128)):
    name = f'{index:08d}.png'
    image_io.save(out / name, image_io.to_uint8(image))
    listing['labels'].append([name, [float(x) for x in label]])
    listing['captions'][name] = text
    listing['objects'][name] = spec._asdict()
  with files.atomic_write(out / 'dataset.json') as temporary:
    pathlib.Path(temporary).write_text(json.dumps(listing))
  print(out / 'dataset.json')


def _likes_of(config):
  """Yields as shapes.pictures does, but such as a GAN learns from."""
  if config.get('task') != 'gan' or not opening.is_world(config.data):
    raise UserError('--config is not of a GAN that learns from the shapes '
                    'world, such as configs/eg3d.py.')
  data = config.data
  world, stop = opening.world_of(data), _FIRST.value + _COUNT.value
  source = shapes_world.posed(
      world, stop, _SIZE.value or data.size, _SEED.value, _SPLIT.value)
  for i in range(_FIRST.value, stop):
    spec = shapes_world.example(
        _SEED.value, _SPLIT.value, i, world).object.spec
    yield (i, source.pixels(i) / 255.0, captions.plain(spec), spec,
           source.labels[i])


if __name__ == '__main__':
  cli.run(main)
