r"""Writes data sets: posed images of an object, or a slice of the shapes world.

python -m gen3d.make_data --mesh=duck.obj --out=/tmp/duck --views=100 \
  --test_views=25 --size=200
python -m gen3d.make_data --caption='a red car with blue wheels' --out=/tmp/car
python -m gen3d.make_data --capture=/data/garden --out=/tmp/garden
python -m gen3d.make_data --images=FFHQ_512.zip --out=/tmp/faces
python -m gen3d.make_data --unposed=/data/cats --out=/tmp/cats
python -m gen3d.make_data --shapes --split=train --count=1000 --out=/tmp/shapes
python -m gen3d.make_data --shapes --config=configs/eg3d.py --split=seen \
  --count=8 --out=/tmp/cars

--mesh (any format of trimesh) and --caption write a scene in Blender's layout:
the object in a ball of radius 1, cameras at a distance of 4, map.png with the
cameras and the box of reconstruction, test.png with the test images.
--capture and --images write only a map of the cameras of existing data;
--images checks every image and label first. --unposed estimates the cameras of
pictures of the shapes world by the shipped network, of faces by --deep3d,
epoch_20.pth of Deep3DFaceRecon. --shapes writes images,
labels in EG3D's format and captions, and with the --config of a GAN images as
in its training; those of the splits seen and unseen are not in it. --sheet
writes one image of all categories, --tokenizer the tokenizer of captions.
"""

from absl import flags
from ml_collections import config_flags

from gen3d import files
from gen3d.choices import UserError
from gen3d.data import exporting
from gen3d.data.shapes import world as shapes_world
from gen3d.engine import cli
from gen3d.tasks import view_estimation

flags.DEFINE_string('mesh', '', 'Mesh file to render.')
flags.DEFINE_string('caption', '', 'Object of the shapes world to render.')
flags.DEFINE_string('capture', '', 'Capture to draw a map of.')
flags.DEFINE_string('images', '', "Images in EG3D's format to draw a map of.")
flags.DEFINE_string('unposed', '', 'Pictures whose cameras are estimated.')
flags.DEFINE_bool('shapes', False, 'Write a slice of the shapes world.')
flags.DEFINE_bool('sheet', False, 'Write one image of all categories.')
flags.DEFINE_bool('tokenizer', False, 'Train the tokenizer of captions.')
_OUT = flags.DEFINE_string('out', '', 'Folder to write into.')
_SIZE = flags.DEFINE_integer(
    'size', None, 'Pixels per side; else of --config, 200 or 128.', 8, 4096)
_UP = flags.DEFINE_enum('up', 'y', ['y', 'z'], 'Axis up in the mesh file.')
_VIEWS = flags.DEFINE_integer('views', 100, 'Training images.', 2)
_TEST_VIEWS = flags.DEFINE_integer('test_views', 25, 'Test images.', 1)
_LOWEST = flags.DEFINE_float(
    'lowest', 0.0, 'Least elevation of a training camera in degrees; -90 adds '
    'views from below.', -90, 80)
_AMBIENT = flags.DEFINE_float(
    'ambient', 0.5, 'Fraction of ambient light; 1 renders no shading.', 0, 1)
_SAMPLES = flags.DEFINE_integer(
    'samples', 3, 'Samples per side of a pixel.', 1, 8)
_SPLIT = flags.DEFINE_enum(
    'split', 'train', shapes_world.SPLITS, 'Of the shapes world.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the shapes world.')
_FIRST = flags.DEFINE_integer('first', 0, 'First example of --shapes.', 0)
_COUNT = flags.DEFINE_integer('count', 100, 'Examples of --shapes.', 1)
_DEEP3D = flags.DEFINE_string(
    'deep3d', '', 'For --unposed pictures of faces: epoch_20.pth of '
    'Deep3DFaceRecon.')
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Of a GAN on the shapes world, for --shapes.')
# Source -> the flags that it uses beside its own and --out.
_SCENE = ('size', 'views', 'test_views', 'lowest', 'ambient', 'samples')
_SOURCES = {
    'mesh': ('up', *_SCENE), 'caption': _SCENE, 'capture': (), 'images': (),
    'unposed': ('deep3d',),
    'shapes': ('size', 'config', 'seed', 'split', 'first', 'count'),
    'sheet': ('size', 'seed'), 'tokenizer': ('seed',)}


def main() -> None:
  cli.require('out')
  files.check_folder(_OUT.value)
  given = {name: flags.FLAGS[name].value for name in _SOURCES
           if flags.FLAGS[name].value}
  if len(given) != 1:
    raise UserError('Give one of --mesh, --caption, --capture, --images, '
                    '--unposed, --shapes, --sheet and --tokenizer; see --help.')
  cli.check_flags(f'--{next(iter(given))}', {
      f'--{source}': names for source, names in _SOURCES.items()})
  if 'unposed' in given:
    pictures, out = str(given['unposed']), _OUT.value
    print(view_estimation.label_faces(pictures, out, _DEEP3D.value)
          if _DEEP3D.value else view_estimation.label_pictures(pictures, out))
    return
  print(exporting.write(
      _OUT.value, given, size=_SIZE.value,
      scene={'up': _UP.value, 'train': _VIEWS.value, 'test': _TEST_VIEWS.value,
             'lowest': _LOWEST.value, 'ambient': _AMBIENT.value,
             'samples': _SAMPLES.value},
      shapes={'config': _CONFIG.value, 'seed': _SEED.value,
              'split': _SPLIT.value, 'first': _FIRST.value,
              'count': _COUNT.value}))


if __name__ == '__main__':
  cli.run(main)
