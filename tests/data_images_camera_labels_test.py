"""Camera labels: checks and parsing, without image files."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.data.images import camera_labels
from gen3d.ops import cameras


def test_check_labels_names_place_and_image():
  labels = np.array(cameras.to_label(
      cameras.orbit(jnp.array([0.0, 40.0]), 10.0, 2.7, 4.2)))
  camera_labels.check_labels(labels, ('a.png', 'b.png'), 'set.zip')
  camera_labels.check_labels(labels[:, :0], ('a.png', 'b.png'), 'set.zip')
  labels[1, 16] = -1
  with pytest.raises(UserError, match=(
      'set.zip: the label of b.png has a focal length .*; 1 labels')):
    camera_labels.check_labels(labels, ('a.png', 'b.png'), 'set.zip')


def test_parse_labels_gives_pairs_with_forward_slashes():
  assert camera_labels.parse_labels('f', [['a\\b.png', [1.0]]]) == [
      ('a/b.png', [1.0])]
  for wrong in (None, {}, [1], [['a']], [[1, []]]):
    with pytest.raises(UserError, match='f: "labels" must be a list'):
      camera_labels.parse_labels('f', wrong)


def test_read_labels_without_labels_is_none():
  assert camera_labels.read_labels('f', b'{"labels": null}', ['a']) is None
  with pytest.raises(UserError, match='f contains no JSON object'):
    camera_labels.read_labels('f', b'[1]', ['a'])
