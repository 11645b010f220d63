"""GIRAFFE in the adversarial step, as a Generator3D, and from official files.
"""

import collections
import functools
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_pickles import Call, Name, Storage, dumps

from configs import giraffe as configs
from gen3d.choices import UserError
from gen3d.gan import giraffe as gan_giraffe
from gen3d.gan import inference
from gen3d.gan.networks import Latents
from gen3d.models import giraffe, giraffe_official
from gen3d.models import giraffe_scene as scene
from gen3d.ops import cameras
from gen3d.weights import port

CAMERA = {'elevation': 10.0, 'distance': 1.7, 'focal': 1.35, 'yaw_range': 40.0}
SIZE = 8  # rays a side


@pytest.fixture(scope='module')
def config():
  return configs.get_config('tiny')


@pytest.fixture(scope='module')
def networks(config):
  return gan_giraffe.networks(config.model, config.resolution, 25)


@pytest.fixture(scope='module')
def variables(networks):
  return jax.jit(networks.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def generator(config):
  front = inference.camera_at(CAMERA, 0.0)
  return gan_giraffe.generator(
      config.model, front, lambda key: inference.camera_at(
          CAMERA, jax.random.uniform(key, minval=-40.0, maxval=40.0)))


@pytest.fixture(scope='module')
def render(generator, variables):
  """(z [N, Z], camera [N], layout or None, key) -> Generated, compiled."""

  @jax.jit
  def render(variables, z, camera, layout, key):
    ws = generator.map(variables, z, None, 1.0, None)
    scenes = generator.synthesize(variables, ws, 'const', None)
    if layout is not None:
      scenes = scenes._replace(layout=layout)
    return generator.render(variables, scenes, ws, camera, SIZE, key)

  return lambda z, camera, layout=None, key=None: render(
      variables['generator'], z, camera, layout, key)


def latents(networks, rows=slice(None)):
  z = jax.random.normal(jax.random.key(1), (4, networks.z_dim))[rows]
  label = jnp.zeros((len(z), 25))
  return Latents(jax.random.key(2), jnp.arange(4)[rows], z, label, label)


def camera_at(azimuths, **changed):
  return inference.camera_at({**CAMERA, **changed}, np.float32(azimuths))


def test_images_do_not_depend_on_the_division_of_the_batch(
    networks, variables):
  generate = jax.jit(networks.generate, static_argnums=2)
  fakes, w = generate(variables['generator'], latents(networks), SIZE)
  assert fakes['image'].shape == (4, 16, 16, 3) and w.shape[0] == 4
  assert fakes['image'].min() < 0 < fakes['image'].max()
  assert jnp.abs(fakes['image']).max() <= 1
  for rows in (slice(2), slice(2, 4)):
    part, _ = generate(variables['generator'], latents(networks, rows), SIZE)
    np.testing.assert_allclose(part['image'], fakes['image'][rows], atol=1e-5)


def test_r1_is_the_official_one(config, networks, variables):
  x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1.0)
  module = giraffe.Discriminator(16, **config.model.discriminator)

  @jax.jit
  def gradients(variables, x):
    ours = jax.grad(lambda x: jnp.sum(networks.discriminate(
        variables, {'image': x}, None)))(x)
    official = jax.grad(lambda x: jnp.sum(
        module.apply(variables, x)))(x / 2 + 0.5)
    return [jnp.sum(g**2) for g in (ours, official)]

  ours, official = gradients(variables['discriminator'], x)
  gamma = configs.get_config('celeba64').schedule.r1_gamma
  np.testing.assert_allclose(gamma / 2 * ours, 10 * official, rtol=1e-4)


def test_images_that_do_not_fit_are_refused(config, networks):
  with pytest.raises(UserError, match='8 pixels from 4 rays'):
    networks.generate(None, latents(networks), 4)
  model = config.model.copy_and_resolve_references()
  model.rendering.far = model.rendering.near
  with pytest.raises(UserError, match='rising depths'):
    gan_giraffe.networks(model, 16, 0)


def test_locations_of_boxes_are_read_from_a_file(config, tmp_path):
  model = config.model.copy_and_resolve_references()
  path = tmp_path / 'clevr.npz'
  model.prior.locations = str(path)
  with pytest.raises(UserError, match='coordinates'):
    gan_giraffe.from_config(model)
  np.savez(path, coordinates=np.ones((5, 2, 3)))
  with pytest.raises(UserError, match='boxes is 1'):
    gan_giraffe.from_config(model)
  model.prior.boxes = 2
  np.testing.assert_allclose(
      gan_giraffe.from_config(model).prior.locations, 0.23787772, rtol=1e-6)


def test_rendering_is_deterministic_without_a_key(networks, render):
  z, camera = latents(networks).z, camera_at(np.zeros(4))
  first, again = render(z, camera), render(z, camera)
  drawn, other = (render(z, camera, key=jax.random.key(i)) for i in range(2))
  np.testing.assert_array_equal(first.image, again.image)
  assert first.image.shape == (4, 16, 16, 3)
  assert first.image_raw.shape == (4, SIZE, SIZE, 3)
  assert first.depth.shape == first.opacity.shape == (4, SIZE, SIZE)
  assert first.opacity.min() >= 0 and first.opacity.max() <= 1 + 1e-5
  assert not np.allclose(first.image, drawn.image, atol=1e-4)
  assert not np.allclose(other.image, drawn.image, atol=1e-4)


