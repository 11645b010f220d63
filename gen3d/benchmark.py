"""Measures time and memory of a config's training step on this machine.

python -m gen3d.benchmark --config=configs/dreamfusion.py
python -m gen3d.benchmark --config=configs/eg3d.py:cpu128 --out=numbers.json
python -m gen3d.benchmark --what=rasterizer

Prints the sizes, then seconds of a training step on all devices (of a GAN for
each of its phases), what the task measures in addition (parts of the networks,
rays per second), the size of the parameters and the peak of memory: planned by
the compiler for one device, and measured. The step is the one at the end of
training. Times are medians of calls after the first, which is printed apart.

The rasterizer has no config: images of 512 x 512 pixels of meshes of 10,000 and
100,000 triangles, with and without the gradient.
"""

from absl import flags
from ml_collections import config_flags

from gen3d.engine import cli
from gen3d.evaluation import rasterizer, speed

_WHAT = flags.DEFINE_enum(
    'what', 'step', ['step', 'rasterizer'], 'What is measured: the training '
    'step of a config, or the rasterizer of meshes.')
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'NAME or FILE.py of a config, or NAME:VARIANT.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Number of timed calls.', 1)
_PLAN = flags.DEFINE_bool(
    'plan', False, 'Only print the memory that the compiler plans; run '
    'nothing.')
_OUT = flags.DEFINE_string('out', None, 'A .json file for the numbers.')


def main() -> None:
  cli.check_flags(f'--what={_WHAT.value}', {
      '--what=step': ('config',), '--what=rasterizer': ()})
  if _WHAT.value == 'rasterizer':
    rasterizer.run(
        repeats=_REPEATS.value, plan_only=_PLAN.value, out=_OUT.value)
    return
  cli.require('config')
  speed.run(_CONFIG.value, repeats=_REPEATS.value, plan_only=_PLAN.value,
            out=_OUT.value)


if __name__ == '__main__':
  cli.run(main)
