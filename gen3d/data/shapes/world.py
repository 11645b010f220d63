"""The shapes world: a data set of captioned 3-D objects from any camera.

It replaces the large collections of text-image pairs that text-to-image models
are trained on. Example i of a split is a pure function of (seed, split, i):
object, camera, light, background, caption. This module samples the examples
and stores their views; render.py renders them.
"""

import functools
import hashlib
import os
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gen3d import files, notices
from gen3d.data.images import dataset
from gen3d.data.shapes import captions, categories, render
from gen3d.data.shapes.render import Views
from gen3d.ops import cameras, shading

SPLITS = ('train', 'seen', 'unseen')
# DreamFusion's distribution, with a longer lens and less jitter so that an
# object fills most of the 64 pixels of the models.
CAMERA = {'elevation': (-10.0, 90.0), 'distance': (1.4, 1.8),
          'focal': (1.1, 1.5), 'jitter_position': 0.1, 'jitter_target': 0.04,
          'jitter_up': 0.02}
VERSION = 1  # of geometry and rendering; part of the name of stored views
_CHUNK = 500  # views in a stored file
_VIEWS_PER_BATCH = 250  # that an accelerator traces at a time


class World(NamedTuple):
  """Distribution of the examples.

  Attributes:
    categories: of the objects.
    camera: keywords of cameras.sample.
  """
  categories: tuple[str, ...] = captions.CATEGORIES
  camera: Mapping[str, Any] = types.MappingProxyType(CAMERA)


EVERYTHING = World()


class Example(NamedTuple):
  """Object and camera of one example, on the host.

  Attributes:
    object: categories.Object.
    camera_key: uint32 [2], data of a PRNG key.
    rng: generator for whatever else is sampled, such as the caption.
  """
  object: categories.Object
  camera_key: np.ndarray
  rng: np.random.Generator


def example(seed: int, split: str, index: int,
            world: World = EVERYTHING) -> Example:
  """Samples example `index` of a split.

  Args:
    seed: of the world.
    split: one of SPLITS.
    index: of the example.
    world: World.
  """
  spec, rng = _sample_spec(seed, split, index, world)
  built = categories.build(spec, rng.uniform)
  return Example(built, rng.integers(2 ** 32, size=2, dtype=np.uint32), rng)


def _sample_spec(seed, split, index, world):
  """(captions.Spec, generator) of an example whose object is not built."""
  rng = np.random.Generator(np.random.Philox(
      np.random.SeedSequence([seed, SPLITS.index(split), index])))
  return captions.sample_spec(rng, split, world.categories), rng


