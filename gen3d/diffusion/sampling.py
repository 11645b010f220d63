"""Images of prompts from a teacher, in batches over the devices."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.diffusion import samplers
from gen3d.diffusion.teachers import Teacher
from gen3d.engine import sharding


def sample(key: jax.Array, teacher: Teacher, prompts: Sequence[str], *,
           labels: np.ndarray | jax.Array | None = None,
           depth: np.ndarray | jax.Array | None = None, negative: str = '',
           scale: float = 3.0, steps: int = 40, eta: float = 0.0,
           batch: int = 16) -> np.ndarray:
  """Images uint8 [N, H, W, 3] of N prompts.

  Args:
    key: PRNG key.
    teacher: Teacher.
    prompts: N strings.
    labels: [N, 25] of the cameras, for a teacher with camera conditioning.
    depth: maps [N, H, W, 1] of ops.images.depth_map, for a teacher with depth
      conditioning.
    negative: prompt in place of the empty one in classifier-free guidance.
    scale: guidance scale, 1 for none.
    steps: of the sampler.
    eta: 0 for DDIM, 1 for ancestral DDPM.
    batch: images at a time on one device; bounds the memory.
  """
  text = teacher.embed([*prompts, negative])
  null = jax.tree.map(lambda a: a[-1:], text)
  text = jax.tree.map(lambda a: a[:-1], text)
  weights = teacher.load()
  if labels is not None:
    text = jax.jit(teacher.add_camera)(weights, text, jnp.asarray(labels))
  draw = _sampler(teacher.schedule, teacher.denoise, teacher.decode,
                  teacher.add_depth, (batch, *teacher.latent), teacher.bound,
                  steps)
  return draw((key, weights, null, scale, eta),
              (np.arange(len(prompts)), text, depth))


# The cache holds the compiled program of a few models: repeated calls with the
# same teacher and sizes compile once.
@functools.lru_cache(maxsize=4)
def _sampler(schedule, denoise, decode, add_depth, shape, bound, steps):
  """((key, weights, null, scale, eta), (indices, texts, maps)) -> images."""
  def draw(shared, rows):
    key, weights, null, scale, eta = shared
    index, text, depth = rows
    null = jax.tree.map(lambda n, a: jnp.broadcast_to(n, a.shape), null, text)
    if depth is not None:
      text, null = (add_depth(weights, x, depth) for x in (text, null))
    predict = samplers.guided(denoise, weights, text, null, scale)
    x = samplers.sample(jax.random.fold_in(key, index[0]), predict, schedule,
                        shape, steps, eta, bound)
    images = decode(weights, x)
    return jnp.round(255 * jnp.clip(images, 0, 1)).astype(jnp.uint8)

  return sharding.map_over_devices(draw, shape[0], 'Sampling')
