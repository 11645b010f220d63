r"""Finds the object of a 3-D GAN whose image matches a given image.

python -m gen3d.invert --network=shapes --image=car.png --azimuth=30 \
  --elevation=20 --out=/tmp/car
python -m gen3d.invert --network=ffhq512-128.pkl --image=face.png \
  --camera=dataset.json --views=-30,0,30 --space=w+ --out=/tmp/face

Writes inversion.png (the image, its projection, the tuned object, its views),
its meshes and film, latent.npz and the tuned generator. --camera is a list of
25 numbers, or EG3D's dataset.json. The perceptual loss uses the shipped CLIP
pair; for photographs use the files that gen3d/models/perceptual.py names.
"""

import math

from absl import flags

from gen3d.choices import UserError
from gen3d.data.images import label_files
from gen3d.engine import cli
from gen3d.gan import inference, inversion
from gen3d.render import inversion as inversion_files

_NETWORK = flags.DEFINE_string('network', '', 'File, or a shipped name.')
_IMAGE = flags.DEFINE_string('image', '', 'The image: a square.')
_CAMERA = flags.DEFINE_string('camera', '', 'JSON file with its camera.')
_AZIMUTH = flags.DEFINE_float('azimuth', None, 'Or its azimuth: degrees.')
_ELEVATION = flags.DEFINE_float(
    'elevation', None, "Degrees; the data's median by default.", -90, 90)
_SPACE = flags.DEFINE_enum(
    'space', 'w', ['w', 'w+'], 'One w for all layers, or one for each.')
_STEPS = flags.DEFINE_integer('steps', 1000, 'Of the projection.', 1)
_TUNING = flags.DEFINE_integer('tuning_steps', 350, 'Of the tuning.', 1)
_PERCEPTUAL = flags.DEFINE_list('perceptual', [], 'VGG16, or VGG16,LPIPS.')
_VIEWS = flags.DEFINE_list(
    'views', ['-45', '45', '90', '180'], 'Further azimuths on the sheet.')
_RESOLUTION = flags.DEFINE_integer(
    'resolution', 128, "Grid points along the mesh's longest side.", 8)
_TEXTURE = flags.DEFINE_integer(
    'texture', 1024, "Texels per side of the .glb's; 0: vertex colors.", 0)
_OUT = flags.DEFINE_string('out', '', 'Folder for the results.')


def main() -> None:
  cli.require('network', 'image', 'out')
  views = _degrees('views', _VIEWS.value)
  angles = {flag.name: _degrees(flag.name, [flag.value])[0]
            for flag in (_AZIMUTH, _ELEVATION) if flag.value is not None}
  if not _CAMERA.value and 'azimuth' not in angles:
    raise UserError('The camera is missing; give --camera or --azimuth.')
  if _CAMERA.value and angles:
    raise UserError(f'Give --camera or --{min(angles)}, but not both.')
  trained = inference.load(_NETWORK.value)
  camera = (label_files.read_camera(_CAMERA.value, _IMAGE.value)
            if _CAMERA.value else inference.camera_at(
                {**trained.camera, **angles}, angles['azimuth']))
  for file in inversion_files.export(
      _NETWORK.value, trained,
      inversion.read_target(trained, _IMAGE.value, camera),
      inversion.perceptual_loss(_PERCEPTUAL.value), _OUT.value,
      steps=_STEPS.value, tuning_steps=_TUNING.value, views=views,
      w_plus=_SPACE.value == 'w+', resolution=_RESOLUTION.value,
      texture=_TEXTURE.value):
    print(file)


def _degrees(name, texts):
  try:
    degrees = [float(text) for text in texts]
  except ValueError:
    degrees = [math.nan]
  if not all(-360 <= x <= 360 for x in degrees):
    raise UserError(f'--{name}={",".join(map(str, texts))} are no angles; '
                    'write them like -30,0,30, from -360 to 360 degrees.')
  return degrees


if __name__ == '__main__':
  cli.run(main)
