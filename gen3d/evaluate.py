r"""Prints the README's numbers: of the shipped models and finished runs.

python -m gen3d.evaluate --what=judge
python -m gen3d.evaluate --what=text_to_image --out=/tmp/samples
python -m gen3d.evaluate --what=beliefs --out=/tmp/beliefs
python -m gen3d.evaluate --what=text_to_3d --runs=runs --out=/tmp/table
python -m gen3d.evaluate --what=gan --network=shapes
python -m gen3d.evaluate --what=r_precision --runs=runs
python -m gen3d.evaluate --what=r_precision --runs=runs \
  --captions=coco_153.txt \
  --clip=openai/clip-vit-base-patch32,openai/clip-vit-large-patch14

Runs that were judged are not judged again until they are exported again
(--force does).
"""

import pathlib

from absl import flags

from gen3d import assets
from gen3d.engine import cli
from gen3d.evaluation import gan as gan_evaluation
from gen3d.evaluation import mean_prediction, r_precision
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.io import images as image_io
from gen3d.models import clip_pair

_WHAT = flags.DEFINE_enum(
    'what', 'text_to_3d',
    ['judge', 'text_to_image', 'beliefs', 'text_to_3d', 'r_precision', 'gan'],
    'Which question to answer.')
_RUNS = flags.DEFINE_string('runs', 'runs', 'Folder of text-to-3D workdirs.')
_COUNT = flags.DEFINE_integer('count', 512, 'Held-out captions a split.', 8)
_SCALE = flags.DEFINE_float('guidance_scale', 3.0, 'Of the samples.')
_WEIGHTS = flags.DEFINE_string(
    'weights', str(assets.TEXT_TO_IMAGE), 'Of the text-to-image model.')
_JUDGE = flags.DEFINE_string(
    'judge', str(assets.CLIP), 'Weights of the CLIP pair.')
_CLIP = flags.DEFINE_list(
    'clip', [], 'Published CLIPs that judge r_precision (folders of '
    'transformers or hub ids); the shipped pair if none.')
_CAPTIONS = flags.DEFINE_string(
    'captions', None, 'File of captions, one a line, from which they '
    'retrieve; data/caption_files.py says where 153 are.')
_PROTOCOL = flags.DEFINE_enum(
    'protocol', 'dreamfusion', ['dreamfusion', 'dream_fields'],
    'Views for r_precision: eight azimuths at elevation 30, or one at 45.')
_NETWORK = flags.DEFINE_string(
    'network', 'shapes', 'A 3-D GAN that gen3d trained, for gan: .safetensors '
    'or a shipped name.')
_FORCE = flags.DEFINE_bool('force', False, 'Judge again what was judged.')
_OUT = flags.DEFINE_string('out', None, 'Folder for pictures, if wanted.')


def main():
  if _WHAT.value == 'r_precision':
    print(r_precision.evaluate(
        _RUNS.value, _PROTOCOL.value, _CLIP.value, _CAPTIONS.value,
        _JUDGE.value, _FORCE.value))
    return
  if _WHAT.value == 'gan':
    print(gan_evaluation.report(_NETWORK.value))
    return
  out = pathlib.Path(_OUT.value) if _OUT.value else None
  if _WHAT.value == 'beliefs':
    print(mean_prediction.report(_WEIGHTS.value, out))
    return
  judge = clip_pair.load(_JUDGE.value)
  if _WHAT.value == 'text_to_3d':
    print(text_to_3d_evaluation.table(text_to_3d_evaluation.judge_runs(
        judge, _RUNS.value, _FORCE.value)))
    if out:
      image_io.save(out / 'objects.png', text_to_3d_evaluation.sheet(_RUNS.value))
    return
  if _WHAT.value == 'judge':
    rates = text_to_3d_evaluation.judge_real(judge, _COUNT.value)
  else:
    rates, samples = text_to_3d_evaluation.judge_samples(
        judge, _WEIGHTS.value, _COUNT.value, _SCALE.value)
    for split, (images, texts) in samples.items() if out else ():
      image_io.save(out / f'{split}.png', image_io.tile(
          images[:64], 8, texts[:64]))
  for split, rate in rates.items():
    print(f'{_WHAT.value}, {split} pairs: {100 * rate.rate:.1f} % '
          f'+- {100 * rate.error:.1f} % of {rate.n} among 64 distractors')


if __name__ == '__main__':
  cli.run(main)
