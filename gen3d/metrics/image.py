"""How close a picture is to the one it should be: PSNR, SSIM, LPIPS.

Images [..., H, W, 3] in [0, 1]. Each gives a number for each image [...]; a
benchmark reports the mean over its images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.models import perceptual
from gen3d.ops import images

TAPS = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def psnr(a, b):
  """Peak signal-to-noise ratio [...] in dB: -10 log10(mean (a - b)^2).

  Infinite for equal images.

  Raises:
    UserError: the images differ in shape.
  """
  _check(a, b)
  error = jnp.mean(jnp.square(a - b), axis=(-3, -2, -1))
  return -10 * jnp.log10(error)


def ssim(a, b):
  """Structural similarity [...] (Wang et al., 2004, eq. 13), 1 at best.

  The mean over channels and over the windows that lie within the image, with
  the paper's constants: 11 x 11 Gaussian of 1.5 pixels, K1 .01, K2 .03, and
  covariances that divide by n.

  Raises:
    UserError: the images differ in shape or are smaller than a window.
  """
  _check(a, b)
  if min(a.shape[-3:-1]) < TAPS:
    raise UserError(f'SSIM looks at {TAPS} x {TAPS} pixels, but the images '
                    f'have {a.shape[-3]} x {a.shape[-2]}; enlarge them.')
  offset = np.arange(TAPS) - TAPS // 2
  taps = np.exp(-0.5 * (offset / SIGMA) ** 2)
  taps = (taps / taps.sum()).tolist()
  mean = lambda x: images.filter2d(x, taps, 0, 0)
  # Variances do not mind a shift, their rounding does: squares of numbers
  # around zero are smaller.
  a, b = a - 0.5, b - 0.5
  mean_a, mean_b = mean(a), mean(b)
  variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
  covariance = mean(a * b) - mean_a * mean_b
  mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
  c1, c2 = K1**2, K2**2
  similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (variances + c2)))
  return jnp.mean(similarity, axis=(-3, -2, -1))


def lpips(network, a, b):
  """LPIPS [...] (1801.03924, eq. 1), 0 for equal images.

  Args:
    network: perceptual.Perceptual, as perceptual.load gives it.
    a, b: images.

  Raises:
    UserError: the images differ in shape or are too small for the network.
  """
  _check(a, b)
  # Numbers to be compared with published ones, also where an accelerator
  # would rather round its products.
  with jax.default_matmul_precision('highest'):
    return perceptual.distance(perceptual.embed(network, a),
                               perceptual.embed(network, b))


def _check(a, b):
  if a.shape != b.shape or a.ndim < 3 or a.shape[-1] != 3:
    raise UserError('Pictures to compare are [..., H, W, 3] and of one '
                    f'shape, not {list(a.shape)} and {list(b.shape)}.')
