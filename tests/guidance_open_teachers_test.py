"""Every guidance with Stable Diffusion and DeepFloyd IF of random weights."""

import functools
import importlib.util

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import csd, dreamfusion, prolific_dreamer, score_distillation
from gen3d.diffusion import loading
from gen3d.engine import sharding
from gen3d.evaluation import flops
from gen3d.ops import cameras
from gen3d.scenes import Render
from gen3d.tasks import text_to_3d

# With the noise predictions of the teacher for an image.
VARIANTS = {
    'sds': (dreamfusion.tiny, 2), 'vsd': (prolific_dreamer.tiny, 2),
    # The prompt, the negative one, the empty one, and two of Perp-Neg.
    'csd': (csd.tiny, 5),
    **{name: (functools.partial(
        lambda name: score_distillation.VARIANTS[name](dreamfusion.tiny()),
        name), count) for name, count in (
            ('asd', 3), ('bridge', 2), ('hifa', 4), ('ism', 5), ('sdi', 10))}}


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
  """{teacher: its settings}; DeepFloyd IF where PyTorch is installed."""
  path = tmp_path_factory.mktemp('open')
  control = folders.write_small_stable_diffusion(path)
  teachers = {'stable_diffusion': {**control, 'control': ''}}
  if all(map(importlib.util.find_spec, ('torch', 'diffusers'))):
    folders.save_small_deepfloyd(path / 'if')
    teachers['deepfloyd'] = {'name': 'deepfloyd', 'path': str(path / 'if')}
  return teachers


@pytest.fixture(scope='module')
def teachers(settings):
  """{teacher: Teacher} that reads its files and embeds a text only once."""
  result = {}
  for name, values in settings.items():
    teacher = loading.make_teacher(values)
    one, weights = teacher.embed(['a dog']), teacher.load()
    repeated = lambda texts, one: jax.tree.map(
        lambda x: np.repeat(x, len(texts), 0), one)
    result[name] = teacher._replace(
        embed=functools.partial(repeated, one=one),
        load=functools.partial(lambda weights: weights, weights))
  return result


def _config(variant, teacher):
  config = VARIANTS[variant][0]()
  config.prompt, config.views = 'a dog', 2
  config.teacher = ml_collections.ConfigDict(teacher)
  config.guidance.options.update({
      'color_guidance_ratio': 1.0, 'num_noises': 1})
  return config


@pytest.mark.parametrize('variant', VARIANTS)
def test_parts_of_a_guidance_and_its_noise_predictions(
    teachers, variant, monkeypatch):
  for name, teacher in teachers.items():
    monkeypatch.setattr(loading, 'make_teacher', lambda _, t=teacher: t)
    config = _config(variant, {'name': name})
    guidance = text_to_3d.GUIDANCES[config.guidance.name](config)
    frozen = guidance.load('a dog', config.negative_prompt)
    params = guidance.init(jax.random.key(0), frozen)

    def loss(image, params, frozen, guidance=guidance):
      text = guidance.condition(frozen, cameras.orbit(20.0, 10.0, 1.6, 1.3))
      render = Render(image, *(None,) * 5, color_only=image)
      return guidance.loss(params, frozen, jax.random.key(1), render, text, 0
                           )[0]

    image = jnp.zeros((16, 16, 3))
    parts = flops.by_scope(
        jax.grad(loss), (image, params, frozen), text_to_3d.SCOPES)
    text = jax.tree.map(lambda x: x[:1], frozen.prompts)
    once = flops.by_scope(teacher.denoise, (
        frozen.weights, np.zeros((1, *teacher.latent)), np.zeros(1), text), []
                          )['other']
    assert parts['unet'] / once == pytest.approx(VARIANTS[variant][1], rel=.02)
    # DeepFloyd IF has pixels, which are resized only.
    assert (parts['encoder'] > 10 * image.size**2) == (
        name == 'stable_diffusion')
    assert (parts['student'] > 0) == (variant == 'vsd')


@pytest.mark.parametrize('variant, name', [
    ('vsd', 'stable_diffusion'), ('asd', 'deepfloyd')])
def test_a_training_step_on_two_devices(settings, variant, name):
  if name not in settings:
    pytest.skip('DeepFloyd IF of random weights needs PyTorch')
  task = text_to_3d.make(_config(variant, settings[name]))
  batch = next(iter(task.batches(0, 0)))
  mesh = sharding.mesh_for(batch, task.execution)
  assert mesh.size == 2
  before = task.init(jax.random.key(0))
  state, metrics = sharding.pmap(task.step, mesh)(
      sharding.replicate(before, mesh), sharding.to_devices(batch, mesh),
      sharding.replicate(jax.random.key(1), mesh))
  after = sharding.unreplicate(state).params
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
  moved = jax.tree.map(
      lambda a, b: bool(np.any(a != b)), after, before.params)
  assert any(jax.tree.leaves(moved['scene']))
  assert any(jax.tree.leaves(moved['guidance'])) == (variant == 'vsd')
  assert jax.device_get(sharding.unreplicate(metrics))['sds/grad_norm'] > 0
