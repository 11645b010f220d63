"""The shapes world: captioned 3-D objects, rendered from any side.

It stands in for "a large collection of text-image pairs". Example i of a
split is a pure function of (seed, split, i): object, camera, light,
background, caption. Rendering splits in two: `trace` finds what a camera
sees (a `Views` record: color, normal, depth and coverage of each pixel),
`compose` lights it and puts it over a background. Training stores the first
and draws the second afresh each time that a view is used.
"""

import functools
import hashlib
import os
import types
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import PartitionSpec as P

from gen3d import files
from gen3d.data.images import dataset
from gen3d.data.shapes import captions, categories
from gen3d.data.shapes.primitives import color, sdf
from gen3d.ops import cameras, shading

SPLITS = ('train', 'seen', 'unseen')
# DreamFusion's distribution, with a longer lens and less jitter so that an
# object fills most of the 64 pixels that the model has.
CAMERA = {'elevation': (-10.0, 90.0), 'distance': (1.4, 1.8),
          'focal': (1.1, 1.5), 'jitter_position': 0.1, 'jitter_target': 0.04,
          'jitter_up': 0.02}
ALBEDO_ONLY, TEXTURELESS = 0.25, 0.1  # of the views
AMBIENT = (0.2, 0.6)                  # of the lit ones; diffuse is the rest
VERSION = 1  # of the world's geometry and tracing; stored views go with it
_CHUNK = 500  # views in a stored file


class Views(NamedTuple):
  """What cameras see, before light and background; leading axes [..., H, W].

  Kept in small integers, since training holds tens of thousands of them.
  """
  albedo: Any    # uint8 [..., H, W, 3]
  normals: Any   # int8 [..., H, W, 3], world, times 127
  depth: Any     # float16 [..., H, W], along the ray
  coverage: Any  # uint8 [..., H, W], of the pixel by the object
  camera: Any    # cameras.Camera [...]


class World(NamedTuple):
  """What is in the pictures, and from where they are taken.

  Attributes:
    categories: of the objects.
    camera: keywords of cameras.sample.
  """
  categories: tuple = captions.CATEGORIES
  camera: Any = types.MappingProxyType(CAMERA)


EVERYTHING = World()


class Example(NamedTuple):
  """One example's object and viewpoint, on the host."""
  object: categories.Object
  camera_key: np.ndarray  # uint32 [2]
  rng: np.random.Generator


def example(seed, split, index, world=EVERYTHING):
  """What example `index` of a split shows (pure in its arguments)."""
  spec, rng = _begin(seed, split, index, world)
  built = categories.build(spec, rng.uniform)
  return Example(built, rng.integers(2 ** 32, size=2, dtype=np.uint32), rng)


def _begin(seed, split, index, world):
  """(captions.Spec, generator) of an example that is not yet built."""
  rng = np.random.Generator(np.random.Philox(
      np.random.SeedSequence([seed, SPLITS.index(split), index])))
  return captions.sample_spec(rng, split, world.categories), rng


def sphere_trace(parts, rays, steps=40, relaxation=0.9):
  """Marches rays [N] to the surface by steps of the distance bound.

  Args:
    parts: [P, PART_SIZE].
    rays: cameras.Rays with fields [N, ...].
    steps: how many.
    relaxation: share of the bound that is gone; below 1 since tapered parts
      bend the metric a little.

  Returns:
    (t [N] distance along the ray to the surface, or to where a ray that
    misses it came closest; coverage [N] in [0, 1] of the pixel by the
    silhouette, from how close the ray passed).
  """
  near = jnp.linalg.norm(rays.origins, axis=-1) - 2 * categories.RADIUS
  pixel = rays.radii[:, 0] * jnp.sqrt(3.0)

  def march(_, carry):
    t, best, closest = carry
    d = sdf(parts, rays.origins + t[:, None] * rays.directions)
    gap = d / (pixel * jnp.maximum(t, 1e-3))
    best = jnp.where(gap < closest, t, best)
    return (t + relaxation * jnp.clip(d, -0.05, 0.5), best,
            jnp.minimum(gap, closest))

  start = jnp.maximum(near, 0.01)
  _, best, closest = jax.lax.fori_loop(
      0, steps, march, (start, start, jnp.full_like(near, 1e3)))
  return best, jnp.clip(1 - closest, 0.0, 1.0)


def normals(parts, points, epsilon=2e-3):
  """Unit normals [N, 3] by central differences on a tetrahedron."""
  offsets = jnp.array(shading.TETRAHEDRON)
  slopes = [o * sdf(parts, points + epsilon * o)[:, None] for o in offsets]
  return cameras.normalize(sum(slopes))


def trace(parts, camera, size):
  """What one camera sees of one object, as Views [size, size, ...]."""
  rays = jax.tree.map(lambda x: x.reshape(size * size, -1),
                      cameras.rays(camera, size, size))
  t, coverage = sphere_trace(parts, rays)
  points = rays.origins + t[:, None] * rays.directions
  image = lambda x: x.reshape(size, size, *x.shape[1:])
  byte = lambda x: jnp.round(255 * jnp.clip(x, 0, 1)).astype(jnp.uint8)
  return Views(
      byte(image(color(parts, points))),
      jnp.round(127 * image(normals(parts, points))).astype(jnp.int8),
      image(jnp.minimum(t, 100)).astype(jnp.float16), byte(image(coverage)),
      camera)


