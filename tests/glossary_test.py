"""What metrics mean."""

import pytest

from gen3d import glossary


@pytest.mark.parametrize('name, part', [
    ('weighted_penalty/opacity_entropy', 'grows by design'),
    ('weighted_penalty/orientation', 'times its weight'),
    ('schedule/learning_rate_generator', 'Learning rate'),
    ('schedule/scene.penalties.opacity_entropy', 'Weight of'),
    ('schedule/scene.background_range', 'key of the config'),
    ('loss/depth', 'term of the loss'), ('cats/depth', 'world units'),
    ('loss/generator', 'balance'), ('loss/anything', 'smaller is better'),
    ('frechet_shapes_clip/generated', 'smaller is better')])
def test_the_first_pattern_that_fits_counts(name, part):
  assert part in glossary.meaning(name)


def test_table_has_a_row_for_each_metric():
  table = glossary.table({'psnr', 'unheard_of'})
  assert '| `psnr` | Fit to the pixels' in table
  assert table.endswith('| `unheard_of` |  |')
