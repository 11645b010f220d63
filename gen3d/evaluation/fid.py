"""FID and KID of a trained generator, by the protocol 'fid50k_full'.

50,000 generated images are compared with all images of a set, mirrored copies
only where the set contains them (NVIDIA's code of StyleGAN2 and EG3D). A
generated image has a random latent without truncation, random noise, and the
camera of a random image of the set for the conditioning and for the rendering.

In FID_3D these two cameras are drawn apart: a generator that bends its objects
to the camera that conditions them then has worse images.

The features of all images are written to files, so that the memory does not
grow with their number; those of the set stay in the cache folder.
"""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import files, notices
from gen3d.choices import UserError, check
from gen3d.data.images import dataset
from gen3d.data.images import open as opening
from gen3d.engine import sharding
from gen3d.gan import inference
from gen3d.metrics import distribution
from gen3d.metrics import features as feature_extractors
from gen3d.metrics.features import Features
from gen3d.ops import cameras

SAMPLES = 50_000
_CHUNK = 64  # images at a time
_VERSION = 1  # of the stored statistics


class Protocol(NamedTuple):
  """What numbers must agree in to be compared."""
  samples: int = SAMPLES
  divisor: str = 'n'  # of distribution.DIVISORS
  independent_cameras: bool = False  # FID_3D
  kid_size: int = distribution.KID_SIZE
  seed: int = 0


FULL = Protocol()  # fid50k_full


class Statistics(NamedTuple):
  """Features of N images."""
  sums: distribution.Sums
  features: np.ndarray  # [N, D], a memory map


class Result(NamedTuple):
  """Distances of generated images from all images of a set."""
  frechet: float
  kernel: distribution.KernelDistance
  real: int  # number of images of the set


def report(network: str | os.PathLike, data: str, weights: str,
           resize: str = 'tf', protocol: Protocol = FULL) -> str:
  """A text with FID and KID of a generator.

  Args:
    network: as inference.load takes it.
    data: folder, zip or 'tfds:NAME' of the real images; '' for the training
      data of a generator that gen3d has trained.
    weights: of Inception, see models/inception.py.
    resize: of models.inception.RESIZES.
    protocol: Protocol.

  Raises:
    UserError: a file is not there or not what it should be, or there are fewer
      images than the protocol needs.
  """
  if not weights:
    raise UserError(
        'FID needs the Inception network: give --inception, the path of '
        'pt_inception-2015-12-05-6726825d.pth (gen3d/models/inception.py says '
        'where it is).')
  check('covariance divisor', distribution.DIVISORS, protocol.divisor)
  features = feature_extractors.inception(
      weights, resize, map_rows=sharding.map_over_devices)
  trained, source = open_both(network, data)
  result = distances(trained, source, features, protocol)
  fid, name = (('FID_3D', 'fid3d') if protocol.independent_cameras else
               ('FID', 'fid'))
  count = protocol.samples
  name += f'{count // 1000}k_full' if count % 1000 == 0 else f'{count}_full'
  kernel = result.kernel
  return '\n'.join((
      f'{name}: {count} generated against all {result.real} images of '
      f'{source.where}, features {features.name}, covariance divided by '
      f'{protocol.divisor}',
      f'{fid} {result.frechet:.4f}',
      f'KID x 1000 {1000 * kernel.mean:.4f}, standard deviation '
      f'{1000 * kernel.std:.4f} over {len(kernel.each)} pairs of subsets of '
      f'{protocol.kid_size}'))


def open_both(network: str | os.PathLike, data: str
              ) -> tuple[inference.Trained, dataset.Images]:
  """A generator, and real images of its size.

  Args:
    network: as inference.load takes it.
    data: see `report`.

  Raises:
    UserError: a file is not there or not what it should be, or the images have
      another size than the generator's.
  """
  if data:
    trained, source = inference.load(network), dataset.open_images(data)
    dataset.check(source)
  elif inference.find(network).suffix != '.safetensors':
    raise UserError(f'{network} is an official network, whose training data '
                    'are not known; give them by --data.')
  else:
    trained, config = inference.load_with_config(network)
    source = opening.open_data(config.data)
  side = trained.generator.image_size(trained.size)
  if source.size != side:
    raise UserError(
        f'{source.where} has images of {source.size} pixels a side, but '
        f'{network} generates {side}; resize them, since the distance would '
        'measure the resolution.')
  return trained, source


