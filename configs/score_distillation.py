r"""Successors of SDS on the shapes world, one variant for each paper.

Scene, cameras, times and weights are those of configs/dreamfusion.py:shapes.
What is distilled differs:

  asd     ScaleDreamer (2407.02040): less the prompt's own prediction at a
          slightly later time with the same noise.
  bridge  SDS-Bridge (2406.09417): less the prediction with a prompt that
          describes a bad render.
  hifa    HiFA (2305.18766): several steps of the teacher from x_t to the clean
          image.
  ism     LucidDreamer (2311.11284): x_t by DDIM inversion, less the empty
          prompt's prediction one interval before.
  sdi     Score distillation via inversion (2405.15891): x_t by DDIM inversion
          with the prompt.
  tiny    ASD in seconds; for tests.

VSD is configs/prolific_dreamer.py, CSD configs/csd.py.

  python -m gen3d.train --config=configs/score_distillation.py:asd \
    --config.prompt='a red chair' --workdir=runs/chair
"""

from configs import dreamfusion


def get_config(variant='asd'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def asd(config=None):
  """ScaleDreamer: its shift of the time, 0.1 (t - t_min), is not random."""
  config = config or dreamfusion.shapes()
  config.guidance.name = 'asd'
  config.guidance.options.update({'shift_ratio': 0.1, 'shift_random': False})
  return config


def bridge(config=None):
  """SDS-Bridge, from the first guided step on."""
  config = config or dreamfusion.shapes()
  config.guidance.name = 'bridge'
  # {prompt} and {view} are replaced; '' is the paper's description.
  config.guidance.options.source = ''
  return config


def hifa(config=None):
  """HiFA: two evaluations of the teacher for each noise."""
  config = config or dreamfusion.shapes()
  config.guidance.options.denoising_steps = 2
  return config


def ism(config=None):
  """LucidDreamer's intervals, fewer steps of the inversion."""
  config = config or dreamfusion.shapes()
  config.guidance.name = 'ism'
  config.guidance.options.update({
      'interval': 0.08, 'inversion_stride': 0.2, 'inversion_steps': 2})
  return config


def sdi(config=None):
  """SDI with fewer steps of the inversion than the paper's 10."""
  config = config or dreamfusion.shapes()
  config.guidance.name = 'sdi'
  config.guidance.options.update(
      {'inversion_scale': -7.5, 'inversion_steps': 4})
  return config


def tiny(steps=4):
  """ASD at a few pixels, for tests."""
  config = asd(dreamfusion.tiny(steps))
  config.guidance.options.num_noises = 1
  return config


VARIANTS = {'asd': asd, 'bridge': bridge, 'hifa': hifa, 'ism': ism, 'sdi': sdi,
            'tiny': tiny}
