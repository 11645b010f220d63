"""Names of earlier versions, for their weights and runs.

Weights on disk keep the config of their training (`assets.load`), and so do
runs (config.json); keys of version 1 are read under their present names.
"""

from collections.abc import Mapping
from typing import Any

# Layout of a workdir, in config.json as 'version'. It changes where a run of
# an earlier layout cannot be resumed.
VERSION = 2

# Dotted path of a config key in version 1 -> its last part in version 2.
RENAMED = {
    'counted': 'throughput_unit',
    'optimizer.rates': 'lr_multipliers',
    'model.z_width': 'z_dim',
    'model.condition': 'pose_conditioning',
    'model.upscaling': 'super_resolution',
    'model.upscaling_clamp': 'super_resolution_clamp',
    'model.upscaling_half': 'super_resolution_half',
    'model.synthesis.base': 'channel_base',
    'model.synthesis.most': 'channel_max',
    'model.synthesis.half': 'num_half_res',
    'model.discriminator.base': 'channel_base',
    'model.discriminator.most': 'channel_max',
    'model.discriminator.half': 'num_half_res',
    'model.discriminator.group': 'mbstd_group',
    'model.rendering.box': 'box_warp',
    'model.rendering.white': 'white_background',
    'model.rendering.start': 'ray_start',
    'model.rendering.end': 'ray_end',
    'model.rendering.samples': 'samples_coarse',
    'model.rendering.importance': 'samples_fine',
    'schedule.r1': 'r1_gamma',
    'schedule.r1_every': 'd_reg_interval',
    'schedule.regularize_every': 'g_reg_interval',
    'schedule.swap': 'pose_swap_prob',
    'schedule.swap_images': 'pose_swap_fade_images',
    'schedule.blur': 'blur_init_sigma',
    'schedule.blur_images': 'blur_fade_images',
    'schedule.mix': 'style_mixing_prob',
    'schedule.augment_target': 'ada_target',
    'schedule.augment_every': 'ada_interval',
    'schedule.augment_images': 'ada_images',
    'export.share': 'keep_share',
    'crop.share': 'fraction',
    'scene.blob': 'density_bias',
    'scene.random_background': 'random_background_prob',
    'scene.background_spread': 'background_range',
    'scene.light.norm': 'distance_range',
    'scene.light.shaded': 'shaded_prob',
    'scene.light.textureless': 'textureless_prob',
    'scene.penalties.opacity': 'sparsity',
    'scene.penalties.entropy': 'opacity_entropy',
    'scene.penalties.spread': 'depth_variance',
    'scene.penalties.roughness': 'normal_smoothness',
    'scene.field.gain': 'density_scale',
    'scene.field.encode.spread': 'init_std',
    'scene.field.padding': 'rgb_padding',
    'scene.coarse.loss': 'loss_weight',
    'scene.fine.merge': 'include_coarse',
    'scene.fine.padding': 'resample_padding',
    'words': 'view_prompts',
    'guidance.options.colour_share': 'color_guidance_ratio',
    'guidance.options.draws': 'num_noises',
    'most_weight': 'max_snr_weight',
    'late_times': 'high_noise_oversampling',
    'lessons': 'loss_weights',
    'lessons.reading': 'text_probe',
    'lessons.sketch': 'prior_image',
    'sketch_patches': 'prior_patches',
}
TASKS = {'image_text': 'clip'}


def upgrade(config: Mapping[str, Any], version: int = 1) -> dict[str, Any]:
  """Returns a config, read from a file, under the present names of its keys.

  Args:
    config: nested mapping.
    version: of the file. A name of version 1 may have another meaning in the
      config of a later model, which therefore stays as it is.
  """
  if version >= VERSION:
    return dict(config)
  return _upgrade(config, '')


def _upgrade(config, path):
  """`config` is at the dotted `path` in the whole, with a '.' at its end."""
  upgraded = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      value = _upgrade(value, f'{path}{key}.')
    if path + key == 'task':
      value = TASKS.get(value, value)
    upgraded[RENAMED.get(path + key, key)] = value
  return upgraded


def renamed(key: str) -> str | None:
  """Returns the present name of a dotted config key of version 1.

  Returns:
    The dotted key; None where neither it nor a parent was renamed.
  """
  parts = key.split('.')
  new = [RENAMED.get('.'.join(parts[:i + 1]), part)
         for i, part in enumerate(parts)]
  return '.'.join(new) if new != parts else None


def incompatible(workdir: Any, version: int) -> str:
  """Returns the error message for a run whose state has another layout."""
  return (
      f'The run in {workdir} is of version {version} of gen3d, and the layout '
      f'of checkpoints has changed in version {VERSION}, so it cannot be '
      'resumed; train in another workdir. Its exported files and .safetensors '
      'stay usable.')
