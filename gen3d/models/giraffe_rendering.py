"""Volume rendering of GIRAFFE's scenes to features (2011.12100, 3.2 and 3.3).

Vocabulary. Entities are the B objects of a scene and, last, its background.
Arrays along rays are [N, ..., P, S]: N scenes, P rays of an image row by row, S
samples; t is their depth along the camera's axis. A field gives a raw density
and `hidden` features, from which a linear map makes features: it commutes with
compositing, and so is applied to pixels instead of samples.

The highest octave of an encoded point turns by 2^9 pi / (2 s) radians in a unit
of the world, which is 4000 for the published boxes, so that the last bits of
positions can be seen. They are therefore computed in the official order, each
operation rounded by itself.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import check
from gen3d.models.giraffe_scene import PADDED, Codes, Layout, Prior
from gen3d.ops import cameras, volume

_FAR = 1e10  # length of the last interval: what is there is opaque

# (points [G, P, S, 3], directions [G, P, 3], shape code [G, Z], appearance
# code [G, Z]) -> (raw density [G, P, S], hidden [G, P, S, H])
Field = Callable[..., tuple[jax.Array, jax.Array]]
# (hidden [..., H] composited with weights, sum of these [...]) -> [..., C]
ToFeatures = Callable[[jax.Array, jax.Array], jax.Array]


class Rays(NamedTuple):
  """Rays, as what is at depths 0 and 1."""
  start: Any  # [..., P, 3]
  end: Any    # [..., P, 3]


class Rendering(NamedTuple):
  """Sampling of rays.

  Attributes:
    samples: S.
    near, far: depths of the first and the last one.
    composition: 'sum' of densities, with their mean of features, or 'max'.
    window: samples of a ray, from the first one in an object's box, at which
      this object is evaluated; see `window_size`. 0: all.
    chunk: rays at a time, for each scene; 0 for all. Chunks are recomputed in
      the backward pass.
  """
  samples: int = 64
  near: float = 0.5
  far: float = 6.0
  composition: str = 'sum'
  window: int = 0
  chunk: int = 0


class Draws(NamedTuple):
  """Random numbers of a rendering in training."""
  jitter: Any  # [N, P, S] in [0, 1), places samples within their strata
  noise: Any   # [N, P, B + 1, S], added to raw densities


class Networks(NamedTuple):
  """The two fields, and the linear maps of their hidden features."""
  object: Field
  background: Field
  object_features: ToFeatures
  background_features: ToFeatures


class Entities(NamedTuple):
  """Entities along rays.

  `take` [N, B, P, S] -> [N, B, P, K] selects the samples at which objects are
  evaluated. Objects or background are None where they are left out.
  """
  edges: Any              # [N, P, S + 1], distances of unit rays
  density: Any            # [N, E, P, S]
  object_hidden: Any      # [N, B, P, K, H] or None
  background_hidden: Any  # [N, P, S, H] or None
  take: Callable[[jax.Array], jax.Array]


class Rendered(NamedTuple):
  """Rays after volume rendering; depth and opacity of the objects alone."""
  features: Any  # [N, P, C]
  opacity: Any   # [N, P]
  depth: Any     # [N, P] along the ray, in units of the world


def window_size(prior: Prior, rendering: Rendering) -> int:
  """Most samples of a ray in an object's box, for Rendering.window."""
  chord = 2 * PADDED * math.hypot(*map(
      max, prior.scale_min, prior.scale_max))
  step = (rendering.far - rendering.near) / (rendering.samples - 1)
  # One sample lies in each step, wherever it begins.
  return min(math.ceil(chord / step) + 1, rendering.samples)


def draw(key: jax.Array, size: int, boxes: int, samples: int) -> Draws:
  """Draws of one image, without the axis N; size^2 rays."""
  key_jitter, key_noise = jax.random.split(key)
  rays = size**2
  return Draws(jax.random.uniform(key_jitter, (rays, samples)),
               jax.random.normal(key_noise, (rays, boxes + 1, samples)))


