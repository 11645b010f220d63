"""Networks of faces against the official ones, and their files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_state

from gen3d.models import arcface, deep3d
from gen3d.weights import port

# Of the same layout as the real ones, a few channels wide.
TINY = {'ir_se': arcface.Spec('ir_se', ((16, 2), (32, 1)), 5, 2),
        'ir': arcface.Spec('ir', ((4, 1), (8, 2)), 6, 3),
        'iresnet': arcface.Spec('iresnet', ((4, 2), (4, 1)), 7, 2)}
TINY_DEEP3D = deep3d.Spec(((2, 1), (3, 2)))


def inputs_of(spec):
  side = spec.image_side
  return (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),)


def deep3d_inputs():
  return (jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),)


@pytest.mark.parametrize('name, prefix, output', [
    ('irse50', '', 'embedding_unnormalised'),
    ('iresnet50', '', 'output_unnormalised')])
def test_embeddings_equal_the_official_ones(
    reference_data, name, prefix, output):
  data = reference_data('arcface')
  prelus = [n for n in data[f'{name}.names'].tolist() if 'prelu.' in n]
  prelus += data['irse50.prelu_names'].tolist()
  network = arcface.from_torch(torch_state.by_recipe(
      data[f'{name}.names'], data[f'{name}.shapes'], f'{data["salt"]}{name}:',
      prelus, ('res_layer.4.weight', 'bn3.weight')))
  count = sum(x.size for x in jax.tree.leaves(network.params))
  statistics = sum(
      x.size for path, x in jax.tree_util.tree_leaves_with_path(network.params)
      if 'running' in str(path))
  assert count - statistics == data[f'{name}.n_params']
  pixels = data['image_uint8_rgb_nchw'].transpose(0, 2, 3, 1)

  def compute(params, pixels):
    images = (jnp.float32(pixels) - 127.5) / 127.5
    raw, blocks = arcface.Network(network.spec).apply(
        params, images,
        capture_intermediates=lambda module, _: len(module.path) == 1)
    return raw, arcface.embed(network._replace(params=params), images), {
        k: x['__call__'][0] for k, x in blocks['intermediates'].items()}

  raw, embedded, blocks = jax.device_get(
      jax.jit(compute)(network.params, pixels))
  for actual, key in ((raw, output), (embedded, 'embedding')):
    expected = data[f'{name}.{key}']
    np.testing.assert_allclose(
        actual, expected, atol=1e-4 * np.abs(expected).max())
  starts = [0, *np.cumsum([n for _, n in network.spec.stages])]
  for key in data.files:
    if not (key.startswith(f'{name}.') and key.endswith('.mean_hw')):
      continue
    place = key.split('.')[1]
    if place.startswith('body'):
      block = f'body.{place.removeprefix("body")}'
    elif place.startswith('layer'):
      stage = int(place.removeprefix('layer'))
      block = f'{place}.{starts[stage] - starts[stage - 1] - 1}'
    else:
      block = {'input_layer': 'input_layer.2'}.get(place, place)
    expected = data[key]
    np.testing.assert_allclose(
        blocks[block].mean((1, 2)), expected,
        atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('spec', [
    arcface.IRESNET100, *TINY.values()],
    ids=lambda spec: f'{spec.kind} {sum(n for _, n in spec.stages)}')
def test_the_architecture_is_read_from_the_tensors(spec):
  tensors = torch_state.zeros(arcface.Network(spec), inputs_of(spec))
  assert arcface.spec_of(tensors) == spec
  if spec.features == 512:
    assert spec.image_side == 112


def ir_se_by_hand(torch, tensors, x):
  """IR-SE of the tiny widths in PyTorch's functions."""
  F = torch.nn.functional
  get = lambda name: torch.tensor(tensors[name])
  def norm(x, name):
    return F.batch_norm(x, *(get(f'{name}.{k}') for k in (
        'running_mean', 'running_var', 'weight', 'bias')), eps=1e-5)
  conv = lambda x, name, stride=1, pad=0: F.conv2d(
      x, get(f'{name}.weight'), None, stride, pad)
  x = F.prelu(norm(conv(x, 'input_layer.0', 1, 1), 'input_layer.1'),
              get('input_layer.2.weight'))
  for i, stride in enumerate((2, 1, 2)):
    name = f'body.{i}.res_layer'
    y = conv(norm(x, f'{name}.0'), f'{name}.1', 1, 1)
    y = conv(F.prelu(y, get(f'{name}.2.weight')), f'{name}.3', stride, 1)
    y = norm(y, f'{name}.4')
    gate = conv(F.adaptive_avg_pool2d(y, 1), f'{name}.5.fc1')
    y = y * torch.sigmoid(conv(F.relu(gate), f'{name}.5.fc2'))
    if i == 2:
      x = norm(conv(x, 'body.2.shortcut_layer.0', 2),
               'body.2.shortcut_layer.1')
    else:
      x = F.max_pool2d(x, 1, stride)
    x = x + y
  x = norm(x, 'output_layer.0').flatten(1)
  x = F.linear(x, get('output_layer.3.weight'), get('output_layer.3.bias'))
  return F.normalize(norm(x, 'output_layer.4'))


