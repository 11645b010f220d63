"""The README's numbers of a generator, on shapes whose nearest is known."""

import re

import jax
import numpy as np
import pytest

from configs import eg3d as config_file
from gen3d import assets
from gen3d.evaluation import gan as gan_evaluation
from gen3d.gan import networks as gan_networks
from gen3d.metrics import shape as shape_metrics

CELLS = shape_metrics.cell_centers(1.0, 24)


def ball(radius, height=0.0):
  rng = np.random.default_rng(0)
  way = rng.normal(size=(2000, 3))
  center = np.array([0.0, height, 0.0])
  surface = radius * way / np.linalg.norm(way, axis=1, keepdims=True) + center
  return gan_evaluation.Shape(
      np.linalg.norm(CELLS - center, axis=1) < radius, surface)


def test_each_is_held_against_the_one_that_it_is_most_like():
  others = [ball(0.3), ball(0.6), ball(0.6, 0.2), ball(0.9)]
  filled = np.stack([x.occupied for x in others])
  asked = []
  def surface(i):
    asked.append(i)
    return others[i].surface

  found = gan_evaluation.closeness(
      [ball(0.58), ball(0.61), ball(0.95)], filled, surface)
  assert asked == [1, 1, 3] and found.count == 3 and found.distinct == 2
  # Of balls around one center: the ratio of the volumes.
  expected = np.mean([(.58 / .6) ** 3, (.6 / .61) ** 3, (.9 / .95) ** 3])
  np.testing.assert_allclose(found.iou, expected, atol=.04)
  assert found.f_score > .95
  far = gan_evaluation.closeness([ball(0.3, -0.6)], filled, surface)
  assert far.iou < .3 and far.f_score < .6


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A generator of a few pixels that makes a solid cube, as a file."""
  config = config_file.get_config('tiny')
  variables = gan_networks.new_generator(gan_networks.build(config), jax.random.key(0))
  params = variables['params']
  layer = params['decoder']['net.2']
  layer = {**layer, 'bias': layer['bias'].at[0].set(30.0)}
  variables = {**variables, 'params': {
      **params, 'decoder': {**params['decoder'], 'net.2': layer}}}
  path, _ = assets.save(
      tmp_path_factory.mktemp('net') / 'cube.safetensors', variables,
      {'model': 'cube', 'config': config.to_dict(),
       'camera': {'elevation': 20.0, 'distance': 1.7, 'focal': 1.35}})
  return path


@pytest.mark.optimized
def test_a_cube_is_no_car(trained, tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path))
  lines = gan_evaluation.report(trained, count=2, truths=20).splitlines()
  assert len(lines) == 5 and lines[0].startswith('Frechet distance')
  (cube_iou, cube_f, different), (cars_iou, cars_f, _) = (
      map(float, re.fullmatch(
          rf'2 shapes, {name}: IoU ([\d.]+), F-score ([\d.]+) with the '
          r'nearest of 20 true shapes, (\d) different ones', line).groups())
      for name, line in zip(('generated', 'held out'), lines[1:3]))
  assert cars_iou > .6 and cars_f > .9
  assert cube_iou < .4 and cube_f < .6 and different == 1
  assert lines[4].startswith('held out: the shipped CLIP names 100 %')


@pytest.mark.optimized
def test_the_shipped_cars_are_cars_from_all_sides(tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path))
  found = gan_evaluation.named('shapes', count=6)
  assert found['generated'] > .8 and found['held out'] > .9
