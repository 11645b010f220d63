"""Random backgrounds behind objects whose guidance is an image embedding.

An image encoder is guided by whatever it sees, so that an object may vanish
into a constant background. With a background that changes in every view it
has to be opaque where it is (Dream Fields, 2112.01455, section 4.2).

Images are [size, size, 3] in [0, 1].
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import images

# Columns: directions in which the colors of photographs vary independently,
# scaled by their standard deviations; divided by the largest one's length.
_COLORS = np.array(
    [[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
COLOR_CORRELATION = _COLORS / np.linalg.norm(_COLORS, axis=0).max()
SPECTRUM_STD = 0.2  # of the random coefficients of a texture
_TEXTURE_SCALE = 0.25


def noise(key: jax.Array, size: int) -> jax.Array:
  """Independent uniform colors of the pixels."""
  return jax.random.uniform(key, (size, size, 3))


def checkerboard(colors: jax.Array, size: int, squares: Any) -> jax.Array:
  """`squares` by `squares` squares of two colors [2, 3].

  The first color is that of the upper left corner.

  Args:
    colors: [2, 3].
    size: pixels per side.
    squares: per side, a number that may be traced.
  """
  cell = jnp.floor(jnp.arange(size) * squares / size).astype(jnp.int32)
  return colors[(cell[:, None] + cell) % 2]


def texture(spectrum: jax.Array, size: int) -> jax.Array:
  """A smooth texture with the spectrum and colors of photographs.

  Amplitudes fall with frequency f as f^-1.5 (Olah et al., "Feature
  visualization", 2017); a sigmoid gives colors in [0, 1].

  Args:
    spectrum: complex [3, size, size // 2 + 1], standard deviation SPECTRUM_STD.
    size: pixels per side.
  """
  frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
  amplitude = size / np.maximum(frequency, 1 / size) ** 1.5
  planes = jnp.fft.irfft2(
      spectrum * amplitude.astype(np.float32), (size, size))
  raw = _TEXTURE_SCALE * jnp.moveaxis(planes, 0, -1)
  return jax.nn.sigmoid(jnp.matmul(
      raw, COLOR_CORRELATION.T.astype(np.float32), precision='highest'))


def random_texture(key: jax.Array, size: int) -> jax.Array:
  """A `texture` with a normal spectrum."""
  real, imaginary = SPECTRUM_STD * jax.random.normal(
      key, (2, 3, size, size // 2 + 1))
  return texture(jax.lax.complex(real, imaginary), size)


def dream_fields(key: jax.Array, size: int, *, squares: int = 8,
                 blur_radius: int = 7, blur_max: float = 10.0) -> jax.Array:
  """Noise, a checkerboard or a texture, equally often, then blurred.

  The defaults are Dream Fields' (section 4.2 and its code), for 224 pixels.

  Args:
    key: PRNG key.
    size: pixels per side.
    squares: per side of the checkerboard.
    blur_radius: of the Gaussian kernel, in pixels.
    blur_max: its standard deviation is uniform in [0, blur_max].
  """
  keys = jax.random.split(key, 5)
  # All three and a choice: they are cheap, and a batch is computed at once.
  kinds = jnp.stack([
      noise(keys[0], size),
      checkerboard(jax.random.uniform(keys[1], (2, 3)), size, squares),
      random_texture(keys[2], size)])
  image = kinds[jax.random.randint(keys[3], (), 0, 3)]
  sigma = jax.random.uniform(keys[4], maxval=blur_max)
  return images.gaussian_blur(image, sigma, blur_radius)


def clip_mesh(key: jax.Array, size: int) -> jax.Array:
  """Noise or a checkerboard, blurred, or one color, equally often (CLIP-Mesh).

  The checkerboard has 5 to 10 squares a side, with smooth edges; the first of
  its colors is drawn from the darker half. The blur has one of two radii and
  one of two standard deviations.

  Args:
    key: PRNG key.
    size: pixels per side, more than 5.
  """
  keys = jax.random.split(key, 6)
  color = jax.random.uniform(keys[0], (2, 3))
  kinds = jnp.stack([
      noise(keys[1], size),
      _smooth_checkerboard(
          color * jnp.array([[1.0], [0.5]]), size,
          jax.random.randint(keys[2], (), 5, 11)),
      jnp.broadcast_to(color[0], (size, size, 3))])
  image = kinds[jax.random.randint(keys[3], (), 0, 3)]
  blurred = jnp.stack([
      images.reflected_blur(image, sigma, min(radius, size - 1))
      for radius in (5, 2) for sigma in (5.0, 2.0)])
  # The blur of one color is that color.
  return blurred[jax.random.randint(keys[4], (), 0, 4)]


def _smooth_checkerboard(colors, size, squares):
  """A checkerboard of 5 to 10 squares a side, enlarged by bicubic resizing.

  It is the product of a wave along each axis, and so is the enlarged one.
  """
  waves = np.stack([
      images.resize_weights(count, size, 'cubic') @ (1 - 2 * (
          np.arange(count) % 2)) for count in range(5, 11)])
  wave = jnp.asarray(waves, jnp.float32)[squares - 5]
  share = 0.5 + 0.5 * (wave[:, None] * wave)[..., None]
  return jnp.clip(share * colors[0] + (1 - share) * colors[1], 0.0, 1.0)
