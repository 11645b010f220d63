"""What a prompt says about the side that is seen (DreamFusion, section 3.2).

A prompt becomes four, in the order of VIEWS; their embeddings, with this
leading axis, are the table from which each view picks its row.
"""

import jax
import jax.numpy as jnp

# The words that data/shapes.py puts under its pictures.
VIEWS = ('front view', 'side view', 'back view', 'overhead view')


def with_views(prompt):
  """The prompts of the four views.

  Raises:
    ValueError: if the prompt is empty.
  """
  prompt = ' '.join(prompt.split()).rstrip(',.')
  if not prompt:
    raise ValueError("The prompt is empty; say what to make, for example "
                     "--config.prompt='a red chair'.")
  return [f'{prompt}, {view}' for view in VIEWS]


def nearest(azimuth, elevation, *, front=45.0, overhead=60.0):
  """Index [...] into VIEWS of what is seen from a direction (degrees).

  The front is |azimuth| < `front`, the back as wide on the other side, and
  overhead is elevation > `overhead`, whatever the azimuth.
  """
  turned = jnp.abs((azimuth + 180.0) % 360.0 - 180.0)
  index = jnp.where(turned < front, 0, jnp.where(turned > 180.0 - front, 2, 1))
  return jnp.where(elevation > overhead, 3, index)


def shares(azimuth, elevation, *, overhead=60.0):
  """Shares [..., 4] of VIEWS that sum to one and change with the direction.

  Linear in the azimuth from front (0) over side (90) to back (180 degrees);
  overhead comes in over the 30 degrees around its boundary.
  """
  turned = jnp.abs((azimuth + 180.0) % 360.0 - 180.0) / 90.0
  front, back = jnp.maximum(0.0, 1 - turned), jnp.maximum(0.0, turned - 1)
  above = jnp.clip((elevation - overhead) / 30.0 + 0.5, 0.0, 1.0)
  around = jnp.stack(
      [front, 1 - front - back, back, jnp.zeros_like(front)], axis=-1)
  top = jnp.array([0.0, 0.0, 0.0, 1.0])
  return around * (1 - above[..., None]) + top * above[..., None]


def pick(table, index):
  """The rows [...] of an embedded table [4, ...] at `index` [...]."""
  return jax.tree.map(lambda x: x[index], table)


def blend(table, shares):
  """Rows of an embedded table [4, ...], mixed by `shares` [4]."""
  return jax.tree.map(
      lambda x: jnp.tensordot(shares.astype(x.dtype), x, axes=1), table)
