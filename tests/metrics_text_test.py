"""R-precision against a slow loop and by hand; where it looks from."""

from types import SimpleNamespace

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


def test_retrieval_by_hand():
  """Three objects, two views each, three captions; scores written out."""
  captions = {'a.': (1.0, 0.0), 'b.': (0.0, 1.0), 'c.': (-1.0, 0.0)}
  pair = SimpleNamespace(
      image_features=lambda images: images.reshape(len(images), 2),
      text_features=lambda texts: np.array([captions[t] for t in texts]))
  views = np.array([
      # Scores with a, b, c: (.8, .6, -.8) and (1, 0, -1): ranks 1 and 1.
      [(0.8, 0.6), (1.0, 0.0)],
      # b: (.6, .8, -.6) is rank 1; (-.8, .6, .8) is rank 2 behind c.
      [(0.6, 0.8), (-0.8, 0.6)],
      # c: (.6, -.8, -.6) is rank 2, (0, -1, 0) is as good as a: no hit.
      [(0.6, -0.8), (0.0, -1.0)]]).reshape(3, 2, 1, 1, 2)
  shares = text.retrieved(pair, views, list(captions), [0, 1, 2])
  np.testing.assert_array_equal(shares, [1.0, 0.5, 0.0])
  # Deviations .5, 0, -.5: variance 1/6, over n = 3.
  assert text.rate(shares) == (0.5, pytest.approx((1 / 18) ** 0.5), 3)
  # One view each, as in Dream Fields: two hits of three.
  shares = text.retrieved(pair, views[:, :1], list(captions), [0, 1, 2])
  assert text.rate(shares) == (
      pytest.approx(2 / 3), pytest.approx((2 / 9 / 3) ** 0.5), 3)


def test_the_views_of_the_papers():
  one = text.viewpoints(text.PROTOCOLS['dream_fields'], 4.0, 1.389)
  half, root = 0.5, 0.5**0.5
  # Azimuth 30 from the front (+z) to +x, elevation 45, y up.
  position = 4 * np.array([root * half, root, root * 0.75**0.5])
  np.testing.assert_allclose(one.c2w[:, :3, 3], position[None], atol=1e-5)
  # It looks along -z at the origin, and its right is level.
  np.testing.assert_allclose(one.c2w[0, :3, 2], position / 4, atol=1e-6)
  assert abs(one.c2w[0, 1, 0]) < 1e-6
  np.testing.assert_allclose(one.intrinsics[0, 0, 0], 1.389)

  many = text.viewpoints(text.PROTOCOLS['dreamfusion'], 2.0, 1.0)
  x, y, z = np.asarray(many.c2w[:, :3, 3]).T
  np.testing.assert_allclose(y, np.full(8, 2 * 0.5), atol=1e-5)
  np.testing.assert_allclose(np.rad2deg(np.arctan2(x, z)) % 359.9999,
                             np.arange(0, 360, 45), atol=1e-2)
