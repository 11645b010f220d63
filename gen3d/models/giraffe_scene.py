"""GIRAFFE's scenes (2011.12100, section 3): objects before a background.

Vocabulary. The world of a scene has z up, and its cameras have azimuth 0, which
is +x; `from_world` and `to_world` convert from and to that of ops/cameras. An
object fills the cube [-1, 1]^3 of its box, and its density counts up to PADDED.
A Layout places the boxes of N scenes with B objects each; a Prior is the
distribution of layouts and cameras in training.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import cameras

PADDED = 1.1   # half the side of the cube in which an object has density
_TRIES = 1000  # of a layout whose boxes are to be apart


class Codes(NamedTuple):
  """Latent codes of N scenes."""
  shape: Any                  # [N, B, Z]
  appearance: Any             # [N, B, Z]
  background_shape: Any       # [N, Z']
  background_appearance: Any  # [N, Z']


class Layout(NamedTuple):
  """Where the objects of N scenes are: p_box = R (p - t) / s."""
  scale: Any        # s, [N, B, 3], half the sides of the boxes
  translation: Any  # t, [N, B, 3], their centers
  rotation: Any     # R, [N, B, 3, 3], such as `turn` gives
  exists: Any       # [N, B], bool; other objects are left out
  background: Any   # [N, 3, 3], rotation of the background


class Scene(NamedTuple):
  """N scenes: what is in them, and where."""
  codes: Codes
  layout: Layout


class Prior(NamedTuple):
  """The distribution of cameras and layouts in training.

  Attributes:
    boxes: B.
    scale_min, scale_max: of the boxes.
    fix_scale_ratio: whether one number places a box between the two.
    translation_min, translation_max: of the boxes.
    rotation_range: of the objects about the vertical, in turns.
    background_rotation_range: of the background, in turns.
    plane: height of all boxes, or None.
    locations: [K, B, 3], translations to choose from instead of a range.
    counts: probability of 0, 1, ... B objects; () for always B.
    collision_padding: least distance of the boxes along one axis; None for
      boxes that may overlap.
    v_range: of (1 - sin(elevation)) / 2 of the camera.
    radius_range: of the camera's distance.
    fov: field of view, degrees.
  """
  boxes: int = 1
  scale_min: tuple = (0.5, 0.5, 0.5)
  scale_max: tuple = (0.5, 0.5, 0.5)
  fix_scale_ratio: bool = True
  translation_min: tuple = (-0.75, -0.75, 0.0)
  translation_max: tuple = (0.75, 0.75, 0.0)
  rotation_range: tuple = (0.0, 1.0)
  background_rotation_range: tuple = (0.0, 0.0)
  plane: float | None = None
  locations: Any = None
  counts: tuple = ()
  collision_padding: float | None = None
  v_range: tuple = (0.25, 0.25)
  radius_range: tuple = (2.732, 2.732)
  fov: float = 49.13


def to_world(points: jax.Array) -> jax.Array:
  """Points [..., 3] of a scene in the world of ops/cameras: y up, front +z."""
  return points[..., (1, 2, 0)]


def from_world(points: jax.Array) -> jax.Array:
  """Inverse of `to_world`."""
  return points[..., (2, 0, 1)]


def camera_from_world(camera: cameras.Camera) -> cameras.Camera:
  """A Camera [...] of the world of ops/cameras in that of a scene."""
  return camera._replace(c2w=camera.c2w[..., (2, 0, 1, 3), :])


def camera_to_world(camera: cameras.Camera) -> cameras.Camera:
  """Inverse of `camera_from_world`."""
  return camera._replace(c2w=camera.c2w[..., (1, 2, 0, 3), :])


def sphere(u: Any, v: Any) -> jax.Array:
  """Points [..., 3] of the unit sphere, uniform for uniform u and v.

  The azimuth is u turns; v is 0 at the top and 1 at the bottom.
  """
  cosine = 1 - 2 * jnp.asarray(v)
  sine = jnp.sqrt(jnp.maximum(1 - cosine**2, 0))
  azimuth = 2 * jnp.pi * jnp.asarray(u)
  return jnp.stack(
      [sine * jnp.cos(azimuth), sine * jnp.sin(azimuth), cosine], axis=-1)


def camera_at(v: Any, radius: Any, fov: Any, u: Any = 0.0) -> cameras.Camera:
  """Cameras [...] of the scene's world that face the origin.

  Their axes are unit vectors. The official code divides the axes of a batch by
  the longest one of the batch before normalization, so that its images are up
  to 1.4 % smaller beside a batch with lower cameras.

  Args:
    v, u: of `sphere`, [...].
    radius: distance, [...].
    fov: degrees.
  """
  u, v, radius, fov = jnp.broadcast_arrays(*map(
      jnp.float32, (u, v, radius, fov)))
  position = radius[..., None] * sphere(u, v)
  up = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), position.shape)
  return cameras.Camera(
      cameras.look_at(position, jnp.zeros_like(position), up),
      cameras.pinhole(0.5 / jnp.tan(jnp.deg2rad(fov) / 2)))


def turn(turns: Any) -> jax.Array:
  """Rotations [..., 3, 3] about the vertical, counterclockwise from above."""
  angle = 2 * jnp.pi * jnp.asarray(turns)
  cosine, sine, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
  return jnp.stack([
      jnp.stack([cosine, -sine, zero], -1), jnp.stack([sine, cosine, zero], -1),
      jnp.stack([zero, zero, zero + 1], -1)], -2)


def layout_of(prior: Prior, scale: Any, translation: Any, rotation: Any,
              background: Any = 0.5) -> Layout:
  """The Layout at numbers in [0, 1], its place within the ranges of a Prior.

  Args:
    prior: Prior.
    scale, translation: [N, B, 3]; of `scale` the first only, where the Prior
      fixes the ratio.
    rotation: [N, B].
    background: [N] or a number.
  """
  scale, rotation = jnp.asarray(scale), jnp.asarray(rotation)
  if prior.fix_scale_ratio:
    scale = scale[..., :1]
  between = lambda x, low, high: jnp.asarray(low) + x * (
      jnp.asarray(high) - jnp.asarray(low))
  translation = between(
      translation, prior.translation_min, prior.translation_max)
  if prior.plane is not None:
    translation = translation.at[..., 2].set(prior.plane)
  background = between(
      jnp.broadcast_to(background, rotation.shape[:1]),
      *prior.background_rotation_range)
  return Layout(
      between(scale, prior.scale_min, prior.scale_max), translation,
      turn(between(rotation, *prior.rotation_range)),
      jnp.ones(rotation.shape, bool), turn(background))


def middle_layout(prior: Prior, count: int) -> Layout:
  """`count` times the Layout in the middle of the ranges.

  Several objects are on the largest ellipse within the range of translations.
  """
  angle = 2 * jnp.pi * jnp.arange(prior.boxes) / prior.boxes
  half = 0.5 if prior.boxes > 1 else 0.0
  place = 0.5 + half * jnp.stack(
      [jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)], -1)
  shape = (count, prior.boxes)
  return layout_of(prior, jnp.full((*shape, 3), 0.5),
                   jnp.broadcast_to(place, (*shape, 3)), jnp.full(shape, 0.5))


def sample_layout(key: jax.Array, prior: Prior) -> Layout:
  """A random Layout without the axis N."""
  keys = jax.random.split(key, 5)
  boxes = prior.boxes

  def place(key):
    scale, translation, rotation = jax.random.uniform(key, (3, 1, boxes, 3))
    return layout_of(prior, scale, translation, rotation[..., 0],
                     jax.random.uniform(keys[1], (1,)))

  layout = place(keys[0])
  if prior.locations is not None:
    layout = layout._replace(translation=jax.random.choice(
        keys[2], jnp.asarray(prior.locations))[None])
  elif prior.collision_padding is not None:
    overlaps = lambda layout: ~boxes_apart(
        layout.scale, layout.translation, prior.collision_padding)[0]
    layout, _ = jax.lax.while_loop(
        lambda state: overlaps(state[0]) & (state[1] < _TRIES),
        lambda state: (
            place(jax.random.fold_in(keys[0], state[1])), state[1] + 1),
        (layout, 0))
  if prior.counts:
    total = jnp.cumsum(jnp.asarray(prior.counts))
    number = jnp.sum(jax.random.uniform(keys[3]) * total[-1] >= total[:-1])
    exists = jax.random.permutation(keys[4], boxes) < number
    layout = layout._replace(exists=exists[None])
  return jax.tree.map(lambda x: x[0], layout)


def sample_camera(key: jax.Array, prior: Prior) -> cameras.Camera:
  """A random Camera of the scene's world; azimuths are those of objects."""
  v, radius = jax.random.uniform(key, (2,))
  between = lambda x, low, high: low + x * (high - low)
  return camera_at(between(v, *prior.v_range),
                   between(radius, *prior.radius_range), prior.fov)


