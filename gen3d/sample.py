r"""Samples images of prompts from a text-to-image model.

python -m gen3d.sample --prompts='a red chair;a blue car, side view' \
  --num=4 --out=/tmp/samples
python -m gen3d.sample --teacher=stable_diffusion \
  --path=checkpoints/stable-diffusion-v1-5 --prompts='a squirrel' --out=/tmp/sd

The model is the shipped one where no other is named. Writes each image and
grid.png, a labeled sheet; --sides=8 shows each prompt from 8 azimuths. For the
objects of a 3-D GAN, see gen3d.generate.
"""

from absl import flags

from gen3d.engine import cli
from gen3d.evaluation import samples

_PROMPTS = flags.DEFINE_string(
    'prompts', ';'.join(samples.PROMPTS), 'Prompts, separated by ;.')
_NUM = flags.DEFINE_integer('num', 1, 'Samples of each prompt.', 1)
_SIDES = flags.DEFINE_integer(
    'sides', 0, 'Show each prompt from this number of azimuths; only for a '
    'model with camera conditioning, such as the shipped one.', 0)
_NEGATIVE = flags.DEFINE_string(
    'negative_prompt', '', 'Prompt that guidance moves away from.')
_SCALE = flags.DEFINE_float(
    'guidance_scale', None, '1 is no guidance; a default of the model if not '
    'given.')
_SAMPLER = flags.DEFINE_enum(
    'sampler', 'ddim', list(samples.ETA), 'Sampler.')
_STEPS = flags.DEFINE_integer('steps', 40, 'Steps of the sampler.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise.')
_BATCH = flags.DEFINE_integer(
    'batch', None, 'Images sampled together on a device; a default of the '
    'model if not given.', 1)
_TEACHER = flags.DEFINE_enum(
    'teacher', 'shapes', list(samples.DEFAULTS), 'Text-to-image model.')
_PATH = flags.DEFINE_string(
    'path', '', 'For the shapes model a .safetensors file, if not the shipped '
    'one; for the others the folder of a checkpoint or its id on the hub, or '
    'the single file of a Stable Diffusion.')
flags.DEFINE_alias('weights', 'path')
_REVISION = flags.DEFINE_string('revision', '', 'Commit on the hub.')
_VARIANT = flags.DEFINE_string(
    'variant', '', "Variant of a folder's weights: fp16.")
_DTYPE = flags.DEFINE_string('dtype', '', 'float32 or bfloat16.')
_LORA = flags.DEFINE_string(
    'lora', '', 'FILE or FILE:SCALE of a LoRA that changes a Stable Diffusion.')
_PREDICTION = flags.DEFINE_string(
    'prediction', '', 'What the U-Net predicts, epsilon or v_prediction, where '
    "the checkpoint's files do not tell.")
_OUT = flags.DEFINE_string('out', '', 'Folder for the results.')


def main() -> None:
  cli.require('out')
  cli.check_flags(f'--teacher={_TEACHER.value}', {
      '--teacher=shapes': ('sides',),
      '--teacher=stable_diffusion': (
          'revision', 'variant', 'dtype', 'prediction', 'lora'),
      '--teacher=deepfloyd': ('revision', 'variant', 'dtype', 'prediction')})
  teacher = {'name': _TEACHER.value, 'path': _PATH.value,
             'variant': _VARIANT.value, 'revision': _REVISION.value,
             'dtype': _DTYPE.value, 'prediction': _PREDICTION.value,
             'lora': _LORA.value}
  print(samples.export(
      teacher, samples.split_prompts(_PROMPTS.value), _OUT.value,
      num=_NUM.value, sides=_SIDES.value, negative_prompt=_NEGATIVE.value,
      guidance_scale=_SCALE.value, sampler=_SAMPLER.value, steps=_STEPS.value,
      seed=_SEED.value, batch=_BATCH.value))


if __name__ == '__main__':
  cli.run(main)
