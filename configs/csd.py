r"""Classifier score distillation (Yu et al., 2310.19415).

Variants:
  shapes  The default, an object of the shapes world: dreamfusion.py:csd.
  if      Stage 1 of the released code by DeepFloyd IF: 10,000 steps at 64
          pixels; normalized gradients, a negative prompt that fades in, the
          negative prompts of other views (Perp-Neg).
  sd      Stage 2, the mesh of a finished run by Stable Diffusion at 512 pixels,
          10,000 steps.
  tiny    Seconds; for tests.

  python -m gen3d.train --config=configs/csd.py:if \
    --config.teacher.path=checkpoints/IF-I-XL-v1.0 \
    --config.prompt='a squirrel' --workdir=runs/squirrel
  python -m gen3d.train --config=configs/csd.py:sd \
    --config.teacher.path=checkpoints/stable-diffusion-2-1-base \
    --config.scene.start_from=runs/squirrel \
    --config.prompt='a squirrel' --workdir=runs/squirrel_mesh

The paper states about one hour on one A800 for both stages.
"""

import ml_collections

from configs import dreamfusion, refine

_NEGATIVE = ('oversaturated color, ugly, tiling, low quality, noisy')


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def _csd(config, negative):
  """CSD with a weight of the negative prompt that changes."""
  config.negative_prompt = _NEGATIVE
  config.guidance.name = 'csd'
  with config.ignore_type():
    config.guidance.scale = 1.0
    config.guidance.options.negative = negative
  return config


def deepfloyd():
  """csd-if of the released code: its settings of characters."""
  config = _csd(dreamfusion.deepfloyd(), ((0, 0.0), (0.5, 1.0)))
  config.steps = 10_000
  config.view_prompts.front = 30.0
  options = config.guidance.options
  with config.ignore_type():
    options.update({
        'weighting': 'uniform', 'normalize': True, 'perp_neg': 3.0,
        'time_max': ((0.5, 0.98), (0.5, 0.5))})
  scene = config.scene
  scene.camera.update({'jitter_position': 0.0, 'jitter_target': 0.0,
                       'jitter_up': 0.0})
  # Of the albedo; then half of the views are of the normals.
  scene.light.shaded_prob = 0.0
  scene.light.normals_prob = ((0.5, 0.0), (0.5, 0.5))
  rays = scene.size**2
  scene.penalties = ml_collections.ConfigDict({
      'orientation': ((0, 1.0 / rays), (0.5, 100.0 / rays)),
      'sparsity': ((0, 10.0 / rays), (0.5, 1.0 / rays))})
  config.optimizer.update({'learning_rate': 1e-3, 'b2': 0.999})
  return config


def stable_diffusion():
  """Stage 2 of the released code: half of the negative prompt at the end."""
  config = _csd(refine.stable_diffusion(), ((0, 1.0), (1.0, 0.5)))
  config.steps = 10_000
  config.scene.normal_consistency = 1000.0
  config.optimizer.learning_rate = 1e-3
  return config


def tiny(steps=4):
  """Seconds: all terms at a few pixels, for tests."""
  config = _csd(dreamfusion.tiny(steps), ((0, 0.0), (1.0, 1.0)))
  config.guidance.options.update({'normalize': True, 'perp_neg': 3.0,
                                  'num_noises': 1})
  return config


VARIANTS = {'shapes': dreamfusion.csd, 'if': deepfloyd, 'sd': stable_diffusion,
            'tiny': tiny}
