"""The losses of LiftedGAN (2011.13126, section 3.4 and the official program).

Vocabulary. Images [N, R, R, 3] in [-1, 1]; masks [N, R, R, 1] of 0 and 1. A
loss that divides by a sum over the batch, such as that of a mask, takes
`total`, which sums an array over the whole batch: over all devices, where the
batch is divided.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen3d.ops import cameras

Total = Callable[[jax.Array], jax.Array]
# images [N, h, w, 3] in [-1, 1] -> maps [N, h', w', C]
Features = Callable[[jax.Array], Sequence[jax.Array]]


class Weights(NamedTuple):
  """Weights of the losses; the defaults are the paper's for faces.

  Attributes:
    reconstruction: of the image in its own view.
    flip: of the mirrored object's, as a part of it.
    perceptual: beside the photometric part of an image loss.
    perturbed_image: of images with other light and view, in both directions.
    perturbed_parameters: of the light and view that are read back.
    identity: of the face embedding.
    style: of the prior on perturbed styles.
    albedo_rank: of the nuclear norm of the albedos' details.
  """
  reconstruction: float = 5.0
  flip: float = 0.8
  perceptual: float = 1.0
  perturbed_image: float = 2.0
  perturbed_parameters: float = 4.0
  identity: float = 1.0
  style: float = 0.5
  albedo_rank: float = 0.01


def photometric(image: jax.Array, target: jax.Array,
                mask: jax.Array | None = None,
                total: Total = jnp.sum) -> jax.Array:
  """Mean absolute difference, of the pixels in the mask."""
  return _mean(jnp.abs(image - target), mask, total)


def perceptual(features: Features, image: jax.Array, target: jax.Array,
               mask: jax.Array | None = None, total: Total = jnp.sum,
               scales: int = 3) -> jax.Array:
  """Squared distance of unit features, mean over maps and scales.

  Args:
    features: images -> maps.
    image, target: images.
    mask: of the pixels; averaged to the size of each map.
    total: see the module's docstring.
    scales: numbers of sizes, each half the one before.
  """
  losses, pair = [], jnp.concatenate([image, target])
  for scale in range(scales):
    pair = shrink(pair, 2) if scale else pair
    for x in features(pair):
      ours, theirs = jnp.split(cameras.normalize(x, 1e-24), 2)
      squared = jnp.sum((ours - theirs)**2, axis=-1, keepdims=True)
      # The largest factor that fits, where sizes do not divide.
      part = mask if mask is None else shrink(
          mask, mask.shape[1] // x.shape[1])
      losses.append(_mean(squared, part, total))
  return jnp.mean(jnp.stack(losses))


def parameters(light: jax.Array, view: jax.Array, drawn_light: jax.Array,
               drawn_view: jax.Array) -> jax.Array:
  """Mean squares of light [N, 4] and angles of view [N, 6], read back."""
  return (jnp.mean((light - drawn_light)**2)
          + jnp.mean((view - drawn_view)[:, :3]**2))


def identity(embedding: jax.Array, other: jax.Array, counts: jax.Array,
             total: Total = jnp.sum) -> jax.Array:
  """Squared distance of embeddings [N, E], mean over those that count.

  Args:
    embedding, other: unit vectors.
    counts: [N] bool; 0 where none counts.
    total: see the module's docstring.
  """
  squared = jnp.sum((embedding - other)**2, axis=1)
  counts = counts.astype(squared.dtype)
  return total(squared * counts) / jnp.maximum(total(counts), 1.0)


def style_prior(style: jax.Array, mean: jax.Array,
                precision: jax.Array) -> jax.Array:
  """Mean square of styles [N, D] about the mean [D], times the precision []."""
  return precision * jnp.mean((style - mean)**2)


def albedo_rank(albedo: jax.Array, mask: jax.Array,
                blur: Callable[[jax.Array], jax.Array], pooling: int,
                gather: Callable[[jax.Array], jax.Array] = lambda x: x
                ) -> jax.Array:
  """Nuclear norm of the batch matrix of the albedos' gray details.

  Shading that is left in the albedo differs between objects; details that they
  share have a low rank.

  Args:
    albedo: [N, R, R, 3].
    mask: [N, R, R, 1] of the object.
    blur: low-pass filter.
    pooling: pixels a side that are averaged; 1 for none.
    gather: collects the rows of all devices.
  """
  gray = jnp.mean(albedo, axis=-1, keepdims=True)
  details = shrink((gray - blur(gray)) * mask, pooling)
  rows = gather(details.reshape(len(details), -1))
  return jnp.sum(jnp.linalg.svd(rows, full_matrices=False, compute_uv=False))


def shrink(x: jax.Array, factor: int) -> jax.Array:
  """Means of blocks of factor x factor pixels of x [N, H, W, C]."""
  count, height, width, channels = x.shape
  height, width = height // factor, width // factor
  x = x[:, :factor * height, :factor * width]
  return jnp.mean(x.reshape(
      count, height, factor, width, factor, channels), axis=(2, 4))


def _mean(x, mask, total):
  """Mean of x [N, H, W, C], weighted by a mask [N, H, W, 1]."""
  if mask is None:
    return jnp.mean(x)
  return total(x * mask) / (x.shape[-1] * total(mask))
