"""Images of a generator in training, for previews and for distances."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.engine import sharding
from gen3d.gan.networks import GANNetworks, Latents, Variables

Measure = Callable[[Variables, int], dict[str, float]]


def sampler(
    networks: GANNetworks, render_size: int, batch: int = 16, seed: int = 0
) -> Callable[[Variables, np.ndarray], np.ndarray]:
  """(variables, labels [N, L]) -> images uint8 [N, R, R, 3], one for each.

  Args:
    networks: GANNetworks.
    render_size: resolution of the neural rendering.
    batch: images at once, on each device.
    seed: of the latents; they are the same in every call.
  """
  def generate(variables, rows):
    index, label = rows
    key = jax.random.fold_in(jax.random.key(seed), index[0])
    z = jax.random.normal(key, (len(label), networks.z_dim))
    latents = Latents(key, jnp.arange(len(label)), z, label, label)
    fakes, _ = networks.generate(variables, latents, render_size)
    return fakes['image']

  over_devices = sharding.map_over_devices(generate, batch, 'Generating')

  def sample(variables, labels):
    images = over_devices(variables, (np.arange(len(labels)), labels))
    return np.round(255 * np.clip(images / 2 + 0.5, 0, 1)).astype(np.uint8)

  return sample


def distance_fn(
    networks: GANNetworks, source: Any, count: int,
    distance_to_real: Callable[[Callable[[], np.ndarray]],
                               Callable[[np.ndarray], dict[str, float]]]
) -> Measure:
  """(variables, render_size) -> distances of generated from real images.

  Args:
    networks: GANNetworks.
    source: of the real images, a data.images.dataset.Images.
    count: of generated images; their labels are those of real images.
    distance_to_real: (function that returns `2 * count` real images) ->
      (generated images -> {name: distance}), as metrics/distribution.py's.
  """
  rows = np.random.default_rng(0).permutation(len(source.names))[:2 * count]
  distances = distance_to_real(
      lambda: np.stack([source.pixels(int(i)) for i in rows]))
  # Each render size is compiled once.
  sampler_at = functools.cache(functools.partial(sampler, networks))

  def measure(variables, render_size):
    labels = source.labels[rows[:count]]
    return distances(sampler_at(render_size)(variables, labels))

  return measure