def test_azimuth_turns_the_objects_before_the_background(
    config, networks, variables, render):
  """As by the official cameras, which have no azimuth."""
  azimuth, z = 30.0, latents(networks).z[:1]
  model = gan_giraffe.from_config(config.model)
  layout = scene.middle_layout(model.prior, 1)
  layout = layout._replace(translation=jnp.array([[[0.1, 0.2, 0.0]]]))
  back = scene.turn(-azimuth / 360)
  turned = layout._replace(rotation=layout.rotation @ back.T,
                           translation=layout.translation @ back.T)
  official = scene.camera_at(
      [(1 - np.sin(np.deg2rad(CAMERA['elevation']))) / 2], CAMERA['distance'],
      2 * np.rad2deg(np.arctan(0.5 / CAMERA['focal'])))
  rendered = jax.jit(lambda v: model.module.apply(
      v, model.split(z), turned, official, SIZE, method='render'))(
          variables['generator'])
  ours = render(z, camera_at([azimuth]), layout)
  np.testing.assert_allclose(ours.opacity, rendered.opacity, atol=1e-4)
  np.testing.assert_allclose(ours.depth, rendered.depth, atol=1e-4)
  np.testing.assert_allclose(
      ours.image / 2 + 0.5, model.module.apply(
          variables['generator'], rendered.features, method='image'),
      atol=1e-4)


def test_truncation_ends_in_the_mean_latent(generator, networks):
  z = latents(networks).z
  map_at = functools.partial(generator.map, None, z, None)
  np.testing.assert_array_equal(map_at(1.0, None)[:, 0], z)
  np.testing.assert_array_equal(map_at(0.5, None)[:, 0], z / 2)
  np.testing.assert_array_equal(map_at(0.0, None), 0)
  np.testing.assert_array_equal(map_at(0.0, 0)[:, 0], z)


def test_meshes_are_the_boxes_of_dense_objects(generator, networks, variables):
  params = variables['generator']['params']
  decoder = {**params['decoder'], 'sigma_out': jax.tree.map(
      lambda x: 0 * x, params['decoder']['sigma_out'])}
  decoder['sigma_out']['bias'] = jnp.full(1, 100.0)
  dense = {'params': {**params, 'decoder': decoder}}
  ws = generator.map(dense, latents(networks).z[:1], None, 1.0, None)
  scenes = scene.place(
      generator.synthesize(dense, ws, 'const', None), turns=0.0,
      scale=(0.1, 0.15, 0.2), translation=(0.1, -0.2, 0.05))
  surface = generator.mesh(dense, scenes, 24)
  middle = (surface.vertices.min(0) + surface.vertices.max(0)) / 2
  extent = np.ptp(surface.vertices, axis=0)
  # The scene's x is z of the world, its y is x, its z is up.
  np.testing.assert_allclose(middle, [-0.2, 0.05, 0.1], atol=0.02)
  np.testing.assert_allclose(extent, [0.33, 0.44, 0.22], atol=0.04)
  assert generator.bound > 0.55
  assert surface.colors.min() >= 0 and surface.colors.max() <= 1


def stored(path, tensors, model='model', **more):
  """Writes tensors as torch.save does, in a dict with other things."""
  names = list(tensors)
  rebuilt = [[name, Call(
      Name('torch._utils', '_rebuild_tensor_v2'),
      Storage('storage', Name('torch', 'FloatStorage'), str(i), 'cpu',
              tensors[name].size), 0, tensors[name].shape,
      tuple(s // 4 for s in tensors[name].strides), False,
      collections.OrderedDict())] for i, name in enumerate(names)]
  content = Call(Name('collections', 'OrderedDict'), rebuilt)
  if model:
    content = {model: content, 'it': 7, **more}
  with zipfile.ZipFile(path, 'w') as members:
    members.writestr('archive/data.pkl', dumps(content))
    for i, name in enumerate(names):
      members.writestr(f'archive/data/{i}', tensors[name].tobytes())
  return path


@pytest.fixture(scope='module')
def official():
  """(Model, {official name: tensor}) of a small network of cars."""
  prior = giraffe_official.PRIORS['compcars64']
  decoder = {'width': 16, 'octaves': 3, 'view_octaves': 2}
  module = giraffe.Generator(
      {**decoder, 'layers': 8, 'skips': (4,)},
      {**decoder, 'layers': 3, 'skips': (), 'downscale': 12.0},
      {'width': 8, 'min_width': 4, 'blocks': 1}, 8,
      giraffe_official.giraffe_rendering.Rendering())
  model = giraffe.Model(module, prior, 5, 3)
  discriminator = giraffe.Discriminator(32, 16)
  key, rng = jax.random.key(0), np.random.default_rng(0)
  of_generator = jax.eval_shape(model.init, key)['params']
  shapes = {'generator': of_generator, 'generator_test': of_generator,
            'discriminator': jax.eval_shape(
                discriminator.init, key, jnp.zeros((1, 32, 32, 3)))['params']}
  params = {'params': jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)}
  tensors = port.to_torch(params, giraffe.sources(params))
  tensors |= {f'{name}.neural_renderer.upsample_rgb.1.f': np.ones(
      3, np.float32) for name in ('generator', 'generator_test')}
  return params['params'], tensors


