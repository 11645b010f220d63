"""Captures whose images need more memory than files or the machine have."""

import json

import pytest
from PIL import Image
from posed_layouts import around, write_dialect

from gen3d.choices import UserError
from gen3d.data.captures import posed


def test_images_that_need_far_more_memory_than_their_files_are_refused(
    tmp_path):
  write_dialect(tmp_path, around())
  content = json.loads((tmp_path / 'transforms.json').read_text())
  sizes = (8000, 2), (2, 8000)  # At common sizes, 8000 x 8000.
  for i, frame in enumerate(content['frames']):
    frame['w'], frame['h'] = sizes[i % 2]
    Image.new('L', sizes[i % 2]).save(tmp_path / frame['file_path'])
  (tmp_path / 'transforms.json').write_text(json.dumps(content))
  with pytest.raises(UserError, match='bytes in memory; set --config.data.fac'):
    posed.open_posed(tmp_path)


def test_images_beyond_the_memory_of_the_machine_are_refused(
    tmp_path, monkeypatch):
  write_dialect(tmp_path, around())
  posed.open_posed(tmp_path)
  monkeypatch.setattr(posed, '_memory', lambda: 4 * 36 * 32 * 8)
  with pytest.raises(UserError, match='bytes in memory; set --config.data.fac'):
    posed.open_posed(tmp_path)
  posed.open_posed(tmp_path, factor=4)
