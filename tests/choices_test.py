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
