"""Attributes of captions and of traced objects."""

import numpy as np
import pytest

from gen3d.data.shapes import attributes, captions
from gen3d.metrics import text as text_metrics
from gen3d.ops import cameras

NAMES = (captions.CATEGORIES, tuple(captions.COLORS), tuple(captions.COLORS),
         captions.VIEWS)


def test_parse_finds_category_colors_and_view():
  stated = attributes.parse('a photo of a red car with blue wheels, side view')
  assert [names[i] for names, i in zip(NAMES, stated)] == [
      'car', 'red', 'blue', 'side']
  np.testing.assert_array_equal(
      attributes.parse('a mug'), [captions.CATEGORIES.index('mug'), -1, -1, -1])


@pytest.mark.parametrize('text, expected', [
    ('a car', True), ('an automobile, side view', True),
    ('a car with blue wheels', True), ('a blue car', False),
    ('a red truck', False), ('a red car, front view', False)])
def test_captions_consistent_with_a_red_car_from_the_side(text, expected):
  shown = attributes.parse('a red car with blue wheels, side view')
  assert text_metrics.consistent(attributes.parse(text), shown) == expected


def test_caption_without_a_known_object_is_refused():
  with pytest.raises(captions.Unknown, match='a red zeppelin'):
    attributes.parse_all(['a mug', 'a red zeppelin'])


def test_views_have_the_attributes_of_spec_and_camera():
  specs = [captions.Spec('car', 'red', 'blue'),
           captions.Spec('duck', 'pink', 'white')]
  camera = cameras.orbit([0.0, 180.0], 10.0, 1.6, 1.3)
  shown = attributes.of_views(camera, specs)
  assert [[names[i] for names, i in zip(NAMES, row)] for row in shown] == [
      ['car', 'red', 'blue', 'front'], ['duck', 'pink', 'white', 'back']]


def test_textureless_images_show_no_colors():
  shown = np.array([[1, 2, 3, 0], [4, 5, 6, 1]])
  np.testing.assert_array_equal(
      attributes.visible(shown, np.array([False, True])),
      [[1, 2, 3, 0], [4, -1, -1, 1]])
