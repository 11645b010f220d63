"""What a prompt says about the side that is seen (DreamFusion, section 3.2).

A prompt becomes four, in the order of VIEWS; their embeddings, with this
leading axis, are the table from which each view picks its row.
"""

import jax
import jax.numpy as jnp

from gen3d.choices import UserError

# The words that data/shapes/world.py puts under its pictures.
VIEWS = ('front view', 'side view', 'back view', 'overhead view')
FRONT, SIDE, BACK, OVERHEAD = range(4)


def with_views(prompt):
  """The prompts of the four views.

  Raises:
    UserError: if the prompt is empty.
  """
  prompt = ' '.join(prompt.split()).rstrip(',.')
  if not prompt:
    raise UserError("The prompt is empty; say what to make, for example "
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


def between(azimuth, elevation, *, overhead=60.0):
  """Perp-Neg's prompts of a direction (2304.04968, section 4).

  The prompt is a mixture of those of the two sides that the direction lies
  between, and what is led away from are the front and the side where they are
  not what is seen. The numbers are threestudio's.

  Args:
    azimuth, elevation: scalars in degrees.
    overhead: the elevation above which that prompt stands alone.

  Returns:
    (shares [4] of VIEWS, which sum to 1; weights [2] >= 0 of FRONT and SIDE
    as negatives).
  """
  turned = jnp.abs((azimuth + 180.0) % 360.0 - 180.0) / 90.0
  ahead = turned < 1.0
  # How near to the first of the two sides: front and side, or side and back.
  near = jnp.where(ahead, 1.0 - turned, 2.0 - turned)
  rest, none = 1.0 - near, jnp.zeros_like(near)
  shares = jnp.where(ahead, jnp.stack([near, rest, none, none]),
                     jnp.stack([none, near, rest, none]))
  falling = lambda x, height, base: height * jnp.exp(-0.5 * x) + base
  weights = jnp.where(
      ahead, jnp.stack([falling(near, 4.0, -2.426),
                        falling(rest, 4.0, -2.426)]),
      jnp.stack([falling(near, 1.0, 0.967), falling(near, 1.0, -0.606)]))
  above = elevation > overhead
  return (jnp.where(above, jnp.eye(4)[OVERHEAD], shares),
          jnp.where(above, 0.0, jnp.maximum(weights, 0.0)))


def blend(table, shares):
  """The mixture of an embedded table's rows [4, ...] by shares [4].

  A mask of truth values is open where any row that has a share is.
  """
  def mix(x):
    mixed = jnp.tensordot(shares, x.astype(jnp.float32), axes=1)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return (mixed if floating else mixed > 0).astype(x.dtype)

  return jax.tree.map(mix, table)
