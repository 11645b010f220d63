"""The table of 3-D GANs: measures on true views, stored rows, the text."""

import json

import numpy as np
import pytest

from configs import stylegan2
from gen3d.evaluation import gan_comparison
from gen3d.evaluation.gan_comparison import Interval, Row
from gen3d.metrics import distribution
from gen3d.metrics.features import Features
from gen3d.models import view_estimator
from gen3d.models.view_estimator import Estimate
from gen3d.ops import cameras

COUNT, SIZE = 6, 16


@pytest.fixture(scope='module')
def data():
  data = stylegan2.cats_data()
  data.size = SIZE
  return data


@pytest.fixture(scope='module')
def views(data):
  return gan_comparison.true_views(data, COUNT, seed=0)


@pytest.fixture
def measures(views):
  """Features are mean colors; `estimate` below stands in for the estimator."""
  embed = lambda images: np.float64(images).mean((1, 2)) / 255
  return gan_comparison.Measures(
      Features('means', embed),
      view_estimator.Estimator(None, None, SIZE, 1.7, 1.35, (), {}),
      distribution.moments(embed(views.images[:, 0])))


def estimates(views, turn=None):
  """The true Estimate of views, in a world that is turned."""
  back = views.camera_to_world[:, :, 2]
  mask = np.where(views.depth > 0, 1.0, -1.0)
  if turn is not None:
    back = back @ turn.T
  return Estimate(back, views.depth - 1.7, mask)


def test_true_views_are_two_cameras_of_each_object(views):
  assert views.images.shape == (COUNT, 2, SIZE, SIZE, 3)
  azimuth, elevation, _ = cameras.angles(views.camera_to_world[:, :, 2])
  assert np.abs(azimuth).max() < 40.1 and np.abs(elevation).max() < 15.1
  shown = views.depth > 0
  assert (shown.mean((1, 2)) > .05).all()
  # Along the axis, of an object in a ball of radius 1/2 at the distance 1.7.
  assert np.abs(views.depth[shown] - 1.7).max() < .52
  # Dark where the object is; the second view is another one.
  assert views.images[:, 0][shown].mean() < views.images[:, 0][~shown].mean()
  assert (views.images[:, 0] != views.images[:, 1]).any((1, 2, 3)).all()


def test_measures_of_true_views_are_those_of_a_perfect_generator(
    views, measures, monkeypatch):
  monkeypatch.setattr(view_estimator, 'estimate',
                      lambda estimator, images: estimates(views))
  values, failed = gan_comparison.measure_views(views, measures, False)
  frechet, identity, depth, pose = values
  np.testing.assert_allclose(frechet, 0, atol=1e-6)
  assert .9 < identity < 1 and failed == 0
  np.testing.assert_allclose([depth, pose], 0, atol=1e-5)


def test_a_turned_world_counts_where_cameras_are_absolute(
    views, measures, monkeypatch):
  turn = np.array([[np.cos(.2), 0, np.sin(.2)], [0, 1, 0],
                   [-np.sin(.2), 0, np.cos(.2)]])
  monkeypatch.setattr(view_estimator, 'estimate',
                      lambda estimator, images: estimates(views, turn))
  pose = [gan_comparison.measure_views(views, measures, removed)[0][3]
          for removed in (False, True)]
  # About the vertical by 0.2: the mean over three components of a vector.
  np.testing.assert_allclose(pose[0], .2 ** 2 / 3, rtol=.05)
  np.testing.assert_allclose(pose[1], 0, atol=1e-6)


def test_pictures_without_an_object_are_counted(views, measures, monkeypatch):
  nothing = estimates(views)._replace(mask=np.full(views.depth.shape, -1.0))
  monkeypatch.setattr(
      view_estimator, 'estimate', lambda estimator, images: nothing)
  values, failed = gan_comparison.measure_views(views, measures, False)
  assert failed == COUNT and np.isnan(values[2])


def test_interval_is_the_standard_error_of_the_mean():
  x = gan_comparison.interval([1.0, 2.0, 6.0, np.nan])
  assert x.mean == 3
  np.testing.assert_allclose(x.error, np.std([1, 2, 6], ddof=1) / np.sqrt(3))


ROW = Row(Interval(.125, .01), Interval(.9, 0.0), Interval(.25, .125),
          Interval(.0625, 0.0), Interval(.5, .25), Interval(.75, 0.0), 12,
          .015625, 3)


def test_rows_are_measured_once_for_the_same_weights(tmp_path):
  measured = []

  def measure():
    measured.append(1)
    return ROW

  path = tmp_path / 'rows' / 'a.json'
  for key in ({'weights': 'a'}, {'weights': 'a'}, {'weights': 'b'}):
    assert gan_comparison.stored(path, key, measure) == ROW
  assert len(measured) == 2
  assert json.loads(path.read_text())['key'] == {'weights': 'b'}
  for content in ('', '[]', '{"key": {"weights": "b"}}',
                  '{"key": {"weights": "b"}, "row": {"x": 1}}'):
    path.write_text(content)
    assert gan_comparison.stored(path, {'weights': 'b'}, measure) == ROW
  assert len(measured) == 6


def test_table_has_measured_and_published_rows(data):
  text = gan_comparison.table(
      {'true pictures': ROW._replace(iou=None, f_score=None, distinct=None,
                                     seconds=None),
       'a.safetensors': ROW}, {'a.safetensors': 'giraffe'}, data, 32, 3)
  lines = text.splitlines()
  assert lines[2].startswith('| true pictures | 0.1250 +- 0.0100 |')
  assert lines[2].endswith('| - | - | - | - |')
  assert lines[3] == (
      '| GIRAFFE | 0.1250 +- 0.0100 | 0.900 +- 0.000 | 0.250 +- 0.125 | '
      '0.06250 +- 0.00000 | 0.500 +- 0.250 | 0.750 +- 0.000 | 12 | 0.016 |')
  assert 'true pictures 3, GIRAFFE 3' in text
  assert '| EG3D | 4.8 | 0.76 | 0.31 | 0.005 |' in lines


@pytest.mark.parametrize('arguments, sentence', [
    ({'samples': 1}, 'too few for means'), ({'seeds': 1}, 'too few'),
    ({'networks': ()}, 'no pictures to compare')])
def test_refused_comparisons(tmp_path, arguments, sentence):
  arguments = {'networks': ['shapes'], **arguments}
  with pytest.raises(ValueError, match=sentence):
    gan_comparison.compare(arguments.pop('networks'), tmp_path, **arguments)
