"""Where open models come from: a folder or the hub, a dtype, a cache.

Embeddings are kept on disk, one file for each text, named by a hash of the
text encoder and of the text's tokens: the second run of a prompt needs no text
encoder at all, and may be on a machine that could not hold it.
"""

import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from gen3d import files
from gen3d.choices import UserError, check, pick
from gen3d.diffusion import pretrained
from gen3d.weights import hub

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def stable_diffusion(*, path='', revision='', variant='', dtype='',
                     prediction='', remat=False, flash=False):
  """The Teacher of a Stable Diffusion in a folder or on the hub.

  Args:
    path: the folder, or 'owner/model' on the hub.
    revision: the hub's branch, tag or commit; '' for its main branch.
    variant: '' or 'fp16': which weights to read.
    dtype: a key of DTYPES; '' for float32 on a CPU and bfloat16 elsewhere.
    prediction: see open_models.stable_diffusion_teacher, as the rest.
    remat: less memory for the gradient through the autoencoder, more time.
    flash: cuDNN's attention; NVIDIA GPUs and bfloat16 only.

  Raises:
    UserError: nothing that fits is there; says what is missing.
  """
  settings = _settings(dtype, prediction, flash)
  place = _locate('stable_diffusion', path, pretrained.STABLE_DIFFUSION,
                  revision, variant)
  return pretrained.stable_diffusion_teacher(
      place, variant=variant, remat=remat, remember=remember, **settings)


def deepfloyd(*, path='', revision='', variant='', dtype='', prediction='',
              flash=False):
  """The Teacher of DeepFloyd IF; see `stable_diffusion`."""
  settings = _settings(dtype, prediction, flash)
  place = _locate('deepfloyd', path, pretrained.DEEPFLOYD, revision, variant)
  return pretrained.deepfloyd_teacher(
      place, variant=variant, remember=remember, **settings)


def remember(names, make, folder=None):
  """States [N, ...] of N texts, from the disk where they are known.

  Args:
    names: of the texts, fit for files.
    make: rows [M] -> states [M, ...] of those that are not known; called at
      most once.
    folder: of the files; that of the cache if None.
  """
  folder = pathlib.Path(folder or files.cache_dir() / 'embeddings')
  found = {name: _read(folder / f'{name}.npz') for name in names}
  missing = {name: row for row, name in enumerate(names)
             if found[name] is None}
  if missing:
    made = make(np.array(list(missing.values())))
    for name, states in zip(missing, made, strict=True):
      found[name] = states
      with files.atomic_write(folder / f'{name}.npz') as temporary:
        np.savez(temporary, states=states)
  return np.stack([found[name] for name in names])


def _read(file):
  """The states in a file; None where it is missing or damaged."""
  try:
    with np.load(file) as content:
      return content['states']
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def _locate(name, path, parts, revision, variant):
  if not path:
    raise UserError(
        f'The teacher {name!r} needs a path: the folder of a checkpoint as '
        'diffusers saves it, or its id on the hub.')
  place = hub.locate(path, parts, revision or None, variant)
  if place.revision and place.revision != revision:
    logging.warning('The teacher is %s at revision %s; ask for that to get '
                    'the same weights again.', place.name, place.revision)
  return place.path


def _settings(dtype, prediction, flash):
  """What both families take, checked before anything is downloaded."""
  if prediction:
    check('prediction', pretrained.PREDICTIONS, prediction)
  platform = jax.default_backend()
  name = dtype or ('float32' if platform == 'cpu' else 'bfloat16')
  dtype = pick('dtype', DTYPES, name)
  if flash and (platform != 'gpu' or name == 'float32'):
    raise UserError(
        'The flash attention of a teacher is for bfloat16 on an NVIDIA GPU, '
        f'not for {name} on a {platform}.')
  return {'dtype': dtype, 'prediction': prediction, 'flash': flash}


# Each takes what a config's `teacher` says, where it says anything.
TEACHERS = {'stable_diffusion': stable_diffusion, 'deepfloyd': deepfloyd}
