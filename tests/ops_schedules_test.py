"""Schedules whose times are fractions of the steps."""

import ml_collections
import numpy as np
import pytest

from configs import clip_mesh, dream_fields, dreamfusion
from gen3d.ops import schedules
from gen3d.tasks import text_to_3d


@pytest.mark.parametrize('value, in_100', [
    (3.0, 3.0), ('a', 'a'), ((), ()), ((0.7, 1.0), (0.7, 1.0)),
    (((0, 1.0), (75, 6.0)), ((0, 1.0), (75, 6.0))),
    (((0.25, 1.0), (1.0, 6.0)), ((25, 1.0), (100, 6.0))),
    ([[0.29, 1.0], [1.0, 6.0]], ((29, 1.0), (100, 6.0))),  # of config.json
    (((0.25, 1.0), (0.25, 6.0), (0.6, 6.0)),
     ((25, 1.0), (26, 6.0), (60, 6.0)))])
def test_fractions_become_steps(value, in_100):
  assert schedules.in_steps(value, 100) == in_100


def test_equal_fractions_are_a_jump():
  value = schedules.in_steps(((0.5, 1.0), (0.5, 6.0)), 10)
  assert [float(schedules.piecewise(i, value)) for i in (0, 5, 6, 9)] == [
      1.0, 1.0, 6.0, 6.0]


def test_phases_of_dreamfusion_at_300_steps_and_at_1000():
  """At 300 steps those with which the published table was made."""
  config = dreamfusion.get_config()
  settings = text_to_3d._in_steps(config.to_dict(), config.steps)
  assert settings['guidance']['scale'] == (
      (75, 1.0), (76, 6.0), (180, 6.0), (210, 3.0))
  assert settings['guidance']['options']['time_max'] == (
      (75, 0.99), (105, 0.93), (180, 0.9), (300, 0.97))
  assert settings['scene']['light']['albedo_steps'] == 120
  config.steps = 1000
  longer = text_to_3d._in_steps(config.to_dict(), config.steps)
  assert longer['scene']['light']['albedo_steps'] == 400
  for section, name in (('guidance', 'scale'), ('scene', 'background_range')):
    for share in np.linspace(0, 1, 11):
      assert np.isclose(*(schedules.piecewise(share * count, x[section][name])
                          for count, x in ((300, settings), (1000, longer))),
                        atol=0.05)


def test_step_counts_follow_the_steps_unless_they_are_set():
  for module, key in ((dreamfusion, 'scene.light.albedo_steps'),
                      (dreamfusion, 'optimizer.warmup'),
                      (dream_fields, 'scene.transmittance.steps'),
                      (clip_mesh, 'scene.light.untextured_steps')):
    config = module.get_config('paper')
    get = lambda config=config, key=key: config_value(config, key)
    before, config.steps = get(), 2 * config.steps
    assert before > 0 and get() == 2 * before
    config.update_from_flattened_dict({key: 7})
    assert get() == 7


def config_value(config: ml_collections.ConfigDict, key: str):
  for name in key.split('.'):
    config = config[name]
  return config


@pytest.mark.parametrize('steps, last', [(0, 1), (1, 1), (4, 4)])
def test_exponential_ends_after_its_steps_or_the_first(steps, last):
  values = [float(schedules.exponential(i, 0.5, 0.1, steps))
            for i in (0, last, last + 1)]
  np.testing.assert_allclose(values, [0.5, 0.1, 0.1], rtol=1e-5)
