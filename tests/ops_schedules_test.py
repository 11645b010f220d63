"""Schedules whose times are fractions of the steps."""

import ml_collections
import numpy as np
import pytest
from flax import traverse_util

from configs import (
    clip,
    clip_mesh,
    csd,
    dream_fields,
    dreamfusion,
    eg3d,
    mip_nerf,
    nerf,
    pigan,
    prolific_dreamer,
    score_distillation,
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


def settings_of(module, variant, steps=None):
  """{name: value} of a text-to-3-D config, with its schedules in steps."""
  config = module.get_config(variant)
  config.steps = steps or config.steps
  return traverse_util.flatten_dict(
      text_to_3d._in_steps(config.to_dict(), config.steps), sep='.')


@pytest.mark.parametrize('module, variant, key, want', [
    (dreamfusion, 'shapes', 'guidance.scale',
     ((75, 1.0), (76, 6.0), (180, 6.0), (210, 3.0))),
    (dreamfusion, 'shapes', 'guidance.options.time_max',
     ((75, 0.99), (105, 0.93), (180, 0.9), (300, 0.97))),
    (dreamfusion, 'shapes', 'scene.light.albedo_steps', 120),
    (csd, 'if', 'guidance.options.negative', ((0, 0.0), (5000, 1.0))),
    (csd, 'if', 'guidance.options.time_max', ((5000, 0.98), (5001, 0.5))),
    (csd, 'if', 'scene.light.normals_prob', ((5000, 0.0), (5001, 0.5))),
    (csd, 'sd', 'guidance.options.negative', ((0, 1.0), (10_000, 0.5))),
    (prolific_dreamer, 'sd', 'guidance.options.time_max',
     ((5000, 0.98), (5001, 0.5))),
    (prolific_dreamer, 'sd', 'scene.penalties.opacity_entropy',
     ((9999, 0.0), (10_000, 1000.0 / 64**2))),
    (prolific_dreamer, 'sd', 'scene.light.albedo_steps', 25_000)])
def test_phases_of_text_to_3d_at_the_default_steps(
    module, variant, key, want):
  """Those with which the published tables were made, and of official code."""
  assert settings_of(module, variant)[key] == want


@pytest.mark.parametrize('module, variant, counts', [
    (dreamfusion, 'shapes', 8), (dreamfusion, 'paper', 1),
    (dreamfusion, 'csd', 8), (dreamfusion, 'sd', 1), (csd, 'if', 5),
    (csd, 'sd', 1), (prolific_dreamer, 'shapes', 8),
    (prolific_dreamer, 'sd', 2), (score_distillation, 'asd', 8),
    (score_distillation, 'hifa', 8), (dream_fields, 'shapes', 1)])
def test_schedules_are_the_same_recipe_in_100_and_1000_steps(
    module, variant, counts):
  long = {name: value for name, value in settings_of(
      module, variant, 1000).items() if schedules.is_schedule(value)}
  assert len(long) == counts
  at = lambda step, value: np.interp(step, *zip(*value, strict=True))
  for steps in (100, 300):
    short = settings_of(module, variant, steps)
    for name, value in long.items():
      for share in np.linspace(0, 1, 51):
        # A step of 100 is one of ten in 1000.
        near = at(1000 * share + np.arange(-20, 21), value)
        assert near.min() - 1e-6 <= at(steps * share, short[name]) <= (
            near.max() + 1e-6), (name, steps, share)


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
