"""Images of prompts from a text-to-image model, as files."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import jax

from gen3d import files
from gen3d.choices import UserError, check_prompt, pick
from gen3d.diffusion import loading, pixel_model, sampling
from gen3d.io import images as image_io

PROMPTS = pixel_model.PROMPTS
ETA = {'ddim': 0.0, 'ddpm': 1.0}
# By teacher: guidance scale and images sampled together on a device.
DEFAULTS = {'shapes': (3.0, 16), 'stable_diffusion': (7.5, 1),
            'deepfloyd': (7.0, 4)}
_MAX_COLUMNS = 8


def split_prompts(text: str) -> list[str]:
  """The prompts of a text in which ; separates them.

  Raises:
    UserError: there is none.
  """
  prompts = [p.strip() for p in text.split(';') if p.strip()]
  if not prompts:
    raise UserError("No prompt is given; write --prompts='a red chair'.")
  for prompt in prompts:
    check_prompt(prompt)
  return prompts


def export(
    teacher: Mapping[str, str], prompts: Sequence[str],
    out: str | os.PathLike, *, num: int = 1, sides: int = 0,
    negative_prompt: str = '', guidance_scale: float | None = None,
    sampler: str = 'ddim', steps: int = 40, seed: int = 0,
    batch: int | None = None) -> pathlib.Path:
  """Samples images of prompts; writes each of them and a labeled sheet.

  Args:
    teacher: `name`, a key of DEFAULTS, with `path`, `variant`, `revision`,
      `dtype`, `prediction` and `lora`, empty where the teacher's own defaults
      are wanted.
    prompts: of the images.
    out: folder.
    num: samples of each prompt.
    sides: azimuths from which each prompt is shown; 0 for no camera
      conditioning.
    negative_prompt: what guidance moves away from.
    guidance_scale, batch: None for the teacher's defaults.
    sampler: a key of ETA.
    steps: of the sampler.
    seed: of the noise.

  Returns:
    The path of the sheet.

  Raises:
    UserError: `sides` of a teacher without camera conditioning, no such
      teacher, or a folder that cannot be written to.
  """
  check_prompt(negative_prompt)
  files.check_folder(out)
  out, name = pathlib.Path(out), teacher['name']
  default_scale, default_batch = pick('teacher', DEFAULTS, name)
  if sides and name != 'shapes':
    raise UserError('--sides is for a model with camera conditioning; '
                    f'{name} has none.')
  model = loading.make_teacher(teacher)
  if sides and not model.camera_conditioned:
    raise UserError('--sides is for a model with camera conditioning; that of '
                    f'{teacher["path"]} was trained without.')
  prompts, labels = [p for p in prompts for _ in range(num)], None
  if sides:
    prompts, labels = pixel_model.around(prompts, sides)
  images = sampling.sample(
      jax.random.key(seed), model, prompts, labels=labels,
      negative=negative_prompt,
      scale=default_scale if guidance_scale is None else guidance_scale,
      steps=steps, eta=ETA[sampler], batch=batch or default_batch)
  # A row is one prompt where there are several images of each.
  per_prompt = sides or num
  columns = (per_prompt if per_prompt > 1
             else min(_MAX_COLUMNS, len(prompts)))
  image_io.save(out / 'grid.png', image_io.tile(images, columns, prompts))
  for i, image in enumerate(images):
    image_io.save(out / f'{i:04d}.png', image)
  return out / 'grid.png'
