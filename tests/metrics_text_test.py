"""R-precision against a slow loop and by hand; the protocols' views."""

import numpy as np
import pytest

from gen3d.metrics import text
from gen3d.models import clip_pair


def features(n, seed):
  x = np.random.default_rng(seed).normal(size=(n, 5))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def example(count=40, captions=23):
  """Features of images near those of their caption, with noise."""
  texts = features(captions, 0)
  truth = np.random.default_rng(1).integers(captions, size=count)
  images = texts[truth] + 0.9 * features(count, 2)
  return images / np.linalg.norm(images, axis=1, keepdims=True), texts, truth


def slow_rate(images, texts, truth, candidates):
  wins = 0
  for i, image in enumerate(images):
    own = sum(a * b for a, b in zip(image, texts[truth[i]]))
    wins += all(sum(a * b for a, b in zip(image, texts[j])) < own
                for j in candidates[i] if j != truth[i])
  return wins / len(images)


def test_r_precision_among_all_captions():
  images, texts, truth = example()
  expected = slow_rate(images, texts, truth, [range(23)] * 40)
  assert 0.2 < expected < 0.95  # or any rate would pass
  result = text.r_precision(images, texts, truth)
  assert result.rate == pytest.approx(expected)
  assert result.n == 40
  assert result.error == pytest.approx((expected * (1 - expected) / 40) ** .5)


def test_r_precision_among_distractors():
  images, texts, truth = example()
  allowed = np.arange(23)[None] != truth[:, None]
  chosen = text.draw_distractors(3, allowed, 6)
  expected = slow_rate(images, texts, truth, chosen)
  result = text.r_precision(images, texts, truth, chosen)
  assert result.rate == pytest.approx(expected)
  assert result.rate > text.r_precision(images, texts, truth).rate


def test_r_precision_among_allowed_captions():
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
  for row, fine in zip(chosen, allowed, strict=True):
    assert len(set(row)) == 50
    assert fine[row].all()
  np.testing.assert_array_equal(
      chosen[:9], text.draw_distractors(7, allowed[:9], 50))
  assert (chosen != text.draw_distractors(8, allowed, 50)).any()
  with pytest.raises(ValueError, match='needs 90 distractors'):
    text.draw_distractors(7, allowed, 90)


def test_deduplicate_keeps_first_occurrences():
  captions = ['a', 'b', 'a', 'c', 'b', 'a']
  first, index = text.deduplicate(captions)
  assert first.tolist() == [0, 1, 3]
  assert [captions[first[i]] for i in index] == captions


def test_a_tie_is_a_miss():
  image = features(1, 0)
  texts = np.concatenate([image, image, features(3, 4)])
  assert text.r_precision(image, texts[[0, 2, 3, 4]], [0]).rate == 1
  assert text.r_precision(image, texts, [0]).rate == 0


def test_r_precision_does_not_change_its_arguments():
  images, texts, truth = example()
  before = images.copy(), texts.copy(), truth.copy()
  text.r_precision(images, texts, truth)
  for a, b in zip(before, (images, texts, truth)):
    np.testing.assert_array_equal(a, b)


def test_rate_of_no_cases_is_refused():
  with pytest.raises(ValueError, match='at least one'):
    text.rate([])


def test_consistent_compares_the_attributes_that_both_have():
  shown = np.array([[3, 1], [3, -1]])  # Of the second, one is unknown.
  for stated, expected in (((3, 1), (True, True)), ((3, 2), (False, True)),
                           ((-1, 1), (True, True)), ((2, 1), (False, False)),
                           ((-1, -1), (True, True))):
    np.testing.assert_array_equal(
        text.consistent(np.array(stated), shown), expected)


def attribute_pair(shown, weights):
  """A pair that encodes A attributes, scaled by `weights` [A].

  An image holds the index of its row of `shown`; a caption lists its
  attributes, such as '3 0 -1'.
  """
  def encode(attributes):
    features = np.concatenate([
        np.eye(31)[column] * weight
        for column, weight in zip(attributes.T, weights, strict=True)], 1)
    return features / np.linalg.norm(features, axis=1, keepdims=True)

  return clip_pair.ClipPair(
      lambda images: encode(shown[images[:, 0, 0, 0].astype(int)]),
      lambda texts: encode(parse(texts)))


def parse(texts):
  return np.array([[int(word) for word in t.split()] for t in texts])


