"""View-dependent prompts."""

import numpy as np
import pytest

from gen3d import assets
from gen3d.guidance import prompts


def test_with_views_appends_the_four_views():
  assert prompts.with_views(' a red  chair. ') == [
      'a red chair, front view', 'a red chair, side view',
      'a red chair, back view', 'a red chair, overhead view']


@pytest.mark.parametrize('empty', ['', '  ', ' . '])
def test_an_empty_prompt_raises(empty):
  with pytest.raises(ValueError, match='prompt is empty'):
    prompts.with_views(empty)


def test_long_prompts_are_cut_before_the_view(caplog):
  fits = lambda text: len(text.split()) <= 8
  prompt = 'a red chair, with a cushion, and four legs of wood'
  texts = prompts.with_views(prompt, fits)
  assert texts == [f'a red chair, with a cushion, {view}'
                   for view in prompts.VIEWS]
  assert 'more than the text encoder takes' in caplog.text
  caplog.clear()
  assert prompts.with_views('a red chair', fits) == prompts.with_views(
      'a red chair')
  assert not caplog.text


def test_views_of_a_long_prompt_differ_for_the_shipped_tokenizer():
  tokenizer = assets.tokenizer()
  texts = prompts.with_views('a red chair and ' * 20, tokenizer.fits)
  tokens, _ = tokenizer.encode(texts)
  assert len({row.tobytes() for row in tokens}) == 4
  # As many words as fit: one more would not.
  words = texts[3].split()
  assert not tokenizer.fits(' '.join([*words[:-2], 'a red', *words[-2:]]))


def test_nearest_view():
  cases = [(0, 0, 0), (44, 0, 0), (46, 0, 1), (-90, 30, 1), (134, 0, 1),
           (136, 0, 2), (-180, 59, 2), (350, 0, 0), (0, 61, 3), (180, 90, 3)]
  azimuth, elevation, view = map(np.array, zip(*cases))
  np.testing.assert_array_equal(prompts.nearest_view(azimuth, elevation), view)
  assert int(prompts.nearest_view(40.0, 0.0, front=30.0)) == 1
