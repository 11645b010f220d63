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


def pick(table, index):
  """The rows [...] of an embedded table [4, ...] at `index` [...]."""
  return jax.tree.map(lambda x: x[index], table)