@pytest.mark.parity
def test_a_file_of_ir_se_equals_pytorch(tmp_path):
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  spec = TINY['ir_se']
  tensors = torch_state.random(arcface.Network(spec), inputs_of(spec))
  torch.save({k: torch.tensor(v) for k, v in tensors.items()},
             tmp_path / 'model_ir_se.pth')
  network = arcface.load(tmp_path / 'model_ir_se.pth')
  assert network.spec == spec
  x = np.random.default_rng(0).uniform(
      -1, 1, (3, spec.image_side, spec.image_side, 3)).astype(np.float32)
  actual = jax.jit(lambda params, x: arcface.embed(
      arcface.ArcFace(spec, params), x))(network.params, x)
  expected = ir_se_by_hand(torch, tensors, torch.tensor(
      x.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_files_of_no_face_network_are_refused(tmp_path):
  spec = TINY['iresnet']
  tensors = torch_state.random(arcface.Network(spec), inputs_of(spec))
  path = torch_state.save(tmp_path / 'backbone.pth', tensors)
  assert arcface.load(path).spec == spec
  del tensors['layer1.1.prelu.weight']
  tensors['layer2.0.conv2.weight'] = np.zeros((4, 4, 5, 5), np.float32)
  torch_state.save(path, tensors)
  with pytest.raises(port.PortingError) as error:
    arcface.load(path)
  for words in (str(path), '1 missing: layer1.1.prelu.weight',
                '1 mis-shaped: layer2.0.conv2.weight [4, 4, 5, 5]'):
    assert words in str(error.value)
  torch_state.save(path, {'conv1.weight': np.zeros((4, 3, 3, 3), np.float32)})
  with pytest.raises(port.PortingError, match='of no IR-SE50'):
    arcface.load(path)


def deep3d_by_hand(torch, tensors, x):
  """Deep3DFaceRecon of the tiny widths in PyTorch's functions."""
  F = torch.nn.functional
  get = lambda name: torch.tensor(tensors[name])
  def block(x, conv_name, norm_name, stride=1, pad=0):
    x = F.conv2d(x, get(f'backbone.{conv_name}.weight'), None, stride, pad)
    return F.batch_norm(x, *(get(f'backbone.{norm_name}.{k}') for k in (
        'running_mean', 'running_var', 'weight', 'bias')), eps=1e-5)
  x = F.max_pool2d(F.relu(block(x, 'conv1', 'bn1', 2, 3)), 3, 2, 1)
  for name, stride in (('layer1.0', 1), ('layer2.0', 2), ('layer2.1', 1)):
    y = F.relu(block(x, f'{name}.conv1', f'{name}.bn1'))
    y = F.relu(block(y, f'{name}.conv2', f'{name}.bn2', stride, 1))
    y = block(y, f'{name}.conv3', f'{name}.bn3')
    if name.endswith('.0'):
      x = block(x, f'{name}.downsample.0', f'{name}.downsample.1', stride)
    x = F.relu(x + y)
  x = x.mean((2, 3), keepdim=True)
  return torch.cat([F.conv2d(
      x, get(f'final_layers.{i}.weight'), get(f'final_layers.{i}.bias'))
      for i in range(7)], 1)[:, :, 0, 0]


@pytest.mark.parity
def test_a_checkpoint_of_deep3d_equals_pytorch(tmp_path):
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  tensors = torch_state.random(deep3d.Network(TINY_DEEP3D), deep3d_inputs())
  # As the official code saves it, with counters and the states of Adam and
  # of a schedule (written by hand: importing torch.optim takes seconds).
  state = {k: torch.tensor(v) for k, v in tensors.items()}
  state['backbone.bn1.num_batches_tracked'] = torch.tensor(7)
  adam = {'state': {0: {'step': torch.tensor(1.), 'exp_avg': torch.ones(2)}},
          'param_groups': [{'lr': 1e-4, 'betas': (0.9, 0.999), 'eps': 1e-8,
                            'foreach': None, 'amsgrad': False, 'params': [0]}]}
  schedule = {'step_size': 10, 'gamma': 0.2, 'base_lrs': [1e-4],
              'last_epoch': 20, 'verbose': False, '_last_lr': [1e-4]}
  torch.save({'net_recon': state, 'opt_00': adam, 'sched_00': schedule},
             tmp_path / 'epoch_20.pth')
  network = deep3d.load(tmp_path / 'epoch_20.pth')
  assert network.spec == TINY_DEEP3D
  x = np.random.default_rng(0).random((2, 224, 224, 3), np.float32)
  actual = jax.jit(lambda params, x: deep3d.coefficients(
      deep3d.Reconstructor(TINY_DEEP3D, params), x))(network.params, x)
  assert {k: v.shape[1] for k, v in actual._asdict().items()} == deep3d.WIDTHS
  expected = deep3d_by_hand(torch, tensors, torch.tensor(
      x.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(
      np.concatenate(actual, 1), expected, atol=1e-4)


def test_wrong_checkpoints_of_deep3d_are_refused(tmp_path):
  network = deep3d.Network()
  tensors = torch_state.zeros(network, deep3d_inputs())
  assert tensors['backbone.layer3.5.conv2.weight'].shape == (256, 256, 3, 3)
  assert tensors['final_layers.4.weight'].shape == (27, 2048, 1, 1)
  path = tmp_path / 'epoch_20.pth'
  torch_state.save(path, {'a.weight': np.zeros(2)})
  with pytest.raises(ValueError, match="no section 'net_recon'"):
    deep3d.load(path)
  torch_state.save(path, {'fc.weight': np.zeros(2)}, 'net_recon', opt_00={})
  with pytest.raises(port.PortingError) as error:
    deep3d.load(path)
  assert 'epoch_20.pth is no Deep3DFaceRecon' in str(error.value)
  assert 'backbone.bn1.bias' in str(error.value)
