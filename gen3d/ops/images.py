"""Images: resampling filters, blur and resizing, on arrays [..., H, W, C].

Filters are separable and small, so that they are computed as sums of shifted
arrays: a depthwise convolution is thirty times slower on a CPU, and its
gradient ten times.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import check, pick

# StyleGAN2's resampling filter, the binomial of order 3 with sum 1.
BINOMIAL = (0.125, 0.375, 0.375, 0.125)
_BITS = 22  # of the fraction of a weight where PIL resizes integers


def filter_axis(
    x: jax.Array, taps: Sequence[float], axis: int, before: int, after: int
) -> jax.Array:
  """Correlation of one axis with `taps`.

  Args:
    x: array.
    taps: K numbers.
    axis: nonnegative.
    before, after: number of zeros added at its ends. The result is longer by
      before + after - K + 1.
  """
  pad = [(0, 0)] * x.ndim
  pad[axis] = (before, after)
  x = jnp.pad(x, pad)
  length = x.shape[axis] - len(taps) + 1
  shifted = lambda i: jax.lax.slice_in_dim(x, i, i + length, axis=axis)
  return functools.reduce(
      jnp.add, (tap * shifted(i) for i, tap in enumerate(taps) if tap))


def filter2d(
    x: jax.Array, taps: Sequence[float], before: int, after: int
) -> jax.Array:
  """`filter_axis` along H and W of x [..., H, W, C]."""
  for axis in (x.ndim - 3, x.ndim - 2):
    x = filter_axis(x, taps, axis, before, after)
  return x


def upsample2(x: jax.Array) -> jax.Array:
  """[..., H, W, C] to twice the size with the binomial filter.

  Equal to inserting zeros between the pixels and filtering with 2 BINOMIAL
  along each axis: out[2i] = x[i-1]/4 + 3x[i]/4 and out[2i+1] = 3x[i]/4 +
  x[i+1]/4, with zeros beyond the edges.
  """
  for axis in (x.ndim - 3, x.ndim - 2):
    even = filter_axis(x, (0.25, 0.75), axis, 1, 0)
    odd = filter_axis(x, (0.75, 0.25), axis, 0, 1)
    both = jnp.stack([even, odd], axis=axis + 1)
    shape = list(x.shape)
    shape[axis] *= 2
    x = both.reshape(shape)
  return x


def downsample2(x: jax.Array, margin: int = 1) -> jax.Array:
  """BINOMIAL with `margin` zeros beyond the edges, then every second pixel.

  [..., H, W, C] to [..., (H + 2 margin - 2) / 2, ...].
  """
  x = filter2d(x, BINOMIAL, margin, margin)
  return x[..., ::2, ::2, :]


def blur(
    x: jax.Array, sigma: jax.Array | float, max_sigma: float
) -> jax.Array:
  """Gaussian blur with the weight 2^-(i / sigma)^2 at distance i.

  EG3D blurs fakes and reals at the start of a training. Zeros lie beyond the
  edges.

  Args:
    x: [..., H, W, C].
    sigma: in pixels, at most `max_sigma`; may be traced. No blur below 1/3,
      as in the official code.
    max_sigma: determines the size of the kernel.
  """
  radius = int(np.floor(3 * max_sigma))
  if not radius:
    return x
  i = jnp.arange(-radius, radius + 1)
  sigma = jnp.asarray(sigma, jnp.float32)
  nonzero = jnp.maximum(sigma, 1 / 3)
  kernel = jnp.where(
      jnp.abs(i) <= jnp.floor(3 * sigma), jnp.exp2(-(i / nonzero) ** 2), 0.0)
  kernel = kernel / jnp.sum(kernel)
  # As a band matrix: with dozens of taps a matrix product is the fast way.
  for axis in (x.ndim - 3, x.ndim - 2):
    size = x.shape[axis]
    offset = jnp.arange(size)[:, None] - jnp.arange(size)
    inside = jnp.abs(offset) <= radius
    band = jnp.where(
        inside, kernel[jnp.clip(offset + radius, 0, 2 * radius)], 0.0)
    x = jnp.moveaxis(jnp.tensordot(band, x, (1, axis)), 0, axis)
  return x


def gaussian_blur(
    x: jax.Array, sigma: jax.Array | float, radius: int) -> jax.Array:
  """Gaussian blur of [..., H, W, C] with the weight exp(-i^2 / (2 sigma^2)).

  Beyond the edges the image is mirrored about its outermost pixels' centers.

  Args:
    x: [..., H, W, C].
    sigma: standard deviation in pixels, may be traced; 0 for no blur.
    radius: of the kernel, in pixels; the kernel has 2 radius + 1 weights.
  """
  offset = np.arange(-radius, radius + 1)
  # Narrow enough to be the identity, without a division by zero.
  scale = jnp.maximum(jnp.asarray(sigma, jnp.float32), 0.05)
  kernel = jnp.exp(-0.5 * (offset / scale) ** 2)
  kernel = kernel / jnp.sum(kernel)
  # As a matrix: see `blur`.
  for axis in (x.ndim - 3, x.ndim - 2):
    size = x.shape[axis]
    period = max(2 * (size - 1), 1)
    source = (np.arange(size)[:, None] + offset) % period
    source = np.minimum(source, period - source)
    matrix = jnp.zeros((size, size)).at[
        np.arange(size)[:, None], source].add(kernel)
    x = jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis)), 0, axis)
  return x


def blur3(image: jax.Array, side: jax.Array | float) -> jax.Array:
  """[H, W, C] convolved with (side, 1 - 2 side, side) along both axes.

  Edges are repeated.
  """
  for axis in (0, 1):
    pad = [(1, 1) if a == axis else (0, 0) for a in range(3)]
    padded = jnp.pad(image, pad, 'edge')
    n = image.shape[axis]
    before = jax.lax.slice_in_dim(padded, 0, n, axis=axis)
    after = jax.lax.slice_in_dim(padded, 2, n + 2, axis=axis)
    image = (1 - 2 * side) * image + side * (before + after)
  return image


def reflected_blur(x: jax.Array, sigma: float, radius: int) -> jax.Array:
  """Gaussian blur of [..., H, W, C] whose edges mirror the image.

  The weight at distance i is exp(-i^2 / (2 sigma^2)), as in `gaussian_blur`;
  pixels beyond an edge are those at the same distance within, as in kornia.

  Args:
    x: images larger than `radius`.
    sigma: standard deviation in pixels, positive.
    radius: of the kernel, in pixels; 0 for no blur.
  """
  i = np.arange(-radius, radius + 1)
  taps = np.exp(-0.5 * (i / sigma) ** 2)
  pad = [(0, 0)] * (x.ndim - 3) + [(radius, radius)] * 2 + [(0, 0)]
  return filter2d(jnp.pad(x, pad, mode='reflect'),
                  tuple(float(tap) for tap in taps / taps.sum()), 0, 0)


def resize(x: jax.Array, size: int, antialias: bool = True) -> jax.Array:
  """Bilinear resizing of [..., H, W, C] to [..., size, size, C].

  The edges of the images are aligned, not the centers of the corner pixels.
  """
  shape = (*x.shape[:-3], size, size, x.shape[-1])
  if x.shape == shape:
    return x
  return jax.image.resize(x, shape, 'linear', antialias=antialias)


def depth_map(
    depth: jax.Array, coverage: jax.Array, far: float = 50 / 255,
    empty: float = 10 / 255
) -> jax.Array:
  """The map [..., H, W, 1] of a view that conditions a model on depth.

  Inverted and stretched over each view: 1 at the nearest covered pixel, `far`
  at the farthest, linear between, `empty` elsewhere (SceneTex, 2311.17261). So
  a map of zeros, which stands for no condition, is never that of a view.

  Args:
    depth: [..., H, W] along the camera's axis (cameras.axial_depth).
    coverage: [..., H, W] of the pixel, in [0, 1]; covered is above one half.
    far, empty: values of the map.
  """
  covered = coverage > 0.5
  least, most = (
      extreme(depth, axis=(-2, -1), keepdims=True, where=covered, initial=limit)
      for extreme, limit in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf)))
  # A view of one depth, or of nothing, has no span.
  span = jnp.where(most > least, most - least, 1.0)
  nearness = (jnp.where(covered, most, 1.0)
              - jnp.where(covered, depth, 1.0)) / span
  nearness = jnp.where(most > least, nearness, 1.0)
  return jnp.where(covered, far + (1 - far) * nearness, empty)[..., None]


def clip_preprocess(images: jax.typing.ArrayLike, size: int) -> jax.Array:
  """Shortest side to `size` by antialiased bicubic resizing, center square.

  The preprocessing of CLIP as by PIL: along rows, then along columns, with
  clipping after each. Integers give the same bits as PIL's; floats are not
  rounded, so that there is a gradient.

  Args:
    images: [..., H, W, C], uint8 or floats in [0, 1].
    size: S.

  Returns:
    [..., S, S, C] of the same type.
  """
  x = jnp.asarray(images)
  height, width = x.shape[-3:-1]
  short = min(height, width)
  for axis, side in ((x.ndim - 2, width), (x.ndim - 3, height)):
    if short != size:
      x = _resample(x, size * side // short, axis)
  top, left = (x.shape[-3] - size) // 2, (x.shape[-2] - size) // 2
  return x[..., top:top + size, left:left + size, :]


def _resample(x, size, axis):
  """Resizes one axis by `cubic`, clipped to the range of x's type."""
  taps = cubic(x.shape[axis], size)
  if x.dtype == jnp.uint8:
    # PIL rounds weights to multiples of 2^-22, so that all sums are exact.
    taps = jnp.asarray(np.rint(taps * 2**_BITS), jnp.int32)
    y = jnp.tensordot(taps, x.astype(jnp.int32), (1, axis))
    y = jnp.clip((y + 2 ** (_BITS - 1)) >> _BITS, 0, 255)
  else:
    y = jnp.clip(jnp.tensordot(jnp.asarray(taps, x.dtype), x, (1, axis),
                               precision='highest'), 0, 1)
  return jnp.moveaxis(y.astype(x.dtype), 0, axis)


