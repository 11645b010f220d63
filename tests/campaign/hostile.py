"""The part `hostile`: files that were made to harm, and prompts.

An attack writes files into a folder, and something of gen3d reads them. The
seed chooses sizes, depths and which of several files is replaced.
"""

import functools
import io
import os
import pathlib
import random
import shutil
import struct
import types
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from campaign import outcomes, payloads, subjects
from campaign.subjects import SUBJECTS
from campaign.table import Record
from gen3d import assets
from gen3d.evaluation import samples
from gen3d.gan import inversion
from gen3d.weights import hub, pickles, torch_files

_ZEROS = 2 ** 31  # bytes that a bomb unpacks to


class Attack(NamedTuple):
  """What is written into a folder, and who reads it."""
  make: Callable[[random.Random, pathlib.Path], Any]
  read: Callable[[pathlib.Path], Any]


# What an inversion needs to know of a generator.
GENERATOR = types.SimpleNamespace(size=32, generator=types.SimpleNamespace(
    background='white', image_size=lambda size: size))


def _picture(subject, content):
  """One picture of a right input is replaced."""
  def make(rng, folder):
    SUBJECTS[subject].make(folder)
    pictures = sorted(f for f in folder.rglob('*')
                      if f.suffix.lower() in ('.png', '.jpg'))
    rng.choice(pictures).write_bytes(content(rng))
  return Attack(make, SUBJECTS[subject].read)


def _in_zip(content):
  """One picture of a zip is replaced."""
  def make(rng, folder):
    subjects.write_images(folder)
    with zipfile.ZipFile(folder / 'set.zip', 'w', zipfile.ZIP_LZMA) as archive:
      for file in sorted((folder / 'set').rglob('*.*')):
        name = file.relative_to(folder / 'set').as_posix()
        archive.writestr(name, content(rng) if name.endswith('3.png') else
                         file.read_bytes())
    shutil.rmtree(folder / 'set')
  return Attack(make, subjects.read_images)


def _inverted(content):
  return Attack(
      lambda rng, folder: (folder / 'a.png').write_bytes(content(rng)),
      lambda folder: inversion.read_target(GENERATOR, folder / 'a.png', ()))


def _bomb(name, member):
  """A zip of a few MB that unpacks to 2 GB."""
  def make(rng, folder):
    with (zipfile.ZipFile(folder / name, 'w', zipfile.ZIP_DEFLATED,
                          compresslevel=1) as archive,
          archive.open(member, 'w', force_zip64=True) as file):
      for _ in range(_ZEROS >> 24):
        file.write(bytes(2 ** 24))
  return make


def _pickle(content, suffix):
  """A pickle as a network, as PyTorch's file before 1.6 and since."""
  def make(rng, folder):
    file = folder / f'a{suffix}'
    if suffix == '.pth':
      with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('archive/data.pkl', content(rng))
    else:
      file.write_bytes(content(rng))
  read = pickles.load if suffix == '.pkl' else torch_files.read
  return Attack(make, lambda folder: read(folder / f'a{suffix}'))


# JSON files by subject.
JSON_FILES = {
    'blender': 'transforms_train.json', 'dialect': 'transforms.json',
    'images': 'set/dataset.json', 'label': 'set/dataset.json',
    'weights': 'w.json', 'network': 'network.json',
    'pipeline': 'sd/unet/config.json', 'run': 'run/config.json',
    'tokenizer': 'tokenizer.json'}


def _text(subject, content):
  def make(rng, folder):
    SUBJECTS[subject].make(folder)
    (folder / JSON_FILES[subject]).write_bytes(content(rng))
  return Attack(make, SUBJECTS[subject].read)


def _special(subject, kind):
  """One file is a pipe, a link to a device, a folder or a loop of links."""
  def make(rng, folder):
    SUBJECTS[subject].make(folder)
    file = rng.choice(sorted(f for f in folder.rglob('*') if f.is_file()))
    file.unlink()
    if kind == 'pipe':
      os.mkfifo(file)
    elif kind == 'folder':
      file.mkdir()
    else:
      file.symlink_to('/dev/zero' if kind == 'device' else file)
  return Attack(make, SUBJECTS[subject].read)


def _npy(folder, header):
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, header)
  (folder / 'poses_bounds.npy').write_bytes(file.getvalue() + b'0' * 99)


