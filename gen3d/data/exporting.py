"""Data sets on disk: posed images of an object, slices of the shapes world.

`write_scene` writes photographs of a mesh or of an object of the shapes world
in Blender's layout, `write_map` a map of the cameras of existing data,
`write_shapes` a slice of the shapes world in EG3D's format,
`write_contact_sheet` one object of every category, `write_tokenizer` the
tokenizer of captions, and `write_labeled` pictures with estimated cameras.
"""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from gen3d import files
from gen3d.choices import UserError
from gen3d.data import maps, synthetic
from gen3d.data.captures import posed
from gen3d.data.images import dataset
from gen3d.data.images import open as opening
from gen3d.data.shapes import captions
from gen3d.data.shapes import world as shapes_world
from gen3d.io import images as image_io
from gen3d.io import meshes

# (index, image in [0, 1], caption, captions.Spec, label [25])
Example = tuple[int, np.ndarray, str, captions.Spec, np.ndarray]


def write(out: str | os.PathLike, source: dict[str, Any], *, size: int | None,
          scene: dict[str, Any], shapes: dict[str, Any]) -> pathlib.Path:
  """Writes the data of one source: all that gen3d.make_data does.

  Args:
    out: folder.
    source: {name: value} with one of the names mesh, caption, capture, images,
      shapes, sheet and tokenizer; the values of the last three are True.
    size: pixels per side, or None for the source's default.
    scene: further arguments of `write_scene`.
    shapes: further arguments of `write_shapes`.

  Returns:
    The path of what was written.

  Raises:
    UserError: as the functions called.
  """
  name, = source
  if name in ('mesh', 'caption'):
    return write_scene(out, **source, size=size or 200, **scene)
  if name in ('capture', 'images'):
    return write_map(out, **source)
  if name == 'shapes':
    return write_shapes(out, size=size, **shapes)
  if name == 'sheet':
    return write_contact_sheet(out, shapes['seed'], size)
  return write_tokenizer(out, shapes['seed'])


def new_folder(path: str | os.PathLike) -> pathlib.Path:
  """The path of a folder to be written.

  Raises:
    UserError: it exists and is not empty.
  """
  path = pathlib.Path(path)
  # Files of other data would later be read with these.
  if path.is_dir() and any(path.iterdir()):
    raise UserError(f'{path} is not empty; give a new folder.')
  return path


def write_scene(out: str | os.PathLike, mesh: str = '', caption: str = '',
                up: str = 'y', **options: Any) -> pathlib.Path:
  """Writes photographs of an object in Blender's layout, and two overviews.

  map.png shows the cameras and the box of reconstruction, test.png the test
  images.

  Args:
    out: a new folder.
    mesh: path of a mesh file, or '' for the object of a caption.
    caption: of an object of the shapes world.
    up: axis that points up in the mesh file, 'y' or 'z'.
    **options: of synthetic.write_blender.

  Returns:
    The folder.

  Raises:
    UserError: the folder is not empty, the mesh cannot be read, or the
      caption names no object.
  """
  out = new_folder(out)
  surfaces = (meshes.load(mesh, up) if mesh
              else synthetic.surface_from_caption(caption))
  synthetic.write_blender(out, surfaces, **options)
  # Read again, as reconstruction will, which also checks the files.
  test = posed.open_posed(out, 'test')
  image_io.save(out / 'map.png', maps.map_of_posed(posed.open_posed(out)))
  image_io.save(out / 'test.png', image_io.tile(
      posed.composite_over(test.images, 1.0), 5))
  return out


def write_map(out: str | os.PathLike, capture: str = '',
              images: str = '') -> pathlib.Path:
  """Writes map.png of the cameras of a capture or of images with labels.

  Args:
    out: a new folder.
    capture: path of a capture, or '' for images.
    images: path of a zip or folder in EG3D's format; every file and label is
      checked first.

  Returns:
    The map's path.

  Raises:
    UserError: the folder is not empty, or the data cannot be read.
  """
  path = new_folder(out) / 'map.png'
  if capture:
    image = maps.map_of_posed(posed.open_posed(capture))
  else:
    source = dataset.open_images(images)
    dataset.check(source)
    image = maps.map_of_images(source)
  image_io.save(path, image)
  return path


