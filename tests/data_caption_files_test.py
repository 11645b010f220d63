"""Caption files: normalization and errors."""

import pytest

from gen3d.data import caption_files


def write(path, content):
  file = path / 'captions.txt'
  file.write_bytes(content.encode() if isinstance(content, str) else content)
  return file


def test_captions_are_normalized_at_their_ends_only(tmp_path):
  file = write(tmp_path, '\ufeffA ZEBRA, eating.  Grass ON it \n'
               'a tv connected to an ipad .\r\n a cup., ,\nlast')
  assert caption_files.read(file) == [
      'a zebra, eating.  grass on it.', 'a tv connected to an ipad.',
      'a cup.', 'last.']
  for caption in caption_files.read(file):
    assert caption_files.normalize(caption) == caption


@pytest.mark.parametrize('content, words', [
    ('', 'is empty'),
    ('a cup\n\na dog\n . \n', 'no caption in line 2, 4; remove'),
    ('a cup\na dog\n A Cup.\n', "'a cup.' twice, in lines 1 and 3"),
    (b'caf\xe9\n', 'no UTF-8 text'),
])
def test_wrong_files_are_refused_with_their_name(tmp_path, content, words):
  with pytest.raises(ValueError, match=words) as error:
    caption_files.read(write(tmp_path, content))
  assert 'captions.txt' in str(error.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(ValueError, match='no caption file .*nowhere.txt'):
    caption_files.read(tmp_path / 'nowhere.txt')
