"""View words by direction."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.guidance import prompts


def test_prompts_of_the_views():
  assert prompts.with_views(' a red  chair. ') == [
      'a red chair, front view', 'a red chair, side view',
      'a red chair, back view', 'a red chair, overhead view']


@pytest.mark.parametrize('empty', ['', '  ', ' . '])
def test_an_empty_prompt_is_refused(empty):
  with pytest.raises(ValueError, match='prompt is empty'):
    prompts.with_views(empty)


def test_nearest():
  cases = [(0, 0, 0), (44, 0, 0), (46, 0, 1), (-90, 30, 1), (134, 0, 1),
           (136, 0, 2), (-180, 59, 2), (350, 0, 0), (0, 61, 3), (180, 90, 3)]
  azimuth, elevation, view = map(np.array, zip(*cases))
  np.testing.assert_array_equal(prompts.nearest(azimuth, elevation), view)
  assert int(prompts.nearest(40.0, 0.0, front=30.0)) == 1


def test_pick_rows():
  table = {'states': jnp.arange(24.0).reshape(4, 3, 2)}
  np.testing.assert_array_equal(
      prompts.pick(table, jnp.array([2]))['states'], table['states'][2:3])


def test_between_the_sides():
  """Known answers of threestudio's formulas at the corners, and midway."""
  between = lambda *where: [np.asarray(x) for x in prompts.between(*where)]
  cases = {  # azimuth: shares of front, side, back; weights of front, side
      0.0: ((1, 0, 0), (0, 1.574)),
      45.0: ((0.5, 0.5, 0), (0.689, 0.689)),
      -90.0: ((0, 1, 0), (1.5735, 0)),
      135.0: ((0, 0.5, 0.5), (1.7458, 0.1728)),
      180.0: ((0, 0, 1), (1.967, 0.394)),
      -135.0: ((0, 0.5, 0.5), (1.7458, 0.1728))}
  for azimuth, (shares, weights) in cases.items():
    got = between(azimuth, 10.0)
    np.testing.assert_allclose(got[0], (*shares, 0), atol=1e-6)
    np.testing.assert_allclose(got[1], weights, atol=1e-3)
  shares, weights = between(45.0, 61.0)
  np.testing.assert_array_equal(shares, (0, 0, 0, 1))
  np.testing.assert_array_equal(weights, (0, 0))
  assert prompts.between(45.0, 61.0, overhead=70.0)[0][3] == 0


def test_blend_mixes_states_and_joins_masks():
  table = {'states': jnp.arange(24.0).reshape(4, 3, 2),
           'mask': jnp.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]],
                             bool)}
  got = prompts.blend(table, jnp.array([0.25, 0.75, 0.0, 0.0]))
  np.testing.assert_allclose(
      got['states'], table['states'][0] / 4 + table['states'][1] * 3 / 4)
  np.testing.assert_array_equal(got['mask'], [True, True, False])
  assert got['mask'].dtype == bool