def cubic(before: int, after: int) -> np.ndarray:
  """Weights of bicubic resizing, float64 [after, before].

  Keys' cubic (1981, a = -1/2), as wide as an output pixel where the size is
  reduced. Pixels beyond the edges have weight 0.
  """
  return resize_weights(before, after, 'cubic')


def resize_filter(
    x: jax.Array, size: int, kernel: str, edges: str = 'normalized'
) -> jax.Array:
  """[..., H, W, C] to [..., size, size, C] by a kernel of resize_weights."""
  for axis in (x.ndim - 3, x.ndim - 2):
    weights = resize_weights(x.shape[axis], size, kernel, edges)
    x = jnp.moveaxis(jnp.tensordot(
        jnp.asarray(weights, x.dtype), x, (1, axis), precision='highest'),
                     0, axis)
  return x


def resize_weights(before: int, after: int, kernel: str,
                   edges: str = 'normalized') -> np.ndarray:
  """Weights of resizing along an axis, float64 [after, before].

  The kernel is as wide as an output pixel where the size is reduced.

  Args:
    before: pixels of the input.
    after: pixels of the output.
    kernel: of KERNELS; 'cubic' is Keys' (1981, a = -1/2).
    edges: 'normalized': the weights of the pixels that exist sum to one;
      'zero': pixels beyond the edges are black, as CLIP-Mesh resizes.

  Raises:
    UserError: the kernel or the treatment of edges is unknown.
  """
  function = pick('kernel', KERNELS, kernel)
  check('edges', ('normalized', 'zero'), edges)
  scale = before / after
  width = max(scale, 1.0)
  centers = (np.arange(after)[:, None] + 0.5) * scale
  margin = int(np.ceil(3 * width)) + 1
  pixels = np.arange(-margin, before + margin)
  weights = function(np.abs(pixels + 0.5 - centers) / width)
  inside = weights[:, margin:-margin]
  total = inside if edges == 'normalized' else weights
  return inside / total.sum(1, keepdims=True)


def _cubic(x):
  return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(
      x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))


def _lanczos(x, lobes):
  return np.where(x < lobes, np.sinc(x) * np.sinc(x / lobes), 0.0)


# distance in output pixels -> weight; zero from 3 on.
KERNELS = {'linear': lambda x: np.maximum(1 - x, 0.0), 'cubic': _cubic,
           'lanczos2': functools.partial(_lanczos, lobes=2),
           'lanczos3': functools.partial(_lanczos, lobes=3)}