def shade_and_composite(view, light, background):
  """Lights one view and puts it over a background.

  Args:
    view: Views [H, W, ...].
    light: shading.Light.
    background: [H, W, 3].

  Returns:
    Image [H, W, 3] in [0, 1].
  """
  height, width = view.coverage.shape
  rays = cameras.rays(view.camera, height, width)
  points = rays.origins + view.depth[..., None] * rays.directions
  shaded = shading.lambertian(
      view.albedo / 255.0, cameras.normalize(view.normals / 127.0), points,
      light)
  coverage = view.coverage[..., None] / 255.0
  return jnp.clip(coverage * shaded + (1 - coverage) * background, 0, 1)


def sample_light(key, camera, textureless):
  """Albedo only, or a point light around the camera with some ambient."""
  key_position, key_ambient, key_only = jax.random.split(key, 3)
  only = jax.random.bernoulli(key_only, ALBEDO_ONLY) & (textureless < 0.5)
  ambient = jnp.where(only, 1.0, jax.random.uniform(
      key_ambient, minval=AMBIENT[0], maxval=AMBIENT[1]))
  return shading.Light(
      shading.sample_position(key_position, camera.c2w[:3, 3]),
      ambient, 1 - ambient, textureless)


def sample_background(key, size):
  """A flat color, a gradient or soft blotches: [size, size, 3].

  Colors are drawn from gray to saturated, so that no color of an object
  gives it away.
  """
  key_colors, key_gray, key_kind, key_angle, key_blotch = jax.random.split(
      key, 5)
  colors = jax.random.uniform(key_colors, (2, 3))
  gray = jax.random.uniform(key_gray, (2, 1)) ** 0.5
  colors = gray * colors.mean(-1, keepdims=True) + (1 - gray) * colors
  y, x = jnp.meshgrid(*[jnp.linspace(-1, 1, size)] * 2, indexing='ij')
  angle = 2 * jnp.pi * jax.random.uniform(key_angle)
  gradient = 0.5 + 0.35 * (jnp.cos(angle) * x + jnp.sin(angle) * y)
  blotches = jax.image.resize(
      jax.random.uniform(key_blotch, (4, 4)), (size, size), 'cubic')
  kind = jax.random.uniform(key_kind)
  mix = jnp.where(kind < 0.5, 0.0, jnp.where(kind < 0.8, gradient, blotches))
  mix = jnp.clip(mix, 0, 1)[..., None]
  return mix * colors[1] + (1 - mix) * colors[0]


def sample_image(key, view, textureless, background=None):
  """`compose` with a drawn light: [H, W, 3].

  Without a `background` (its color, or an image) that is drawn, too; the mean
  of those that may be drawn is 0.5.
  """
  key_light, key_background = jax.random.split(key)
  light = sample_light(key_light, view.camera, jnp.float32(textureless))
  if background is None:
    background = sample_background(key_background, view.coverage.shape[0])
  return shade_and_composite(view, light, background)


