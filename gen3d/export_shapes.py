"""Writes a slice of the shapes world as PNG files, captions and cameras.

python -m gen3d.export_shapes --split=train --first=0 --count=1000 --size=128 \
  --out=/tmp/shapes
python -m gen3d.export_shapes --sheet --out=/tmp/sheet

dataset.json has EG3D's labels ([file, 25 numbers]: the 4 x 4 camera-to-world
matrix with x right, y down, z forward, then the 3 x 3 normalised intrinsics)
and, beside them, captions and what each object is. --sheet writes one labelled
picture with an object of every category instead.
"""

import json
import pathlib

from absl import flags

from gen3d.data import shapes
from gen3d.engine import cli
from gen3d.io import files, pictures

_SPLIT = flags.DEFINE_enum('split', 'train', list(shapes.SPLITS), 'Which.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the world.')
_FIRST = flags.DEFINE_integer('first', 0, 'First example.', 0)
_COUNT = flags.DEFINE_integer('count', 100, 'How many.', 1)
_SIZE = flags.DEFINE_integer('size', 128, 'Pixels a side.', 8)
_SHEET = flags.DEFINE_bool('sheet', False, 'One picture of all categories.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write into.')


def main():
  cli.require('out')
  out = pathlib.Path(_OUT.value)
  if _SHEET.value:
    images, labels = shapes.contact_sheet(_SEED.value, _SIZE.value)
    pictures.save(out / 'shapes.png', pictures.tile(images, 7, labels))
    print(out / 'shapes.png')
    return
  listing = {'labels': [], 'captions': {}, 'objects': {}}
  for index, image, text, spec, label in shapes.pictures(
      _SEED.value, _SPLIT.value, _FIRST.value, _COUNT.value, _SIZE.value):
    name = f'{index:08d}.png'
    pictures.save(out / name, pictures.to_uint8(image))
    listing['labels'].append([name, [float(x) for x in label]])
    listing['captions'][name] = text
    listing['objects'][name] = spec._asdict()
  with files.replacing(out / 'dataset.json') as temporary:
    pathlib.Path(temporary).write_text(json.dumps(listing))
  print(out / 'dataset.json')


if __name__ == '__main__':
  cli.run(main)
