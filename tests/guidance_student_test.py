"""VSD: a student that is learned along, on teachers with a known score."""

import functools

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import clip_mesh, prolific_dreamer
from gen3d.choices import UserError
from gen3d.diffusion import loading, noise, teachers
from gen3d.engine import checkpoints, sharding, workdirs
from gen3d.guidance import score, student
from gen3d.models import lora
from gen3d.ops import cameras
from gen3d.scenes import Render, particles
from gen3d.tasks import text_to_3d

SHAPE = (2, 2, 3)
SCHEDULE = noise.cosine_schedule()
DEVIATION = 0.3


def _eps(x_t, t, mean):
  """The ideal prediction for N(mean, DEVIATION^2)."""
  alpha, sigma = (level(t)[:, None, None, None] for level in (
      SCHEDULE.alpha, SCHEDULE.sigma))
  return sigma * (x_t - alpha * mean) / (alpha**2 * DEVIATION**2 + sigma**2)


def _embed(texts):
  return jnp.array([0.8 if text else -0.2 for text in texts])


TEACHER = teachers.Teacher(
    SCHEDULE, lambda weights, images, key: 2 * images - 1,
    teachers.unit_images,
    lambda weights, x_t, t, text: _eps(
        x_t, t, (weights['scale'] * text)[:, None, None, None]),
    _embed, SHAPE, None, lambda: {'scale': jnp.ones(())})

# A student of Gaussians whose mean is learned.
MEAN = student.Student(
    lambda key, weights: {'mean': jnp.zeros(SHAPE)},
    lambda params, weights, x_t, t, text, pose: _eps(
        x_t, t, params['mean'][None]))


def _guidance(one, **settings):
  return student.make(
      TEACHER, score.Settings(score.sds(2.0), **settings), one,
      student.Settings())


def _inputs(guidance):
  frozen = guidance.load('a red chair', '')
  text = guidance.condition(frozen, cameras.orbit(20.0, 10.0, 1.6, 1.3))
  return frozen, text


def _render(image):
  return Render(image, *(None,) * 5)


def test_vsd_whose_student_answers_with_the_drawn_noise_is_sds():
  image = jax.random.uniform(jax.random.key(3), SHAPE)
  answer = student.Student(
      lambda key, weights: {},
      lambda params, weights, x_t, t, text, pose: noise.eps_from_x(
          SCHEDULE, x_t, 2 * image[None] - 1, t))
  vsd = _guidance(answer)
  sds = score.make(TEACHER, score.Settings(score.sds(2.0)))
  key = jax.random.key(1)

  def gradient(guidance, key):
    frozen, text = _inputs(guidance)
    return jax.grad(lambda image: guidance.loss(
        {}, frozen, key, _render(image), text, 0)[0])(image)

  # VSD's first key is that of the distillation.
  np.testing.assert_allclose(
      gradient(vsd, key), gradient(sds, jax.random.split(key)[0]), rtol=1e-3,
      atol=1e-5)


def test_gradient_is_the_teachers_prediction_less_the_students():
  t, image = 0.6, jax.random.uniform(jax.random.key(3), SHAPE)
  guidance = _guidance(MEAN, time_min=t, time_max=t)
  frozen, text = _inputs(guidance)
  params = {'mean': jnp.full(SHAPE, 0.5)}
  gradient = jax.grad(lambda image: guidance.loss(
      params, frozen, jax.random.key(1), _render(image), text, 0)[0])(image)
  alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
  # The noise cancels: both predictions are linear in x_t.
  guided = -0.2 + 2 * (0.8 + 0.2)
  expected = -2 * sigma**2 * sigma * alpha * (guided - 0.5) / (
      alpha**2 * DEVIATION**2 + sigma**2)
  np.testing.assert_allclose(gradient, jnp.full(SHAPE, expected), rtol=1e-4)


def test_the_students_loss_has_no_gradient_for_the_image_and_vsd_none_for_it():
  guidance = _guidance(MEAN)
  frozen, text = _inputs(guidance)
  image = jnp.full(SHAPE, 0.7)
  key = jax.random.key(1)
  params = {'mean': jnp.full(SHAPE, 0.1)}
  loss = lambda params, image: guidance.loss(
      params, frozen, key, _render(image), text, 0)[0]
  of_params, of_image = jax.grad(loss, (0, 1))(params, image)
  fit = lambda params: student.fit_loss(
      MEAN, student.Settings(), SCHEDULE, params, {}, jax.random.split(key)[1],
      2 * image[None] - 1, text.others['plain'], text.pose)
  np.testing.assert_allclose(
      of_params['mean'], jax.grad(fit)(params)['mean'], rtol=1e-5)
  # Twice the loss of the student: the same gradient for the image.
  other = jax.grad(lambda image: loss(params, image) + jax.lax.stop_gradient(
      fit(params)))(image)
  np.testing.assert_allclose(of_image, other)


