"""Distortion of camera models and its removal."""

import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.data.captures import camera_models


def test_distort_is_inverted_by_search():
  rng = np.random.default_rng(0)
  distortion = (-0.1, 0.02, 0.003, -0.004)
  directions = rng.uniform(-0.5, 0.5, (50, 2))
  moved = camera_models.distort(directions, distortion)
  found = moved.copy()
  for _ in range(60):
    found += moved - camera_models.distort(found, distortion)
  np.testing.assert_allclose(found, directions, atol=1e-12)
  assert np.abs(moved - directions).max() > 0.01


def test_undistorted_pinhole_lies_within_the_distorted_image():
  model = camera_models.from_pixels(
      100, 80, 90, 95, 52, 38, (-0.2, 0.05, 0.01, -0.01))
  pinhole = camera_models.undistorted(model)
  assert pinhole.distortion == (0, 0, 0, 0) and pinhole.center == model.center
  y, x = np.mgrid[:11, :11] / 10
  directions = (np.stack([x, y], -1) - pinhole.center) / pinhole.focal
  at = camera_models.project(model, directions)
  assert at.min() > -1e-5 and at.max() < 1 + 1e-5


def test_distortion_that_folds_the_image_is_refused():
  model = camera_models.from_pixels(100, 80, 50, 50, 50, 40, (-3.0, 0, 0, 0))
  with pytest.raises(UserError, match='folds the image over|no pinhole fits'):
    camera_models.undistorted(model)
