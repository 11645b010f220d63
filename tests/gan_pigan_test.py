"""pi-GAN in the adversarial step, as a Generator3D, and official checkpoints.

Official losses are in the folder $GEN3D_REFERENCE, pigan_tiny.npz.
"""

import collections
import functools
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import task_steps
import torch_state
from official_pickles import Call, Name, Storage, dumps

from configs import pigan as configs
from gen3d.engine import sharding
from gen3d.gan import inference, pigan, schedule
from gen3d.gan import step as gan_step
from gen3d.gan.networks import GANNetworks, Latents
from gen3d.models import pigan as pigan_model
from gen3d.models import pigan_official
from gen3d.models import pigan_render as rendering
from gen3d.ops import cameras, mesh
from gen3d.weights import port


@pytest.fixture(scope='module')
def config():
  return configs.get_config('tiny').model


@pytest.fixture(scope='module')
def networks(config):
  return pigan.networks(config, 16, 25)


@pytest.fixture(scope='module')
def variables(networks):
  """At random, with densities of both signs between -10 and 10."""
  variables = jax.jit(networks.init)(jax.random.key(0))
  density = variables['generator']['params']['siren']['density']
  density['kernel'] = 100 * density['kernel']
  density['bias'] = jnp.zeros(1)
  return variables


def latents_of(index, z_dim):
  """Latents whose z depends on the index alone, as in training."""
  index = jnp.asarray(index)
  label = jnp.zeros((len(index), 25))
  z = jax.vmap(lambda i: jax.random.normal(
      jax.random.fold_in(jax.random.key(1), i), (z_dim,)))(index)
  return Latents(jax.random.key(2), index, z, label, label)


def poses_of(latents, config):
  prior = rendering.CameraPrior(**config.camera)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(latents.key, latents.index)
  return jax.vmap(lambda key: rendering.sample_pose(
      jax.random.fold_in(key, 0), prior))(keys)


def test_an_image_does_not_depend_on_the_others(networks, variables, config):
  at = networks.at(jnp.int32(100))  # Noise, and a fade-in.
  generate = jax.jit(lambda index: at.generate(
      variables['generator'], latents_of(index, config.z_dim), 8))
  fakes, ws = generate(jnp.array([0, 1, 2, 3]))
  images = fakes['image']
  assert images.shape == (4, 8, 8, 3) and ws.shape == (4, 3, 16)
  assert float(jnp.min(images)) >= -1 and float(jnp.max(images)) <= 1 + 1e-5
  others, _ = generate(jnp.array([2, 3, 7, 9]))
  np.testing.assert_allclose(images[2:], others['image'][:2], atol=1e-5)
  assert not np.allclose(images[0], images[1], atol=1e-3)


def test_networks_of_a_step(networks, variables, config):
  """Noise and fade-in of a step; without `at` there is neither."""
  config = config.copy_and_resolve_references()
  config.fade_from, config.noise_steps = (0, 10), 20
  networks = pigan.networks(config, 16, 0)

  @jax.jit
  def run(step):
    latents = latents_of([0, 1], config.z_dim)
    results = []
    for at in (networks, networks.at(step)):
      fakes, _ = at.generate(variables['generator'], latents, 4)
      reals = {'image': jax.random.normal(jax.random.key(0), (2, 8, 8, 3))}
      results.append((fakes['image'], at.discriminate(
          variables['discriminator'], reals, latents.label)))
    return results

  (image, logit), (noisy, fading) = run(jnp.int32(12))
  assert not np.allclose(image, noisy, atol=1e-4)
  assert not np.allclose(logit, fading, atol=1e-4)
  (image, logit), (silent, faded) = run(jnp.int32(20))
  np.testing.assert_allclose(image, silent, atol=1e-5)
  np.testing.assert_allclose(logit, faded, atol=1e-5)


def test_pose_loss(networks, variables, config):
  latents = latents_of([3, 1], config.z_dim)
  fakes = {'image': jax.random.normal(jax.random.key(0), (2, 4, 4, 3))}

  @jax.jit
  def discriminated(fakes):
    discriminator = pigan.pigan_discriminators.Discriminator(
        pigan.discriminator_kind(config.discriminator))
    return (networks.discriminate_fakes(
        variables['discriminator'], fakes, latents), discriminator.apply(
            variables['discriminator'], fakes['image']))

  (logits, loss), output = discriminated(fakes)
  np.testing.assert_allclose(logits, output.logit, rtol=1e-5)
  error = output.pose - poses_of(latents, config)
  np.testing.assert_allclose(
      loss, config.pose_weight * np.mean(np.square(error)), rtol=1e-4)
  prior = config.camera
  poses = poses_of(latents_of(range(50), config.z_dim), config) - np.pi / 2
  assert np.all(np.abs(poses) <= [prior.pitch, prior.yaw])
  assert np.max(np.abs(poses[:, 1])) > 0.7 * prior.yaw


