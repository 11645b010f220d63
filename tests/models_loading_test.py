"""Parameters of Flax networks from tensors with PyTorch's names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_folders import random_tensors, write_network

from gen3d.models import loading
from gen3d.weights import hub, port


class Net(nn.Module):
  """The network of `random_tensors`: one leaf of each kind."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(5, 4, name='tok.embed')(tokens)
    x = nn.Dense(3, name='a.0.proj')(nn.LayerNorm(name='a.0.norm')(x))
    x = x + self.param('position', nn.initializers.ones, (3,))
    return nn.Conv(2, (1, 1), name='out')(x[:, None])


INPUTS = (jax.ShapeDtypeStruct((1, 2), jnp.int32),)


def fill(folder, dtype=jnp.float32, **options):
  return loading.fill(Net(), INPUTS, folder.tensors, dtype, **options)


def test_parameters_are_the_tensors_in_the_layout_of_flax(tmp_path):
  tensors = random_tensors()
  write_network(tmp_path, tensors)
  folder = hub.read(tmp_path)
  params = fill(folder)['params']
  np.testing.assert_array_equal(params['a.0.proj']['kernel'],
                                tensors['a.0.proj.weight'].T)
  np.testing.assert_array_equal(params['out']['kernel'][0, 0],
                                tensors['out.weight'][:, :, 0, 0].T)
  np.testing.assert_array_equal(params['tok.embed']['embedding'],
                                tensors['tok.embed.weight'])
  np.testing.assert_array_equal(params['a.0.norm']['scale'],
                                tensors['a.0.norm.weight'])
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))
  assert len(folder.tensors) == len(tensors)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_cast_to_the_dtype(tmp_path, dtype):
  tensors = random_tensors(dtype)
  write_network(tmp_path, tensors)
  for ours in (jnp.float32, jnp.bfloat16):
    params = fill(hub.read(tmp_path), ours)['params']
    assert params['position'].dtype == ours
    np.testing.assert_array_equal(
        params['position'], jnp.asarray(tensors['position'], ours))


def test_renamed_tensors_are_matched_by_the_new_names(tmp_path):
  tensors = random_tensors()
  write_network(tmp_path, {f'net.{k}': v for k, v in tensors.items()})
  folder = hub.read(tmp_path)
  with pytest.raises(port.PortingError, match='8 missing'):
    fill(folder)
  folder = folder._replace(tensors=hub.renamed(
      folder.tensors, lambda name: name.removeprefix('net.')))
  np.testing.assert_array_equal(fill(folder)['params']['position'],
                                tensors['position'])


def test_missing_unused_and_misshaped_tensors_are_listed(tmp_path):
  tensors = random_tensors()
  del tensors['out.bias']
  tensors['position'] = tensors['position'][:2]
  tensors['surplus'] = np.zeros(2)
  write_network(tmp_path, tensors)
  folder = hub.read(tmp_path)
  with pytest.raises(port.PortingError) as error:
    fill(folder)
  for words in ('1 missing: out.bias', '1 unused: surplus',
                '1 mis-shaped: position [2]'):
    assert words in str(error.value)
  with pytest.raises(port.PortingError) as error:
    fill(folder, ignored=('surplus',))
  assert 'unused' not in str(error.value)
  with pytest.raises(port.PortingError, match=f'^{tmp_path}: The tensors do '):
    fill(folder, where=folder.path)


def test_explicit_sources_fill_the_same_parameters():
  tensors = random_tensors()
  by_path = loading.fill(Net(), INPUTS, tensors, jnp.float32)
  other = {name.upper(): tensor for name, tensor in tensors.items()}
  like = {'params': loading.shapes(Net(), INPUTS, jnp.float32)}
  sources = {path.removeprefix('params/'): (name.upper(), layout)
             for path, (name, layout) in port.by_path(like).items()}
  jax.tree.map(np.testing.assert_array_equal, by_path, loading.fill(
      Net(), INPUTS, other, jnp.float32, sources))
