"""Dense layers and convolutions whose weights' gradients are fast on a CPU.

A weight's gradient is a sum over all rows, or pixels, of products of two
narrow rows. XLA's CPU backend does it at half the speed where the wider matrix
comes first; transposes what has more than two axes; and takes three times as
long where it is asked for it as a convolution. Accelerators have kernels of
their own, which are left alone.
"""

import functools

import jax
import jax.numpy as jnp

# Pixels from which a kernel's gradient as matrix products pays.
MANY = 8192


def dense(x, weight, scale=1.0):
  """x [..., I] times scale times weight [I, O]; as rows, see above."""
  y = _times(x.reshape(-1, x.shape[-1]), weight, scale)
  return y.reshape(*x.shape[:-1], weight.shape[-1])


def correlate(x, kernel):
  """Correlation [N, H, W, O] of x [N, H, W, I] with a kernel [K, K', I, O].

  Zeros lie around. All convolutions here keep the size, and what must not is
  made of those by cropping: where padding makes a result larger than the
  image, or zeros are stuffed, XLA's gradient of the kernel is some fifty times
  slower on a CPU.
  """
  if kernel.shape[:2] == (1, 1):
    return dense(x, kernel[0, 0])
  before = tuple((size - 1) // 2 for size in kernel.shape[:2])
  by_products = (jax.default_backend() == 'cpu'
                 and x.size // x.shape[-1] >= MANY)
  return (_by_products if by_products else _correlate)(x, kernel, before)


def correlate_every_second(x, kernel):
  """Correlation with 3 x 3 taps, of stride 2: [N, 2H+1, 2W+1, I] to H x W.

  Each parity of rows and columns meets taps of its own.
  """
  height, width = x.shape[1] // 2, x.shape[2] // 2
  return sum(
      correlate(x[:, a::2, b::2], kernel[a::2, b::2])[:, :height, :width]
      for a in (0, 1) for b in (0, 1))


def correlate_stuffed(x, kernel):
  """Correlation of x with zeros between: H x W to [N, 2H+1, 2W+1, O].

  The adjoint of `correlate_every_second` in form. Output (2i + a, 2j + b)
  meets only those of the 3 x 3 taps that hit no stuffed zero.
  """
  height, width = x.shape[1] + 1, x.shape[2] + 1
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = slice(None, None, -2), slice(1, 2)
  parity = lambda a, b: correlate(
      padded[:, a:, b:], kernel[taps[a], taps[b]])[:, :height, :width]
  y = jnp.stack([jnp.stack([parity(a, b) for b in (0, 1)], axis=3)
                 for a in (0, 1)], axis=2)
  return y.reshape(len(x), 2 * height, 2 * width, -1)[:, :-1, :-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _times(x, weight, scale):
  return x @ (weight * scale).astype(x.dtype)


def _times_backward(scale, kept, pull):
  x, weight = kept
  # The scale between product and transposition keeps XLA from turning the
  # product around again.
  narrow = pull.shape[-1] < x.shape[-1]
  summed = ((pull.T @ x) * scale).T if narrow else (x.T @ pull) * scale
  return (pull @ (weight * scale).astype(x.dtype).T,
          summed.astype(weight.dtype))


_times.defvjp(
    lambda x, weight, scale: (_times(x, weight, scale), (x, weight)),
    _times_backward)


def _correlate(x, kernel, before):
  """With `before` zeros at the start of both axes; the size stays."""
  pads = [(a, size - 1 - a)
          for a, size in zip(before, kernel.shape[:2], strict=True)]
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_products(x, kernel, before):
  """`_correlate`, whose kernel's gradient is a matrix product for each row."""
  return _correlate(x, kernel, before)


def _by_products_backward(before, kept, pull):
  x, kernel = kept
  rows, columns, fan_in, fan_out = kernel.shape
  height, width = x.shape[1:3]
  after = tuple(
      size - 1 - a for a, size in zip(before, (rows, columns), strict=True))
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  padded = jnp.pad(x, ((0, 0), *zip(before, after, strict=True), (0, 0)))
  beside = jnp.concatenate(
      [padded[:, :, i:i + width] for i in range(columns)], axis=-1)
  matrix = lambda x: x.reshape(-1, x.shape[-1])
  seen = [matrix(beside[:, i:i + height]) for i in range(rows)]
  pulled = matrix(pull)
  if fan_out < columns * fan_in:
    # The narrower matrix first, as in _times.
    summed = jnp.stack([pulled.T @ each for each in seen]).swapaxes(1, 2)
  else:
    summed = jnp.stack([each.T @ pulled for each in seen])
  return (_by_products(pull, turned, after),
          summed.reshape(rows, columns, fan_in, fan_out))


_by_products.defvjp(
    lambda x, kernel, before: (_by_products(x, kernel, before), (x, kernel)),
    _by_products_backward)