def test_reals_are_resized_by_nearest_neighbor(networks):
  images = jnp.arange(64.0).reshape(1, 8, 8, 1)
  np.testing.assert_array_equal(
      networks.prepare_reals(images, 4)['image'], images[:, 1::2, 1::2])
  assert networks.prepare_reals(images, 8)['image'] is images


def test_running_mean_of_the_styles(networks, variables, config):
  ws = jax.random.normal(jax.random.key(0), (2, 3, 3, 16))
  updated = jax.vmap(
      functools.partial(networks.update_w_avg, variables['generator']),
      axis_name='devices')(ws)
  np.testing.assert_allclose(
      updated['buffers']['w_avg'][0], 0.005 * jnp.mean(ws, axis=(0, 1)),
      rtol=1e-5, atol=1e-7)


def test_losses_with_the_largest_logits(reference_data):
  """The discriminator's loss, and the generator's of the best fakes."""
  data = reference_data('pigan_tiny')
  fakes, reals = (data[f'loss.{x}_logits'][:, 0] for x in ('fake', 'real'))
  as_images = lambda logits: {'image': jnp.asarray(logits)[:, None, None, None]}
  params = {'params': {'zero': jnp.zeros(())}, 'buffers': {}}
  networks = GANNetworks(
      init=lambda key: {'generator': params, 'discriminator': params},
      generate=lambda variables, latents, size: (
          as_images(fakes + variables['params']['zero']), latents.z),
      prepare_reals=lambda images, size: as_images(reals),
      discriminate=lambda variables, x, label: (
          x['image'][:, 0, 0, 0] + variables['params']['zero']),
      regularize=None, update_w_avg=lambda variables, w: variables, z_dim=1)
  weights = schedule.Schedule(**{
      **configs.celeba().schedule, 'r1_gamma': 0.0, 'joint_r1': False})
  optimizers = {'generator': optax.sgd(0.0), 'discriminator': optax.sgd(0.0)}
  mesh_ = task_steps.devices(1)
  step = sharding.pmap(functools.partial(
      gan_step.step, networks=networks, optimizers=optimizers,
      schedule=weights), mesh_)
  batch = {'image': np.zeros((9, 1, 1, 3), np.uint8),
           'label': np.zeros((9, 0), np.float32),
           'sampled_cameras': np.zeros((9, 3, 0), np.float32),
           'index': np.arange(9)}
  state = gan_step.create(jax.random.key(0), networks, optimizers)
  names = [name for name in data.files if name.startswith('loss.g_topk')]
  assert len(names) == 3
  for name in names:
    number = int(name.partition('step')[2])
    _, metrics = step(
        sharding.replicate(state.replace(step=jnp.int32(number)), mesh_),
        sharding.to_devices(batch, mesh_),
        sharding.replicate(jax.random.key(0), mesh_),
        static=schedule.Static(1))
    np.testing.assert_allclose(
        metrics['loss/generator'], data[name], rtol=1e-5)
    np.testing.assert_allclose(
        metrics['loss/discriminator'], data['loss.d'], rtol=1e-5)


@pytest.mark.parametrize('variant, curriculum', [
    ('celeba', 'celeba'), ('cats_paper', 'cats'), ('carla', 'carla')])
def test_configs_have_the_cameras_of_the_official_checkpoints(
    variant, curriculum):
  model = configs.get_config(variant).model
  official = pigan_official.CURRICULA[curriculum]
  assert rendering.CameraPrior(**model.camera) == official.prior
  assert model.siren.coordinate_scale == official.coordinate_scale
  evaluation = rendering.RenderingConfig(
      **{**model.rendering, **model.evaluation})
  assert evaluation == official.rendering


