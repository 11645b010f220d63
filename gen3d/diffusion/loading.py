"""Teachers by name, as configs and commands give them."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax

from gen3d.choices import check, pick
from gen3d.diffusion import pixel_model, pretrained
from gen3d.diffusion.teachers import Teacher

TEACHERS = {'shapes': pixel_model.teacher,
            'stable_diffusion': pretrained.stable_diffusion,
            'deepfloyd': pretrained.deepfloyd}


def make_teacher(settings: Mapping[str, Any]) -> Teacher:
  """The Teacher of a mapping with `name` and the teacher's own settings.

  Settings that are empty or False get the teacher's default.

  Raises:
    UserError: the name is unknown, the teacher has no such setting, or the
      checkpoint does not fit.
  """
  name = settings['name']
  make = pick('teacher', TEACHERS, name)
  given = {key: value for key, value in settings.items()
           if value and key != 'name'}
  for key in given:
    check(f'setting of the teacher {name!r}',
          inspect.signature(make).parameters, key)
  teacher = make(**given)
  # Named for evaluation.flops and the profiler.
  return teacher._replace(
      denoise=jax.named_scope('unet')(teacher.denoise),
      encode=jax.named_scope('encoder')(teacher.encode))