def check_counts(real: int, protocol: Protocol) -> None:
  """Checks that there are enough images.

  Raises:
    UserError: there are not; names the remedy.
  """
  if protocol.samples < 2:
    raise UserError(f'--samples={protocol.samples} is too few: a covariance '
                    'needs at least 2 images.')
  if real < 2:
    raise UserError(f'The set has {real} images, and a covariance needs at '
                    'least 2; give more images by --data.')
  if protocol.kid_size > min(real, protocol.samples):
    raise UserError(
        f'KID takes subsets of {protocol.kid_size}, but there are {real} real '
        f'and {protocol.samples} generated images; lower --kid_subset or give '
        'more images.')


def distances(trained: inference.Trained, source: dataset.Images,
              features: Features, protocol: Protocol = FULL) -> Result:
  """Distances of generated images from all images of a set.

  Args:
    trained: Trained.
    source: the real images.
    features: that are compared.
    protocol: Protocol.

  Raises:
    UserError: there are fewer images than the protocol needs.
  """
  check_counts(len(source.names), protocol)
  real = real_statistics(source, features)
  with tempfile.TemporaryDirectory(dir=_cache()) as folder:
    generated = _embed(
        generated_images(trained, source, protocol), protocol.samples,
        features, pathlib.Path(folder) / 'generated.npy', 'generated images')
    frechet = _frechet(real, generated, protocol.divisor)
    kernel = distribution.kernel_distance(
        real.features, generated.features, size=protocol.kid_size)
  return Result(frechet, kernel, real.sums.count)


def real_statistics(source: dataset.Images, features: Features) -> Statistics:
  """Statistics of all images of a set, from the cache folder where they are.

  They are stored under a hash of the images' content and of the features.

  Args:
    source: Images.
    features: Features.
  """
  key = hashlib.sha256(repr((_VERSION, content_digest(source), features.name,
                             features.digest)).encode()).hexdigest()[:24]
  path = _cache() / f'{key}.npz'
  stored = files.read_cached(path, ['count', 'total', 'products'])
  if stored is not None:
    count, total, products = stored
    try:
      return Statistics(
          distribution.Sums(int(count), total, products),
          np.load(path.with_suffix('.npy'), mmap_mode='r'))
    except FileNotFoundError:
      pass
    except (TypeError, ValueError, EOFError):
      files.report_damage(path)
  with files.atomic_write(path.with_suffix('.npy')) as temporary:
    statistics = _embed(_chunks_of(source), len(source.names), features,
                        temporary, 'real images')
  # Written last: both files are complete where this one is.
  with files.atomic_write(path) as temporary:
    np.savez(temporary, **statistics.sums._asdict())
  return statistics


def content_digest(source: dataset.Images) -> str:
  """SHA-256 of the files of a set, or of its pixels where it has no files."""
  path = pathlib.Path(source.where)
  paths = [pathlib.Path(f) for f in source.files] or (
      [path] if path.is_file() else [path / name for name in source.names])
  digest = hashlib.sha256(repr((source.size, source.names)).encode())
  if all(p.is_file() for p in paths):
    for file in notices.track(paths, 'Hashing files'):
      with file.open('rb') as content:
        digest.update(hashlib.file_digest(content, 'sha256').digest())
  else:
    for images in _chunks_of(source):
      digest.update(images.tobytes())
  return digest.hexdigest()


def generated_images(
    trained: inference.Trained, source: dataset.Images,
    protocol: Protocol) -> Iterator[np.ndarray]:
  """Yields uint8 images [n, R, R, 3], protocol.samples in all.

  Image i depends on the seed and i only, not on the number of devices.

  Args:
    trained: Trained.
    source: whose cameras are drawn, with repetition; the generator's own
      distribution of cameras where it has none.
    protocol: Protocol.
  """
  generate = sharding.map_over_devices(
      functools.partial(_generate, trained, protocol.seed), rows=1)
  draw = camera_draws(trained, source, protocol.seed)
  for start in range(0, protocol.samples, _CHUNK):
    index = np.arange(start, min(start + _CHUNK, protocol.samples))
    rendering = draw(index, 0)
    mapping = draw(index, 1) if protocol.independent_cameras else rendering
    yield generate(trained.variables, (index, rendering, mapping))


