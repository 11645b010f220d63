"""The training images that a config names: files, or the shapes world."""

from typing import Any

from gen3d.choices import UserError, pick
from gen3d.data.images import dataset
from gen3d.data.shapes import captions
from gen3d.data.shapes import world as shapes_world

WORLD = 'shapes:'  # before categories, in place of a file


def open_data(data: Any) -> dataset.Images:
  """The Images of a config's `data`, checked.

  Args:
    data: ConfigDict. `path` is a folder, a zip or 'tfds:NAME' in EG3D's
      format; or 'shapes:' and categories of the shapes world with commas
      between, of which `count` images of `size` pixels are rendered from
      cameras that are sampled by `camera`.

  Raises:
    UserError: there are no such images, or they cannot be read.
  """
  if not data.path:
    raise UserError('There are no images: give --config.data.path, a zip or '
                    'folder in EG3D\'s format.')
  if is_world(data):
    return shapes_world.posed_images(world_of(data), data.count, data.size)
  images = dataset.open_images(data.path)
  dataset.check(images)
  return images


def is_world(data: Any) -> bool:
  """True if a config's `data` are of the shapes world."""
  return data.path.startswith(WORLD)


def world_of(data: Any) -> shapes_world.World:
  """The shapes_world.World of a config's `data`.

  Raises:
    UserError: there is no such category.
  """
  chosen = tuple(data.path.removeprefix(WORLD).split(','))
  # Here, since a world of unknown categories has no example to sample.
  for category in chosen:
    pick('category', dict.fromkeys(captions.CATEGORIES), category)
  return shapes_world.World(chosen, dict(data.camera))
