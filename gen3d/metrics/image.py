"""Image similarity: PSNR, SSIM and LPIPS.

Images are [..., H, W, 3] in [0, 1]. Each metric returns one value per image
[...]; benchmarks report the mean over images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.models import perceptual
from gen3d.ops import images

# Constants of SSIM: window size and standard deviation, in pixels, and the
# stabilizers of Wang et al.
TAPS = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03

Images = np.ndarray | jax.Array  # [..., H, W, 3]


def psnr(a: Images, b: Images) -> jax.Array:
  """Peak signal-to-noise ratio [...] in dB: -10 log10(mean (a - b)^2).

  Infinite for equal images.

  Raises:
    UserError: the images differ in shape.
  """
  _check_shapes(a, b)
  error = jnp.mean(jnp.square(a - b), axis=(-3, -2, -1))
  return -10 * jnp.log10(error)


def ssim(a: Images, b: Images) -> jax.Array:
  """Structural similarity [...] (Wang et al., 2004, eq. 13), at most 1.

  The mean over channels and over the windows inside the image, with the
  paper's constants: an 11 x 11 Gaussian window of standard deviation 1.5
  pixels, K1 = 0.01, K2 = 0.03, and biased covariances (divided by n).

  Raises:
    UserError: the images differ in shape or are smaller than a window.
  """
  _check_shapes(a, b)
  if min(a.shape[-3:-1]) < TAPS:
    raise UserError(
        f'SSIM has windows of {TAPS} x {TAPS} pixels, but the images have '
        f'{a.shape[-3]} x {a.shape[-2]}; use larger images.')
  offset = np.arange(TAPS) - TAPS // 2
  taps = np.exp(-0.5 * (offset / SIGMA) ** 2)
  taps = (taps / taps.sum()).tolist()
  mean = lambda x: images.filter2d(x, taps, 0, 0)
  # Variances are invariant to a shift; centered values lose fewer digits in
  # the difference E[x^2] - E[x]^2.
  a, b = a - 0.5, b - 0.5
  mean_a, mean_b = mean(a), mean(b)
  variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
  covariance = mean(a * b) - mean_a * mean_b
  mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
  c1, c2 = K1**2, K2**2
  similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (variances + c2)))
  return jnp.mean(similarity, axis=(-3, -2, -1))


def lpips(network: perceptual.Perceptual, a: Images, b: Images) -> jax.Array:
  """LPIPS distance [...] (1801.03924, eq. 1), 0 for equal images.

  Args:
    network: from perceptual.load.
    a: images.
    b: images of the same shape.

  Raises:
    UserError: the images differ in shape or are too small for the network.
  """
  _check_shapes(a, b)
  # Comparable with published values, also on accelerators whose default
  # products have a lower precision.
  with jax.default_matmul_precision('highest'):
    return perceptual.distance(perceptual.embed(network, a),
                               perceptual.embed(network, b))


def _check_shapes(a, b):
  if a.shape != b.shape or a.ndim < 3 or a.shape[-1] != 3:
    raise UserError(
        'Images to compare must be [..., H, W, 3] and of one shape, not '
        f'{list(a.shape)} and {list(b.shape)}; resize them to one size.')
