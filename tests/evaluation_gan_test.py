"""Numbers of a generator, on shapes whose nearest neighbor is known."""

import re

import numpy as np
import pytest
import tiny_eg3d

from gen3d import assets
from gen3d.evaluation import gan as gan_evaluation
from gen3d.metrics import distribution
from gen3d.metrics import shape as shape_metrics
from gen3d.metrics.features import Features

CELLS = shape_metrics.cell_centers(1.0, 24)


def ball(radius, height=0.0):
  rng = np.random.default_rng(0)
  direction = rng.normal(size=(2000, 3))
  center = np.array([0.0, height, 0.0])
  surface = radius * direction / np.linalg.norm(
      direction, axis=1, keepdims=True) + center
  return gan_evaluation.Shape(
      np.linalg.norm(CELLS - center, axis=1) < radius, surface)


def test_each_shape_is_compared_with_its_nearest():
  others = [ball(0.3), ball(0.6), ball(0.6, 0.2), ball(0.9)]
  filled = np.stack([x.occupied for x in others])
  indices = []
  def surface(i):
    indices.append(i)
    return others[i].surface

  nearest = gan_evaluation.nearest_shapes(
      [ball(0.58), ball(0.61), ball(0.95)], filled, surface)
  assert indices == [1, 1, 3] and nearest.distinct == 2
  assert len(nearest.ious) == 3
  # Of balls around one center: the ratio of the volumes.
  expected = np.mean([(.58 / .6) ** 3, (.6 / .61) ** 3, (.9 / .95) ** 3])
  np.testing.assert_allclose(np.mean(nearest.ious), expected, atol=.04)
  assert np.mean(nearest.f_scores) > .95
  far = gan_evaluation.nearest_shapes([ball(0.3, -0.6)], filled, surface)
  assert np.mean(far.ious) < .3 and np.mean(far.f_scores) < .6


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A generator of a few pixels that makes a solid cube, as a file."""
  path, _ = assets.save(
      tmp_path_factory.mktemp('net') / 'cube.safetensors',
      tiny_eg3d.dense(tiny_eg3d.trained()).variables,
      {'model': 'cube', 'config': tiny_eg3d.config().to_dict(),
       'camera': tiny_eg3d.CAMERA})
  return path


def test_distances_are_measured_on_every_kind_of_features(
    trained, tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path))
  received = []

  def mean_color(images):
    assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 3)
    received.append(images)
    return images.mean((1, 2)) / 255

  corner = Features('corner', lambda images: images[:, 0, 0] / 255.0)
  distances = gan_evaluation.distances(
      trained, [Features('mean_color', mean_color), corner])
  assert list(distances) == ['mean_color', 'corner']
  real, untrained, generated, other_half = received
  assert len(real) == len(untrained) == len(generated) == len(other_half)
  moments = lambda images: distribution.moments(images.mean((1, 2)) / 255)
  assert distances['mean_color'].trained == distribution.frechet(
      moments(generated), moments(real))
  assert distances['mean_color'].real_halves == distribution.frechet(
      moments(other_half), moments(real))
  report = gan_evaluation.report(trained, count=1, num_true=4, features=[
      corner])
  assert report.startswith(
      'Frechet distance to real images, corner features: untrained ')


def test_a_cube_is_far_from_cars(trained, tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path))
  lines = gan_evaluation.report(trained, count=2, num_true=20).splitlines()
  assert len(lines) == 5 and lines[0].startswith('Frechet distance')
  (cube_iou, cube_f, different), (cars_iou, cars_f, _) = (
      map(float, re.fullmatch(
          rf'2 shapes, {name}: IoU ([\d.]+), F-score ([\d.]+) with the '
          r'nearest of 20 true shapes, (\d) different ones', line).groups())
      for name, line in zip(('generated', 'held out'), lines[1:3]))
  assert cars_iou > .6 and cars_f > .9
  assert cube_iou < .4 and cube_f < .6 and different == 1
  assert lines[4].startswith('held out: the shipped CLIP classifies 100 %')


def test_the_shipped_cars_are_classified_as_cars_from_all_sides(
    tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path))
  rates = gan_evaluation.classification('shapes', count=6)
  assert rates['generated'] > .8 and rates['held out'] > .9
