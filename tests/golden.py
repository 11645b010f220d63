"""Records what the code computes, to check that a refactoring changes nothing.

Run it before a change and after it, then compare the two folders:

  python tests/golden.py record /tmp/golden/before
  python tests/golden.py record /tmp/golden/after [--only=NAME,...]
  python tests/golden.py compare /tmp/golden/before /tmp/golden/after

`record` runs the commands as a user would, each in a process of its own on
virtual CPU devices, and writes OUT/NAME.npz, OUT/hashes.json (the SHA-256,
shape and dtype of every array of every NAME) and OUT/logs/NAME.log:

  train-CONFIG-tiny-Ndev  Three steps of each config's tiny variant on one and
                          on two devices: the checkpoint, scalars.jsonl and the
                          files at the end. Evaluated once, on one device.
  generate-objects        A sheet of views and a mesh of the shipped GAN.
  sample-pictures         A picture of the shipped text-to-image model.
  text-to-3d              20 steps: the checkpoint, the preview and the mesh.
  gan-METRIC              The numbers of `evaluate --what=gan` on few objects.

An item that fails is named with its log, and the others go on. `--only` takes
NAMEs or beginnings of them, also for `compare`; `--root` another checkout.

`compare` pairs arrays by their paths, and those left over on both sides by
their content, since names may change. It exits with 1 unless all agree to
1e-5 of an array's largest absolute value. The same code on the same machine
gives the same bits, however busy it is and whether its programs come from the
cache or are compiled anew.

Compiled programs are kept in $JAX_COMPILATION_CACHE_DIR, else in the folder
`jax` beside OUT. On two CPU cores a whole record takes about 11 minutes once
all programs are there, else about 20; one item takes from 10 s to 3 minutes.

What a refactoring renames is in the tables at the top of the file.
"""

import argparse
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'  # Orbax imports JAX, here too.

import jax
import numpy as np
import orbax.checkpoint as ocp
import trimesh
from absl import logging
from PIL import Image

Arrays = dict[str, np.ndarray]
Names = tuple[str, ...]

TOLERANCE = 1e-5
TIMEOUT = 3600.0  # seconds for one item
ROOT = pathlib.Path(__file__).resolve().parents[1]

# Names that may change; of several, the first that exists is taken.
CONFIGS = ('clip', 'dreamfusion', 'eg3d', 'mip_nerf', 'nerf', 'stylegan2',
           'text_to_image', 'triplanes', 'voxels')
TRAIN, OBJECTS = ('gen3d.train',), ('gen3d.generate',)
PICTURES = ('gen3d.sample', 'gen3d.generate')
GAN_MODULES = ('gen3d.evaluation.gan', 'gen3d.tasks.gan_evaluation')
# Called for each metric: function names, arguments after the network.
GAN_METRICS = {
    'distances': (('distances',), ()),
    'geometry': (('geometry',), (3, 20)),
    'named': (('classification', 'named'), (2,))}
# In the shipped GAN's record: how many pictures distances are measured by.
GAN_ASSET = 'gen3d/assets/eg3d_shapes.safetensors'
GAN_COUNTS, GAN_COUNT = ('distance_count',), 64
NOT_METRICS = ('step', 'time')  # in scalars.jsonl

# Run in the checkout: argv is modules, functions, network, arguments, out.
CALL = '''
import importlib, json, sys
modules, functions, network, arguments, out = map(json.loads, sys.argv[1:])
for name in modules:
  try:
    module = importlib.import_module(name)
    break
  except ModuleNotFoundError as error:
    print(error)
function = next(getattr(module, f) for f in functions if hasattr(module, f))
def plain(node):
  if hasattr(node, '_asdict'):
    node = node._asdict()
  if isinstance(node, dict):
    return {str(key): plain(value) for key, value in node.items()}
  return float(node)
with open(out, 'w') as file:
  json.dump(plain(function(network, *arguments)), file)
'''


