"""How a file of a damaged or odd input is put to gen3d, by the file's name.

A recipe copies what the file belongs to (a capture, a folder of diffusers, a
run) into a folder, puts the file in its place, and names the command that
reads it.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from campaign import TESTS
from gen3d import assets

# Module and flags of a command; FOLDER is the input's own folder.
Command = Sequence[str]
FOLDER = '{folder}'

_CAPTURE = 'gen3d.make_data', '--capture={folder}', '--out={folder}/out'
_IMAGES = 'gen3d.make_data', '--images={folder}/set', '--out={folder}/out'
_ZIP = 'gen3d.make_data', '--images={folder}/set.zip', '--out={folder}/out'
_SAMPLE = ('gen3d.sample', '--teacher=stable_diffusion', '--path={folder}/sd',
           '--prompts=a dog', '--steps=1', '--out={folder}/out')
_GENERATE = ('--seeds=0', '--frames=8', '--resolution=8', '--texture=0',
             '--out={folder}/out')
_RECORD = ('gen3d.generate', '--network={folder}/eg3d_shapes.safetensors',
           *_GENERATE)
_TOY = ('campaign.train', f'--config={TESTS / "toy_config.py"}',
        '--workdir={folder}/run', '--config.pause=0')
_RESUME = *_TOY, '--config.steps=20'
_EXPORT = 'gen3d.export', '--workdir={folder}/run', '--out={folder}/out'
_EVALUATE = 'gen3d.evaluate', '--what=text_to_3d', '--runs={folder}'
_PROMPT = 'campaign.sample', '--prompts=a red chair', '--steps=1', (
    '--out={folder}/out')
_VIEWS = ('gen3d.train', '--config=view_estimator:tiny', '--config.steps=1',
          '--workdir={folder}/run')
_EMBEDDINGS = (
    'gen3d.train', '--config=dreamfusion:tiny', '--config.steps=1',
    '--config.teacher.name=stable_diffusion', '--config.teacher.path={folder}'
    '/sd', '--config.prompt=a dog', '--workdir={folder}/run')
_CAPTURES = 'sparse', 'poses_bounds.npy', 'pose'  # in folders that are captures
# Runs that inputs are put into, made by each version for itself.
RUNS = {'toy': _TOY, 'dream': (
    'gen3d.train', '--config=dreamfusion:tiny', '--config.prompt=a red chair',
    '--workdir={folder}/run')}
# Files of the cache, likewise.
CACHES = {'views': _VIEWS, 'embeddings': _EMBEDDINGS}


class Recipe(NamedTuple):
  """Attributes:
    base: what the file is put into, of SUBJECTS, RUNS or CACHES; '' for none.
    place: of the file in it, a glob pattern; '*' for the file's own name.
    command: that reads it.
  """
  base: str
  place: str
  command: Command


def _part(match):
  """A settings file of a diffusers folder."""
  names = {'scheduler': 'scheduler_config.json',
           'tokenizer': 'tokenizer_config.json'}
  return f'sd/{match[1]}/{names.get(match[1], "config.json")}'


_FAULTS: Sequence[tuple[str, str, str | Callable, Command]] = (
    ('capture_colmap_txt', 'colmap_txt', 'sparse/0/points3D.txt', _CAPTURE),
    ('png_capture', 'blender', 'train/r_3.png', _CAPTURE),
    ('json_transforms', 'blender', 'transforms_train.json', _CAPTURE),
    ('json_dialect', 'dialect', 'transforms.json', _CAPTURE),
    ('npy_', 'llff', 'poses_bounds.npy', _CAPTURE),
    ('(?:png_set|cli_postscript)', 'images', 'set/00000/img00000003.png',
     _IMAGES),
    ('eg3d_png', 'images', 'set/00000/img00000002.png', _IMAGES),
    ('json_dataset', 'images', 'set/dataset.json', _IMAGES),
    ('eg3d_zip', '', 'set.zip', _ZIP),
    ('(?:cli_)?mesh', '', '*', (
        'gen3d.make_data', '--mesh={file}', '--views=2', '--test_views=1',
        '--size=16', '--out={folder}/out')),
    ('safetensors_config-([a-z_]+)-', 'pipeline', _part, _SAMPLE),
    ('safetensors_index', 'pipeline', 'sd/unet/model.safetensors.index.json',
     _SAMPLE),
    ('diffusers_unet', 'pipeline', 'sd/unet/model.safetensors', _SAMPLE),
    ('(?:diffusers_tokenizer|json_tokenizer|json_vocab|cli_diffusers)',
     'pipeline', 'sd/tokenizer/*', _SAMPLE),
    ('safetensors_record', 'record', '*', _RECORD),
    ('(?:cli_)?tokenizer', 'tokenizer', 'tokenizer.json', _PROMPT),
    ('(?:run_df-config|cli_run_1)', 'dream', 'run/config.json', _EXPORT),
    ('cli_run_2', 'dream', 'run/checkpoints/4/state/manifest.ocdbt', _EXPORT),
    ('cli_run_3', 'dream', 'run/checkpoints/4/state/d/?*', _EXPORT),
    ('cli_run_4', 'dream', 'run/checkpoints/4/state/ocdbt.process_0/d/?*',
     _EXPORT),
    ('(?:run_config|cli_run_8|json_run-config)', 'toy', 'run/config.json',
     _RESUME),
    ('(?:run_finished|cli_run_9)', 'toy', 'run/finished.json', _TOY),
    ('run_scalars', 'toy', 'run/scalars.jsonl', _RESUME),
    ('(?:orbax_meta|json_run-checkpoint)', 'toy',
     'run/checkpoints/10/meta/metadata', _RESUME),
    ('orbax__CHECKPOINT', 'toy', 'run/checkpoints/10/_CHECKPOINT_METADATA',
     _RESUME),
    ('orbax_state_array', 'toy',
     'run/checkpoints/10/state/array_metadatas/process_0', _RESUME),
    ('orbax_state_d_', 'toy', 'run/checkpoints/10/state/d/?*', _RESUME),
    ('orbax_state_manifest', 'toy', 'run/checkpoints/10/state/manifest.ocdbt',
     _RESUME),
    ('small_evaluation', 'dream', 'run/evaluation.json', _EVALUATE),
    ('cache_views', 'views', 'cache/shapes-*/*.npz', _VIEWS),
    ('cache_embeddings', 'embeddings', 'cache/embeddings/*.npz', _EMBEDDINGS))


def recipe(path: pathlib.Path) -> Recipe | None:
  """The Recipe of an input; None where it is none, such as a README."""
  if (path / 'dataset.json').exists():
    return Recipe('', 'set', _IMAGES)
  if any((path / name).exists() for name in _CAPTURES) or (
      path.is_dir() and any(path.glob('transforms*.json'))):
    return Recipe('', '', _CAPTURE)
  if (path / 'unet').is_dir():
    return Recipe('', 'sd', _SAMPLE)
  if path.is_dir():
    return None
  if '__' in path.name or path.name.startswith('safetensors_config'):
    for pattern, base, place, command in _FAULTS:
      match = re.match(pattern, path.name)
      if match:
        place = place if isinstance(place, str) else place(match)
        return Recipe(base, place, command)
  if path.suffix == '.zip':
    return Recipe('', 'set.zip', _ZIP)
  if path.suffix in ('.glb', '.gltf', '.obj', '.ply', '.stl'):
    return Recipe('', '*', (
        'gen3d.make_data', '--mesh={file}', '--views=2', '--test_views=1',
        '--size=16', '--out={folder}/out'))
  if path.suffix in ('.pkl', '.pt', '.pth'):
    return Recipe('', '*', ('gen3d.generate', '--network={file}', *_GENERATE))
  if 'lora' in path.name:
    return Recipe('pipeline', '*', (*_SAMPLE, '--lora={file}'))
  if path.suffix in ('.safetensors', '.ckpt'):
    return Recipe('', '*', (*(
        flag.replace('{folder}/sd', '{file}') for flag in _SAMPLE),))
  return None


def place(given: Recipe, path: pathlib.Path, folder: pathlib.Path,
          bases: pathlib.Path) -> list[str]:
  """Puts an input into an empty folder; returns the command.

  Args:
    given: of the input.
    path: of the input.
    folder: to write into.
    bases: folder of what files are put into, by the names in `Recipe.base`.
  """
  if given.base == 'record':
    shutil.copy(assets.FOLDER / 'eg3d_shapes.safetensors', folder)
  elif given.base:
    shutil.copytree(bases / given.base, folder, dirs_exist_ok=True)
  target = _target(given, path, folder)
  if path.is_dir():
    shutil.copytree(path, target, dirs_exist_ok=True)
  else:
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
  if 'map-fifo' in path.name:
    (folder / 'm.mtl').write_text('newmtl m\nmap_Kd t.png\n')
    os.mkfifo(folder / 't.png')
  if 'index' in path.name and given.base == 'pipeline':
    (folder / 'sd' / 'unet' / 'model.safetensors').unlink()
  if given.base in CACHES:  # The run is to be made again.
    shutil.rmtree(folder / 'run')
  return [word.format(folder=folder, file=target) for word in given.command]


def _target(given, path, folder):
  """The place of an input in its folder."""
  original = path.name.rpartition('__')[2]
  pattern = str(given.place)
  if pattern.endswith('*') and '?' not in pattern:
    return folder / pattern.replace('*', original)
  if '*' in pattern:
    return max((f for f in folder.glob(pattern) if f.is_file()),
               key=lambda f: (f.stat().st_size, f.name))
  return folder / pattern

