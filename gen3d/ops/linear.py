"""Dense layers and convolutions with weight gradients that are fast on a CPU.

The gradient of a weight is a sum over all rows (of a batch, or pixels) of
outer products of two short vectors. XLA's CPU backend runs it at half the
speed where the wider matrix comes first, transposes arrays of more than two
axes, and takes three times as long if it is written as a convolution. On
accelerators XLA's own convolutions are used.
"""

import functools

import jax
import jax.numpy as jnp

# Number of pixels above which the gradient of a kernel is computed by matrix
# products; below, assembling the matrices costs more than it saves.
MANY = 8192


def dense(
    x: jax.Array, weight: jax.Array, scale: float = 1.0
) -> jax.Array:
  """x [..., I] times scale times weight [I, O], computed on rows."""
  y = _matmul(x.reshape(-1, x.shape[-1]), weight, scale)
  return y.reshape(*x.shape[:-1], weight.shape[-1])


def correlate(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Correlation of the same size, with zeros beyond the edges.

  All convolutions of the networks are built from this one by cropping: where
  padding makes the result larger than the image, or the input is dilated,
  XLA's gradient of the kernel is about fifty times slower on a CPU.

  Args:
    x: [N, H, W, I].
    kernel: [K, K', I, O].

  Returns:
    [N, H, W, O].
  """
  if kernel.shape[:2] == (1, 1):
    return dense(x, kernel[0, 0])
  before = tuple((size - 1) // 2 for size in kernel.shape[:2])
  by_products = (jax.default_backend() == 'cpu'
                 and x.size // x.shape[-1] >= MANY)
  return (_by_products if by_products else _correlate)(x, kernel, before)


def conv_stride2(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Correlation with stride 2 and a kernel of 3 x 3 taps, without padding.

  Each parity of rows and columns is correlated with taps of its own, which
  are every second ones.

  Args:
    x: [N, 2H+1, 2W+1, I].
    kernel: [3, 3, I, O].

  Returns:
    [N, H, W, O].
  """
  height, width = x.shape[1] // 2, x.shape[2] // 2
  return functools.reduce(jnp.add, (
      correlate(x[:, a::2, b::2], kernel[a::2, b::2])[:, :height, :width]
      for a in (0, 1) for b in (0, 1)))


def conv_transposed_stride2(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolution of x with zeros between its pixels, by 3 x 3 taps.

  The transpose of `conv_stride2` in form. Output (2i + a, 2j + b) depends only
  on the taps that fall on pixels, so no zeros are inserted.

  Args:
    x: [N, H, W, I].
    kernel: [3, 3, I, O].

  Returns:
    [N, 2H+1, 2W+1, O].
  """
  height, width = x.shape[1] + 1, x.shape[2] + 1
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = slice(None, None, -2), slice(1, 2)
  parity = lambda a, b: correlate(
      padded[:, a:, b:], kernel[taps[a], taps[b]])[:, :height, :width]
  y = jnp.stack([jnp.stack([parity(a, b) for b in (0, 1)], axis=3)
                 for a in (0, 1)], axis=2)
  # The last row and column belong to a parity that ends one pixel earlier.
  return y.reshape(len(x), 2 * height, 2 * width, -1)[:, :-1, :-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x, weight, scale):
  return x @ (weight * scale).astype(x.dtype)


def _matmul_backward(scale, residuals, cotangent):
  x, weight = residuals
  # The scale between product and transposition keeps XLA from exchanging the
  # factors again.
  narrow = cotangent.shape[-1] < x.shape[-1]
  gradient = (((cotangent.T @ x) * scale).T if narrow
              else (x.T @ cotangent) * scale)
  return (cotangent @ (weight * scale).astype(x.dtype).T,
          gradient.astype(weight.dtype))


_matmul.defvjp(
    lambda x, weight, scale: (_matmul(x, weight, scale), (x, weight)),
    _matmul_backward)


def _correlate(x, kernel, before):
  """Correlation with `before` zeros at the start of both axes, size kept."""
  pads = [(a, size - 1 - a)
          for a, size in zip(before, kernel.shape[:2], strict=True)]
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_products(x, kernel, before):
  """`_correlate` with its kernel's gradient by matrix products, one a row."""
  return _correlate(x, kernel, before)


def _by_products_backward(before, residuals, cotangent):
  x, kernel = residuals
  rows, columns, fan_in, fan_out = kernel.shape
  height, width = x.shape[1:3]
  after = tuple(
      size - 1 - a for a, size in zip(before, (rows, columns), strict=True))
  # The gradient of x is a correlation with the kernel rotated by 180 degrees.
  rotated = kernel[::-1, ::-1].swapaxes(2, 3)
  padded = jnp.pad(x, ((0, 0), *zip(before, after, strict=True), (0, 0)))
  # The shifts along W are concatenated as channels: one matrix product then
  # gives the gradient of a whole row of taps.
  shifted = jnp.concatenate(
      [padded[:, :, i:i + width] for i in range(columns)], axis=-1)
  matrix = lambda x: x.reshape(-1, x.shape[-1])
  inputs = [matrix(shifted[:, i:i + height]) for i in range(rows)]
  outputs = matrix(cotangent)
  if fan_out < columns * fan_in:
    # The narrower matrix first, as in _matmul.
    gradient = jnp.stack([outputs.T @ x for x in inputs]).swapaxes(1, 2)
  else:
    gradient = jnp.stack([x.T @ outputs for x in inputs])
  return (_by_products(cotangent, rotated, after),
          gradient.reshape(rows, columns, fan_in, fan_out))


_by_products.defvjp(
    lambda x, kernel, before: (_by_products(x, kernel, before), (x, kernel)),
    _by_products_backward)
