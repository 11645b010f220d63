"""Trees of parameters from PyTorch tensors and back, without JAX."""

import subprocess
import sys

import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.weights import port


def params():
  rng = np.random.default_rng(0)
  return {'params': {
      'b4': {'conv': {'weight': rng.normal(size=(3, 3, 2, 5)),
                      'bias': rng.normal(size=5)}},
      'fc': {'weight': rng.normal(size=(4, 6))},
      'head': {'kernel': rng.normal(size=(2, 3)),
               'embedding': rng.normal(size=(7, 2)),
               'scale': rng.normal(size=2)}},
          'buffers': {'noise': rng.normal(size=(8, 8))}}


def test_weights_import_neither_jax_nor_networks():
  code = ('import sys; from gen3d.weights import hub, pickles, port, '
          'torch_files; print([name for name in sys.modules if name.split(".")'
          '[0] in ("jax", "flax", "torch") or name == "gen3d.models"])')
  printed = subprocess.run([sys.executable, '-c', code], check=True,
                           capture_output=True, text=True).stdout
  assert printed.strip() == '[]'


def test_sources_by_path_have_pytorch_names_and_layouts():
  assert port.by_path(params()) == {
      'buffers/noise': ('noise', port.keep),
      'params/b4/conv/bias': ('b4.conv.bias', port.keep),
      'params/b4/conv/weight': ('b4.conv.weight', port.conv),
      'params/fc/weight': ('fc.weight', port.linear),
      'params/head/embedding': ('head.weight', port.keep),
      'params/head/kernel': ('head.weight', port.linear),
      'params/head/scale': ('head.weight', port.keep)}


def test_to_torch_and_back_is_the_identity():
  variables = params()
  del variables['params']['head']
  sources = port.by_path(variables)
  tensors = port.to_torch(variables, sources)
  assert tensors['b4.conv.weight'].shape == (5, 2, 3, 3)
  assert tensors['fc.weight'].shape == (6, 4)
  back = port.to_flax(tensors, sources, variables)
  assert port.by_path(back) == sources
  np.testing.assert_array_equal(back['params']['b4']['conv']['weight'],
                                variables['params']['b4']['conv']['weight'])
  np.testing.assert_array_equal(back['params']['fc']['weight'],
                                variables['params']['fc']['weight'])
  np.testing.assert_array_equal(back['buffers']['noise'],
                                variables['buffers']['noise'])


def test_parameters_have_the_type_of_the_network():
  variables = {'params': {'bias': np.zeros(3, np.float16)}}
  back = port.to_flax({'bias': np.arange(3)}, port.by_path(variables),
                      variables)
  assert back['params']['bias'].dtype == np.float16


def test_sources_of_another_network_are_refused():
  variables = params()
  sources = port.by_path(variables)
  del sources['params/fc/weight']
  with pytest.raises(port.PortingError, match='differ at params/fc/weight'):
    port.to_flax({}, sources, variables)


def test_a_layout_without_inverse_is_a_user_error():
  variables = {'params': {'weight': np.zeros((2, 2))}}
  sources = port.by_path(variables, {'weight': lambda x: x[::-1]})
  with pytest.raises(UserError, match='weight has no inverse'):
    port.to_torch(variables, sources)