def assert_same(params, expected):
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_official_checkpoints_load(official, tmp_path):
  params, tensors = official
  assert tensors['generator.decoder.fc_p_skips.0.weight'].shape == (16, 18)
  assert tensors['discriminator.blocks.2.weight'].shape == (16, 8, 4, 4)
  path = stored(tmp_path / 'checkpoint_compcars64-e85060a0.pt', tensors)
  model, variables, discriminator = giraffe_official.load(path)
  assert_same(variables['params'], params['generator_test'])
  assert_same(discriminator['params'], params['discriminator'])
  assert model.module.renderer_config == {
      'width': 8, 'min_width': 4, 'blocks': 1}
  assert (model.code, model.background_code) == (5, 3)
  loaded = inference.load(path)
  assert loaded.size == 16 and loaded.camera['yaw_range'] is None
  np.testing.assert_allclose(loaded.camera['focal'], 5.715, rtol=1e-4)
  assert loaded.generator.image_size(16) == 32
  # The state_dict alone, of a generator without an average or alone.
  for prefix in ('generator.', ''):
    part = {name.replace('generator.', prefix, 1): x
            for name, x in tensors.items() if name.startswith('generator.')}
    _, variables, discriminator = giraffe_official.load(
        stored(tmp_path / 'state.pt', part, model=None), 'compcars64')
    assert_same(variables['params'], params['generator'])
    assert discriminator is None


def test_official_checkpoints_that_do_not_fit_are_refused(official, tmp_path):
  _, tensors = official
  changed = dict(tensors)
  del changed['generator_test.decoder.blocks.3.weight']
  changed['discriminator.norm.weight'] = np.ones(3, np.float32)
  for name, shape in (('fc_view.bias', (1,)), ('fc_in.weight', (18,))):
    changed[f'generator_test.decoder.{name}'] = np.ones(shape, np.float32)
  path = stored(tmp_path / 'cats64.pt', changed)
  with pytest.raises(port.PortingError) as error:
    giraffe_official.load(path)
  text = str(error.value)
  for part in ('1 missing: generator_test.decoder.blocks.3.weight',
               '1 unused: discriminator.norm.weight', 'decoder.fc_view.bias',
               'decoder.fc_in.weight [18]', str(path)):
    assert part in text
  assert text.count('. ') == 0
  path = stored(tmp_path / 'mine.pt', tensors)
  with pytest.raises(UserError, match='no data set of GIRAFFE'):
    giraffe_official.load(path)
  with pytest.raises(UserError, match='Unknown data set'):
    giraffe_official.load(path, 'cows')
  path = stored(tmp_path / 'cats64_hostile.pt', {}, optimizer=Call(
      Name('os', 'system'), 'true'))
  with pytest.raises(UserError, match='os.system'):
    giraffe_official.load(path)
  (tmp_path / 'cats64_cut.pt').write_bytes(b'PK\x03\x04')
  with pytest.raises(UserError, match='cut off'):
    giraffe_official.load(tmp_path / 'cats64_cut.pt')


@pytest.mark.parametrize('name', sorted(giraffe_official.PRIORS))
def test_configs_have_the_priors_of_the_official_checkpoints(name):
  prior = gan_giraffe.from_config(configs.get_config(name).model).prior
  prior = prior._replace(locations=None)
  for ours, official in zip(
      prior, giraffe_official.PRIORS[name], strict=True):
    assert ours == official


def test_cameras_of_the_default_config_are_those_of_its_data():
  config = configs.get_config('cats')
  prior = gan_giraffe.from_config(config.model).prior
  camera = gan_giraffe.typical_camera(prior)
  data = config.data.camera
  np.testing.assert_allclose(camera['yaw_range'], data.azimuth[1], atol=0.01)
  np.testing.assert_allclose(camera['focal'], data.focal[0], atol=1e-3)
  np.testing.assert_allclose(camera['distance'], data.distance[0])
  elevation = np.rad2deg(np.arcsin(1 - 2 * np.array(prior.v_range)))
  np.testing.assert_allclose(elevation[::-1], data.elevation, atol=0.01)
  bound = jnp.array([[0.0, 0.0, 0.5]])
  np.testing.assert_allclose(
      scene.to_world(scene.from_world(bound)), bound)
  official = scene.camera_to_world(scene.camera_at(0.5, 1.7, 40.647))
  ours = inference.camera_at({**camera, 'elevation': 0.0}, 0.0)
  np.testing.assert_allclose(official.c2w, ours.c2w, atol=1e-6)
  assert isinstance(ours, cameras.Camera)