def test_attribute_r_precision_of_pairs_that_encode_some_attributes():
  rng = np.random.default_rng(0)
  shown = np.stack([rng.integers(n, size=150) for n in (26, 12, 12, 4)], 1)
  shown[:, 3] = 2  # The captions of all images state the same view.
  captions = [' '.join(map(str, row)) for row in shown]
  images = np.tile(np.arange(150)[:, None, None, None], (1, 2, 2, 3))
  rates = lambda weights, attributes=None: text.attribute_r_precision(
      attribute_pair(shown, weights), images, captions, shown, attributes)
  assert rates((1, 1, 1, 1))['64'] == (1, 0, 150)
  assert rates((1, 1, 1, 1))['all'].rate == 1
  # Of 64 captions, some other one mostly has the image's category, too.
  assert 0.02 < rates((1, 0, 0, 0))['64'].rate < 0.2
  assert rates((0, 0, 0, 1))['64'].rate == 0
  # Without visible colors, captions that differ in color only are consistent.
  no_colors = shown * [1, 0, 0, 1] - [0, 1, 1, 0]
  white = rates((1, 0, 0, 1), no_colors)
  assert white['64'].rate == white['all'].rate == 1


def test_repeated_captions_count_once_in_attribute_r_precision():
  rng = np.random.default_rng(1)
  shown = np.stack([rng.integers(n, size=120) for n in (26, 4)], 1)
  captions = [' '.join(map(str, row)) for row in shown]
  images = np.arange(40).reshape(40, 1, 1, 1)
  rates = lambda texts: text.attribute_r_precision(
      attribute_pair(shown, (1, 0.1)), images, texts, parse(texts))
  assert rates(captions + captions[::2]) == rates(captions)
  with pytest.raises(ValueError, match='needs 64 distractors'):
    rates(captions[:40] + captions[:40])


def test_retrieval_rates_by_hand():
  """Three objects, two views each, three captions; scores written out."""
  captions = {'a.': (1.0, 0.0), 'b.': (0.0, 1.0), 'c.': (-1.0, 0.0)}
  pair = clip_pair.ClipPair(
      image_features=lambda images: images.reshape(len(images), 2),
      text_features=lambda texts: np.array([captions[t] for t in texts]))
  views = np.array([
      # Scores with a, b, c: (.8, .6, -.8) and (1, 0, -1): ranks 1 and 1.
      [(0.8, 0.6), (1.0, 0.0)],
      # b: (.6, .8, -.6) is rank 1; (-.8, .6, .8) is rank 2 behind c.
      [(0.6, 0.8), (-0.8, 0.6)],
      # c: (.6, -.8, -.6) is rank 2, (0, -1, 0) is as good as a: no hit.
      [(0.6, -0.8), (0.0, -1.0)]]).reshape(3, 2, 1, 1, 2)
  rates = text.retrieval_rates(pair, views, list(captions), [0, 1, 2])
  np.testing.assert_array_equal(rates, [1.0, 0.5, 0.0])
  # Deviations .5, 0, -.5: variance 1/6, over n = 3.
  assert text.rate(rates) == (0.5, pytest.approx((1 / 18) ** 0.5), 3)
  # One view each, as in Dream Fields: two hits of three.
  rates = text.retrieval_rates(pair, views[:, :1], list(captions), [0, 1, 2])
  assert text.rate(rates) == (
      pytest.approx(2 / 3), pytest.approx((2 / 9 / 3) ** 0.5), 3)


def test_viewpoints_of_the_papers():
  one = text.viewpoints(text.PROTOCOLS['dream_fields'], 4.0, 1.389)
  half, root = 0.5, 0.5**0.5
  # Azimuth 30 from the front (+z) to +x, elevation 45, y up.
  position = 4 * np.array([root * half, root, root * 0.75**0.5])
  np.testing.assert_allclose(one.c2w[:, :3, 3], position[None], atol=1e-5)
  # -z points at the origin, and the right axis is horizontal.
  np.testing.assert_allclose(one.c2w[0, :3, 2], position / 4, atol=1e-6)
  assert abs(one.c2w[0, 1, 0]) < 1e-6
  np.testing.assert_allclose(one.intrinsics[0, 0, 0], 1.389)

  many = text.viewpoints(text.PROTOCOLS['dreamfusion'], 2.0, 1.0)
  x, y, z = np.asarray(many.c2w[:, :3, 3]).T
  np.testing.assert_allclose(y, np.full(8, 2 * 0.5), atol=1e-5)
  np.testing.assert_allclose(np.rad2deg(np.arctan2(x, z)) % 359.9999,
                             np.arange(0, 360, 45), atol=1e-2)
