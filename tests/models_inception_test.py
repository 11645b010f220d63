"""The Inception network of FID against pytorch-fid and torch-fidelity."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_state

from gen3d.metrics import features
from gen3d.models import inception
from gen3d.weights import port

INPUTS = (jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32),)


@pytest.fixture(scope='module')
def tensors():
  return torch_state.zeros(inception.Inception(), INPUTS)


@pytest.fixture(scope='module')
def outputs(reference_data):
  """All that one program computes for the images of the parity data."""
  data = reference_data('inception_fid')
  weights = torch_state.by_recipe(
      data['state_names'], data['state_shapes'], str(data['salt']))
  # The sums tell that the recipe was followed.
  sums = [np.sum(weights[n], dtype=np.float64)
          for n in data['state_names'].tolist()]
  np.testing.assert_allclose(sums, data['check.sum_f64'], rtol=1e-5, atol=1e-3)
  params = inception.from_torch(weights)

  def compute(params, images):
    # Both preprocessings in one batch: the network is compiled once.
    inputs = jnp.concatenate([inception.inputs_of(images, resize)
                              for resize in ('tf', 'pytorch_fid')])
    maps, blocks = inception.Inception().apply(
        params, inputs,
        capture_intermediates=lambda module, _: len(module.path) == 1)
    return inputs, maps, {
        name: x['__call__'][0].mean((1, 2))
        for name, x in blocks['intermediates'].items() if name != 'fc'}

  images = data['images_uint8_nchw'].transpose(0, 2, 3, 1)
  inputs, maps, blocks = jax.device_get(jax.jit(compute)(params, images))
  half = len(images)
  return types.SimpleNamespace(
      data=data, blocks={k: x[:half] for k, x in blocks.items()},
      inputs={'tf': inputs[:half], 'pytorchfid': inputs[half:]},
      maps={'tf': {k: x[:half] for k, x in maps.items()},
            'pytorchfid': {k: x[half:] for k, x in maps.items()}})


def assert_close(actual, expected, tolerance=1e-4):
  np.testing.assert_allclose(
      actual, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize('resize', ['tf', 'pytorchfid'])
def test_resized_images_equal_the_official_ones(outputs, resize):
  prefix = f'{resize}.resized_rows_'
  name, = (k for k in outputs.data.files if k.startswith(prefix))
  rows = list(map(int, name.removeprefix(prefix).split('_')))
  np.testing.assert_allclose(
      outputs.inputs[resize][:, rows].transpose(0, 3, 1, 2),
      outputs.data[name], atol=2e-6)


@pytest.mark.parametrize('resize', ['tf', 'pytorchfid'])
def test_features_equal_the_official_ones(outputs, resize):
  compared = 0
  for layer, x in outputs.maps[resize].items():
    name = f'{resize}.feat_{layer}'
    if name in outputs.data.files:
      assert_close(x if x.ndim == 2 else x.mean((1, 2)), outputs.data[name])
      compared += 1
  assert compared >= 4


def test_feature_maps_and_blocks_equal_the_official_ones(outputs):
  maps = {k: x.transpose(0, 3, 1, 2)
          for k, x in outputs.maps['pytorchfid'].items() if x.ndim == 4}
  corner = outputs.data['pytorchfid.map_64_corner']
  assert_close(maps['64'][:, :corner.shape[1], :corner.shape[2],
                          :corner.shape[3]], corner)
  first = outputs.data['pytorchfid.map_768_ch0_15']
  assert_close(maps['768'][:, :first.shape[1]], first)
  assert len(outputs.blocks) == 16
  for name, x in outputs.blocks.items():
    assert_close(x, outputs.data[f'tf.mean.{name}'])


def test_bytes_are_rounded_as_in_the_official_code(reference_data):
  from gen3d.evaluation import fid
  data = reference_data('inception_fid')
  np.testing.assert_array_equal(
      fid.quantize(jnp.asarray(data['quant.in'])), data['quant.nvidia_uint8'])


@pytest.mark.parametrize('side', [7, 500])
@pytest.mark.parametrize('resize', ['tf', 'pytorch_fid'])
def test_resizing_equals_the_formula(resize, side):
  row = np.random.default_rng(0).integers(0, 256, side, np.uint8)
  images = np.broadcast_to(row[None, None, :, None], (1, side, side, 1))
  actual = jax.jit(inception.inputs_of, static_argnums=1)(images, resize)
  assert actual.shape == (1, 299, 299, 3)
  for i in (0, 1, 150, 297, 298):
    if resize == 'tf':
      x = i * side / 299
    else:
      x = max((i + .5) * side / 299 - .5, 0)
    low = min(int(x), side - 1)
    high = min(low + 1, side - 1)
    value = (1 - (x - low)) * float(row[low]) + (x - low) * float(row[high])
    expected = (value - 128) / 128 if resize == 'tf' else value / 127.5 - 1
    np.testing.assert_allclose(actual[0, ::99, i], expected, atol=1e-3)


def test_means_leave_the_padding_out():
  x = np.random.default_rng(0).random((1, 4, 5, 2), np.float32)
  expected = np.stack([
      [x[0, max(i - 1, 0):i + 2, max(j - 1, 0):j + 2].mean((0, 1))
       for j in range(5)] for i in range(4)])
  blocks = {**inception._BLOCKS['768'], **inception._BLOCKS['2048']}
  np.testing.assert_allclose(
      inception._pool(x, blocks['Mixed_5b'])[0], expected, rtol=1e-5)
  expected = np.stack([
      [x[0, max(i - 1, 0):i + 2, max(j - 1, 0):j + 2].max((0, 1))
       for j in range(5)] for i in range(4)])
  np.testing.assert_array_equal(
      inception._pool(x, blocks['Mixed_7c'])[0], expected)


def test_features_are_named_by_resizing_and_layer(tmp_path, monkeypatch):
  path, read = tmp_path / 'inception.pth', []
  path.write_bytes(b'weights')
  monkeypatch.setattr(inception, 'load', lambda path: read.append(path) or 2.)
  monkeypatch.setattr(
      inception, 'features', lambda params, images, resize, layers: {
          layers[0]: params * images[:, 0, 0] + len(resize)})
  kind = features.inception(path)
  assert kind.name == 'inception_tf' and len(kind.digest) == 16
  images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
  np.testing.assert_array_equal(kind.embed(images), 2 * images[:, 0, 0] + 2.)
  other = features.inception(path, 'pytorch_fid', '768')
  assert other.name == 'inception_pytorch_fid_768' and read == [path] * 2
  with pytest.raises(ValueError, match="'tf'"):
    features.inception(path, 'tff')
  with pytest.raises(ValueError, match='2048'):
    features.inception(path, layer='2049')


def test_images_on_one_device_are_filled_up():
  total = lambda shared, x: shared * jnp.float32(x).sum((1, 2, 3))
  images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
  for rows in (2, 5, 16):
    np.testing.assert_array_equal(
        features._on_one_device(total, rows)(2.0, images),
        2 * images.sum((1, 2, 3), dtype=np.float32))


def test_wrong_tensors_are_listed(tensors, tmp_path):
  bad = dict(tensors)
  del bad['Mixed_6c.branch7x7_2.bn.running_var']
  bad['AuxLogits.fc.bias'] = np.zeros(3)
  bad['Mixed_5b.bn.num_batches_tracked'] = np.zeros(())
  # As in torchvision's own network, which has other classes.
  bad['fc.weight'] = np.zeros((1000, 2048))
  with pytest.raises(port.PortingError) as error:
    inception.from_torch(bad)
  for words in ('1 missing: Mixed_6c.branch7x7_2.bn.running_var',
                '1 unused: AuxLogits.fc.bias', 'mis-shaped: fc.weight [1000, '):
    assert words in str(error.value)
  path = torch_state.save(tmp_path / 'other.pth', {'a.weight': np.zeros(3)})
  with pytest.raises(ValueError, match=r'other\.pth is not pt_inception'):
    inception.load(path)


@pytest.mark.parametrize('images', [
    np.zeros((1, 9, 9, 3), np.float32), np.zeros((1, 9, 9, 4), np.uint8),
    np.zeros((9, 9, 3), np.uint8)])
def test_images_must_be_bytes(images):
  with pytest.raises(ValueError, match='images of bytes'):
    inception.inputs_of(images, 'tf')
  with pytest.raises(ValueError, match='layer of Inception'):
    inception.features({}, images, layers=('2047',))