class Checkout:
  """Runs commands of one checkout, with a log for each item."""

  def __init__(self, root: pathlib.Path, out: pathlib.Path) -> None:
    self.root, self.logs = root, out / 'logs'
    self.logs.mkdir(parents=True, exist_ok=True)
    self._env = {
        **os.environ, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    self._env.setdefault('JAX_COMPILATION_CACHE_DIR', str(out.parent / 'jax'))

  def python(self, name: str, devices: int, *arguments: str) -> None:
    """Runs Python with arguments; raises RuntimeError where it fails."""
    flag = f'--xla_force_host_platform_device_count={devices}'
    with (self.logs / f'{name}.log').open('w') as log:
      print(*arguments, file=log, flush=True)
      done = subprocess.run(
          [sys.executable, *arguments], cwd=self.root, timeout=TIMEOUT,
          env={**self._env, 'XLA_FLAGS': flag}, stdin=subprocess.DEVNULL,
          stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
      raise RuntimeError(f'exit code {done.returncode}')

  def command(self, name: str, devices: int, modules: Names,
              *flags: str) -> None:
    """Runs the first of the modules that is there with flags."""
    there = [module for module in modules if
             (self.root / f'{module.replace(".", "/")}.py').is_file()]
    self.python(name, devices, '-m', (there or modules)[0], *flags)


def items() -> dict[str, Callable[[Checkout, str, pathlib.Path], Arrays]]:
  """{NAME: (checkout, name, an empty folder) -> what it computes}."""
  tiny = {
      f'train-{config}-tiny-{devices}dev': functools.partial(
          train, f'{config}.py:tiny', devices, '--config.steps=3',
          f'--config.eval_every={3 if devices == 1 else 0}')
      for devices in (1, 2) for config in CONFIGS}
  return {
      **tiny,
      'generate-objects': functools.partial(
          generate, OBJECTS, '--network=shapes', '--seeds=3', '--frames=8',
          '--resolution=48'),
      'sample-pictures': functools.partial(
          generate, PICTURES, '--prompts=a red chair', '--steps=8'),
      'text-to-3d': functools.partial(
          train, 'dreamfusion.py:shapes', 2, '--config.steps=20',
          '--config.prompt=a red chair'),
      **{f'gan-{metric}': functools.partial(gan, metric)
         for metric in GAN_METRICS}}


def train(config: str, devices: int, *rest: Any) -> Arrays:
  *flags, checkout, name, folder = rest
  checkout.command(name, devices, TRAIN, f'--config=configs/{config}', *flags,
                   f'--workdir={folder}')
  return {**checkpoint(folder), **scalars(folder), **files(folder)}


def generate(modules: Names, *rest: Any) -> Arrays:
  *flags, checkout, name, folder = rest
  checkout.command(name, 2, modules, *flags, f'--out={folder}')
  return files(folder)


def gan(metric: str, checkout: Checkout, name: str,
        folder: pathlib.Path) -> Arrays:
  # The shipped network, whose record asks for fewer pictures.
  asset, out = checkout.root / GAN_ASSET, folder / 'out.json'
  network = shutil.copy(asset, folder)
  text, replaced = re.subn(
      rf'("(?:{"|".join(GAN_COUNTS)})": )\d+', rf'\g<1>{GAN_COUNT}',
      asset.with_suffix('.json').read_text())
  if not replaced:
    raise RuntimeError(f'none of {GAN_COUNTS} is in the record of {asset}')
  (folder / asset.name).with_suffix('.json').write_text(text)
  functions, arguments = GAN_METRICS[metric]
  checkout.python(name, 2, '-c', CALL, *map(json.dumps, (
      GAN_MODULES, functions, str(network), arguments, str(out))))
  return flat(json.loads(out.read_text()))


def checkpoint(workdir: pathlib.Path) -> Arrays:
  """The arrays of the newest checkpoint below a folder, by their paths."""
  stored = max((path.parent for path in workdir.rglob('manifest.ocdbt')
                if path.parent.parent.name.isdigit()),
               key=lambda path: int(path.parent.name))
  with ocp.PyTreeCheckpointer() as reader:
    tree = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        reader.metadata(stored).item_metadata.tree)
    return flat({'checkpoint': reader.restore(stored, restore_args=tree)})


def scalars(workdir: pathlib.Path) -> Arrays:
  """The values of each metric in scalars.jsonl, one after the other."""
  found = {}
  for line in (workdir / 'scalars.jsonl').read_text().splitlines():
    for metric, value in json.loads(line).items():
      if metric not in NOT_METRICS:
        found.setdefault(f'scalars/{metric}', []).append(value)
  return {path: np.array(x, np.float64) for path, x in found.items()}


def files(folder: pathlib.Path) -> Arrays:
  """Of a folder's .png the pixels, of its .ply vertices, faces and colours."""
  found = {path.name: np.asarray(Image.open(path), np.float32)
           for path in folder.glob('*.png')}
  for path in folder.glob('*.ply'):
    mesh = trimesh.load_mesh(path, process=False)
    found |= {
        f'{path.name}/vertices': np.asarray(mesh.vertices, np.float32),
        f'{path.name}/faces': np.asarray(mesh.faces, np.int32),
        f'{path.name}/colours': np.asarray(
            mesh.visual.vertex_colors, np.float32)}
  return found


def flat(tree: Any) -> Arrays:
  """{'a/0/b': array} of a tree of dicts and lists, without what is None."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x)
          for path, x in jax.tree.leaves_with_path(tree)}


def record(out: pathlib.Path, only: Names, root: pathlib.Path) -> bool:
  """Writes what is wanted; returns whether all of it could be made."""
  out, failed, start = out.resolve(), [], time.monotonic()
  checkout, known = Checkout(root.resolve(), out), out / 'hashes.json'
  makers = {name: make for name, make in items().items()
            if name.startswith(only)}
  for name, make in makers.items():
    began, file = time.monotonic(), out / f'{name}.npz'
    file.unlink(missing_ok=True)
    hashes = json.loads(known.read_text()) if known.exists() else {}
    hashes.pop(name, None)
    try:
      with tempfile.TemporaryDirectory() as folder:
        arrays = make(checkout, name, pathlib.Path(folder))
      arrays = {path: storable(x) for path, x in sorted(arrays.items())}
      np.savez(file, **arrays)
      hashes[name] = {path: {
          'sha256': hashlib.sha256(x.tobytes()).hexdigest(),
          'shape': x.shape, 'dtype': str(x.dtype)}
          for path, x in arrays.items()}
      outcome = f'{len(arrays)} arrays'
    except Exception as error:  # The others are wanted all the same.
      failed.append(name)
      outcome = f'FAILED, see {checkout.logs}/{name}.log: {error!r}'
    known.write_text(json.dumps(hashes, indent=1, sort_keys=True) + '\n')
    print(f'{name:32} {time.monotonic() - began:6.1f} s  {outcome}',
          flush=True)
  print(f'{time.monotonic() - start:.0f} s in all; failed: {failed}')
  return bool(makers) and not failed


def compare(before: pathlib.Path, after: pathlib.Path, only: Names) -> bool:
  """Prints a line for each item; returns whether all agree."""
  names = sorted({
      path.stem for folder in (before, after)
      for path in folder.glob('*.npz') if path.stem.startswith(only)})
  fine = bool(names)
  for name in names:
    files = [folder / f'{name}.npz' for folder in (before, after)]
    lacking = [str(file.parent) for file in files if not file.exists()]
    agrees, verdict = ((False, f'missing in {", ".join(lacking)}') if lacking
                       else judge(*(dict(np.load(file)) for file in files)))
    print(f'{name:32} {verdict}')
    fine &= agrees
  return fine


def judge(before: Arrays, after: Arrays) -> tuple[bool, str]:
  """Whether two records of an item agree, and a line that says how."""
  kind = lambda x: (x.shape, x.dtype)
  same = {path for path in before
          if path in after and kind(before[path]) == kind(after[path])}
  pairs = [(difference(before[path], after[path]), path) for path in same]
  lost = sorted(set(before) - same)
  left = {path: x for path, x in after.items() if path not in same}
  for path in lost[:]:
    # Of equal ones that of the same last name, else the first.
    alike = [(difference(before[path], x), path.split('/')[-1] not in other,
              other) for other, x in sorted(left.items())
             if kind(x) == kind(before[path])]
    worst, _, other = min(alike, default=(np.inf, True, ''))
    if worst <= TOLERANCE:
      del left[other]
      lost.remove(path)
      pairs.append((worst, path))
  worst, where = max(pairs, default=(0.0, ''))
  text = f'{len(pairs)} arrays'
  if len(pairs) > len(same):
    text += f', {len(pairs) - len(same)} of them matched by content'
  if worst > TOLERANCE:
    text += f', {sum(x > TOLERANCE for x, _ in pairs)} of them not near'
  for side, paths in (('before', lost), ('after', list(left))):
    if paths:
      text += f', {len(paths)} only {side}: {" ".join(paths[:3])}'
  fine = worst <= TOLERANCE and not lost and not left
  verdict = 'DIFFERENT' if not fine else 'within' if worst else 'identical'
  where = f' {worst:.1e} at {where}' if worst else ''
  return fine, f'{verdict}{where} ({text})'


def difference(a: np.ndarray, b: np.ndarray) -> float:
  """The largest one, relative to the largest absolute value of both."""
  if a.tobytes() == b.tobytes():
    return 0.0
  a, b = np.float64(a).ravel(), np.float64(b).ravel()
  finite = np.isfinite(a) & np.isfinite(b)
  if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
    return np.inf
  largest = np.abs([a[finite], b[finite]]).max(initial=0) or 1.0
  return float(np.abs(a - b)[finite].max(initial=0) / largest)


def storable(x: np.ndarray) -> np.ndarray:
  """NumPy's files know no bfloat16."""
  x = np.asarray(x, order='C')
  return x if x.dtype.kind in 'biuf' else x.astype(np.float32)


def main() -> None:
  logging.set_verbosity(logging.ERROR)  # Orbax tells a lot.
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest='command', required=True)
  recording = commands.add_parser('record')
  recording.add_argument('out', type=pathlib.Path)
  recording.add_argument('--root', type=pathlib.Path, default=ROOT)
  comparing = commands.add_parser('compare')
  comparing.add_argument('before', type=pathlib.Path)
  comparing.add_argument('after', type=pathlib.Path)
  for command in (recording, comparing):
    command.add_argument('--only', default='')
  flags = parser.parse_args()
  only = tuple(flags.only.split(','))
  if flags.command == 'record':
    fine = record(flags.out, only, flags.root)
  else:
    fine = compare(flags.before, flags.after, only)
  sys.exit(0 if fine else 1)


if __name__ == '__main__':
  main()