@pytest.mark.parametrize('name', configs.VARIANTS)
def test_every_variant_has_networks_and_a_generator(name):
  config = configs.get_config(name)
  schedule.Schedule(**config.schedule)
  networks = pigan.networks(config.model, config.resolution, 0)
  like = jax.eval_shape(networks.init, jax.random.key(0))
  assert set(like) == {'generator', 'discriminator'}
  generator = pigan.generator(config.model, None, lambda key: None)
  assert generator.num_ws == config.model.siren.layers + 1
  assert [stage[0] for stage in config.stages] == list(config.model.fade_from)


@pytest.fixture(scope='module')
def generator(config):
  return pigan.generator(config, None, lambda key: None)


def test_the_object_is_rendered_from_any_camera(generator, variables, config):
  """Deterministic without a key, other samples with one."""
  camera = cameras.orbit(
      np.array([0.0, 20]), np.array([0.0, 5]), 1.7, 1.35)

  @jax.jit
  def render(z, key):
    ws = generator.map(variables['generator'], z, None, 1.0, None)
    styles = generator.synthesize(variables['generator'], ws, 'const', None)
    return [generator.render(
        variables['generator'], styles, ws, camera, 4, k) for k in (None, key)]

  z = jnp.ones((2, config.z_dim))
  fixed, drawn = render(z, jax.random.key(0))
  assert fixed.image.shape == (2, 4, 4, 3) and fixed.depth.shape == (2, 4, 4)
  again, other = render(z, jax.random.key(1))
  np.testing.assert_array_equal(fixed.image, again.image)
  assert not np.allclose(drawn.image, other.image, atol=1e-4)
  # Between the front and the back of the sampled interval.
  assert np.all((fixed.depth > 1.1) & (fixed.depth < 2.3))
  assert np.all((fixed.opacity > -1e-5) & (fixed.opacity < 1 + 1e-5))
  assert generator.num_ws == 3 and generator.image_size(4) == 4
  assert generator.background == 'white'
  np.testing.assert_allclose(generator.bound, 0.5)


def test_the_mesh_is_that_of_the_density(generator, variables, config):
  variables = variables['generator']
  ws = generator.map(variables, jnp.ones((1, config.z_dim)), None, 1.0, None)
  surface = generator.mesh(variables, ws, 16)
  assert np.max(np.abs(surface.vertices)) <= generator.bound + 0.1
  assert surface.colors.shape == surface.vertices.shape
  points = np.zeros((mesh.CHUNK, 3), np.float32)
  points[:2] = [[0.1, 0.2, 0.3], [0, 0, -0.4]]
  colors = generator.color(variables, ws, points)
  module = pigan.module(config)
  expected = module.apply(
      variables, points[None, :2, None], jnp.array([[[0.0, 0, -1]] * 2]), ws,
      method='field')[1]
  np.testing.assert_allclose(colors[:2], expected[0, :, 0], atol=1e-4)


@pytest.mark.parametrize('change, said', [
    ({'discriminator': {'kind': 'patch', 'widths': ()}}, 'patch'),
    ({'discriminator': {'kind': 'strided', 'widths': ()}},
     'estimates no pose.*pose_weight=0'),
    ({'discriminator': {'kind': 'ccs_encoder', 'widths': (4, 4)}},
     r'takes images of \[4\] pixels, not of 16'),
])
def test_discriminators_that_do_not_fit_are_user_errors(config, change, said):
  config = config.copy_and_resolve_references()
  config.update(change)
  with pytest.raises(ValueError, match=said):
    pigan.networks(config, 16, 0)


# Official checkpoints.

NAMES = [f'{name}.{leaf}' for name in pigan_official.official_names(8, 3)
         .values() for leaf in ('weight', 'bias')]


@pytest.fixture(scope='module')
def weights():
  """{official name: array} of a narrow network, and the module."""
  module = pigan_model.Generator(
      pigan_model.SirenConfig(4, 8, 2 / 0.24), pigan_model.MappingConfig(5, 3))
  params = jax.jit(module.init)(jax.random.key(3), jnp.zeros((1, 6)))['params']
  return port.to_torch({'params': params}, pigan_official.sources(8, 3))


