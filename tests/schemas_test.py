"""Schemas of values in files."""

import numpy as np
import pytest

from gen3d import schemas
from gen3d.choices import UserError

WHOLE = schemas.whole(1, 8)


@pytest.mark.parametrize('rule, accepted, refused', [
    (WHOLE, [1, 8, np.int64(3)], [0, 9, True, 1.0, '1', None, [1]]),
    (schemas.real(0, 1), [0, 0.5, np.float32(1)],
     [-0.1, 1.1, float('nan'), float('inf'), False, '0.5', 10 ** 400]),
    (schemas.each(WHOLE, 1, 2), [[1], (1, 2)], [[], [1, 2, 3], [0], 1, 'a']),
    (schemas.either(WHOLE, schemas.TEXT), [1, 'a'], [0, None]),
    (schemas.optional(WHOLE), [None, 1], [0, 'a']),
    (schemas.FLAG, [True, False, 0, 1], [2, None, 'true', 1.0]),
    (schemas.TEXT, ['', 'a'], [1, None, b'a']),
    (schemas.MAPPING, [{}, {'a': 1}], [[], None, 1])])
def test_rules_accept_and_refuse(rule, accepted, refused):
  assert [x for x in accepted if not rule.accepts(x)] == []
  assert [x for x in refused if rule.accepts(x)] == []


def test_error_names_file_key_value_and_rule():
  schemas.check('f.json', {'other': 'x'}, {'layers': WHOLE})
  with pytest.raises(UserError, match=(
      r"^f\.json: 'layers' is 10000000, but must be an integer from 1 to 8; ")):
    schemas.check('f.json', {'layers': 10 ** 7}, {'layers': WHOLE})
  with pytest.raises(UserError, match="f.json has no 'layers'"):
    schemas.check('f.json', {}, {'layers': WHOLE}, required=True)
