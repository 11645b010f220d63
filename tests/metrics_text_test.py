"""R-precision against a slow loop."""

import numpy as np
import pytest

from gen3d.metrics import text


def features(n, seed):
  x = np.random.default_rng(seed).normal(size=(n, 5))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def example(pictures=40, captions=23):
  """Pictures that resemble their caption, but not always enough."""
  texts = features(captions, 0)
  truth = np.random.default_rng(1).integers(captions, size=pictures)
  images = texts[truth] + 0.9 * features(pictures, 2)
  return images / np.linalg.norm(images, axis=1, keepdims=True), texts, truth


def slow_rate(images, texts, truth, candidates):
  wins = 0
  for i, image in enumerate(images):
    own = sum(a * b for a, b in zip(image, texts[truth[i]]))
    wins += all(sum(a * b for a, b in zip(image, texts[j])) < own
                for j in candidates[i] if j != truth[i])
  return wins / len(images)


def test_among_all_captions():
  images, texts, truth = example()
  expected = slow_rate(images, texts, truth, [range(23)] * 40)
  assert 0.2 < expected < 0.95  # or the example tells nothing
  result = text.r_precision(images, texts, truth)
  assert result.rate == pytest.approx(expected)
  assert result.n == 40
  assert result.error == pytest.approx((expected * (1 - expected) / 40) ** .5)


def test_among_distractors():
  images, texts, truth = example()
  allowed = np.arange(23)[None] != truth[:, None]
  chosen = text.draw_distractors(3, allowed, 6)
  expected = slow_rate(images, texts, truth, chosen)
  result = text.r_precision(images, texts, truth, chosen)
  assert result.rate == pytest.approx(expected)
  assert result.rate > text.r_precision(images, texts, truth).rate


def test_among_the_allowed_captions():
  images, texts, truth = example()
  allowed = np.random.default_rng(5).random((40, 23)) < 0.4
  expected = slow_rate(images, texts, truth,
                       [np.flatnonzero(row) for row in allowed])
  result = text.r_precision(images, texts, truth, allowed=allowed)
  assert result.rate == pytest.approx(expected)
  assert result.rate > text.r_precision(images, texts, truth).rate


def test_distractors_are_allowed_distinct_and_fixed():
  allowed = np.random.default_rng(0).random((30, 90)) < 0.8
  chosen = text.draw_distractors(7, allowed, 50)
  for row, fine in zip(chosen, allowed):
    assert len(set(row)) == 50
    assert fine[row].all()
  np.testing.assert_array_equal(
      chosen[:9], text.draw_distractors(7, allowed[:9], 50))
  assert (chosen != text.draw_distractors(8, allowed, 50)).any()
  with pytest.raises(ValueError, match='90 distractors are wanted'):
    text.draw_distractors(7, allowed, 90)


def test_equal_captions_keep_the_first_index():
  captions = ['a', 'b', 'a', 'c', 'b', 'a']
  kept, truth = text.first_of_each(captions)
  assert kept.tolist() == [0, 1, 3]
  assert [captions[kept[t]] for t in truth] == captions


def test_a_tie_is_a_miss():
  image = features(1, 0)
  texts = np.concatenate([image, image, features(3, 4)])
  assert text.r_precision(image, texts[[0, 2, 3, 4]], [0]).rate == 1
  assert text.r_precision(image, texts, [0]).rate == 0


def test_arguments_are_not_changed():
  images, texts, truth = example()
  before = images.copy(), texts.copy(), truth.copy()
  text.r_precision(images, texts, truth)
  for a, b in zip(before, (images, texts, truth)):
    np.testing.assert_array_equal(a, b)


def test_no_pictures_are_an_error():
  with pytest.raises(ValueError, match='at least one'):
    text.rate([])
