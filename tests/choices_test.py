"""Choosing by name."""

import pytest

from gen3d import choices


def test_pick_returns_what_was_chosen():
  assert choices.pick('color', {'red': 1, 'blue': 2}, 'blue') == 2


@pytest.mark.parametrize('name, said', [
    ('rde', r"Unknown color 'rde'; choose from \['blue', 'red'\]. "
            r"Did you mean 'red'\?$"),
    ('wide', r"Unknown color 'wide'; choose from \['blue', 'red'\].$"),
    (None, r"Unknown color None; choose from"),
])
def test_what_there_is_is_said(name, said):
  with pytest.raises(ValueError, match=said):
    choices.pick('color', {'red': 1, 'blue': 2}, name)


def test_a_long_list_does_not_bury_the_hint():
  many = [f'key{i}' for i in range(30)]
  assert choices.unknown('key', many, 'key7x').startswith(
      "Unknown key 'key7x'. Did you mean 'key7'")