def test_a_student_converges_to_the_mean_of_the_renders():
  x = jnp.array([0.9, -0.6])[:, None, None, None] * jnp.ones((2, *SHAPE))
  optimizer = optax.adam(0.02)

  def update(carry, key):
    params, state = carry
    gradient = jax.grad(lambda params: student.fit_loss(
        MEAN, student.Settings(noises=4), SCHEDULE, params, {}, key, x,
        jnp.zeros(2), jnp.zeros((2, 16))))(params)
    updates, state = optimizer.update(gradient, state)
    params = optax.apply_updates(params, updates)
    return (params, state), params['mean']

  start = MEAN.init(None, None)
  _, path = jax.lax.scan(
      update, (start, optimizer.init(start)),
      jax.random.split(jax.random.key(0), 600))
  np.testing.assert_allclose(path[-200:].mean(0), 0.15, atol=0.06)


@pytest.mark.parametrize('loss', list(student.LOSSES))
def test_the_loss_is_the_squared_error_of_eps_or_of_v(loss):
  x, eps = jax.random.normal(jax.random.key(0), (2, 3, *SHAPE))
  t = jnp.array([0.2, 0.5, 0.8])
  params = {'mean': jnp.full(SHAPE, 0.2)}
  got = student.denoising_loss(
      MEAN, loss, SCHEDULE, params, {}, x, eps, t, None, jnp.zeros((3, 16)))
  x_t = noise.diffuse(SCHEDULE, x, eps, t)
  predicted = _eps(x_t, t, 0.2)
  if loss == 'v':
    v = lambda eps: noise.to_v(
        SCHEDULE, noise.x_from_eps(SCHEDULE, x_t, eps, t), eps, t)
    expected = jnp.mean((v(predicted) - v(eps)) ** 2)
  else:
    expected = jnp.mean((predicted - eps) ** 2)
  np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_the_pose_is_unknown_as_often_as_the_settings_have_it():
  seen = student.Student(
      None, lambda params, weights, x_t, t, text, pose: x_t * jnp.mean(pose))
  loss = lambda key: student.fit_loss(
      seen, student.Settings(drop_camera=0.3), SCHEDULE, {}, {}, key,
      jnp.zeros((1, *SHAPE)), None, jnp.full((1, 16), 1e6))
  losses = jax.vmap(loss)(jax.random.split(jax.random.key(0), 1000))
  assert 0.25 < np.mean(losses < 100) < 0.35


@pytest.fixture(scope='module')
def diffusion(tmp_path_factory):
  """(Teacher, weights) of a small random Stable Diffusion with a ControlNet."""
  settings = folders.write_small_stable_diffusion(
      tmp_path_factory.mktemp('small'))
  teacher = loading.make_teacher(settings)
  return teacher, teacher.load()


def _prediction_inputs(teacher):
  text = {'states': jax.random.normal(
      jax.random.key(2), teacher.embed(['a chair'])['states'].shape)}
  text = teacher.add_depth(None, text, jnp.full((1, 8, 8, 1), 0.5))
  x_t = jax.random.normal(jax.random.key(1), (1, *teacher.latent))
  return x_t, jnp.array([0.4]), text


def test_low_rank_student_equals_the_teacher_with_merged_kernels(diffusion):
  teacher, weights = diffusion
  one = student.low_rank(teacher, rank=3)
  params = one.init(jax.random.key(0), weights)
  inputs = _prediction_inputs(teacher)
  pose = jnp.ones((1, 16))
  predict = jax.jit(lambda params, weights: one.predict(
      params, weights, *inputs, pose))
  denoise = jax.jit(lambda weights: teacher.denoise(weights, *inputs))
  plain = denoise(weights)
  np.testing.assert_allclose(predict(params, weights), plain, atol=1e-6)

  # Once it has learned, it is the network whose kernels are changed; those of
  # the ControlNet, which have the same names, are not.
  network = jax.tree.map(lambda x: x, weights['unet'])
  assert len(params['lora']) == 4 * len(
      [path for path in params['lora'] if path.endswith('to_q')])
  for index, (path, pair) in enumerate(params['lora'].items()):
    pair['up'] = 0.1 * jax.random.normal(
        jax.random.key(index), pair['up'].shape)
    layer = network['params']
    for name in path.split('/'):
      layer = layer[name]
    layer['kernel'] = layer['kernel'] + pair['down'] @ pair['up']
  merged = denoise({**weights, 'unet': network})
  np.testing.assert_allclose(predict(params, weights), merged, atol=1e-5)
  assert np.abs(merged - plain).max() > 1e-2

  # The embedding of the pose is added to that of the time.
  params['pose']['out'] = 0.1 * jnp.ones_like(params['pose']['out'])
  assert np.abs(predict(params, weights) - merged).max() > 1e-3


def test_dense_layers_of_attention_are_found_by_their_names():
  dense = lambda *shape: {'kernel': np.zeros(shape)}
  assert lora.attention_layers({
      'a.attentions.0': {'transformer_blocks.0': {
          'attn1.to_q': dense(4, 4), 'ff.net.2': dense(4, 4)}},
      'middle_attention': {'qkv': dense(4, 12)},
      'conv_out': dense(3, 3, 4, 4)}) == {
          ('a.attentions.0', 'transformer_blocks.0', 'attn1.to_q'): (4, 4),
          ('middle_attention', 'qkv'): (4, 12)}


