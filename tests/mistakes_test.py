"""Typical mistakes: one sentence with a remedy, status 2, before the work."""

import mistakes
import pytest


@pytest.mark.parametrize('listed', [mistakes.OF_TRAINING, mistakes.OF_OTHERS],
                         ids=['of training', 'of others'])
def test_mistakes_get_one_sentence_and_make_nothing(tmp_path, listed):
  names = mistakes.prepare(tmp_path)
  for words, part in listed:
    done = mistakes.made(words, names)
    text = done.stdout + done.stderr
    assert done.returncode == 2, (words, text)
    assert mistakes.expanded(part, names) in text, (words, text)
    assert 'Traceback' not in text and text.count('\n') == 1, (words, text)
  assert not names['NEW'].exists() and not any(names['EMPTY'].iterdir())


def test_mistakes_with_quickstart_get_one_sentence():
  for words, part in mistakes.OF_QUICKSTART:
    done = mistakes.made_with_quickstart(words)
    assert done.returncode == 1 and not done.stdout
    assert part in done.stderr and done.stderr.count('\n') == 1, done.stderr