def render_views(seed: int, split: str, indices: Sequence[int] | np.ndarray,
                 size: int, world: World = EVERYTHING
                 ) -> tuple[Views, list[captions.Spec]]:
  """Renders examples of a split.

  Args:
    seed: of the world.
    split: one of SPLITS.
    indices: of the N examples.
    size: pixels per side.
    world: World.

  Returns:
    (Views of NumPy arrays [N, ...], list of N captions.Spec).
  """
  examples = [example(seed, split, int(i), world) for i in indices]
  parts = np.stack([e.object.parts for e in examples])
  # Raw key data, since typed keys cannot be stacked in NumPy.
  keys = np.stack([e.camera_key for e in examples])
  # The last example fills up the rows of the last device.
  count = len(examples)
  devices = min(jax.local_device_count(), count)
  rows = np.minimum(np.arange(-(-count // devices) * devices), count - 1)
  views = _tracer(devices, size, tuple(world.camera.items()))(
      parts[rows], keys[rows])
  views = jax.tree.map(lambda x: np.asarray(x)[:count], views)
  return views, [e.object.spec for e in examples]


@functools.cache
def _tracer(devices: int, size: int, camera: tuple) -> Callable[..., Views]:
  """A compiled (parts [N, ...], keys [N, ...]) -> Views [N, ...].

  It has a mesh of its own, of this process's devices only, since each process
  renders the views that it stores. A plain jit would use one device: the
  accelerators (or, in tests, virtual CPU devices) but the first would idle
  while tens of thousands of views are rendered.
  """
  mesh = jax.make_mesh(
      (devices,), ('devices',), devices=jax.local_devices()[:devices],
      axis_types=(jax.sharding.AxisType.Auto,))

  def trace_example(inputs):
    parts, key = inputs
    key = jax.random.wrap_key_data(key)
    return render.trace(parts, cameras.sample(key, **dict(camera)), size)

  @jax.jit
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P('devices'),
                     out_specs=P('devices'), check_vma=False)
  def trace_all(parts, keys):
    # On a CPU the arrays of a single view stay in the cache.
    on_cpu = jax.default_backend() == 'cpu'
    return jax.lax.map(trace_example, (parts, keys),
                       batch_size=None if on_cpu else _VIEWS_PER_BATCH)

  return trace_all


def view_words(camera: cameras.Camera) -> list[str]:
  """The word of captions.VIEWS for each Camera [N]."""
  azimuth, elevation, _ = (np.asarray(a) for a in cameras.angles(
      jnp.asarray(camera.c2w)[:, :3, 3]))
  return [captions.view_word(a, e) for a, e in zip(azimuth, elevation)]


def captioned_images(seed: int, split: str, first: int, count: int, size: int
                     ) -> Iterator[tuple[int, np.ndarray, str, captions.Spec,
                                         np.ndarray]]:
  """Yields images with captions and cameras.

  Args:
    seed: of the world.
    split: one of SPLITS.
    first, count: of the examples.
    size: pixels per side.

  Yields:
    (index, image [size, size, 3] in [0, 1], caption, captions.Spec,
    label [25] in EG3D's convention).
  """
  starts = range(first, first + count, 64)
  for start in notices.track(starts, f'Rendering {split} images'):
    indices = range(start, min(start + 64, first + count))
    views, specs = render_views(seed, split, indices, size)
    # By index, so that an image is independent of `first` and of the chunks.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(seed), jnp.array(indices))
    images = np.asarray(_sample_images(keys, views))
    words, labels = view_words(views.camera), np.asarray(
        cameras.to_label(views.camera))
    for i, index in enumerate(indices):
      text = captions.caption(
          example(seed, split, index).rng, specs[i], words[i])
      yield index, images[i], text, specs[i], labels[i]


_sample_images = jax.jit(
    jax.vmap(lambda key, view: render.sample_image(key, view, 0.0)))


def posed_images(world: World, count: int, size: int, seed: int = 0,
                 split: str = 'train') -> dataset.Images:
  """Images with cameras for a 3-D GAN, in memory, shaded by `shade_posed`.

  Args:
    world: World.
    count: how many images.
    size: pixels per side.
    seed: of the world.
    split: one of SPLITS.
  """
  views, specs = load_views(seed, split, count, size, world)
  pixels = shade_posed(views)
  names = tuple(f'{i:08d} ({captions.plain(s)})' for i, s in enumerate(specs))
  return dataset.Images(
      f'shapes world ({", ".join(world.categories)})', names,
      np.asarray(cameras.to_label(views.camera)), pixels.__getitem__, size)


def shade_posed(views: Views) -> np.ndarray:
  """uint8 [N, S, S, 3] of Views [N, S, S], as a 3-D GAN is trained on them.

  The light is fixed in the world and the background white, so that a
  generator whose colors do not depend on the direction can fit them.
  """
  return np.asarray(_shade_posed(views))


@jax.jit
def _shade_posed(views):
  light = shading.Light(cameras.spherical(30.0, 60.0, jnp.float32(4.0)),
                        0.6, 0.4, 0.0)
  white = jnp.ones((*views.coverage.shape[1:], 3))
  shade = lambda view: jnp.round(255 * render.shade_and_composite(
      view, light, white)).astype(jnp.uint8)
  return jax.lax.map(shade, views, batch_size=64)


def contact_sheet(seed: int, size: int) -> tuple[np.ndarray, list[str]]:
  """One object of each of the C categories.

  Args:
    seed: of colors, sizes, cameras and backgrounds.
    size: pixels per side.

  Returns:
    (images [C, size, size, 3] in [0, 1], list of C captions).
  """
  rng = np.random.default_rng(seed)
  colors = list(captions.COLORS)
  keys = jax.random.split(jax.random.key(seed), len(captions.CATEGORIES))
  images, labels = [], []
  for key, category in zip(keys, captions.CATEGORIES):
    main, second = rng.choice(len(colors), 2, replace=False)
    spec = captions.Spec(category, colors[main], colors[second])
    azimuth, elevation = rng.uniform(20, 50), rng.uniform(10, 30)
    images.append(np.asarray(_portrait(
        categories.build(spec, rng.uniform).parts, key, azimuth, elevation,
        size)))
    labels.append(captions.plain(spec))
  return np.stack(images), labels


@functools.partial(jax.jit, static_argnames='size')
def _portrait(parts, key, azimuth, elevation, size):
  """Image [size, size, 3] with the light above and to the camera's right."""
  view = render.trace(
      parts, cameras.orbit(azimuth, elevation, 1.7, 1.35), size)
  light = shading.Light(cameras.spherical(
      azimuth + 30, elevation + 30, jnp.float32(1.5)), 0.4, 0.6, 0.0)
  return render.shade_and_composite(
      view, light, render.sample_background(key, size))


def load_views(seed: int, split: str, count: int, size: int,
               world: World = EVERYTHING
               ) -> tuple[Views, list[captions.Spec]]:
  """The first `count` examples of a split, rendered once and then stored.

  Files of 500 views each are in the cache folder (files.cache_dir); those
  that are missing or damaged are rendered, with a progress bar.

  Args:
    seed: of the world.
    split: one of SPLITS.
    count: how many examples.
    size: pixels per side.
    world: World.

  Returns:
    (Views of NumPy arrays [count, ...], list of captions.Spec).
  """
  folder = _folder(seed, split, size, world)
  chunks = []
  for start in notices.track(
      range(0, count, _CHUNK), f'Rendering {split} views, {_CHUNK} at a time'):
    # A full file, unless fewer views are wanted in all.
    stop = min(start + _CHUNK, count) if count < _CHUNK else start + _CHUNK
    chunks.append(_load_chunk(
        folder / f'{split}-{start}-{stop}.npz', seed, split,
        range(start, stop), size, world))
  views = jax.tree.map(lambda *x: np.concatenate(x)[:count], *chunks)
  return views, [
      _sample_spec(seed, split, i, world)[0] for i in range(count)]


def _folder(seed, split, size, world):
  """Folder of the stored views of a world, named by a hash of its content."""
  # Objects of another geometry or vocabulary get another folder.
  objects = b''.join(example(seed, split, i, world).object.parts.tobytes()
                     for i in range(8))
  digest = hashlib.sha256(
      objects + repr((VERSION, dict(world.camera))).encode()).hexdigest()
  folder = files.cache_dir() / f'shapes-{digest[:12]}-{size}'
  folder.mkdir(parents=True, exist_ok=True)
  return folder


def _load_chunk(path: pathlib.Path, seed: int, split: str,
                indices: Sequence[int], size: int, world: World) -> Views:
  """Reads one stored file, or renders and writes it."""
  leaves = files.read_cached(path, [str(i) for i in range(6)])
  count = len(indices)
  image = count, size, size
  if leaves is not None and [x.shape for x in leaves[:4]] + [
      x.shape[:1] for x in leaves[4:]] != [
          (*image, 3), (*image, 3), image, image, (count,), (count,)]:
    files.report_damage(path)
    leaves = None
  if leaves is None:
    views, _ = render_views(seed, split, indices, size, world)
    leaves = jax.tree.leaves(views)
    # Another process may write the same file at the same time.
    temporary = path.with_suffix(f'.{os.getpid()}.tmp.npz')
    np.savez(temporary, **{str(i): x for i, x in enumerate(leaves)})
    temporary.replace(path)
  return jax.tree.unflatten(
      jax.tree.structure(Views(0, 0, 0, 0, cameras.Camera(0, 0))), leaves)
