"""Keyframes: files that are read, and files that are not."""

import json

import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.io import keyframes
from gen3d.ops import cameras


def _write(path, **content):
  path.write_text(json.dumps(content))
  return path


def test_poses_and_angles_of_a_file_and_of_its_frames(tmp_path):
  expected = cameras.orbit([0.0, 80.0], 20.0, 2.0, 1.0)
  frames = [{'transform_matrix': (cameras.Z_UP.T @ pose).tolist()}
            for pose in np.asarray(expected.c2w, np.float64)]
  frames[1]['camera_angle_x'] = np.pi / 2
  path = _write(tmp_path / 'path.json', frames=frames, camera_angle_x=1.0)
  read = keyframes.load(path, up='z')
  np.testing.assert_allclose(read.c2w, expected.c2w, atol=1e-6)
  np.testing.assert_allclose(
      read.intrinsics[:, 1, 1], [0.5 / np.tan(0.5), 0.5], rtol=1e-6)


@pytest.mark.parametrize('content, words', [
    ({'frames': []}, 'no frames'),
    ({'frames': [{'transform_matrix': [[1, 2]]}], 'camera_angle_x': 1},
     '4 x 4'),
    ({'frames': [{'transform_matrix': np.eye(4).tolist()}]},
     'needs "camera_angle_x"'),
    ({'frames': [{'transform_matrix': np.eye(4).tolist()}],
      'camera_angle_x': 4.0}, 'angle of view'),
    ({'frames': 3}, 'a list "frames"'), ({}, 'a list "frames"')])
def test_errors_name_the_file_and_what_it_needs(tmp_path, content, words):
  path = _write(tmp_path / 'path.json', **content)
  with pytest.raises(UserError, match=words) as error:
    keyframes.load(path)
  assert str(path) in str(error.value)


def test_a_missing_file_and_none(tmp_path):
  with pytest.raises(UserError, match='No such file'):
    keyframes.load(tmp_path / 'none.json')
  with pytest.raises(UserError, match='config.scene.keyframes'):
    keyframes.load('')