class Archive:
  """Writes objects as torch.save does, with arrays as tensors."""

  def __init__(self):
    self.storages = []

  def tensor(self, array):
    self.storages.append(np.float32(array))
    storage = Storage(
        'storage', Name('torch', 'FloatStorage'), str(len(self.storages) - 1),
        'cuda:0', int(np.size(array)))
    strides = tuple(int(np.prod(np.shape(array)[i + 1:]))
                    for i in range(np.ndim(array)))
    return Call(Name('torch._utils', '_rebuild_tensor_v2'), storage, 0,
                np.shape(array), strides, True, collections.OrderedDict())

  def module(self, tensors, kinds, path='', **state):
    """An object of a class, with the submodules of {dotted name: array}.

    `kinds` is {path of a submodule: (its class's module, name)}.
    """
    empty = collections.OrderedDict
    names = dict.fromkeys(n.partition('.')[0] for n in tensors if '.' in n)
    parameters = empty(
        (n, Call(Name('torch._utils', '_rebuild_parameter'), self.tensor(x),
                 True, empty())) for n, x in tensors.items() if '.' not in n)
    children = empty(
        (name, self.module(
            {n.partition('.')[2]: x for n, x in tensors.items()
             if n.startswith(f'{name}.')}, kinds, f'{path}.{name}'.strip('.')))
        for name in names)
    default = 'torch.nn.modules.container', 'Sequential'
    return Call(Name(*kinds.get(path, default)), state={
        'training': False, '_buffers': empty(), '_parameters': parameters,
        '_modules': children, '_non_persistent_buffers_set': set(), **state})

  def write(self, path, content):
    with zipfile.ZipFile(path, 'w') as members:
      members.writestr('archive/data.pkl', dumps(content))
      for i, storage in enumerate(self.storages):
        members.writestr(f'archive/data/{i}', storage.tobytes())
    return path


def write_generator(path, weights, kind='SPATIALSIRENBASELINE'):
  archive = Archive()
  module = archive.module(
      {name: weights[name] for name in NAMES},
      {'': ('generators.generators', 'ImplicitGenerator3d'),
       'siren': ('siren.siren', kind)},
      step=7, device=Call(Name('torch', 'device'), 'cuda'))
  return archive.write(path, module)


def write_average(path, weights):
  archive = Archive()
  return archive.write(path, Call(
      Name('torch_ema.ema', 'ExponentialMovingAverage'), state={
          'decay': 0.999, 'num_updates': 7, 'collected_params': [],
          'shadow_params': [archive.tensor(weights[name]) for name in NAMES
                            if name in weights]}))


def assert_loaded(variables, weights):
  loaded = port.to_torch({'params': variables['params']},
                         pigan_official.sources(8, 3))
  assert set(loaded) == set(weights)
  for name, x in weights.items():
    np.testing.assert_array_equal(loaded[name], x)


def test_official_checkpoints_load(tmp_path, weights):
  """The generator, its average beside it, alone, and state_dicts."""
  path = write_generator(tmp_path / 'generator.pth', weights)
  assert_loaded(pigan_official.load(path).variables, weights)
  average = {name: x + 1 for name, x in weights.items()}
  write_average(tmp_path / 'ema.pth', average)
  loaded = pigan_official.load(path)
  assert_loaded(loaded.variables, average)
  assert loaded.curriculum is pigan_official.CURRICULA['celeba']
  assert loaded.module.siren_config == (4, 8, 2 / 0.24) and loaded.z_dim == 6
  assert_loaded(pigan_official.load(tmp_path / 'ema.pth').variables, average)
  cars = write_generator(
      tmp_path / 'cars_generator.pth', weights, 'TALLSIREN')
  loaded = pigan_official.load(cars)
  assert loaded.module.siren_config.coordinate_scale == 1
  assert loaded.curriculum.rendering.white_background
  state = torch_state.save(tmp_path / 'state.pth', weights)
  assert_loaded(pigan_official.load(state, 'cats').variables, weights)
  np.savez(tmp_path / 'state.npz', **weights)
  assert_loaded(pigan_official.load(tmp_path / 'state.npz').variables, weights)


def test_official_generator_has_mean_styles_and_its_cameras(tmp_path, weights):
  path = write_generator(
      tmp_path / 'cars_generator.pth', weights, 'TALLSIREN')
  official = inference.load(path)
  variables = official.variables
  assert official.camera['yaw_range'] is None
  np.testing.assert_allclose(official.camera['focal'], 1.866, rtol=1e-3)
  assert official.generator.background == 'white' and official.size == 128
  # The last layer is linear: another 10,000 latents have nearly that mean.
  module = pigan_model.Generator(
      pigan_model.SirenConfig(4, 8), pigan_model.MappingConfig(5, 3))
  ws = module.apply(variables, jax.random.normal(
      jax.random.key(9), (10_000, 6)), method='map')
  error = variables['buffers']['w_avg'] - jnp.mean(ws, axis=0)
  assert np.all(np.abs(error) < 6 * np.std(ws, axis=0) * np.sqrt(2e-4))