def _huge_npy(rng, folder):
  SUBJECTS['llff'].make(folder)
  _npy(folder, {'descr': '<f8', 'fortran_order': False,
                'shape': (10 ** rng.randint(10, 15), 17)})


def _huge_header(rng, folder):
  (folder / 'a.safetensors').write_bytes(
      struct.pack('<Q', rng.choice((2 ** 62, 10 ** 8, 99))) + b'{}')


def _prompt(text):
  def read(folder):
    prompt = text(random.Random(0))
    return assets.tokenizer().encode(samples.split_prompts(prompt))
  return Attack(lambda rng, folder: None, read)


def _attacks(quick: bool) -> dict[str, Attack]:
  """All attacks by name; if `quick`, those that are made in no time."""
  found = {}
  for name, content in payloads.PICTURES.items():
    for subject in ('blender', 'images'):
      found[f'{name} in {subject}'] = _picture(subject, content)
    found[f'{name} in a zip'] = _in_zip(content)
    found[f'{name} as an inversion'] = _inverted(content)
    found[f'{name} as a texture'] = _picture('meshes', content)
  for name, content in payloads.PICKLES.items():
    for suffix in ('.pkl', '.pt', '.pth'):
      found[f'{name}{suffix}'] = _pickle(content, suffix)
  for subject in JSON_FILES:
    if quick and subject not in subjects.QUICK:
      continue
    for name, content in payloads.TEXTS.items():
      found[f'{name} in {subject}'] = _text(subject, content)
  for subject in (subjects.QUICK if quick else SUBJECTS):
    for kind in ('pipe', 'device', 'folder', 'loop'):
      found[f'{kind} in {subject}'] = _special(subject, kind)
  for name, text in payloads.PROMPTS.items():
    found[f'prompt: {name}'] = _prompt(text)
  found['llff of 10^12 rows'] = Attack(_huge_npy, subjects.read_capture)
  found['safetensors of a huge header'] = Attack(
      _huge_header, lambda folder: hub._open_safetensors(
          folder / 'a.safetensors'))
  if not quick:
    bombs = {
        'set.zip': ('0.png', subjects.read_images),
        'a.npz': ('a.npy', lambda f: torch_files.read(f / 'a.npz')),
        'a.pth': ('x/data.pkl', lambda f: torch_files.read(f / 'a.pth'))}
    for name, (member, read) in bombs.items():
      found[f'bomb {name}'] = Attack(_bomb(name, member), read)
    found['bomb dataset.json'] = Attack(
        _bomb('set.zip', 'dataset.json'), subjects.read_images)
  return found


def trials(seed: int, share: float, out: pathlib.Path, done: set[str],
           quick: bool) -> Iterator[Record]:
  """Yields the records of attacks, without those that are done.

  Args:
    seed: of the attacks.
    share: of all attacks that are tried.
    out: folder for their files.
    done: names of records.
    quick: see `_attacks`.
  """
  mark, log = out / 'started', out / 'log'
  plant(out / 'bin', mark)
  attacks = _attacks(quick)
  chosen = random.Random(seed).sample(
      sorted(attacks), max(1, round(min(share, 1) * len(attacks))))
  for name in chosen:
    if name in done:
      continue
    attack = attacks[name]
    folder = out / 'trial'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rng = random.Random(f'{seed} {name}')
    made = outcomes.forked(functools.partial(attack.make, rng, folder), log,
                           outcomes.Limits(1000, 120))
    assert made.kind == 'accepted', (name, made)
    outcome = outcomes.forked(functools.partial(attack.read, folder), log)
    # What is accepted is harmless: there is no right result to compare with.
    if mark.exists():
      outcome = outcome._replace(kind='ran')
      mark.unlink()
    yield Record('hostile', name, outcome)


def plant(folder, mark):
  """Puts a stand-in for Ghostscript and others first on the PATH."""
  folder.mkdir(exist_ok=True)
  os.environ['CAMPAIGN_MARK'] = str(mark)
  for name in ('gs', 'gswin64c', 'dot', 'convert', 'magick', 'unzip'):
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "$@" >> "{mark}"\n')
    program.chmod(0o755)
  os.environ['PATH'] = f'{folder}{os.pathsep}{os.environ["PATH"]}'
