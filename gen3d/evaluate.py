r"""Evaluates the bundled models and finished runs; prints the tables.

python -m gen3d.evaluate --what=clip
python -m gen3d.evaluate --what=text_to_image --out=/tmp/samples
python -m gen3d.evaluate --what=mean_prediction --out=/tmp/mean_prediction
python -m gen3d.evaluate --what=text_to_3d --runs=runs --out=/tmp/table
python -m gen3d.evaluate --what=textures --runs=runs --out=/tmp/textures
python -m gen3d.evaluate --what=texture_truth --runs=runs --out=/tmp/truth
python -m gen3d.evaluate --what=gan --network=shapes
python -m gen3d.evaluate --what=fid --network=ffhq512-128.pkl \
  --data=FFHQ_512.zip --inception=pt_inception-2015-12-05-6726825d.pth
python -m gen3d.evaluate --what=faces --network=ffhq512-128.pkl \
  --data=FFHQ_512.zip --arcface=model_ir_se50.pth --deep3d=epoch_20.pth \
  --face_model=BFM
python -m gen3d.evaluate --what=r_precision --runs=runs
python -m gen3d.evaluate --what=r_precision --runs=runs \
  --captions=coco_153.txt \
  --clip=openai/clip-vit-base-patch32,openai/clip-vit-large-patch14

Results are stored in a run's workdir and reused until it is exported again. A
run that cannot be evaluated is named, and left out of the table.
"""

import types

from absl import flags

from gen3d import assets, notices
from gen3d.engine import cli
from gen3d.evaluation import (
  clip,
  faces,
  fid,
  gan,
  mean_prediction,
  r_precision,
  text_to_3d,
  texture_truth,
  textures,
)

# --what -> the flags that it uses, and a function of their values that returns
# the text to print.
_REPORTS = {
    'clip': ('clip_weights count', lambda f: clip.report_real_images(
        f.clip_weights, f.count)),
    'text_to_image': (
        'clip_weights weights count guidance_scale out',
        lambda f: clip.report_samples(
            f.clip_weights, f.weights, f.count, f.guidance_scale, f.out)),
    'mean_prediction': ('weights out', lambda f: mean_prediction.report(
        f.weights, f.out)),
    'text_to_3d': ('runs clip_weights force out', lambda f: text_to_3d.report(
        f.runs, f.clip_weights, f.force, f.out)),
    'r_precision': (
        'runs protocol clip captions clip_weights force',
        lambda f: r_precision.report(
            f.runs, f.protocol, f.clip, f.captions, f.clip_weights, f.force)),
    'textures': ('runs out', lambda f: textures.report(f.runs, f.out)),
    'texture_truth': ('runs clip_weights out', lambda f: texture_truth.report(
        f.runs, f.clip_weights, f.out)),
    'gan': ('network', lambda f: gan.report(f.network)),
    'fid': (
        'network data inception resize samples divisor independent_cameras '
        'kid_subset seed',
        lambda f: fid.report(
            f.network, f.data, f.inception, f.resize, fid.Protocol(
                f.samples or fid.SAMPLES, f.divisor, f.independent_cameras,
                f.kid_subset, f.seed))),
    'faces': (
        'network data arcface deep3d face_model samples seed',
        lambda f: faces.report(
            f.network, f.data, f.arcface, f.deep3d, f.face_model,
            f.samples or faces.SAMPLES, f.seed)),
}

_WHAT = flags.DEFINE_enum(
    'what', 'text_to_3d', list(_REPORTS), 'Which evaluation to run.')
flags.DEFINE_string('runs', 'runs', 'Folder of text-to-3D workdirs.')
flags.DEFINE_integer('count', 512, 'Held-out captions per split.', 8)
flags.DEFINE_float('guidance_scale', 3.0, 'For text_to_image.')
flags.DEFINE_string(
    'weights', str(assets.TEXT_TO_IMAGE), 'Weights of the text-to-image model.')
flags.DEFINE_string(
    'clip_weights', str(assets.CLIP), 'Weights of the CLIP pair of gen3d; for '
    'r_precision several, separated by commas.')
flags.DEFINE_list(
    'clip', [], 'CLIPs of transformers for r_precision (folders or hub ids), '
    'with --captions; the CLIP pair of gen3d if empty.')
flags.DEFINE_string(
    'captions', '', 'File of captions, one a line, from which these CLIPs '
    'retrieve; see gen3d/data/caption_files.py for the usual 153.')
flags.DEFINE_enum(
    'protocol', 'dreamfusion', ['dreamfusion', 'dream_fields'],
    'Views for r_precision: eight azimuths at elevation 30, or one at 45.')
flags.DEFINE_string(
    'network', 'shapes', 'For gan, fid and faces: a 3-D GAN, a bundled name or '
    'a .safetensors file that gen3d trained; for the last two also an official '
    '.pkl.')
flags.DEFINE_string(
    'data', '', 'For fid and faces: folder, zip or tfds:NAME of the real '
    'images and their cameras; without it fid takes the training data, and '
    'faces the cameras of the generator.')
flags.DEFINE_integer(
    'samples', 0, 'Generated images for fid (0: 50,000) or faces (0: 1,024).',
    0)
flags.DEFINE_integer('seed', 0, 'Of the samples for fid and faces.', 0)
flags.DEFINE_string(
    'inception', '', 'For fid: pt_inception-2015-12-05-6726825d.pth.')
flags.DEFINE_string(
    'resize', 'tf', 'For fid: how images get 299 pixels a side, tf (as EG3D) '
    'or pytorch_fid.')
flags.DEFINE_string(
    'divisor', fid.FULL.divisor, 'For fid: of the covariance of n images, n '
    '(as EG3D) or n-1 (pytorch-fid).')
flags.DEFINE_bool(
    'independent_cameras', False, 'For fid: FID_3D, the camera that conditions '
    'the generator is another one than that of the image.')
flags.DEFINE_integer(
    'kid_subset', fid.FULL.kid_size, 'For fid: images in a subset of KID.', 2)
flags.DEFINE_string(
    'arcface', '', 'For faces: model_ir_se50.pth or an iresnet backbone.pth.')
flags.DEFINE_string(
    'deep3d', '', 'For faces: epoch_20.pth of Deep3DFaceRecon.')
flags.DEFINE_string(
    'face_model', '', 'For faces: folder BFM of Deep3DFaceRecon.')
flags.DEFINE_bool('force', False, 'Evaluate again where results are stored.')
flags.DEFINE_string('out', '', 'Folder for images; none without it.')


def main() -> None:
  cli.check_flags(f'--what={_WHAT.value}', {
      f'--what={what}': names.split()
      for what, (names, _) in _REPORTS.items()})
  # Around the notices of the parts of some evaluations.
  with notices.slow(f'Evaluating {_WHAT.value}'):
    text = report(_WHAT.value)
  print(text)


def report(what: str) -> str:
  """The text of an evaluation by the flags."""
  names, function = _REPORTS[what]
  return function(types.SimpleNamespace(
      **{name: flags.FLAGS[name].value for name in names.split()}))


if __name__ == '__main__':
  cli.run(main)
