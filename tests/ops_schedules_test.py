"""Schedules whose times are fractions of the steps."""

import ml_collections
import numpy as np
import pytest

from configs import (
    clip,
    clip_mesh,
    dream_fields,
    dreamfusion,
    eg3d,
    mip_nerf,
    nerf,
    pigan,
    stylegan2,
    text_to_image,
    triplanes,
    view_estimator,
    voxels,
)
from gen3d.choices import UserError
from gen3d.engine import workdirs
from gen3d.gan import build
from gen3d.ops import schedules
from gen3d.tasks import gan, text_to_3d


@pytest.mark.parametrize('value, in_100', [
    (3.0, 3.0), ('a', 'a'), ((), ()), ((0.7, 1.0), (0.7, 1.0)),
    (((0, 1.0), (75, 6.0)), ((0, 1.0), (75, 6.0))),
    (((0.25, 1.0), (1.0, 6.0)), ((25, 1.0), (100, 6.0))),
    ([[0.29, 1.0], [1.0, 6.0]], ((29, 1.0), (100, 6.0))),  # of config.json
    (((0.25, 1.0), (0.25, 6.0), (0.6, 6.0)),
     ((25, 1.0), (26, 6.0), (60, 6.0)))])
def test_fractions_become_steps(value, in_100):
  assert schedules.in_steps(value, 100) == in_100


@pytest.mark.parametrize('value, message', [
    ('large', "'large' is no schedule"), ((), 'no schedule'),
    (float('nan'), 'nan is no schedule'),
    (((0, 1.0), (5,)), 'write a number, or pairs'),
    (((5, 1.0), (1, 2.0)), 'times that fall'),
    (((0.5, 1.0), (0.1, 2.0)), 'times that fall')])
def test_what_is_no_schedule_is_refused(value, message):
  with pytest.raises(UserError, match=message):
    schedules.points(schedules.in_steps(value, 100))


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


# (config, its variant, key, at the default steps, at a tenth of them): phases
# of GANs, captures and networks. Those at the default steps are the ones with
# which the published tables and shipped weights were made.
PHASES = [
    (nerf, 'blender', 'crop.steps', 500, 50),
    (nerf, 'quick', 'crop.steps', 100, 10),
    (nerf, 'quick', 'optimizer.warmup', 100, 10),
    (nerf, 'race', 'optimizer.warmup', 50, 5),
    (mip_nerf, 'blender', 'optimizer.warmup', 2500, 250),
    (mip_nerf, 'quick', 'optimizer.warmup', 100, 10),
    (triplanes, 'blender', 'optimizer.warmup', 100, 10),
    (triplanes, 'quick', 'optimizer.warmup', 100, 10),
    (voxels, 'race', 'optimizer.warmup', 50, 5),
    (view_estimator, 'shapes', 'optimizer.warmup', 100, 10),
    (text_to_image, 'shapes', 'optimizer.warmup', 300, 30),
    (text_to_image, 'shapes', 'optimizer.cooldown', 2000, 200),
    (text_to_image, 'light_field', 'optimizer.cooldown', 650, 65),
    (text_to_image, 'depth', 'optimizer.warmup', 200, 20),
    (clip, 'shapes', 'optimizer.cooldown', 1000, 100),
    (clip, 'guide', 'optimizer.warmup', 100, 10),
    (clip, 'guide_robust', 'optimizer.cooldown', 500, 50),
    (pigan, 'cats', 'model.noise_steps', 500, 50),
    (pigan, 'cats', 'model.fade_steps', 500, 50),
    (stylegan2, 'cats', 'schedule.r1_gamma_fade_images', 48_000, 4800),
    (eg3d, 'shapes', 'schedule.blur_fade_images', 8000, 800),
    (eg3d, 'cats', 'schedule.r1_gamma_fade_images', 30_000, 3000),
    (eg3d, 'cats', 'schedule.pose_swap_fade_images', 20_000, 2000)]


@pytest.mark.parametrize('module, variant, key, default, tenth', PHASES)
def test_phases_at_the_default_steps_and_at_a_tenth(
    module, variant, key, default, tenth):
  config = module.get_config(variant)
  assert config_value(config, key) == default
  config.steps //= 10
  assert config_value(config, key) == tenth


def test_curricula_of_gans_at_the_default_steps_and_at_a_tenth():
  config = pigan.get_config()
  resolved = lambda: (
      [stage.start for stage in gan._stages(config)],
      list(build._in_steps(config).fade_from),
      [gan.render_size_at(config, step) for step in (0, 319, 320, 3199, 3200)])
  assert resolved() == ([0, 3200], [0, 3200], [32, 32, 32, 32, 64])
  config.steps = 400
  assert resolved() == ([0, 320], [0, 320], [32, 32, 64, 64, 64])
  config = eg3d.get_config()
  size = lambda step: gan.render_size_at(config, step)
  # After 100,000 images in batches of 8.
  assert [size(step) for step in (0, 12_500, 12_501)] == [24, 24, 32]
  config.steps = 2100
  assert [size(step) for step in (0, 1250, 1251)] == [24, 24, 32]


def test_a_run_whose_phases_follow_the_steps_may_be_made_longer(
    tmp_path, monkeypatch):
  monkeypatch.setattr(workdirs, 'latest', lambda workdir: 1)
  config = triplanes.get_config('quick')
  workdirs.write_config(config, tmp_path)
  config.steps *= 2
  workdirs.check(config, tmp_path)
  assert config.optimizer.warmup == 200
  config.optimizer.warmup = 7
  with pytest.raises(UserError, match='optimizer.warmup'):
    workdirs.check(config, tmp_path)
