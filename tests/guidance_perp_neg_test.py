"""Negative prompts of other views: weights, interpolation, perpendicularity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.guidance import perp_neg, prompts


def _texts(azimuth, overhead=False):
  """Positive text, the two negatives and their weights, as numbers."""
  positive, negatives = perp_neg.texts(
      lambda view: jnp.array([float(10 ** view)]), jnp.float32(azimuth),
      jnp.bool_(overhead))
  return (float(positive[0]), *(float(x[0]) for x in negatives.texts),
          *map(float, negatives.weights[0]))


FRONT, SIDE, BACK, OVERHEAD = 1.0, 10.0, 100.0, 1000.0


@pytest.mark.parametrize('azimuth, expected', [
    (0, (FRONT, FRONT, SIDE, -(4 * np.exp(-.5) - 2.426), -(4 - 2.426))),
    (45, (5.5, FRONT, SIDE, -(4 * np.exp(-.25) - 2.426),
          -(4 * np.exp(-.25) - 2.426))),
    (-135, (55.0, SIDE, FRONT, -(np.exp(-.25) - .606),
            -(np.exp(-.25) + .967))),
    (180, (BACK, SIDE, FRONT, -(1 - .606), -1.967))])
def test_weights_of_threestudio(azimuth, expected):
  np.testing.assert_allclose(_texts(azimuth), expected, atol=1e-4)


def test_a_view_from_above_has_its_own_prompt_and_no_negatives():
  positive, _, _, *weights = _texts(30, overhead=True)
  assert positive == OVERHEAD and weights == [0.0, 0.0]


def test_only_the_perpendicular_part_of_a_negative_is_used():
  keys = jax.random.split(jax.random.key(0), 3)
  positive, a, b = (jax.random.normal(key, (2, 3, 3, 1)) for key in keys)
  weights = jnp.array([[-1.0, 0.0], [-0.5, -2.0]])
  combined = perp_neg.combine(positive, [a, b], weights)
  for i in range(2):
    got, along, *others = (
        np.asarray(x[i]).ravel() for x in (combined, positive, a, b))
    unit = along / np.linalg.norm(along)
    slow = sum(w * (x - unit * (unit @ x)) for w, x in zip(weights[i], others))
    np.testing.assert_allclose(got, slow, atol=1e-5)
    assert abs(got @ unit) < 1e-5
  # Nothing is divided by zero.
  assert np.isfinite(perp_neg.combine(0 * positive, [a, b], weights)).all()


@pytest.mark.parametrize('template, texts', [
    ('', ['']), ('{prompt}', ['a dog', 'a cat']),
    ('{prompt}, {view}, blurry', [
        f'{subject}, {view}, blurry' for subject in ('a dog', 'a cat')
        for view in prompts.VIEWS])])
def test_rows_of_a_template_are_those_of_its_texts(template, texts):
  subjects = ('a  dog.', 'a cat')
  assert prompts.expand(template, subjects) == texts
  for subject in range(2):
    for view, words in enumerate(prompts.VIEWS):
      assert texts[prompts.row(template, subject, view)] == template.format(
          prompt=prompts.normalize(subjects[subject]), view=words)
