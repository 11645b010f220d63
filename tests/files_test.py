"""Atomic writes, and image files that start no other program."""

import io
import pathlib
import re
import threading
import types
import zipfile

import ghostscript
import pytest
from ghostscript import DOS, POSTSCRIPT
from PIL import Image, UnidentifiedImageError
from posed_layouts import around, write_blender

from gen3d import files
from gen3d.choices import UserError
from gen3d.data.captures import posed
from gen3d.data.images import dataset
from gen3d.gan import inversion

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
