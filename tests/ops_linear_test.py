"""Dense layers and convolutions, and their derivatives, against XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.ops import linear


def derivatives(function, x, weight):
  """The value, its first derivatives, and those of an image's gradient."""
  energy = lambda x, weight: jnp.sum(function(x, weight) ** 3)
  # As R1: the gradient of an image's gradient.
  slope = lambda x, weight: jnp.sum(jax.grad(energy)(x, weight) ** 2)
  return (function(x, weight), *jax.grad(energy, (0, 1))(x, weight),
          *jax.grad(slope, (0, 1))(x, weight))


def errors(ours, theirs, *shapes):
  """The error of each derivative, relative to its largest number."""
  keys = jax.random.split(jax.random.key(0), 2)
  inputs = [jax.random.normal(key, shape)
            for key, shape in zip(keys, shapes, strict=True)]
  actual, wanted = (jax.jit(functools.partial(derivatives, function))(*inputs)
                    for function in (ours, theirs))
  return np.array([
      jnp.abs(a - b).max() / jnp.abs(b).max()
      for a, b in zip(actual, wanted, strict=True)])


def direct(**options):
  return lambda x, kernel: jax.lax.conv_general_dilated(
      x, kernel, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)


@pytest.mark.parametrize('width', [2, 7])
def test_dense_has_the_derivatives_of_a_product(width):
  assert np.all(errors(
      lambda x, weight: linear.dense(x, weight, .3),
      lambda x, weight: x @ (.3 * weight), (2, 5, 4), (4, width)) < 1e-5)


@pytest.mark.parametrize('many', [1, 10**9])
@pytest.mark.parametrize('width', [2, 40])
@pytest.mark.parametrize('size', [(3, 3), (2, 2), (1, 2), (2, 1), (1, 1)])
def test_correlation_has_the_derivatives_of_a_convolution(
    size, width, many, monkeypatch):
  monkeypatch.setattr(linear, 'MANY', many)
  assert np.all(errors(
      linear.correlate, direct(window_strides=(1, 1), padding='SAME'),
      (2, 5, 6, 3), (*size, 3, width)) < 1e-5)


@pytest.mark.parametrize('many', [1, 10**9])
@pytest.mark.parametrize('ours, theirs', [
    (linear.conv_stride2,
     direct(window_strides=(2, 2), padding='VALID')),
    (lambda x, kernel: linear.conv_transposed_stride2(x, kernel[::-1, ::-1]),
     direct(window_strides=(1, 1), padding=((2, 2), (2, 2)),
            lhs_dilation=(2, 2)))])
def test_stride_2_by_parities_has_the_derivatives_of_one_convolution(
    ours, theirs, many, monkeypatch):
  monkeypatch.setattr(linear, 'MANY', many)
  assert np.all(errors(ours, theirs, (2, 7, 9, 3), (3, 3, 3, 4)) < 1e-5)
