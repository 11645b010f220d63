"""Prints the README's numbers: of the judge, the teacher and finished runs.

python -m gen3d.evaluate --what=judge
python -m gen3d.evaluate --what=text_to_image --out=/tmp/samples
python -m gen3d.evaluate --what=text_to_3d --runs=runs --out=/tmp/table

Runs that were judged before are not judged again (--force does).
"""

import pathlib

from absl import flags

from gen3d.engine import cli
from gen3d.io import pictures
from gen3d.tasks import evaluation, image_text, text_to_image

_WHAT = flags.DEFINE_enum(
    'what', 'text_to_3d', ['judge', 'text_to_image', 'text_to_3d'],
    'Which question to answer.')
_RUNS = flags.DEFINE_string('runs', 'runs', 'Folder of text-to-3D workdirs.')
_COUNT = flags.DEFINE_integer('count', 512, 'Held-out captions a split.', 8)
_SCALE = flags.DEFINE_float('guidance_scale', 3.0, 'Of the samples.')
_WEIGHTS = flags.DEFINE_string(
    'weights', str(text_to_image.ASSET), 'Of the text-to-image model.')
_JUDGE = flags.DEFINE_string(
    'judge', str(image_text.ASSET), 'Weights of the CLIP pair.')
_FORCE = flags.DEFINE_bool('force', False, 'Judge again what was judged.')
_OUT = flags.DEFINE_string('out', None, 'Folder for pictures, if wanted.')


def main():
  judge = image_text.load(_JUDGE.value)
  out = pathlib.Path(_OUT.value) if _OUT.value else None
  if _WHAT.value == 'text_to_3d':
    print(evaluation.table(evaluation.judge_runs(
        judge, _RUNS.value, _FORCE.value)))
    if out:
      pictures.save(out / 'objects.png', evaluation.sheet(_RUNS.value))
    return
  if _WHAT.value == 'judge':
    rates = evaluation.judge_real(judge, _COUNT.value)
  else:
    rates, samples = evaluation.judge_samples(
        judge, _WEIGHTS.value, _COUNT.value, _SCALE.value)
    for split, (images, texts) in samples.items() if out else ():
      pictures.save(out / f'{split}.png', pictures.tile(
          images[:64], 8, texts[:64]))
  for split, rate in rates.items():
    print(f'{_WHAT.value}, {split} pairs: {100 * rate.rate:.1f} % '
          f'+- {100 * rate.error:.1f} % of {rate.n} among 64 distractors')


if __name__ == '__main__':
  cli.run(main)