@pytest.mark.parametrize('change, words', [
    ({'rank': 0}, 'rank 0.*student.rank'),
    ({'kind': 'mlp'}, "'mlp'.*'lora'"),
    ({'loss': 'x'}, "'x'.*'epsilon'")])
def test_errors_of_the_students_settings(change, words):
  config = prolific_dreamer.get_config('tiny')
  config.guidance.student.update(change)
  with pytest.raises(UserError, match=words):
    student.from_config(config)


def test_a_copy_needs_camera_conditioning():
  with pytest.raises(UserError, match='student.kind=lora'):
    student.copy(TEACHER)


def _small_config(views, count=1):
  config = prolific_dreamer.get_config('tiny')
  config.views, config.particles = views, count
  config.scene.size, config.scene.samples = 8, 6
  config.scene.importance.samples = 0
  config.scene.random_background_prob = 0.5
  config.optimizer.schedule, config.optimizer.eps = 'constant', 0.1
  config.guidance.optimizer.eps = 0.1
  return config


def _run(config, devices, steps, state=None):
  """The state after `steps` steps with the student MEAN."""
  one = student.Student(
      lambda key, weights: {'mean': jnp.zeros((8, 8, 3))}, MEAN.predict)
  settings = score.settings_of(
      score.sds(2.0), {**config.guidance.options, 'color_guidance_ratio': 1.0})
  guidance = student.make(
      TEACHER._replace(latent=(8, 8, 3)), settings, one, student.Settings())
  task = text_to_3d.make(config, guidance)
  mesh = jax.make_mesh(
      (devices,), ('devices',), devices=jax.devices()[:devices])
  state = sharding.replicate(
      task.init(jax.random.key(0)) if state is None else state, mesh)
  step = sharding.pmap(task.step, mesh)
  for _, batch in zip(range(steps), task.batches(0, 0)):
    state, metrics = step(
        state, sharding.to_devices(batch, mesh),
        sharding.replicate(jax.random.key(1), mesh))
  return sharding.unreplicate(state), jax.device_get(metrics)


def compare_device_counts():
  """One device and eight with 3 particles: the same scenes and student."""
  one, eight = (_run(_small_config(8, 3), devices, 4)[0]
                for devices in (1, 8))
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params),
                  strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  planes = [x for x in jax.tree.leaves(one.params['scene']) if x.ndim > 3][0]
  assert len(planes) == 3
  assert np.abs(planes[0] - planes[1]).max() > 1e-3
  assert np.abs(one.params['guidance']['mean']).max() > 1e-5


def test_eight_devices_equal_one_with_particles(on_eight_devices):
  done = on_eight_devices('guidance_student_test', 'compare_device_counts')
  assert done.returncode == 0, done.stderr[-2000:]


def test_the_student_has_an_optimizer_of_its_own_that_is_resumed():
  config = _small_config(2)
  config.guidance.optimizer.learning_rate = 0.0
  still, _ = _run(config, 1, 2)
  np.testing.assert_array_equal(still.params['guidance']['mean'], 0)
  config = _small_config(2)
  whole, metrics = _run(config, 1, 4)
  half, _ = _run(config, 1, 2)
  resumed, _ = _run(config, 1, 2, half)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  assert metrics['student/loss'] > 0


def test_particles_are_exported_into_folders_of_their_own(tmp_path):
  config = _small_config(2, 2)
  config.guidance.name = 'sds'
  with config.unlocked():
    del config.guidance['optimizer']
  guidance = functools.partial(score.make, TEACHER._replace(latent=(8, 8, 3)))
  task = text_to_3d.make(config, guidance(score.Settings(score.sds(1.0))))
  state = task.init(jax.random.key(0))
  files = task.finish(state, tmp_path)
  assert {path.parent.name for path in files} == {'particle_0', 'particle_1'}
  # Commands take a particle's folder as a workdir.
  manager = checkpoints.Checkpoints(tmp_path)
  manager.save(state)
  manager.close()
  workdirs.write_config(config, tmp_path)
  folders = text_to_3d.folders(tmp_path)
  assert [text_to_3d.folders(folder) for folder in folders] == [
      [folder] for folder in folders]
  for index, folder in enumerate(folders):
    _, params, of_particle = text_to_3d.load_run(folder)
    jax.tree.map(np.testing.assert_array_equal, params,
                 particles.select(state.params['scene'], index))
    assert of_particle.scene == text_to_3d.load_run(tmp_path)[2].scene
  _, images = task.evaluate(state, jax.random.key(1))
  assert images['preview'].shape[0] > images['preview'].shape[1]


def test_particles_need_a_scene_without_running_values():
  config = clip_mesh.get_config('tiny')
  config.particles = 2
  with pytest.raises(UserError, match='particles=1'):
    text_to_3d.make(config)