def render(seed, split, indices, size, world=EVERYTHING):
  """What the examples `indices` of a split show.

  Args:
    seed: of the world.
    split: one of SPLITS.
    indices: [N] ints.
    size: pixels a side.
    world: World.

  Returns:
    (Views of NumPy arrays [N, ...], list of N captions.Spec).
  """
  examples = [example(seed, split, int(i), world) for i in indices]
  parts = np.stack([e.object.parts for e in examples])
  keys = np.stack([e.camera_key for e in examples])
  # One share a device, so that virtual CPU devices keep all cores busy; what
  # is missing from the last share is the last example again.
  count = len(examples)
  devices = min(jax.local_device_count(), count)
  rows = np.minimum(np.arange(-(-count // devices) * devices), count - 1)
  views = _tracer(devices, size, tuple(world.camera.items()))(
      parts[rows], keys[rows])
  views = jax.tree.map(lambda x: np.asarray(x)[:count], views)
  return views, [e.object.spec for e in examples]


@functools.cache
def _tracer(devices, size, camera):
  """A compiled (parts [N, ...], keys [N, ...]) -> Views [N, ...]."""
  mesh = jax.make_mesh(
      (devices,), ('devices',), devices=jax.local_devices()[:devices],
      axis_types=(jax.sharding.AxisType.Auto,))

  def one(inputs):
    parts, key = inputs
    key = jax.random.wrap_key_data(key)
    return trace(parts, cameras.sample(key, **dict(camera)), size)

  @jax.jit
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P('devices'),
                     out_specs=P('devices'), check_vma=False)
  def trace_all(parts, keys):
    # On a CPU one view at a time fits the cache; an accelerator wants many.
    return jax.lax.map(
        one, (parts, keys),
        batch_size=None if jax.default_backend() == 'cpu' else 250)

  return trace_all


def view_words(camera):
  """The captions.VIEWS word of each Camera [N]."""
  azimuth, elevation, _ = (np.asarray(a) for a in cameras.angles(
      jnp.asarray(camera.c2w)[:, :3, 3]))
  return [captions.view_word(a, e) for a, e in zip(azimuth, elevation)]


def pictures(seed, split, first, count, size):
  """Yields finished examples, with a progress bar.

  Args:
    seed: of the world.
    split: one of SPLITS.
    first, count: which examples.
    size: pixels a side.

  Yields:
    (index, image [size, size, 3] in [0, 1], caption, captions.Spec,
    label [25] in EG3D's convention).
  """
  progress = tqdm.tqdm(total=count, desc=f'{split} pictures', disable=None)
  for start in range(first, first + count, 64):
    indices = range(start, min(start + 64, first + count))
    views, specs = render(seed, split, indices, size)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(seed), jnp.array(indices))
    images = np.asarray(_light_all(keys, views))
    words, labels = view_words(views.camera), np.asarray(
        cameras.to_label(views.camera))
    for i, index in enumerate(indices):
      text = captions.caption(
          example(seed, split, index).rng, specs[i], words[i])
      yield index, images[i], text, specs[i], labels[i]
      progress.update()
  progress.close()


_light_all = jax.jit(jax.vmap(lambda key, view: sample_image(key, view, 0.0)))


def posed(world, count, size, seed=0, split='train'):
  """Objects of a split as images with cameras, for a 3-D GAN.

  The light stays where it is in the world and the background is white: a
  generator whose colors do not depend on the direction can be right.

  Args:
    world: World.
    count: how many images.
    size: pixels a side.
    seed: of the world.
    split: one of SPLITS.

  Returns:
    images.Images, held in memory.
  """
  views, specs = load_views(seed, split, count, size, world)
  light = shading.Light(cameras.spherical(30.0, 60.0, jnp.float32(4.0)),
                        0.6, 0.4, 0.0)

  @jax.jit
  def compose_all(views):
    white = jnp.ones((size, size, 3))
    paint = lambda view: jnp.round(
        255 * shade_and_composite(view, light, white)).astype(jnp.uint8)
    return jax.lax.map(paint, views, batch_size=64)

  pixels = np.asarray(compose_all(views))
  names = tuple(f'{i:08d} ({captions.plain(s)})' for i, s in enumerate(specs))
  return dataset.Images(
      f'shapes world ({", ".join(world.categories)})', names,
      np.asarray(cameras.to_label(views.camera)), pixels.__getitem__, size)


def contact_sheet(seed, size):
  """One object of every category: (images [26, size, size, 3], labels)."""
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
  view = trace(parts, cameras.orbit(azimuth, elevation, 1.7, 1.35), size)
  light = shading.Light(cameras.spherical(
      azimuth + 30, elevation + 30, jnp.float32(1.5)), 0.4, 0.6, 0.0)
  return shade_and_composite(view, light, sample_background(key, size))


def load_views(seed, split, count, size, world=EVERYTHING):
  """The first `count` examples of a split, rendered once and then kept.

  Files of some hundred views each lie in `cache.directory()`; what is missing
  or damaged is rendered, with a progress bar.

  Args:
    seed: of the world.
    split: one of SPLITS.
    count: how many examples.
    size: pixels a side.
    world: World.

  Returns:
    (Views of NumPy arrays [count, ...], list of captions.Spec).
  """
  folder = _folder(seed, split, size, world)
  chunks = []
  for start in tqdm.tqdm(range(0, count, _CHUNK), f'{split} views',
                         disable=None, unit_scale=_CHUNK, unit='view'):
    # Only as many as are asked for where that is less than a file's worth.
    stop = min(start + _CHUNK, count) if count < _CHUNK else start + _CHUNK
    chunks.append(_load_chunk(
        folder / f'{split}-{start}-{stop}.npz', seed, split,
        range(start, stop), size, world))
  views = jax.tree.map(lambda *x: np.concatenate(x)[:count], *chunks)
  return views, [_begin(seed, split, i, world)[0] for i in range(count)]


def _folder(seed, split, size, world):
  """Where the views of a world are kept; another world has another folder."""
  probe = b''.join(example(seed, split, i, world).object.parts.tobytes()
                   for i in range(8))
  digest = hashlib.sha256(
      probe + repr((VERSION, dict(world.camera))).encode()).hexdigest()
  folder = files.cache_dir() / f'shapes-{digest[:12]}-{size}'
  folder.mkdir(parents=True, exist_ok=True)
  return folder


def _load_chunk(path, seed, split, indices, size, world):
  try:
    with np.load(path) as stored:
      leaves = [stored[str(i)] for i in range(6)]
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    views, _ = render(seed, split, indices, size, world)
    leaves = jax.tree.leaves(views)
    temporary = path.with_suffix(f'.{os.getpid()}.tmp.npz')
    np.savez(temporary, **{str(i): x for i, x in enumerate(leaves)})
    temporary.replace(path)
  return jax.tree.unflatten(
      jax.tree.structure(Views(0, 0, 0, 0, cameras.Camera(0, 0))), leaves)
