"""Atomic writes, bounded reads, and image files that start no program."""

import io
import os
import pathlib
import re
import struct
import threading
import types
import zipfile
import zlib

import ghostscript
import numpy as np
import pytest
from ghostscript import DOS, POSTSCRIPT
from PIL import Image, UnidentifiedImageError
from posed_layouts import around, write_blender

from gen3d import files, schemas
from gen3d.choices import UserError
from gen3d.data.captures import posed
from gen3d.data.images import dataset
from gen3d.gan import inversion
from gen3d.io import meshes
from gen3d.weights import torch_files

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def started(tmp_path, monkeypatch):
  """The file that a stand-in for Ghostscript makes when it is started."""
  return ghostscript.plant(tmp_path, monkeypatch)


def image_folder(tmp_path, content):
  folder = tmp_path / 'set'
  folder.mkdir()
  (folder / 'bad.png').write_bytes(content)
  return lambda: dataset.open_images(folder)


def image_zip(tmp_path, content):
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as out:
    out.writestr('bad.png', content)
  return lambda: dataset.open_images(tmp_path / 'set.zip')


def capture(tmp_path, content):
  folder = tmp_path / 'capture'
  folder.mkdir()
  write_blender(folder, around(), None)
  (folder / 'train' / 'r_1.png').rename(folder / 'train' / 'bad.png')
  listing = folder / 'transforms_train.json'
  listing.write_text(listing.read_text().replace('train/r_1"', 'train/bad"'))
  (folder / 'train' / 'bad.png').write_bytes(content)
  return lambda: posed.open_posed(folder, 'train')


def target(tmp_path, content):
  (tmp_path / 'bad.png').write_bytes(content)
  generator = types.SimpleNamespace(background='white')
  return lambda: inversion.read_target(
      types.SimpleNamespace(generator=generator), tmp_path / 'bad.png', None)


@pytest.mark.parametrize('content', [POSTSCRIPT, DOS], ids=['plain', 'dos'])
@pytest.mark.parametrize('place', [image_folder, image_zip, capture, target])
def test_postscript_in_a_png_starts_no_program(
    tmp_path, started, place, content):
  read = place(tmp_path, content)
  with pytest.raises(ValueError, match=r'bad\.png cannot be read as an image'):
    read()
  assert not started.exists()


def test_the_stand_in_is_what_pillow_would_start(started):
  """Otherwise the test above could not fail."""
  with pytest.raises(OSError), Image.open(io.BytesIO(POSTSCRIPT)) as image:
    image.load()
  assert started.exists()


@pytest.mark.parametrize('kind', [*files.IMAGE_FORMATS, 'MPO'])
def test_accepted_formats_are_opened_whatever_their_suffix(tmp_path, kind):
  """MPO is a JPEG with further images, which many telephones write."""
  more = {'save_all': True, 'append_images': [Image.new('RGB', (6, 4))]}
  Image.new('RGB', (6, 4), (200, 0, 0)).save(
      tmp_path / 'a.png', kind, **more if kind == 'MPO' else {})
  for file in (tmp_path / 'a.png',
               io.BytesIO((tmp_path / 'a.png').read_bytes())):
    with files.open_image(file) as image:
      assert image.format == kind
      assert image.size == (6, 4) and image.convert('RGB').getpixel(
          (3, 2))[0] == pytest.approx(200, abs=8)


@pytest.mark.parametrize('kind', ['GIF', 'PPM', 'PCX'])
def test_other_formats_are_refused(kind):
  file = io.BytesIO()
  Image.new('RGB', (6, 4)).save(file, kind)
  with pytest.raises(UnidentifiedImageError):
    files.open_image(file)


def test_restricted_formats_hold_within_the_block_only(started):
  with files.restricted_image_formats():
    with pytest.raises(UnidentifiedImageError):
      Image.open(io.BytesIO(POSTSCRIPT))
    file = io.BytesIO()
    Image.new('RGB', (6, 4)).save(file, 'PNG')
    assert Image.open(file).size == (6, 4)
  with Image.open(io.BytesIO(POSTSCRIPT)) as image:
    assert image.format == 'EPS'
  assert not started.exists()