def boxes_apart(scale: jax.Array, translation: jax.Array,
                padding: float) -> jax.Array:
  """Whether all pairs of boxes are apart, bool [N].

  By their unrotated sides, as in the official code.

  Args:
    scale, translation: of a Layout.
    padding: least distance along one of the axes.
  """
  distance = jnp.abs(translation[:, :, None] - translation[:, None])
  free = jnp.any(
      distance >= scale[:, :, None] + scale[:, None] + padding, axis=-1)
  return jnp.all(free | jnp.eye(free.shape[-1], dtype=bool), axis=(1, 2))


def reach(prior: Prior) -> float:
  """Half the side of the cube around the origin that holds all objects."""
  translation = np.abs([prior.translation_min, prior.translation_max]).max(0)
  if prior.plane is not None:
    translation[2] = abs(prior.plane)
  if prior.locations is not None:
    translation = np.abs(prior.locations).max((0, 1))
  x, y, z = PADDED * np.maximum(prior.scale_min, prior.scale_max)
  # Boxes turn about the vertical, and so does the scene.
  return float(max(np.hypot(x, y) + np.hypot(*translation[:2]),
                   z + translation[2]))


def place(scene: Scene, *, scale: Any = None, translation: Any = None,
          turns: Any = None, exists: Any = None) -> Scene:
  """N scenes with objects at other places.

  Args:
    scene: Scene.
    scale, translation: of a Layout, broadcast to [N, B, 3]; None: unchanged.
    turns: rotations about the vertical, broadcast to [N, B].
    exists: which objects there are, broadcast to [N, B].
  """
  given = {'scale': scale, 'translation': translation, 'exists': exists,
           'rotation': None if turns is None else turn(turns)}
  layout = scene.layout
  return scene._replace(layout=layout._replace(**{
      name: jnp.broadcast_to(
          jnp.asarray(value), getattr(layout, name).shape)
      for name, value in given.items() if value is not None}))


def join(*scenes: Scene) -> Scene:
  """The objects of several scenes before the background of the first.

  Codes do not belong to a box, so that there may be more objects than in
  training.
  """
  def together(records, names):
    return records[0]._replace(**{
        name: jnp.concatenate([getattr(record, name) for record in records], 1)
        for name in names})

  codes, layouts = zip(*scenes, strict=True)
  return Scene(
      together(codes, ('shape', 'appearance')),
      together(layouts, ('scale', 'translation', 'rotation', 'exists')))
