"""Captions: sampling, parsing, splits, vocabulary, tokenizer."""

import re

import numpy as np
import pytest

from gen3d import assets
from gen3d.data.shapes import captions
from gen3d.data.shapes.captions import Spec


def is_true(stated: Spec, spec: Spec) -> bool:
  """True if all that a caption states holds for an object."""
  return all(s is None or s == truth for s, truth in zip(stated, spec))


def test_parse_recovers_the_spec_of_sampled_captions():
  rng = np.random.default_rng(0)
  for _ in range(500):
    spec = captions.sample_spec(rng, 'train')
    text = captions.caption(rng, spec, 'side')
    stated = captions.parse(text)
    assert stated.category == spec.category, text
    assert is_true(stated, spec), text
  for spec in (captions.sample_spec(rng, 'unseen') for _ in range(100)):
    assert captions.parse(captions.plain(spec)) == spec


def test_parse_of_synonyms_and_of_captions_without_colors():
  assert captions.parse('A photo of a RED automobile') == (
      'car', 'red', None)
  assert captions.parse('ice cream cone with grey cone') == (
      'ice cream', None, 'gray')
  with pytest.raises(captions.Unknown, match='chair, table'):
    captions.parse('a dragon')


@pytest.mark.parametrize(('text', 'pattern'), [
    ('a red chair', r'a red chair with (\w+) legs'),
    ('A photo of one cat, side view',
     r'A photo of one (\w+) cat with (\w+) paws, side view'),
    ('an apple with green leaf', r'an? (\w+) apple with green leaf'),
    ('a red car with blue wheels', 'a red car with blue wheels'),
    ('a dragon', 'a dragon')])
def test_open_colors_are_drawn(text, pattern):
  drawn = set()
  for seed in range(20):
    completed = captions.complete(text, seed)
    assert completed == captions.complete(text, seed)
    assert re.fullmatch(pattern, completed)
    if text != 'a dragon':
      given, stated = captions.parse(text), captions.parse(completed)
      assert is_true(given, stated)
      assert None not in stated and stated.main != stated.second
      if given.main is None:  # The teacher knows the pair.
        assert not captions.unseen(stated.category, stated.main)
    drawn.add(completed)
  assert len(drawn) == 1 if '(' not in pattern else len(drawn) > 5


def test_article_of_a_completed_caption():
  texts = {captions.complete('an apple', seed) for seed in range(40)}
  assert {' '.join(t.split()[:2]) for t in texts} >= {'an orange', 'a white'}


def test_captions_with_another_color_are_not_true():
  spec = captions.Spec('car', 'red', 'blue')
  assert is_true(captions.parse('a car'), spec)
  assert not is_true(captions.parse('a green car'), spec)
  assert not is_true(
      captions.parse('a red car with red wheels'), spec)


def test_colors_can_be_left_out():
  rng = np.random.default_rng(1)
  spec = captions.Spec('house', 'pink', 'cyan')
  for _ in range(100):
    text = captions.caption(rng, spec, 'front', colors=False)
    assert 'pink' not in text and 'cyan' not in text


def test_splits_are_disjoint_and_a_tenth_of_pairs_is_unseen():
  seen, unseen = (set(captions.pairs(s)) for s in ('seen', 'unseen'))
  assert not seen & unseen
  assert set(captions.pairs('train')) == seen
  total = len(captions.CATEGORIES) * len(captions.COLORS)
  assert len(seen | unseen) == total
  assert 0.05 < len(unseen) / total < 0.15
  rng = np.random.default_rng(2)
  for split, pairs in (('train', seen), ('unseen', unseen)):
    for _ in range(200):
      spec = captions.sample_spec(rng, split)
      assert (spec.category, spec.main) in pairs
      assert spec.main != spec.second


def test_numbers_of_categories_colors_and_kinds():
  assert len(captions.CATEGORIES) >= 24
  assert len(captions.COLORS) >= 11
  kinds = {noun.kind for noun in captions.NOUNS.values()}
  assert kinds >= {'furniture', 'vehicle', 'tool', 'food', 'toy', 'plant',
                   'animal', 'building'}


@pytest.mark.parametrize('azimuth, elevation, word', [
    (0, 0, 'front'), (44, 0, 'front'), (-46, 0, 'side'), (90, 59, 'side'),
    (134, 0, 'side'), (136, 0, 'back'), (180, 20, 'back'), (-180, 0, 'back'),
    (0, 61, 'overhead'), (359, 0, 'front')])
def test_view_words(azimuth, elevation, word):
  assert captions.view_word(azimuth, elevation) == word


def test_tokens_are_padded_and_truncated_without_unknown_tokens():
  tokenizer = assets.tokenizer()
  tokens, mask = tokenizer.encode(['a red car', '', 'red ' * 100])
  assert tokens.shape == mask.shape == (3, assets.CAPTION_LENGTH)
  assert list(tokens[1][:2]) == [1, 0] and mask[1].sum() == 1
  assert mask[2].sum() == assets.CAPTION_LENGTH and tokens[2, -1] == 1
  rng = np.random.default_rng(3)
  texts = [captions.caption(rng, captions.sample_spec(rng, 'train'), 'side')
           for _ in range(300)]
  tokens, mask = tokenizer.encode(texts)
  assert (tokens != 2).all() and mask.sum(1).max() < assets.CAPTION_LENGTH


def test_trained_tokenizer_equals_the_shipped_one(tmp_path):
  captions.train_tokenizer(tmp_path / 'tokenizer.json')
  again = assets.Tokenizer(tmp_path / 'tokenizer.json')
  texts = ['a photo of a pink castle with gray towers, overhead view', 'xyz']
  np.testing.assert_array_equal(
      again.encode(texts)[0], assets.tokenizer().encode(texts)[0])


def test_advice_names_words_outside_the_vocabulary_only():
  assert captions.advice(['a red chair, side view', '']) is None
  advice = captions.advice(['a shiny red dragon'])
  assert "'dragon'" in advice and "'shiny'" in advice and 'chair' in advice
  assert "'red'" not in advice