def camera_draws(
    trained: inference.Trained, source: dataset.Images | None, seed: int
) -> Callable[[np.ndarray, int], np.ndarray]:
  """(indices [n], stream) -> labels [n, 25], random but fixed by all of these.

  Args:
    trained: Trained.
    source: whose labels are drawn; where it has none, or is None, the
      generator's own distribution is.
    seed: of the draws.
  """
  if source is not None and source.labels.shape[1]:
    return lambda index, stream: source.labels[[
        np.random.default_rng((seed, stream, i)).integers(len(source.labels))
        for i in index]]
  sample = jax.jit(jax.vmap(lambda key: cameras.to_label(
      trained.generator.sample_camera(key))))

  def draw(index: np.ndarray, stream: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(seed), stream)
    return np.asarray(sample(jax.vmap(
        functools.partial(jax.random.fold_in, key))(jnp.asarray(index))))

  return draw


def quantize(images: jax.Array) -> jax.Array:
  """Bytes of images in about [-1, 1], rounded down as in NVIDIA's code."""
  return jnp.clip(images * 127.5 + 128, 0, 255).astype(jnp.uint8)


def _generate(trained, seed, variables, rows):
  """One image, uint8 [1, R, R, 3]."""
  index, rendering, mapping = rows
  generator = trained.generator
  key_z, key_noise, key_rays = jax.random.split(
      jax.random.fold_in(jax.random.key(seed), index[0]), 3)
  z = jax.random.normal(key_z, (1, generator.z_dim))
  ws = generator.map(variables, z, cameras.from_label(mapping), 1.0, None)
  representation = generator.synthesize(variables, ws, 'random', key_noise)
  return quantize(generator.render(
      variables, representation, ws, cameras.from_label(rendering),
      trained.size, key_rays).image)


def _frechet(real, generated, divisor):
  """The exact form where it is cheap: with fewer images than features."""
  count, width = max(real.sums.count, generated.sums.count), len(
      real.sums.total)
  if count <= width:
    return distribution.frechet_of_features(
        real.features, generated.features, divisor)
  return distribution.frechet(*(distribution.moments_of(x.sums, divisor)
                                for x in (real, generated)))


def _embed(chunks: Iterable[np.ndarray], count: int, features: Features,
           path: pathlib.Path, description: str) -> Statistics:
  """Statistics of `count` images, with the features in a file."""
  sums = stored = None
  done, full = 0, min(_CHUNK, count)
  with notices.progress(description, count) as advance:
    for images in chunks:
      # The last chunk is filled up: another number of images would be compiled
      # anew.
      filled = np.concatenate(
          [images, images[-1:].repeat(full - len(images), 0)])
      embedded = features.embed(filled)[:len(images)]
      if sums is None or stored is None:
        width = embedded.shape[1]
        sums = distribution.no_sums(width)
        stored = np.lib.format.open_memmap(
            path, 'w+', np.float32, (count, width))
      sums = distribution.add(sums, embedded)
      stored[done:done + len(embedded)] = embedded
      done += len(embedded)
      advance(len(embedded))
  assert sums is not None and stored is not None
  stored.flush()
  return Statistics(sums, stored)


def _chunks_of(source: dataset.Images) -> Iterator[np.ndarray]:
  """Yields all images of a set in its order, decoded in threads."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for start in range(0, len(source.names), _CHUNK):
      rows = range(start, min(start + _CHUNK, len(source.names)))
      yield np.stack(list(pool.map(source.pixels, rows)))


def _cache() -> pathlib.Path:
  """The folder of stored statistics, which is made."""
  folder = files.cache_dir() / 'fid'
  folder.mkdir(parents=True, exist_ok=True)
  return folder
