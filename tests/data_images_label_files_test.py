"""The camera of one image from a JSON file."""

import json

import numpy as np
import pytest

from gen3d.data.images import label_files
from gen3d.ops import cameras

LABEL = np.asarray(cameras.to_label(cameras.orbit(30., 10., 1.7, 1.35)))


def write(path, content):
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def read_label(path, image=''):
  return cameras.to_label(label_files.read_camera(path, image))


def test_a_camera_from_either_kind_of_file(tmp_path):
  numbers = write(tmp_path / 'camera.json', LABEL.tolist())
  np.testing.assert_allclose(read_label(numbers), LABEL)
  listing = write(tmp_path / 'dataset.json', {'labels': [
      ['00000/a.png', (LABEL * 0).tolist()], ['00000/b.png', LABEL.tolist()]]})
  np.testing.assert_allclose(
      read_label(listing, 'somewhere/b.png'), LABEL)
  with pytest.raises(ValueError, match='has no label for c.png'):
    label_files.read_camera(listing, 'c.png')


@pytest.mark.parametrize('names, picture, found', [
    (['a/x.png', 'b/x.png'], 'data/a/x.png', 'a/x.png'),
    (['b/x.png', 'a/x.png'], 'data/a/x.png', 'a/x.png'),
    (['b\\x.png', 'a\\x.png'], 'data/a/x.png', 'a\\x.png'),
    (['1/a/x.png', '2/a/x.png', '2/b/x.png'], '2/a/x.png', '2/a/x.png'),
    (['x.png', 'b/x.png'], 'data/a/x.png', 'x.png'),
    (['b/x.png', 'xx.png'], 'a/x.png', 'b/x.png'),
    # From within the folder, which is not in the path.
    (['{}/x.png', 'b/x.png'], 'x.png', '{}/x.png')])
def test_a_label_is_that_of_the_longest_common_end_of_the_path(
    tmp_path, monkeypatch, names, picture, found):
  monkeypatch.chdir(tmp_path)
  here = lambda name: name.format(tmp_path.name)
  label = lambda name: cameras.to_label(cameras.orbit(
      float(len(names) + names.index(name)), 10., 1.7, 1.35)).tolist()
  listing = write(tmp_path / 'dataset.json', {
      'labels': [[here(name), label(name)] for name in names]})
  np.testing.assert_allclose(
      read_label(listing, picture), label(found), rtol=1e-6)


@pytest.mark.parametrize('names, picture', [
    (['a/x.png', 'b/x.png'], 'data/x.png'),
    (['a/x.png', 'b/x.png'], 'c/x.png'),
    (['1/a/x.png', '2/a/x.png'], 'a/x.png'),
    (['a/x.png', 'a/x.png'], 'a/x.png')])
def test_ambiguous_labels_are_refused(tmp_path, names, picture):
  listing = write(tmp_path / 'dataset.json', {
      'labels': [[name, LABEL.tolist()] for name in names]})
  with pytest.raises(ValueError, match=(
      f'lists {names[0]} and {names[1]}, and {picture} may be either; ')):
    label_files.read_camera(listing, picture)


@pytest.mark.parametrize('content, sentence', [
    ('[1, 2', 'is not JSON'),
    ([1.0] * 16, 'a list of 25 numbers is wanted'),
    ({'camera': 1}, 'a list of 25 numbers is wanted'),
    ([1, 2], 'a list of 25 numbers is wanted'),
    ([10 ** 400] * 25, 'numbers that are not finite'),
    ({'labels': None}, r'"labels" must be a list of \[file name, '),
    ({'labels': {'ab': LABEL.tolist()}}, '"labels" must be a list'),
    ({'labels': [1, 2]}, '"labels" must be a list'),
    ({'labels': [['a.png']]}, '"labels" must be a list'),
    ({'labels': [[3, [1]]]}, '"labels" must be a list'),
    ({'labels': []}, 'has no label for a.png'),
    ({'labels': [['a.png', [1, 'x']]]}, 'a list of 25 numbers is wanted'),
    ({'labels': [['a.png', [3.0, *LABEL[1:].tolist()]]]}, 'not orthonormal'),
    ([*LABEL[:3], 5.0, *LABEL[4:12], 1, *LABEL[13:]], 'last row is not'),
    ([3.0, *LABEL[1:]], 'rotation that is not orthonormal'),
    ([*LABEL[:16], *(64 * LABEL[16:])], 'intrinsics in pixels')])
def test_invalid_cameras_are_refused(tmp_path, content, sentence):
  content = content if isinstance(content, (str, dict)) else [
      x if isinstance(x, int) else float(x) for x in content]
  with pytest.raises(ValueError, match=sentence):
    label_files.read_camera(write(tmp_path / 'camera.json', content), 'a.png')
  with pytest.raises(ValueError, match='cannot be read'):
    label_files.read_camera(tmp_path / 'none.json')
