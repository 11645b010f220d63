"""View-dependent prompts."""

import numpy as np
import pytest

from gen3d.guidance import prompts


def test_with_views_appends_the_four_views():
  assert prompts.with_views(' a red  chair. ') == [
      'a red chair, front view', 'a red chair, side view',
      'a red chair, back view', 'a red chair, overhead view']


@pytest.mark.parametrize('empty', ['', '  ', ' . '])
def test_an_empty_prompt_raises(empty):
  with pytest.raises(ValueError, match='prompt is empty'):
    prompts.with_views(empty)


def test_nearest_view():
  cases = [(0, 0, 0), (44, 0, 0), (46, 0, 1), (-90, 30, 1), (134, 0, 1),
           (136, 0, 2), (-180, 59, 2), (350, 0, 0), (0, 61, 3), (180, 90, 3)]
  azimuth, elevation, view = map(np.array, zip(*cases))
  np.testing.assert_array_equal(prompts.nearest_view(azimuth, elevation), view)
  assert int(prompts.nearest_view(40.0, 0.0, front=30.0)) == 1
