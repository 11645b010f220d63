"""Choices by name and their error messages."""

import pytest

from gen3d import choices


def test_pick_returns_the_value_of_a_name():
  assert choices.pick('color', {'red': 1, 'blue': 2}, 'blue') == 2


@pytest.mark.parametrize('name, message', [
    ('rde', r"Unknown color 'rde'; choose from \['blue', 'red'\]. "
            r"Did you mean 'red'\?$"),
    ('wide', r"Unknown color 'wide'; choose from \['blue', 'red'\].$"),
    (None, r"Unknown color None; choose from"),
])
def test_unknown_name_lists_choices_and_near_ones(name, message):
  with pytest.raises(choices.UserError, match=message):
    choices.pick('color', {'red': 1, 'blue': 2}, name)


def test_long_lists_are_left_out_of_the_message():
  many = [f'key{i}' for i in range(30)]
  assert choices.unknown('key', many, 'key7x').startswith(
      "Unknown key 'key7x'. Did you mean 'key7'")


@pytest.mark.parametrize('value, text', [
    ('a', "'a'"), (3, '3'), (None, 'None'), ([1, 'x'], "[1, 'x']"),
    (list(range(9)), '[0, 1, 2, 3, 4, ...]'), ([[1], 2], '[[...], 2]'),
    ({'a': 1}, 'of the type dict'),
    ('\x1b]0;x\x07', r"'\x1b]0;x\x07'"), (KeyError('a'), "'a'"),
    (ValueError(), 'ValueError'), (ValueError('two\n lines.'), 'two lines')])
def test_excerpts_of_values(value, text):
  assert choices.excerpt(value) == text


def test_excerpts_are_short_whatever_the_value():
  laughs = ['ha']
  for _ in range(60):
    laughs = [laughs, laughs]
  long = 'x' * 10 ** 6
  for value in (laughs, long, '\0' * 10 ** 6, [[long] * 9] * 9, [long] * 9,
                ValueError(long), ValueError('\0' * 99), 10 ** 10_000):
    assert len(choices.excerpt(value)) <= 80
    assert choices.excerpt(value).isprintable()


def test_messages_have_no_control_characters_and_are_bounded():
  error = choices.UserError('a\x1b]0;x\x07b\nc\udcff\u202ed')
  assert str(error) == 'a\\x1b]0;x\\x07b\nc\\udcff\\u202ed'
  error = choices.UserError('start ' + 'x' * 10 ** 6 + ' end')
  assert len(str(error)) <= 2000
  assert str(error).startswith('start x') and str(error).endswith('x end')


def test_prompts_that_are_too_long_or_no_text_are_refused():
  choices.check_prompt('ein süßer Bär' * 100)
  for prompt, said in (('a' * 2001, r'a\.\.\. has 2,001 characters|has 2,001'),
                       ('\udcff chair', 'no UTF-8')):
    with pytest.raises(choices.UserError, match=said) as error:
      choices.check_prompt(prompt)
    assert len(str(error.value)) < 200


def test_a_choice_of_another_type_is_a_user_error():
  for name in ([], {}, 5):
    with pytest.raises(choices.UserError, match='Unknown color'):
      choices.pick('color', {'red': 1}, name)
