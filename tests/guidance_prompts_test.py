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


def test_shares_sum_to_one_and_agree_with_nearest_at_the_middles():
  azimuth, elevation = jnp.meshgrid(
      jnp.linspace(-180, 180, 25), jnp.linspace(-10, 90, 11))
  shares = prompts.shares(azimuth, elevation)
  np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)
  assert shares.min() >= 0
  for azimuth, elevation in ((0.0, 0.0), (90.0, 10.0), (180.0, 0.0),
                             (45.0, 90.0)):
    shares = prompts.shares(jnp.array(azimuth), jnp.array(elevation))
    assert float(shares[prompts.nearest(azimuth, elevation)]) == 1


def test_pick_and_blend_rows():
  table = {'states': jnp.arange(24.0).reshape(4, 3, 2)}
  np.testing.assert_array_equal(
      prompts.pick(table, jnp.array([2]))['states'], table['states'][2:3])
  shares = jnp.array([0.25, 0.75, 0.0, 0.0])
  np.testing.assert_allclose(
      prompts.blend(table, shares)['states'],
      0.25 * table['states'][0] + 0.75 * table['states'][1])
