"""What a teacher believes in where all is noise, beside what it should.

There the best guess of a picture is the mean of all that the words may mean
from the camera that is told: score distillation begins with it, and makes a
blob of a blob. In the shapes world that mean can be computed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gen3d import assets
from gen3d.data.shapes import captions, categories
from gen3d.data.shapes import world as shapes_world
from gen3d.diffusion import noise, pixel_model
from gen3d.io import images as image_io
from gen3d.ops import cameras

COLOR = 'orange'
SIDES = 4
TIME = 0.99
DRAWS = 16  # of objects, and of noise


def compare(weights=assets.TEXT_TO_IMAGE, draws=DRAWS):
  """Means and beliefs of one colored thing of each category.

  Args:
    weights: of a text-to-image model.
    draws: objects of a mean, each in a light of its own, over gray; and
      noises of a belief.

  Returns:
    (prompts, means, beliefs), the last two [categories, SIDES, H, W, 3], in
    about [0, 1].
  """
  model, params, _ = pixel_model.load(weights)
  prompts = [captions.plain(captions.Spec(category, COLOR, ''))
             for category in captions.CATEGORIES]
  texts, labels = pixel_model.around(prompts, SIDES)
  means = np.stack([_mean_pictures(category, labels[:SIDES], model.size, draws)
                    for category in tqdm.tqdm(captions.CATEGORIES, 'means',
                                              disable=None)])
  tokens, mask = assets.tokenizer().encode(texts)
  beliefs = _believe(params, tokens, mask, jnp.asarray(labels),
                     jax.random.split(jax.random.key(0), len(texts)),
                     model=model, draws=draws)
  return prompts, means, np.asarray(beliefs).reshape(means.shape)


def relative_errors(means, beliefs):
  """Squared error by category [N], 1 for a teacher that believes in gray."""
  axes = (1, 2, 3, 4)
  return ((beliefs - means) ** 2).mean(axes) / ((means - 0.5) ** 2).mean(axes)


def report(weights, out=None):
  """Lines of errors; in the folder `out`, if any, a sheet of both pictures."""
  prompts, means, beliefs = compare(weights)
  errors = relative_errors(means, beliefs)
  if out:
    sheet = np.concatenate([means, beliefs], 3)
    image_io.save(out / 'beliefs.png', image_io.tile(
        np.clip(sheet[:, [0, 1]].reshape(-1, *sheet.shape[2:]), 0, 1), 8,
        [f'{prompt}, {side}' for prompt in prompts
         for side in ('front', 'side')]))
  lines = [f'{prompt}: {error:.2f}' for prompt, error in zip(prompts, errors)]
  return '\n'.join([*lines, (
      'mean relative error of what is believed at much noise: '
      f'{errors.mean():.3f}')])


def _mean_pictures(category, labels, size, draws):
  """[SIDES, H, W, 3]: over sizes, second colors and lights."""
  rng = np.random.default_rng(captions.CATEGORIES.index(category))
  parts = [categories.build(captions.Spec(
      category, COLOR, rng.choice(list(captions.COLORS))), rng.uniform).parts
           for _ in range(draws)]
  return np.asarray(_mean_of_each(
      np.stack(parts), jax.random.split(jax.random.key(0), draws),
      jnp.asarray(labels), size=size))


@functools.partial(jax.jit, static_argnames='size')
def _mean_of_each(parts, keys, labels, *, size):
  def one(label):
    def picture(part_key):
      part, key = part_key
      view = shapes_world.trace(part, cameras.from_label(label), size)
      return shapes_world.sample_image(key, view, 0.0, 0.5)

    return jnp.mean(jax.lax.map(picture, (parts, keys)), axis=0)

  return jax.lax.map(one, labels)


@functools.partial(jax.jit, static_argnames=('model', 'draws'))
def _believe(params, tokens, mask, labels, keys, *, model, draws):
  text = model.add_camera(params, model.embed(params, tokens, mask), labels)

  def one(row):
    text, key = row
    again = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (draws, *x.shape)), text)
    x_t = jax.random.normal(key, (draws, model.size, model.size, 3))
    t = jnp.full(draws, TIME)
    eps = model.denoise(params, x_t, t, again)
    x = noise.x_from_eps(model.schedule, x_t, eps, t)
    return jnp.mean(x, axis=0) / 2 + 0.5

  return jax.lax.map(one, (text, keys))