def test_images_are_opened_nowhere_else():
  """Of gen3d's own code; the pattern is tried on files.py itself."""
  users = [path.relative_to(ROOT / 'gen3d').as_posix()
           for path in (ROOT / 'gen3d').rglob('*.py')
           if re.search(r'\bImage\.open\(', path.read_text())]
  assert users == ['files.py']


def reading_modules(pattern):
  """Modules of gen3d with a match of a pattern."""
  return {path.relative_to(ROOT / 'gen3d').as_posix()
          for path in (ROOT / 'gen3d').rglob('*.py')
          if re.search(pattern, path.read_text())}


def test_files_of_others_are_read_in_one_place():
  """Libraries that open images or JSON by themselves are used nowhere."""
  assert reading_modules(r'\bimport (imageio|cv2|skimage|matplotlib)\b|'
                         r'\bimread\b') == set()
  # workdirs.py parses what ml_collections has just written.
  assert reading_modules(r'\bjson\.loads?\(') <= {
      'files.py', 'engine/workdirs.py'}
  # These read .npy, which is no archive, or what gen3d has just written.
  assert reading_modules(r'\bnp\.load\(') <= {
      'data/captures/llff.py', 'evaluation/fid.py', 'guidance/clip.py',
      'ops/atlas_process.py'}
  assert reading_modules(r'\btrimesh\.load') == {'io/meshes.py'}


def png_header(width, height):
  """A PNG that declares a size and has no pixels."""
  file = io.BytesIO()
  Image.new('1', (1, 1)).save(file, 'PNG')
  content = bytearray(file.getvalue())
  content[16:24] = struct.pack('>II', width, height)
  content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
  return bytes(content)


@pytest.mark.parametrize('place', [image_folder, image_zip, capture, target])
@pytest.mark.parametrize('size', [(13_000, 13_000), (2 ** 30, 2 ** 30)])
def test_images_of_too_many_pixels_are_refused(tmp_path, place, size):
  with pytest.raises(ValueError, match=r'bad\.png cannot be read as an image'):
    place(tmp_path, png_header(*size))()


def test_limit_of_pixels_is_that_of_the_header():
  # Far less than 400 MB would be refused for its size.
  whole = png_header(10_000, 10_000).ljust(200_000, b'\0')
  with files.open_image(io.BytesIO(whole)) as image:
    assert image.size == (10_000, 10_000)
  with pytest.raises(UserError, match='its 199,999 bytes would decode to'):
    files.open_image(io.BytesIO(whole[:-1]))
  with files.open_image(io.BytesIO(png_header(4096, 4096))) as image:
    assert image.size == (4096, 4096)
  with pytest.raises(UserError, match='more than 100,000,000 pixels'):
    files.open_image(io.BytesIO(png_header(10_000, 10_001)))


@pytest.mark.parametrize('make', [
    lambda path: path.symlink_to('/dev/zero'), os.mkfifo])
def test_devices_and_pipes_are_not_read(tmp_path, make):
  """A pipe would wait for its writer, /dev/zero has no end."""
  make(tmp_path / 'bad.png')
  for read in (files.open_image, files.read_file, files.read_json,
               files.read_npz,
               lambda path: dataset.open_images(path.parent)):
    with pytest.raises(UserError, match='no regular file'):
      read(tmp_path / 'bad.png')


def test_missing_and_huge_files_are_user_errors(tmp_path, monkeypatch):
  with pytest.raises(UserError, match='a cannot be read'):
    files.read_file(tmp_path / 'a')
  with pytest.raises(UserError, match='cannot be read'):
    files.read_file(tmp_path)
  monkeypatch.setattr(files, '_MAX_BYTES', 3)
  (tmp_path / 'b').write_bytes(b'1234')
  with pytest.raises(UserError, match='b has 4 bytes'):
    files.read_file(tmp_path / 'b')


