"""Networks in the official form: read, matched by name, given back."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_pickles import dumps, module, persistent, tensor

from gen3d import assets
from gen3d.choices import UserError
from gen3d.gan import inference
from gen3d.models import eg3d, nvidia, stylegan2
from gen3d.ops import cameras
from gen3d.weights import pickles, port

LEGACY = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1]],
                   [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
                   [[0, 0, 1], [1, 0, 0], [0, 1, 0]]], np.float32)
OPTIONS = {
    'depth_resolution': 4, 'depth_resolution_importance': 4, 'ray_start': 2.25,
    'ray_end': 3.3, 'box_warp': 1, 'c_scale': 1, 'sr_antialias': True,
    'c_gen_conditioning_zero': False, 'clamp_mode': 'softplus',
    'avg_camera_radius': 2.7, 'avg_camera_pivot': [0, 0, .2]}
NETWORK = eg3d.Generator(
    {'resolution': 256, 'channel_base': 256, 'channel_max': 8, 'clamp': None},
    {'width': 16, 'layers': 2},
    eg3d.RenderingConfig(4, 4, axes='eg3d_legacy'),
    eg3d.SUPER_RESOLUTIONS['2X'],
    super_resolution_clamp=256)


def test_stylegan3_is_named(tmp_path):
  (tmp_path / 'stylegan3-t.pkl').write_bytes(dumps({'G_ema': module(
      'Generator', {'synthesis.input.weight': np.zeros((2, 2), np.float32)},
      z_dim=2)}))
  with pytest.raises(pickles.PickleError, match='StyleGAN3.*alias-free'):
    nvidia.load(tmp_path / 'stylegan3-t.pkl')


@pytest.fixture(scope='module')
def variables():
  label, z = jnp.zeros((1, 25)), jnp.zeros((1, 8))
  jitter = eg3d.ray_jitter(None, 1, 4, NETWORK.rendering)
  return jax.jit(lambda: NETWORK.init(
      jax.random.key(0), z, label, label, 4, jitter))()


def pickled(path, variables, axes=LEGACY, options=(), drop=(), extra=(),
            without=(), **rename):
  """Writes the EG3D pickle of `variables` and says where."""
  weights = nvidia.tensors(variables)
  weights['backbone.synthesis.b4.resample_filter'] = np.zeros((4, 4))
  for name in drop:
    del weights[name]
  weights |= dict(extra)
  options = {k: v for k, v in {**OPTIONS, **dict(options)}.items()
             if k not in without}
  children = {'renderer': persistent(
      'ImportanceRenderer', _parameters={}, _buffers={}, _modules={},
      **({} if axes is None else {'plane_axes': tensor(axes)}))}
  super_resolution = {n.partition('.')[2]: weights.pop(n) for n in list(weights)
               if n.startswith('superresolution.')}
  children['superresolution'] = module(
      rename.get('super_resolution', 'SuperresolutionHybrid2X'),
      super_resolution)
  generator = module(
      rename.get('generator', 'TriPlaneGenerator'), weights,
      children=children, z_dim=8, c_dim=25, w_dim=16, img_resolution=128,
      neural_rendering_resolution=64,
      rendering_kwargs=options, _init_kwargs={
          'channel_base': 256, 'channel_max': 8, 'conv_clamp': None,
          'mapping_kwargs': {'num_layers': 2}, 'sr_num_fp16_res': 4})
  path.write_bytes(dumps({'G': None, 'D': None, 'G_ema': generator}))
  return path


def test_eg3d_generator_from_pickle(tmp_path, variables):
  loaded = nvidia.load(pickled(tmp_path / 'n.pkl', variables))
  assert loaded.network == NETWORK
  assert (loaded.z_dim, loaded.label_width) == (8, 25)
  assert loaded.rendering_resolution == 64
  assert loaded.orbit == {'radius': 2.7, 'pivot': [0, 0, .2]}
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
  label = cameras.to_label(cameras.orbit(0., 0., 2.7, 4.26))[None]
  jitter = eg3d.ray_jitter(None, 1, 4, loaded.network.rendering)
  generated = jax.jit(lambda variables: loaded.network.apply(
      variables, jnp.ones((1, 8)), label, label, 4, jitter, noise='const'))(
          loaded.variables)
  assert generated.image.shape == (1, 128, 128, 3)
  assert np.isfinite(generated.image).all()


@pytest.mark.parametrize('axes, name', [
    (None, 'eg3d_legacy'), (LEGACY, 'eg3d_legacy'),
    (np.stack([LEGACY[0], LEGACY[1], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]]),
     'xy_xz_zy')])
def test_plane_axes_of_released_and_corrected_pickles(
    tmp_path, variables, axes, name):
  loaded = nvidia.load(pickled(tmp_path / 'n.pkl', variables, axes))
  assert loaded.network.rendering.axes == name


def test_official_names_round_trip(tmp_path, variables):
  path = tmp_path / 'g.npz'
  np.savez(path, **nvidia.tensors(variables))
  like = jax.eval_shape(lambda: variables)
  jax.tree.map(np.testing.assert_array_equal,
               nvidia.restore(path, like), variables)
  other = jax.eval_shape(lambda: jax.tree.map(lambda x: x[None], variables))
  with pytest.raises(port.PortingError, match=r'g\.npz: .*mis-shaped'):
    nvidia.restore(path, other)


def test_mirrored_plane_axes_are_refused(tmp_path, variables):
  mirrored = LEGACY * [[[1], [1], [1]], [[1], [1], [1]], [[-1], [1], [1]]]
  with pytest.raises(pickles.PickleError, match='rotated or mirrored'):
    nvidia.load(pickled(tmp_path / 'n.pkl', variables, mirrored))


def test_default_orbit_where_the_pickle_has_none(tmp_path, variables):
  path = pickled(tmp_path / 'n.pkl', variables, without=(
      'avg_camera_radius', 'avg_camera_pivot'))
  assert nvidia.load(path).orbit == {}
  assert inference.load(path).camera['distance'] == 2.7


def test_cameras_of_the_official_viewers(
    tmp_path, variables):
  camera = lambda **options: inference.load(
      pickled(tmp_path / 'n.pkl', variables, options=options)).camera
  face, car = camera(), camera(
      white_back=True, avg_camera_radius=1.7, avg_camera_pivot=[0, 0, 0])
  assert face == {'elevation': 0, 'focal': 4.2647, 'yaw_range': 20,
                  'distance': 2.7, 'pivot': (0, 0, .2)}
  assert car == {'elevation': 0, 'focal': 1.7074, 'yaw_range': None,
                 'distance': 1.7, 'pivot': (0, 0, 0)}


def test_tuned_weights_load_with_the_architecture_of_their_pickle(
    tmp_path, variables):
  path = pickled(tmp_path / 'n.pkl', variables)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  tuned = jax.tree.map(lambda x: x + 1, variables)
  file, _ = assets.save(
      tmp_path / 'tuned.safetensors', nvidia.tensors(tuned),
      {'official': {'path': str(path), 'sha256': digest}})
  reloaded = inference.load(file)
  assert reloaded.generator.map.args[0] == NETWORK
  assert reloaded.generator.z_dim == 8
  jax.tree.map(np.testing.assert_array_equal, reloaded.variables, tuned)
  path.write_bytes(b'other')
  with pytest.raises(ValueError, match='tuned from another .*n.pkl'):
    inference.load(file)
  path.unlink()
  with pytest.raises(ValueError, match=r'n\.pkl, which is no longer'):
    inference.load(file)


def test_rendering_options_of_old_and_new_pickles(tmp_path, variables):
  load = lambda **options: nvidia.load(pickled(
      tmp_path / 'n.pkl', variables, options=options)).network
  assert load(c_gen_conditioning_zero=True).pose_conditioning == 0
  assert load(ray_start='auto', ray_end='auto').rendering.ray_start == 'auto'
  assert load(white_back=True).rendering.white_background
  assert not load(sr_antialias=False).super_resolution.antialias
  for option, message in (
      ({'clamp_mode': 'relu'}, "n.pkl activates density by 'relu'"),
      ({'superresolution_noise_mode': 'random'}, 'n.pkl has noise in')):
    with pytest.raises(pickles.PickleError, match=message):
      load(**option)


@pytest.mark.parametrize('change, message', [
    ({'drop': ['decoder.net.0.bias']},
     r'n\.pkl: .*1 missing: decoder\.net\.0\.bias'),
    ({'extra': {'decoder.net.3.bias': np.zeros(3)}},
     r'n\.pkl: .*1 unused: decoder\.net\.3\.bias'),
    ({'extra': {'decoder.net.0.bias': np.zeros(3)}},
     r'n\.pkl: .*1 mis-shaped: decoder\.net\.0\.bias \[3\]'),
    ({'without': ['ray_start', 'box_warp']},
     r"n\.pkl has no \['ray_start', 'box_warp'\]"),
    ({'super_resolution': 'SuperresolutionHybrid9X'},
     "super-resolution '.*9X'"),
    ({'generator': 'Generator3'}, "contains a 'Generator3'"),
    ({'axes': LEGACY[[1, 0, 2]]}, 'planes with the axes')])
def test_error_names_the_weight_or_option_that_does_not_fit(
    tmp_path, variables, change, message):
  path = pickled(tmp_path / 'n.pkl', variables, **change)
  with pytest.raises((pickles.PickleError, port.PortingError), match=message):
    nvidia.load(path)


@pytest.mark.parametrize('layout', ['ada', 'flat', 'by layers'])
def test_stylegan2_generator_from_pickle(tmp_path, layout):
  generator = stylegan2.Generator(
      {'resolution': 16, 'image_channels': 3, 'channel_base': 64,
       'channel_max': 8, 'clamp': 256},
      {'width': 8, 'layers': 2, 'labeled': False, 'latent': True})
  variables = jax.jit(generator.init)(
      jax.random.key(0), jnp.zeros((1, 6)), None)
  widths = {'channel_base': 64, 'channel_max': 8}
  clamps = {} if layout == 'by layers' else {
      'num_fp16_res': 4, 'conv_clamp': 256}
  sizes = {**widths, **clamps}
  # stylegan2-ada-pytorch's generators have these in synthesis_kwargs,
  # stylegan3's do not, and omit defaults, which their layers have.
  options = {'synthesis_kwargs': sizes} if layout == 'ada' else sizes
  layer = persistent('SynthesisLayer', _parameters={}, _buffers={},
                     _modules={}, conv_clamp=256)
  children = {'layer': layer} if layout == 'by layers' else {}
  path = tmp_path / 'n.pkl'
  # Files of a training also have a discriminator, which is not read.
  path.write_bytes(dumps({
      'D': module('Discriminator', {'b4.out.bias': np.zeros(1)}),
      'G_ema': module('Generator', nvidia.tensors(variables), z_dim=6,
                      c_dim=0, w_dim=8, img_resolution=16, img_channels=3,
                      children=children, _init_kwargs={
                          **options, 'mapping_kwargs': {'num_layers': 2}})}))
  loaded = nvidia.load(path)
  assert loaded.network == generator
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_error_names_a_missing_attribute(tmp_path):
  path = tmp_path / 'n.pkl'
  path.write_bytes(dumps({'G_ema': module('Generator', {}, z_dim=6)}))
  with pytest.raises(pickles.PickleError, match=r'n\.pkl .*img_resolution'):
    nvidia.load(path)


@pytest.mark.parametrize('key, value', [
    ('z_dim', 10 ** 9), ('c_dim', 10 ** 9), ('z_dim', 'x'), ('w_dim', 0),
    ('img_resolution', 100), ('img_resolution', [128]),
    ('neural_rendering_resolution', 10 ** 6), ('rendering_kwargs', [1]),
    ('mapping_kwargs', 5), ('channel_base', 10 ** 12), ('channel_max', -1),
    ('conv_clamp', 'x'), ('num_layers', 10 ** 7), ('num_layers', None),
    ('depth_resolution', 10 ** 9), ('ray_start', 'x'), ('ray_end', -1.0),
    ('box_warp', float('nan')), ('decoder_lr_mul', 0), ('clamp_mode', 5),
    ('avg_camera_pivot', [0, 0]), ('avg_camera_radius', [1])])
def test_settings_are_checked_before_a_network_is_built(
    tmp_path, monkeypatch, key, value):
  monkeypatch.delattr(eg3d, 'Generator')
  monkeypatch.delattr(stylegan2, 'Generator')
  state = {'z_dim': 8, 'c_dim': 25, 'w_dim': 16, 'img_resolution': 128,
           'rendering_kwargs': dict(OPTIONS), 'mapping_kwargs': {},
           '_modules': {}}
  if key in OPTIONS or key.startswith('decoder'):
    state['rendering_kwargs'][key] = value
  elif key == 'num_layers':
    state['mapping_kwargs'][key] = value
  else:
    state[key] = value
  path = tmp_path / 'n.pkl'
  for kind in ('TriPlaneGenerator', 'Generator'):
    path.write_bytes(dumps({'G_ema': persistent(kind, **state)}))
    with pytest.raises(UserError, match=rf"n\.pkl: '{key}' is .*but must be"):
      nvidia.load(path)


@pytest.mark.parametrize('axes', [
    np.zeros((3, 3, 3)), np.full((3, 3, 3), np.nan), np.eye(3), np.zeros(0)])
def test_plane_axes_that_are_no_axes_are_refused(tmp_path, variables, axes):
  with pytest.raises(pickles.PickleError, match='plane_axes'):
    nvidia.load(pickled(tmp_path / 'n.pkl', variables, axes))
