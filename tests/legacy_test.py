"""Names of version 1."""

import pytest

from gen3d import legacy


def test_upgrade_renames_nested_keys_and_the_task():
  old = {'task': 'image_text', 'counted': 'rays', 'steps': 3,
         'model': {'z_width': 8, 'rendering': {'box': 1.0, 'end': 2.0}},
         'schedule': {'swap': 0.5, 'r1': 1.0}}
  assert legacy.upgrade(old) == {
      'task': 'clip', 'throughput_unit': 'rays', 'steps': 3,
      'model': {'z_dim': 8, 'rendering': {'box_warp': 1.0, 'ray_end': 2.0}},
      'schedule': {'pose_swap_prob': 0.5, 'r1_gamma': 1.0}}


def test_upgrade_keeps_present_names():
  new = legacy.upgrade({'model': {'z_width': 8}, 'optimizer': {'rates': {}}})
  assert legacy.upgrade(new) == new


def test_present_configs_may_use_a_name_of_version_1():
  giraffe = {'model': {'rendering': {'samples': 16}}}
  assert legacy.upgrade(giraffe, legacy.VERSION) == giraffe


@pytest.mark.parametrize('key, present', [
    ('schedule.swap', 'schedule.pose_swap_prob'),
    ('optimizer.rates', 'optimizer.lr_multipliers'),
    ('optimizer.rates.encode', 'optimizer.lr_multipliers.encode'),
    ('schedule.pose_swap_prob', None), ('swap', None), ('seed', None)])
def test_renamed_gives_the_present_dotted_key(key, present):
  assert legacy.renamed(key) == present