def rays_of(camera: cameras.Camera, size: int) -> Rays:
  """Rays [N, P] of Cameras [N].

  The centers of the outermost pixels are the edges of the image.
  """
  k = camera.intrinsics[:, None]
  edge = 2 * np.arange(size, dtype=np.float32) / np.float32(size - 1) - 1
  y, x = (a.ravel() for a in np.meshgrid(-edge, edge, indexing='ij'))
  x, y = x - (2 * k[..., 0, 2] - 1), y + (2 * k[..., 1, 2] - 1)
  right, up, back, start = jnp.moveaxis(camera.c2w[:, None, :3], -1, 0)
  right = right / (2 * k[..., :1, 0])
  up = up / (2 * k[..., 1:2, 1])
  end = _rounded(right * x[..., None]) + _rounded(up * y[..., None])
  end = end - back + start
  return Rays(jnp.broadcast_to(start, end.shape), end)


def transform(rays: Rays, rotation: jax.Array, translation: Any = 0.0,
              scale: Any = 1.0) -> Rays:
  """R (p - t) / s of points p of rays; the arguments broadcast to theirs.

  Args:
    rays: Rays [...].
    rotation: R, [..., 3, 3].
    translation, scale: t and s, [..., 3].
  """
  def into(points):
    turned = _rotate(rotation, points - translation)
    # Not a plain vector, of which XLA would compute the reciprocal first.
    return turned / (scale + 0 * turned)

  return Rays(*map(into, rays))


def rays_in_boxes(rays: Rays, layout: Layout) -> Rays:
  """Rays [N, B, P] in the coordinates of the boxes."""
  return transform(
      jax.tree.map(lambda x: x[:, None], rays), *(
          x[:, :, None] for x in (
              layout.rotation, layout.translation, layout.scale)))


def points_at(rays: Rays, t: jax.Array) -> jax.Array:
  """Points [..., P, S, 3] at depths t [..., P, S]."""
  along = (rays.end - rays.start)[..., None, :]
  return rays.start[..., None, :] + _rounded(t[..., None] * along)


