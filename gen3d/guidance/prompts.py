"""View-dependent prompts (DreamFusion, section 3.2).

A prompt becomes four, in the order of VIEWS; each view uses the one nearest to
its direction.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from gen3d.choices import UserError, check_prompt

# The words of the shapes world's captions (data/shapes/captions.py).
VIEWS = ('front view', 'side view', 'back view', 'overhead view')
FRONT, SIDE, BACK, OVERHEAD = range(4)


def normalize(prompt: str) -> str:
  """The prompt without surplus spaces and punctuation at its end.

  Raises:
    UserError: the prompt is empty or too long.
  """
  check_prompt(prompt)
  prompt = ' '.join(prompt.split()).rstrip(',.')
  if not prompt:
    raise UserError('The prompt is empty; set it, for example by '
                    "--config.prompt='a red chair'.")
  return prompt


def split(prompt: str, count: int) -> tuple[str, ...]:
  """The `count` prompts that a ';' separates, each as by `normalize`.

  Raises:
    UserError: one is empty, or there are not `count`.
  """
  parts = tuple(map(normalize, prompt.split(';')))
  if len(parts) != count:
    raise UserError(
        f'There are {len(parts)} prompts for {count} meshes; give one for each '
        "mesh, for example by --config.prompt='a red chair; a blue table'.")
  return parts


def with_views(prompt: str, fits: Callable[[str], bool] = lambda text: True
               ) -> list[str]:
  """The prompts of the four VIEWS; errors of `normalize`.

  A prompt that is too long loses its last words, with a warning, and not those
  of the view, which a text encoder would cut first.

  Args:
    prompt: in words.
    fits: whether a text encoder takes all of a text.
  """
  prompt = normalize(prompt)
  views = lambda text: [f'{text}, {view}' for view in VIEWS]
  if all(map(fits, views(prompt))):
    return views(prompt)
  words = prompt.split()
  # The largest number of words that fits, at least one.
  low, high = 1, len(words) - 1
  while low < high:
    middle = (low + high + 1) // 2
    if all(map(fits, views(normalize(' '.join(words[:middle]))))):
      low = middle
    else:
      high = middle - 1
  kept = ' '.join(words[:low]).rstrip(',.')
  logging.warning('The prompt has %d words, more than the text encoder takes '
                  'with those of the view; it ends with %r.', len(words),
                  ' '.join(words[max(0, low - 5):low]))
  return views(kept)


def expand(template: str, subjects: tuple[str, ...]) -> list[str]:
  """The texts of a template, in the order of `row`.

  Args:
    template: text with '{prompt}' and '{view}' where these stand; without both
      it is the same for all prompts.
    subjects: prompts; errors of `normalize`.
  """
  if '{prompt}' not in template:
    return [template]
  views = VIEWS if '{view}' in template else ('',)
  return [template.format(prompt=normalize(prompt), view=view)
          for prompt in subjects for view in views]


def row(template: str, subject: jax.Array | int, view: jax.Array | int
        ) -> jax.Array | int:
  """Index into `expand` of a prompt's index and an index into VIEWS."""
  if '{prompt}' not in template:
    return 0
  return len(VIEWS) * subject + view if '{view}' in template else subject


def nearest_view(azimuth: jax.Array, elevation: jax.Array, *,
                 front: float = 45.0, overhead: float = 60.0) -> jax.Array:
  """Index [...] into VIEWS of a camera's direction.

  Args:
    azimuth: [...] in degrees, 0 in front of the object.
    elevation: [...] in degrees.
    front: the front view has |azimuth| < front, the back view is as wide.
    overhead: above this elevation it is the overhead view, at any azimuth.
  """
  turn = jnp.abs((azimuth + 180.0) % 360.0 - 180.0)
  index = jnp.where(turn < front, FRONT,
                    jnp.where(turn > 180.0 - front, BACK, SIDE))
  return jnp.where(elevation > overhead, OVERHEAD, index)