class Toucher:
  """Unpickling it would write a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


def test_code_in_a_checkpoint_does_not_run(tmp_path):
  trace = tmp_path / 'was_here'
  with zipfile.ZipFile(tmp_path / 'generator.pth', 'w') as members:
    members.writestr('archive/data.pkl', pickle.dumps(Toucher(trace), 2))
  with pytest.raises(ValueError, match=r'generator\.pth: .*open.*refused'):
    pigan_official.load(tmp_path / 'generator.pth')
  assert not trace.exists()


def bad_checkpoints():
  """(what the message says, (folder, weights) -> path)."""
  few = lambda weights: dict(list(weights.items())[1:])

  def averaged(folder, weights):
    write_average(folder / 'ema.pth', few(weights))
    return write_generator(folder / 'generator.pth', weights)

  def plain(folder, content):
    return Archive().write(folder / 'generator.pth', content)

  state = lambda folder, tensors: torch_state.save(
      folder / 'state.pth', tensors)
  return {
      'missing': (r'state\.pth: .*1 missing: siren', lambda f, w: state(
          f, few(w))),
      'unused': (r'1 unused: extra', lambda f, w: state(
          f, {**w, 'extra': np.zeros(1)})),
      'mis-shaped': (r'1 mis-shaped: siren.final_layer.bias',
                     lambda f, w: state(
                         f, {**w, 'siren.final_layer.bias': np.zeros(2)})),
      'too few averages': ('ema.pth has 29 averaged tensors, but its generator '
                           '30', averaged),
      'another class': ("network 'Other'.*SPATIALSIRENBASELINE",
                        lambda f, w: write_generator(
                            f / 'generator.pth', w, 'Other')),
      'a list': ('contains no generator', lambda f, w: plain(f, [1])),
      'no tensors': ('something else than tensors', lambda f, w: plain(
          f, {'epoch': 3})),
      'a strange state': ('a mapping is', lambda f, w: plain(f, Call(
          Name('siren.siren', 'TALLSIREN'), state=[1, 2, 3]))),
      'a strange tensor': ('not described', lambda f, w: plain(f, Storage(
          'storage', 'FloatStorage', '0', 'cpu', 4))),
      'no file': ('There is no file', lambda f, w: f / 'none.pth'),
      'no zip': ('cannot be read|did not write', lambda f, w: (
          (f / 'x.pth').write_bytes(b'<html>'), f / 'x.pth')[1]),
  }


@pytest.mark.parametrize('case', bad_checkpoints())
def test_checkpoints_that_do_not_fit_are_user_errors(
    tmp_path, weights, case):
  said, make = bad_checkpoints()[case]
  with pytest.raises(ValueError, match=said):
    pigan_official.load(make(tmp_path, weights))


def test_a_curriculum_of_another_network_is_a_user_error(tmp_path, weights):
  path = write_generator(tmp_path / 'generator.pth', weights)
  with pytest.raises(ValueError, match="'carla' is for 'TALLSIREN'"):
    pigan_official.load(path, 'carla')
  with pytest.raises(ValueError, match='curriculum.*dogs'):
    pigan_official.load(path, 'dogs')


@pytest.mark.parity
def test_a_generator_that_pytorch_saved(tmp_path, monkeypatch, weights):
  """Real modules of PyTorch, in classes with the official names."""
  torch = pytest.importorskip('torch')
  stub = types.ModuleType('siren.siren')
  monkeypatch.setitem(sys.modules, 'siren', types.ModuleType('siren'))
  monkeypatch.setitem(sys.modules, 'siren.siren', stub)
  stub.TALLSIREN = type('TALLSIREN', (torch.nn.Module,), {
      '__module__': 'siren.siren'})
  root = stub.TALLSIREN()
  for name in NAMES:
    *modules, leaf = name.split('.')
    parent = root
    for part in modules:
      if part not in parent._modules:
        parent.add_module(part, stub.TALLSIREN())
      parent = parent._modules[part]
    parent.register_parameter(leaf, torch.nn.Parameter(
        torch.from_numpy(np.array(weights[name]))))
  torch.save(root, tmp_path / 'generator.pth')
  loaded = pigan_official.load(tmp_path / 'generator.pth')
  assert loaded.curriculum is pigan_official.CURRICULA['carla']
  assert_loaded(loaded.variables, weights)
