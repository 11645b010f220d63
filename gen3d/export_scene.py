"""Photographs a mesh, or an object of the shapes world, in Blender's layout.

python -m gen3d.export_scene --mesh=duck.obj --out=/tmp/duck --views=100 \
  --test_views=25 --size=200
python -m gen3d.export_scene --caption='a red car with blue wheels' \
  --out=/tmp/car
python -m gen3d.export_scene --capture=/data/garden --out=/tmp/garden
python -m gen3d.export_scene --images=FFHQ_512.zip --out=/tmp/faces

The mesh may be of any format that trimesh opens, with a texture, vertex
colors or none. It is scaled into a ball of radius 1; the cameras are at a
distance of 4. Beside the scene map.png shows the cameras and the box that
reconstruction will take, test.png the test pictures. With --capture there is
only the map, of a capture that is there already; with --images that of what a
3-D GAN is to learn from, after every picture and every camera was checked.
"""

import pathlib

from absl import flags

from gen3d.choices import UserError
from gen3d.data import synthetic
from gen3d.data.captures import posed
from gen3d.data.images import dataset
from gen3d.engine import cli
from gen3d.io import images as image_io
from gen3d.io import meshes

_MESH = flags.DEFINE_string('mesh', None, 'Mesh file.')
_CAPTION = flags.DEFINE_string('caption', None, 'Of the shapes world.')
_CAPTURE = flags.DEFINE_string('capture', None, 'Capture to draw a map of.')
_IMAGES = flags.DEFINE_string(
    'images', None, "Zip or folder in EG3D's format to draw a map of.")
_OUT = flags.DEFINE_string('out', None, 'Folder to write into.')
_UP = flags.DEFINE_enum('up', 'y', ['y', 'z'], 'What is up in the mesh file.')
_VIEWS = flags.DEFINE_integer('views', 100, 'Training pictures.', 2)
_TEST_VIEWS = flags.DEFINE_integer('test_views', 25, 'Test pictures.', 1)
_SIZE = flags.DEFINE_integer('size', 200, 'Pixels a side.', 8, 4096)
_LOWEST = flags.DEFINE_float(
    'lowest', 0.0, 'Least elevation of a training camera, in degrees; -90 '
    'looks from below, too.', -90, 80)
_AMBIENT = flags.DEFINE_float(
    'ambient', 0.5, 'Share of light from everywhere; 1 bakes no shading.',
    0, 1)
_SAMPLES = flags.DEFINE_integer('samples', 3, 'Points a side of a pixel.', 1, 8)


def main():
  cli.require('out')
  sources = (_MESH.value, _CAPTION.value, _CAPTURE.value, _IMAGES.value)
  if sum(map(bool, sources)) != 1:
    raise UserError('Give one of --mesh, --caption, --capture and --images; '
                    'see --help.')
  out = pathlib.Path(_OUT.value)
  if out.is_dir() and any(out.iterdir()):
    raise UserError(f'{out} is not empty; give a new folder.')
  if _CAPTURE.value or _IMAGES.value:
    image_io.save(out / 'map.png', _map())
    print(out / 'map.png')
    return
  if _CAPTION.value:
    surfaces = synthetic.surface_from_caption(_CAPTION.value)
  else:
    surfaces = meshes.load(_MESH.value, _UP.value)
  synthetic.write_blender(
      out, surfaces, train=_VIEWS.value, test=_TEST_VIEWS.value,
      size=_SIZE.value, lowest=_LOWEST.value, ambient=_AMBIENT.value,
      samples=_SAMPLES.value)
  scene = posed.open_posed(out, 'test')
  image_io.save(out / 'map.png', posed.map_of_posed(posed.open_posed(out)))
  image_io.save(out / 'test.png', image_io.tile(
      posed.composite_over(scene.images, 1.0), 5))
  print(out)


def _map():
  """Where the cameras are of what is there already: uint8 [H, W, 3]."""
  if _CAPTURE.value:
    return posed.map_of_posed(posed.open_posed(_CAPTURE.value))
  found = dataset.open_images(_IMAGES.value)
  dataset.check(found)
  return dataset.map_of_cameras(found)


if __name__ == '__main__':
  cli.run(main)