def write_shapes(out: str | os.PathLike, config: Any = None, *, seed: int = 0,
                 split: str = 'train', first: int = 0, count: int = 100,
                 size: int | None = None) -> pathlib.Path:
  """Writes a slice of the shapes world as PNG files and dataset.json.

  dataset.json has EG3D's labels and, for each file, the caption and the
  object's category and colors.

  Args:
    out: folder.
    config: ConfigDict of a GAN; the images are then as in its training, with
      its categories, cameras and light and a white background. None for
      images of the whole world.
    seed: of the world.
    split: one of world.SPLITS.
    first, count: of the examples.
    size: pixels per side; None for the config's, or 128.

  Returns:
    The path of dataset.json.

  Raises:
    UserError: the config is not of a GAN on the shapes world.
  """
  if config:
    examples = _training_images(config, seed, split, first, count, size)
  else:
    examples = shapes_world.captioned_images(
        seed, split, first, count, size or 128)
  out = pathlib.Path(out)
  # EG3D's program reads the labels only; the other keys are this project's.
  listing = {'labels': [], 'captions': {}, 'objects': {}}
  for index, image, text, spec, label in examples:
    name = f'{index:08d}.png'
    image_io.save(out / name, image_io.to_uint8(image))
    listing['labels'].append([name, [float(x) for x in label]])
    listing['captions'][name] = text
    listing['objects'][name] = spec._asdict()
  # Last, so that a folder with dataset.json is complete.
  with files.atomic_write(out / 'dataset.json') as temporary:
    temporary.write_text(json.dumps(listing))
  return out / 'dataset.json'


def _training_images(config: Any, seed: int, split: str, first: int,
                     count: int, size: int | None) -> Iterable[Example]:
  """Yields examples as in the training of a GAN, without a caption's view."""
  if config.get('task') != 'gan' or not opening.is_world(config.data):
    raise UserError('--config is not of a GAN that learns from the shapes '
                    'world, such as configs/eg3d.py.')
  world = opening.world_of(config.data)
  # From example 0 on, since views are stored in files that begin there.
  source = shapes_world.posed_images(
      world, first + count, size or config.data.size, seed, split)
  for i in range(first, first + count):
    spec = shapes_world.example(seed, split, i, world).object.spec
    yield (i, source.pixels(i) / 255.0, captions.plain(spec), spec,
           source.labels[i])


def write_labeled(out: str | os.PathLike, source: dataset.Images,
                  labels: np.ndarray) -> pathlib.Path:
  """Writes pictures with other cameras, in EG3D's format.

  Args:
    out: a new folder.
    source: the pictures; they are written as PNG files.
    labels: [N, 25].

  Returns:
    The path of dataset.json.

  Raises:
    UserError: the folder is not empty or cannot be written.
  """
  out, listing = new_folder(out), []
  for i, label in enumerate(labels):
    name = f'{i:08d}.png'
    image_io.save(out / name, source.pixels(i))
    listing.append([name, [float(x) for x in label]])
  # Last, so that a folder with dataset.json is complete.
  files.write_bytes(out / 'dataset.json', json.dumps(
      {'labels': listing}).encode())
  return out / 'dataset.json'


def write_contact_sheet(out: str | os.PathLike, seed: int = 0,
                        size: int | None = None) -> pathlib.Path:
  """Writes shapes.png, one captioned object of every category.

  Args:
    out: folder.
    seed: of colors, sizes, cameras and backgrounds.
    size: pixels per side of one image; None for 128.

  Returns:
    The image's path.
  """
  path = pathlib.Path(out) / 'shapes.png'
  images, labels = shapes_world.contact_sheet(seed, size or 128)
  image_io.save(path, image_io.tile(images, 7, labels))
  return path


def write_tokenizer(out: str | os.PathLike, seed: int = 0) -> pathlib.Path:
  """Trains the tokenizer of captions and writes tokenizer.json.

  Args:
    out: folder.
    seed: of the captions; 0 gives the tokenizer of the package.

  Returns:
    The file's path.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  captions.train_tokenizer(out / 'tokenizer.json', seed)
  return out / 'tokenizer.json'