@pytest.mark.parametrize('encoding', [
    'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
def test_json_of_every_encoding_is_read(tmp_path, encoding):
  (tmp_path / 'a.json').write_bytes('{"ä": [1, 2.5, null]}'.encode(encoding))
  assert files.read_json(tmp_path / 'a.json') == {'ä': [1, 2.5, None]}


def nested(depth):
  return b'{"a": ' + b'[' * (depth - 1) + b']' * (depth - 1) + b'}'


@pytest.mark.parametrize('content, said', [
    (b'', 'is not JSON'), (b'{"a": 1', 'is not JSON'),
    (b'{"a": 1} x', 'is not JSON'), (b'\xff\xfe\xfd', 'is not JSON'),
    (b'{"a": "\xff"}', 'is not JSON'), (b'[1]', 'no JSON object but \\[1\\]'),
    (b'5', 'no JSON object but 5'), (b'null', 'no JSON object but None'),
    (b'{"a": NaN}', 'the value NaN'), (b'{"a": -Infinity}', 'the value -Inf'),
    (b'{"a": "\\ud800"}', 'half a surrogate pair'),
    (nested(65), 'nested deeper than 64'), (b'[' * 10 ** 6, 'nested deeper'),
    (b'{"layers": 1' + b'0' * 400 + b'}', "'layers' is inf, but must be"),
    (b'{"layers": "x"}', "'layers' is 'x', but must be")])
def test_damaged_json_is_a_user_error(tmp_path, content, said):
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(UserError, match=rf'a\.json.*{said}') as error:
    files.read_json(tmp_path / 'a.json', {'layers': schemas.whole(1, 9)})
  assert len(str(error.value)) < 400


def test_json_that_is_unusual_but_right_is_read():
  parse = lambda content: files.parse_json(content, 'f', kind=object)
  assert parse(nested(64))
  assert parse(b'"\\ud83d\\ude00"') == '\U0001f600'
  assert parse(b'18446744073709551615') == 2 ** 64 - 1
  assert files.parse_json(b'[NaN]', 'f', kind=object, nan=True)


def zipped(path, content, kind=zipfile.ZIP_STORED, name='a.npy'):
  with zipfile.ZipFile(path, 'w', kind) as out:
    out.writestr(name, content)
  return path


def npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


@pytest.mark.parametrize('kind', [
    zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_far_smaller_than_their_content_are_refused(
    tmp_path, monkeypatch, kind):
  """Bounds of a small size, which keep the test quick."""
  monkeypatch.setattr(files, '_UNPACKED_BYTES', 2 ** 16)
  bomb = npy(np.zeros(2 ** 16))
  for read in (files.read_npz, torch_files.read):
    with pytest.raises(UserError, match=r'w\.npz would unpack from'):
      read(zipped(tmp_path / 'w.npz', bomb, kind))
  with pytest.raises(UserError, match='would unpack from'):
    torch_files.read(zipped(tmp_path / 'w.pth', bomb, kind, 'a/data.pkl'))
  with pytest.raises(UserError, match='a.png would unpack from'):
    dataset.open_images(zipped(tmp_path / 's.zip', bomb, kind, 'a.png'))
  with pytest.raises(UserError, match='would unpack from'):
    meshes.load(zipped(tmp_path / 'm.zip', bomb, kind, 'a.obj'))
  noise = np.random.default_rng(0).normal(size=2 ** 14)
  stored = files.read_npz(zipped(tmp_path / 'n.npz', npy(noise), kind))
  np.testing.assert_array_equal(stored['a'], noise)


@pytest.mark.parametrize('content', [
    b'', b'PK\x03\x04', npy(np.zeros(3))], ids=['empty', 'cut', 'npy'])
def test_caches_that_are_damaged_are_none_with_a_note(
    tmp_path, capsys, content):
  path = tmp_path / 'c.npz'
  assert files.read_cached(path, ['a']) is None
  assert not capsys.readouterr().err
  path.write_bytes(content)
  assert files.read_cached(path, ['a']) is None
  assert f'{path} is damaged and is made again.' in capsys.readouterr().err
  np.savez(path, a=np.ones(2), b=np.zeros(1))
  np.testing.assert_array_equal(files.read_cached(path, ['a'])[0], np.ones(2))
  assert files.read_cached(path, ['c']) is None


def test_arrays_of_python_objects_are_refused(tmp_path):
  np.savez(tmp_path / 'o.npz', a=np.array([{}], object))
  with pytest.raises(UserError, match='cannot be read as .npz'):
    files.read_npz(tmp_path / 'o.npz')


def test_results_that_are_damaged_are_none_with_a_note(tmp_path, capsys):
  path, schema = tmp_path / 'r.json', {'step': schemas.whole(0, 9)}
  assert files.read_result(path, schema) is None
  assert not capsys.readouterr().err
  for content in ('', '[]', '{}', '{"step": "x"}'):
    path.write_text(content)
    assert files.read_result(path, schema) is None
    assert 'r.json is damaged and is made again' in capsys.readouterr().err
  path.write_text('{"step": 3, "x": NaN}')
  assert files.read_result(path, schema)['step'] == 3


def test_atomic_write_keeps_the_earlier_file_on_an_error(tmp_path):
  path = tmp_path / 'sub' / 'a.txt'
  files.write_bytes(path, b'before')
  with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:
    assert temporary.suffix == '.txt' and temporary.parent == path.parent
    temporary.write_text('half')
    raise RuntimeError
  assert path.read_bytes() == b'before'
  assert [p.name for p in path.parent.iterdir()] == ['a.txt']


def test_atomic_writes_of_two_threads_do_not_mix(tmp_path):
  """Both are open at once; the later rename wins, whole."""
  path, opened = tmp_path / 'a.bin', threading.Barrier(2, timeout=60)
  errors = []

  def write(content):
    try:
      with files.atomic_write(path) as temporary:
        opened.wait()
        temporary.write_bytes(content)
        opened.wait()
    except Exception as error:
      errors.append(error)

  threads = [threading.Thread(target=write, args=(bytes([i]) * 1000,))
             for i in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors
  assert path.read_bytes() in (bytes(1000), b'\x01' * 1000)
  assert [p.name for p in tmp_path.iterdir()] == ['a.bin']


def test_unwritable_folder_is_a_user_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot write .*/file/a.bin: '):
    files.write_bytes(tmp_path / 'file' / 'a.bin', b'')


@pytest.mark.parametrize('cache', ['file', 'file/below', '/proc/cache'])
def test_a_cache_that_cannot_be_written_is_replaced_with_one_note(
    tmp_path, monkeypatch, capsys, cache):
  (tmp_path / 'file').write_text('not a folder')
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / cache))
  folder = files.cache_dir()
  files.write_bytes(folder / 'a' / 'b', b'1')
  assert files.cache_dir() == folder
  assert capsys.readouterr().err.count('Nothing is kept for the next run') == 1


def test_the_cache_without_a_home(monkeypatch):
  def no_home():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.delenv('GEN3D_CACHE', raising=False)
  monkeypatch.setattr(pathlib.Path, 'home', no_home)
  assert files.home_cache().name == f'gen3d-{os.getuid()}'
  assert files.cache_dir().is_dir()


@pytest.mark.parametrize('name, is_one', [
    ('a/._b.png', True), ('__MACOSX/a.png', True), ('x\\__MACOSX\\a', True),
    ('Thumbs.db', True), ('a/desktop.ini', True), ('.DS_Store', True),
    ('a/b.png', False), ('a/_b.png', False), ('.hidden.png', False)])
def test_files_of_operating_systems(name, is_one):
  assert files.is_system_file(name) == is_one


def test_a_folder_for_results_is_checked_and_not_made(tmp_path):
  files.check_folder(tmp_path / 'new' / 'deep')
  assert not (tmp_path / 'new').exists()
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'deep'):
    with pytest.raises(UserError, match='file is a file; name a folder'):
      files.check_folder(path)