def depths(rendering: Rendering, jitter: jax.Array | None = None) -> jax.Array:
  """Depths t [S]: evenly spaced, or [N, P, S]: jittered between the middles.

  Args:
    rendering: Rendering.
    jitter: [N, P, S] in [0, 1).
  """
  samples = rendering.samples
  # As torch.linspace: by a rounded step, from both ends.
  rising = float(np.float32(1 / (samples - 1))) * np.arange(samples)
  fractions = np.where(
      np.arange(samples) < samples // 2, rising, 1 - rising[::-1])
  t = jnp.asarray(np.float32(rendering.near) + fractions.astype(np.float32)
                  * np.float32(rendering.far - rendering.near))
  if jitter is None:
    return t
  middle = volume.midpoints(t)
  low = jnp.concatenate([t[:1], middle])
  high = jnp.concatenate([middle, t[-1:]])
  return low + _rounded((high - low) * jitter)


def evaluate(
    networks: Networks, codes: Codes, layout: Layout, rays: Rays,
    t: jax.Array, noise: jax.Array | None = None, window: int = 0,
    which: str = 'all') -> Entities:
  """Evaluates the fields of N scenes along rays.

  Args:
    networks: Networks.
    codes: Codes.
    layout: Layout.
    rays: Rays [N, P].
    t: depths [N, P, S] or [S].
    noise: [N, P, B + 1, S] or None.
    window: see Rendering.
    which: 'all', 'objects' or 'background' alone.

  Raises:
    UserError: `which` is another word.
  """
  check('entities', ('all', 'objects', 'background'), which)
  along = rays.end - rays.start
  t = jnp.broadcast_to(t, (*along.shape[:-1], t.shape[-1]))
  edges = jnp.linalg.norm(along, axis=-1, keepdims=True) * jnp.concatenate(
      [t, t[..., -1:] + _FAR], axis=-1)
  if noise is not None:
    noise = jnp.moveaxis(noise, 2, 1)
  densities, hidden, behind, take = [], None, None, lambda x: x
  if which != 'background':
    density, hidden, take, inside = _objects(
        networks.object, codes, rays_in_boxes(rays, layout), t, window)
    if noise is not None:
      density += noise[:, :-1]
    inside &= layout.exists[:, :, None, None]
    densities.append(jnp.where(inside, density, 0.0))
  if which != 'objects':
    turned = transform(rays, layout.background[:, None])
    density, behind = networks.background(
        points_at(turned, t), turned.end - turned.start,
        codes.background_shape, codes.background_appearance)
    if noise is not None:
      density += noise[:, -1]
    densities.append(density[:, None])
  density = jax.nn.relu(jnp.concatenate(densities, axis=1))
  return Entities(edges, density, hidden, behind, take)


def _objects(field, codes, rays, t, window):
  """Raw density [N, B, P, S], hidden, `take` and which samples are inside."""
  inside = jnp.all(jnp.abs(points_at(rays, t[:, None])) <= PADDED, axis=-1)
  take, put = _window(inside, window)
  points = points_at(rays, take(jnp.broadcast_to(t[:, None], inside.shape)))
  count, boxes = inside.shape[:2]
  flat = lambda x: x.reshape(count * boxes, *x.shape[2:])
  apart = lambda x: x.reshape(count, boxes, *x.shape[1:])
  density, hidden = map(apart, field(
      flat(points), flat(rays.end - rays.start), flat(codes.shape),
      flat(codes.appearance)))
  return put(density), hidden, take, inside


def _window(inside, size):
  """(take, put) of the `size` samples from the first one that is inside.

  take: [..., S] -> [..., K]; put is its transpose, with zeros elsewhere.

  Most samples of a ray are outside of a box, where the density is not needed;
  those inside are neighbors, as a box is convex.
  """
  samples = inside.shape[-1]
  if not size or size >= samples:
    return (lambda x: x), (lambda x: x)
  first = jnp.minimum(jnp.argmax(inside, axis=-1), samples - size)
  # Sums with a mask instead of indices: XLA's scatter, the gradient of a
  # gather, is slow on a CPU.
  index = first[..., None, None] + jnp.arange(size)[:, None]
  mask = index == jnp.arange(samples)
  return (lambda x: jnp.sum(jnp.where(mask, x[..., None, :], 0.0), axis=-1),
          lambda x: jnp.sum(jnp.where(mask, x[..., None], 0.0), axis=-2))


def compose(density: jax.Array, composition: str = 'sum'
            ) -> tuple[jax.Array, jax.Array]:
  """Density of all entities and their shares in its features (eq. 8).

  Args:
    density: [N, E, ...].
    composition: see Rendering.

  Returns:
    [N, ...] and [N, E, ...].

  Raises:
    UserError: there is no such composition.
  """
  check('composition', ('sum', 'max'), composition)
  if density.shape[1] == 1:
    return density[:, 0], jnp.ones_like(density)
  if composition == 'max':
    shares = jnp.argmax(density, axis=1)[:, None] == jnp.arange(
        density.shape[1]).reshape(1, -1, *[1] * (density.ndim - 2))
    return jnp.sum(jnp.where(shares, density, 0), axis=1), shares.astype(
        density.dtype)
  total = jnp.sum(density, axis=1)
  return total, density / jnp.where(total == 0, 1e-4, total)[:, None]


def integrate(networks: Networks, entities: Entities, composition: str
              ) -> Rendered:
  """Renders entities along rays to features (eq. 9 and 10)."""
  density, edges = entities.density, entities.edges
  total, shares = compose(density, composition)
  weights = shares * volume.alpha_weights(total, edges)[:, None]
  boxes = density.shape[1] - (entities.background_hidden is not None)
  features = []
  if boxes:
    of_objects = entities.take(weights[:, :boxes])
    hidden = jnp.sum(volume.composite(
        of_objects, entities.object_hidden), axis=1)
    features.append(networks.object_features(
        hidden, jnp.sum(of_objects, axis=(1, 3))))
  if entities.background_hidden is not None:
    features.append(networks.background_features(
        volume.composite(weights[:, -1], entities.background_hidden),
        jnp.sum(weights[:, -1], axis=-1)))
  # Geometry of the objects alone: the background is opaque at the far end.
  empty = jnp.zeros_like(density[:, :1])
  objects, _ = compose(
      jnp.concatenate([density[:, :boxes], empty], axis=1), composition)
  weights = volume.alpha_weights(objects, _finite(edges))
  opacity = jnp.sum(weights, axis=-1)
  depth = jnp.sum(weights * edges[..., :-1], axis=-1)
  depth = jnp.where(opacity > 1e-6, depth / jnp.maximum(opacity, 1e-6),
                    edges[..., -2])
  return Rendered(sum(features), opacity, depth)


def opacities(entities: Entities) -> jax.Array:
  """Opacity [N, B, P] of each object, as if it were alone."""
  boxes = (entities.density.shape[1]
           - (entities.background_hidden is not None))
  return jnp.sum(volume.alpha_weights(
      entities.density[:, :boxes], _finite(entities.edges)[:, None]), axis=-1)


def _finite(edges):
  """Edges whose last interval is empty."""
  return jnp.concatenate([edges[..., :-1], edges[..., -2:-1]], axis=-1)


def render(
    networks: Networks, codes: Codes, layout: Layout, camera: cameras.Camera,
    size: int, draws: Draws | None, rendering: Rendering, which: str = 'all'
) -> Rendered:
  """Renders N scenes, size^2 rays each.

  Args:
    networks: Networks.
    codes: Codes.
    layout: Layout.
    camera: Camera [N] of the scene's world.
    size: rays a side.
    draws: Draws; None for samples at even distances and no noise.
    rendering: Rendering.
    which: see `evaluate`.
  """
  rays = rays_of(camera, size)

  def render_rays(inputs):
    rays, draws = inputs
    jitter, noise = draws or (None, None)
    entities = evaluate(
        networks, codes, layout, rays, depths(rendering, jitter), noise,
        rendering.window, which)
    return integrate(networks, entities, rendering.composition)

  if not 0 < rendering.chunk < size**2:
    return render_rays((rays, draws))
  # Chunks are of rays, so that rays become the leading axis.
  swap = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)
  chunk = jax.checkpoint(lambda inputs: swap(render_rays(swap(inputs))))
  return swap(volume.map_rays(chunk, swap((rays, draws)), rendering.chunk, 1))


def at_points(
    networks: Networks, codes: Codes, layout: Layout, points: jax.Array,
    directions: jax.Array, composition: str
) -> tuple[jax.Array, jax.Array]:
  """Density [N, Q] and features [N, Q, C] of the objects at points.

  Args:
    networks: Networks.
    codes: Codes.
    layout: Layout.
    points: [N, Q, 3] of the scene's world.
    directions: [N, Q, 3] from which they are seen.
    composition: see Rendering.
  """
  entities = evaluate(
      networks, codes, layout, Rays(points, points + directions),
      jnp.zeros(1), which='objects')
  density, shares = compose(entities.density, composition)
  hidden = jnp.sum(shares[..., None] * entities.object_hidden, axis=1)
  features = networks.object_features(hidden, jnp.sum(shares, axis=1))
  return density[..., 0], features[..., 0, :]


def _rotate(rotation, x):
  """Matrices [..., 3, 3] times vectors [..., 3]."""
  products = _rounded(rotation * x[..., None, :])
  return products[..., 0] + products[..., 1] + products[..., 2]


def _rounded(x):
  """A product x that is not fused with a sum, which would not round it."""
  return jnp.maximum(x, -1e30)
