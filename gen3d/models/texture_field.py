"""SceneTex's texture field (2311.17261, section 3.2): colors over an atlas.

A point of the atlas has features from a multi-resolution grid. They attend to
the features of the anchors of the point's instance, fixed points on the surface
of the same object, so that what is far apart on one object gets one style; an
MLP turns the result into a color.

Vocabulary. N points, I instances with A anchors each, C features of a point;
attention has H heads of D channels. A point's instance is its index, or -1 for
none, such as the background of a view.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.ops import multires


class TwoLayers(nn.Module):
  """Dense, ReLU, Dense; the attention's maps.

  Attributes:
    hidden: width of the first layer.
    out: of the second.
  """
  hidden: int
  out: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(nn.Dense(self.hidden)(x))
    return nn.Dense(self.out)(x)


class CrossAttention(nn.Module):
  """Adds to each point what it reads from its instance's anchors.

  SceneTex's code reads with the values in place of the keys. Here keys have a
  map of their own; with the values' parameters it is the published form.

  Attributes:
    hidden: D, also the width of the maps' first layers.
    heads: H.
    block: points that are computed at a time, which bounds the memory.
  """
  hidden: int = 128
  heads: int = 4
  block: int = 4096

  @nn.compact
  def __call__(self, features: jax.Array, instances: jax.Array,
               anchors: jax.Array) -> jax.Array:
    """Features [N, C] of points with attention to anchors [I, A, C].

    Args:
      features: [N, C].
      instances: int [N], -1 for points that stay as they are.
      anchors: [I, A, C].
    """
    def mapped(name, x):
      y = TwoLayers(self.hidden, self.heads * self.hidden, name=name)(x)
      return y.reshape(*x.shape[:-1], self.heads, self.hidden)

    read = attend(mapped('map_query', features), instances,
                  mapped('map_key', anchors), mapped('map_value', anchors),
                  self.block)
    added = TwoLayers(self.hidden, features.shape[-1], name='map_output')(
        read.reshape(len(features), -1))
    return features + jnp.where(instances[:, None] >= 0, added, 0.0)


class TextureField(nn.Module):
  """Colors [N, 3], without activation, of points of an atlas.

  Attributes:
    levels: of the grid, a sequence of multires.Level.
    features: of a point in one level.
    attention: CrossAttention.
    width, layers: of the MLP; the last layer gives the color.
    init_scale: the grid's features start uniform in +- init_scale.
  """
  levels: Sequence[multires.Level]
  features: int
  attention: CrossAttention
  width: int = 256
  layers: int = 4
  init_scale: float = 1e-4

  @nn.compact
  def __call__(self, uv: jax.Array, instances: jax.Array,
               anchors: jax.Array) -> jax.Array:
    """Colors of points.

    Args:
      uv: [N, 2] in [0, 1].
      instances: int [N].
      anchors: [I, A, 2] in [0, 1], of each instance.
    """
    tables = [self.param(f'grid_{index}', self._uniform,
                         level.shape(self.features))
              for index, level in enumerate(self.levels)]
    # One lookup for both: each one is a loop of its own in the gradient.
    both = multires.lookup(tables, self.levels, jnp.concatenate(
        [uv, anchors.reshape(-1, 2)]))
    x = self.attention(both[:len(uv)], instances, both[len(uv):].reshape(
        *anchors.shape[:2], -1))
    for index in range(self.layers - 1):
      x = nn.relu(nn.Dense(self.width, name=f'layer_{index}')(x))
    return nn.Dense(3, name=f'layer_{self.layers - 1}')(x)

  def _uniform(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(
        key, shape, minval=-self.init_scale, maxval=self.init_scale)


def attend(queries: jax.Array, instances: jax.Array, keys: jax.Array,
           values: jax.Array, block: int) -> jax.Array:
  """Attention [N, H, D] of each point to the anchors of its instance.

  Points are sorted by instance into blocks of one instance each, so that the
  cost does not grow with the number of instances, as it would with a mask.

  Args:
    queries: [N, H, D].
    instances: int [N]; zeros are returned where it is -1.
    keys, values: [I, A, H, D].
    block: points in a block; a block's weights are [block, H, A].
  """
  count = len(queries)
  block = min(block, count)
  slots, of_block, source = _blocks(instances, len(keys), block)

  @jax.checkpoint
  def one_block(inputs):
    rows, instance = inputs
    logits = jnp.einsum('nhd,ahd->nha', rows, keys[instance])
    weights = jax.nn.softmax(logits / jnp.sqrt(1.0 * rows.shape[-1]), axis=-1)
    return jnp.einsum('nha,ahd->nhd', weights, values[instance])

  blocks = jax.lax.map(
      one_block,
      (queries[source].reshape(-1, block, *queries.shape[1:]), of_block))
  read = blocks.reshape(-1, *queries.shape[1:])[slots]
  return jnp.where(instances[:, None, None] >= 0, read, 0.0)


def _blocks(instances: jax.Array, count: int, block: int) -> Any:
  """Places of N points in blocks of one instance each.

  Args:
    instances: int [N], -1 for none.
    count: of instances.
    block: points in a block.

  Returns:
    (slots [N]: the place of each point in the K blocks, arbitrary without an
    instance; instance [K] of each block; source [K block]: the point in each
    place, arbitrary in places that are not used).
  """
  points = len(instances)
  blocks = -(-points // block) + count  # at most
  known = jnp.where(instances >= 0, instances, count)
  order = jnp.argsort(known)
  begin = jnp.searchsorted(known[order], jnp.arange(count + 1))
  sizes = jnp.diff(begin)
  # The blocks of instance i are first[i] ... first[i + 1] - 1.
  first = jnp.cumsum(jnp.pad(-(-sizes // block), (1, 0)))
  of_block = jnp.minimum(
      jnp.searchsorted(first, jnp.arange(blocks), side='right') - 1, count - 1)
  inner = (jnp.arange(blocks) - first[of_block])[:, None] * block
  rank = inner + jnp.arange(block)
  source = order[jnp.minimum(begin[of_block][:, None] + rank, points - 1)]
  place = jnp.argsort(order)
  own = jnp.minimum(known, count - 1)
  slots = first[own] * block + place - begin[own]
  return jnp.clip(slots, 0, blocks * block - 1), of_block, source.reshape(-1)
