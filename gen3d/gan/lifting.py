"""LiftedGAN (Shi et al., 2011.13126): a frozen 2-D GAN as a Generator3D.

Vocabulary. Of the style w of an image four networks estimate an object in its
neutral pose: depth [N, R, R], albedo [N, R, R, 3], a light [N, 4], the view
[N, 6] of the image, and the blend [N, R, R, 1], how much each pixel moves with
the object. The albedo is the 2-D generator's image of the neutral style, less
its shading. The depth map is a mesh (ops/depth_mesh.py) whose vertices have
the colors of the albedo under a light: an object is a relightable mesh.

Images are in [-1, 1]. A light is (l0, l1, l2, l3): ambient l0 / 2 + 1/2,
diffuse l1 / 2 + 1/2, and the direction (l2, l3, 1) in which it shines, in the
frame of the camera (x right, y down, z forward). A view is three angles about
x, y and z, in units of Settings.rotation_range, and a shift in units of
xy_range and z_range.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.gan import Generated, Generator3D, generator2d
from gen3d.models import lifted_gan, stylegan2
from gen3d.ops import cameras, depth_mesh, images, mesh

# Margins of the blend, rows at the top and bottom and columns at the sides,
# and columns of the depth that are clamped.
_ROWS, _COLUMNS = 1, 2
_BACKGROUND = 1.0  # white


class Settings(NamedTuple):
  """Constants of estimation and rendering; the defaults are the paper's.

  Depths are in units of the canonical camera's distance.

  Attributes:
    fov: of the canonical camera, degrees.
    min_depth, max_depth: range of the depth.
    border_depth: of the clamped columns; what is 0.01 before it is the object.
    center_depth: of the center of rotation.
    rotation_range: degrees.
    xy_range, z_range: of the shift.
    blur_radius, blur_sigma: of the blend's blur and the albedo's, in pixels;
      the weight at distance i is exp(-(i / (2 sigma))^2).
    clamp_border: sets the depth at the left and right border.
    delight: divides the image by its shading.
    clip_contours: see depth_mesh.clip_contours.
    perspective: see depth_mesh.render.
    white: the background of the images is white, and pixels whose darkest
      channel is this far from it are the object; all others are put to the
      border depth. 0 for any background, as in the paper.
  """
  fov: float = 10.0
  min_depth: float = 0.9
  max_depth: float = 1.1
  border_depth: float = 1.05
  center_depth: float = 1.0
  rotation_range: float = 60.0
  xy_range: float = 0.1
  z_range: float = 0.01
  blur_radius: int = 10
  blur_sigma: float = 4.0
  clamp_border: bool = True
  delight: bool = True
  clip_contours: bool = True
  perspective: bool = False
  white: float = 0.0


class Lifting(NamedTuple):
  """The modules of a lifted generator, and its constants."""
  generator: stylegan2.Generator
  decompose: lifted_gan.Decompose
  compose: lifted_gan.Compose
  depth: lifted_gan.Depth
  warp: lifted_gan.Warp
  settings: Settings


class Estimate(NamedTuple):
  """An object in its neutral pose."""
  depth: Any   # [N, R, R]
  relief: Any  # [N, R, R], the same without a white background: for normals
  albedo: Any  # [N, R, R, 3]
  cover: Any   # [N, R, R, 1] in [0, 1]: not a white background
  light: Any   # [N, 4]
  view: Any    # [N, 6], of the 2-D generator's image
  blend: Any   # [N, R, R, 1]
  style: Any   # [N, D], neutral
  image: Any   # [N, R, R, 3], the 2-D generator's of the neutral style


class Rendered(NamedTuple):
  """A rendered image."""
  image: Any  # [N, S, S, 3]
  depth: Any  # [N, S, S]
  mask: Any   # [N, S, S, 1], 1 where there is something


def build(config: Any) -> Lifting:
  """The Lifting of the ConfigDict `model` of configs/lifted_gan.py.

  Args:
    config: with `generator` (resolution, synthesis, mapping, z_dim),
      `decompose`, `compose`, `depth` and `warp` (keywords of the networks),
      and `settings`.
  """
  return Lifting(
      generator2d.build(config.generator),
      lifted_gan.Decompose(**config.decompose),
      lifted_gan.Compose(**config.compose),
      lifted_gan.Depth(**config.depth),
      lifted_gan.Warp(config.generator.resolution, **config.warp),
      Settings(**config.settings))


def init(lifting: Lifting, generator: Any, key: jax.Array) -> Any:
  """Untrained parameters of the four networks, {name: parameters}.

  Args:
    lifting: Lifting.
    generator: variables of the 2-D generator.
    key: of the random numbers.
  """
  keys = dict(zip(lifted_gan.NETWORKS, jax.random.split(key, 4)))
  w = jnp.zeros((1, lifting.generator.mapping_config['width']))
  _, features = synthesize(lifting, generator, w)
  light, view = (jnp.zeros((1, n)) for n in (lifted_gan.LIGHT, lifted_gan.VIEW))
  inputs = {'compose': (w, light, view), 'depth': (w, features)}
  return {name: getattr(lifting, name).init(
      keys[name], *inputs.get(name, (w,)))['params'] for name in keys}


def synthesize(lifting: Lifting, generator: Any, w: jax.Array,
               noise: str = 'const', key: jax.Array | None = None
               ) -> tuple[jax.Array, jax.Array]:
  """The 2-D generator's images and features of the last block, of w [N, D].

  Args:
    lifting: Lifting.
    generator: variables of the 2-D generator.
    w: [N, D], the same for all layers.
    noise: 'const', 'random' or 'none'.
    key: for 'random'.

  Returns:
    (images [N, R, R, 3], features [N, R, R, C]).
  """
  module = lifting.generator
  ws = jnp.repeat(w[:, None], module.num_ws, axis=1)
  last = f'b{module.synthesis_config["resolution"]}'
  image, state = module.apply(
      generator, ws, method=lambda g, ws: g.synthesis(ws, noise),
      rngs={} if key is None else {'noise': key}, mutable=['intermediates'],
      capture_intermediates=lambda block, _: block.name == last)
  features, _ = state['intermediates']['synthesis'][last]['__call__'][0]
  return image, features.astype(jnp.float32)


def apply(lifting: Lifting, params: Any, name: str, *inputs: Any) -> Any:
  """One of the four networks, by its name in lifted_gan.NETWORKS."""
  return getattr(lifting, name).apply({'params': params[name]}, *inputs)


def estimate(lifting: Lifting, params: Any, generator: Any, w: jax.Array,
             noise: str = 'const', key: jax.Array | None = None) -> Estimate:
  """The object of a style (section 3.2).

  Args:
    lifting: Lifting.
    params: of the four networks.
    generator: variables of the 2-D generator.
    w: [N, D].
    noise, key: as in `synthesize`.
  """
  settings = lifting.settings
  run = functools.partial(apply, lifting, params)
  _, light, view = run('decompose', w)
  # Neutral: seen from the front, lit from the camera.
  style = run('compose', w, light * jnp.array([1.0, 1.0, 0.0, 0.0]), 0 * view)
  image, features = synthesize(lifting, generator, style, noise, key)
  cover = coverage(settings, image)
  relief = canonical_depth(settings, run('depth', style, features))
  # With a white margin, so that faces that reach to the border are white.
  near = nn.max_pool(cover, (3, 3), padding='SAME')[..., 0] > 0
  depth = jnp.where(near, relief, settings.border_depth)
  albedo = (delight(settings, image, relief, light) if settings.delight
            else image)
  return Estimate(depth, relief, albedo, cover, light, view,
                  blend_map(settings, run('warp', style), depth), style, image)


def canonical_depth(settings: Settings, raw: jax.Array) -> jax.Array:
  """Depth [N, R, R] of the depth network's output, which may be any numbers."""
  centered = jnp.tanh(raw - jnp.mean(raw, axis=(1, 2), keepdims=True))
  depth = ((1 + centered) / 2 * settings.max_depth
           + (1 - centered) / 2 * settings.min_depth)
  if not settings.clamp_border:
    return depth
  column = np.arange(raw.shape[-1])
  border = np.minimum(column, column[::-1]) < _COLUMNS
  return jnp.where(border, settings.border_depth, depth)


def coverage(settings: Settings, image: jax.Array) -> jax.Array:
  """How much of each pixel is the object, [N, R, R, 1], without gradient.

  Args:
    settings: with `white`; where it is 0, all of each pixel.
    image: [N, R, R, 3].
  """
  if not settings.white:
    return jnp.ones_like(image[..., :1])
  least = jnp.min(jax.lax.stop_gradient(image), axis=-1, keepdims=True)
  darkness = (1 - least) / 2
  # Nothing up to half of `white`: generated backgrounds are not quite white.
  share = jnp.clip(2 * darkness / settings.white - 1, 0.0, 1.0)
  share = share * share * (3 - 2 * share)
  # Closed: white spots of up to two pixels belong to the object around them.
  spread = lambda x: nn.max_pool(x, (3, 3), padding='SAME')
  return -spread(-spread(share))


def foreground(settings: Settings, depth: jax.Array) -> jax.Array:
  """Where the depth [...] is that of the object, bool [...]."""
  return depth <= settings.border_depth - 0.01


def blend_map(settings: Settings, logits: jax.Array,
              depth: jax.Array) -> jax.Array:
  """How much pixels move with the object, [N, R, R, 1] in [0, 1].

  Args:
    settings: Settings.
    logits: [N, R, R] of the transformation network.
    depth: [N, R, R].
  """
  blend = jnp.where(foreground(settings, depth), 1.0,
                    jax.nn.sigmoid(logits + 5))
  blend = blur(settings, blend[..., None])
  inner = blend[:, _ROWS:-_ROWS, _COLUMNS:-_COLUMNS]
  return jnp.pad(
      inner, ((0, 0), (_ROWS, _ROWS), (_COLUMNS, _COLUMNS), (0, 0)))


def blur(settings: Settings, x: jax.Array) -> jax.Array:
  """Blurred maps [N, R, R, C]; the paper's kernel, edges mirrored."""
  # Its sigma lacks a factor: the standard deviation is sqrt 2 sigma.
  return images.gaussian_blur(
      x, settings.blur_sigma * 2**0.5, settings.blur_radius)


def light_of(ambient: float, diffuse: float, x: float = 0.0,
             y: float = 0.0) -> jax.Array:
  """A light [4] of ambient and diffuse parts in [0, 1] and a direction.

  `x` (to the right) and `y` (down) are the slopes of the direction in which it
  shines; 0 from the camera.
  """
  return jnp.array([2 * ambient - 1, 2 * diffuse - 1, x, y])


def shade(light: jax.Array, normals: jax.Array,
          frontal: bool = False) -> jax.Array:
  """Shading [N, R, R, 1]: ambient + diffuse max(n . d, 0).

  Args:
    light: [N, 4].
    normals: [N, R, R, 3], by depth_mesh.normals.
    frontal: the light shines from the camera, whatever its direction.
  """
  slopes = light[:, 2:]
  direction = jnp.concatenate(
      [0 * slopes if frontal else slopes, jnp.ones((len(light), 1))], axis=1)
  direction /= jnp.sqrt(jnp.sum(direction**2, axis=1, keepdims=True))
  cosine = jnp.sum(normals * direction[:, None, None], -1, keepdims=True)
  ambient, diffuse = (light[:, i, None, None, None] / 2 + 0.5 for i in (0, 1))
  return ambient + diffuse * jnp.maximum(cosine, 0.0)


def normals_of(settings: Settings, depth: jax.Array) -> jax.Array:
  """Normals [N, R, R, 3] of a canonical depth map."""
  return depth_mesh.normals(
      depth_mesh.points(depth, depth_mesh.focal_of(settings.fov)))


def delight(settings: Settings, image: jax.Array, relief: jax.Array,
            light: jax.Array) -> jax.Array:
  """The albedo of a neutral image: less the shading of a frontal light."""
  shading = shade(light, normals_of(settings, relief), frontal=True)
  return (image / 2 + 0.5) / (shading + 1e-8) * 2 - 1


def lit(settings: Settings, albedo: jax.Array, relief: jax.Array,
        light: jax.Array, cover: jax.Array | None = None) -> jax.Array:
  """The image [N, R, R, 3] of an albedo under a light, in the neutral pose.

  Args:
    settings: Settings.
    albedo: [N, R, R, 3].
    relief: [N, R, R], depth.
    light: [N, 4].
    cover: [N, R, R, 1] of the object, before white; None for everything.
  """
  shading = shade(light, normals_of(settings, relief))
  image = (albedo / 2 + 0.5) * shading * 2 - 1
  return image if cover is None else _BACKGROUND + cover * (image - _BACKGROUND)


def neutral(settings: Settings, made: Estimate) -> jax.Array:
  """The image [N, R, R, 3] of objects in their neutral pose."""
  return lit(settings, made.albedo, made.relief, made.light, made.cover)


def rigid(settings: Settings, view: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(rotation [N, 3, 3], translation [N, 3]) of views [N, 6]."""
  angles = jnp.deg2rad(settings.rotation_range * view[:, :3])
  shift = view[:, 3:] * jnp.array(
      [settings.xy_range, settings.xy_range, settings.z_range])
  return depth_mesh.rotation(angles), shift


def render(settings: Settings, depth: jax.Array, image: jax.Array,
           view: jax.Array, blend: jax.Array | None = None) -> Rendered:
  """A neutral image [N, R, R, 3], seen in other views (section 3.3).

  Args:
    settings: Settings.
    depth: [N, R, R].
    image: colors of the vertices, or other attributes.
    view: [N, 6].
    blend: [N, R, R, 1]; None moves everything.

  Returns:
    Rendered, of the same size. Depth and mask have no gradients.
  """
  if settings.clip_contours:
    depth = depth_mesh.clip_contours(depth)
  focal = depth_mesh.focal_of(settings.fov)
  seen = _rasterize(settings, depth, image, *rigid(settings, view), blend,
                    cameras.pinhole(focal), depth.shape[-1])
  # Empty pixels are behind all others.
  behind = 1.5 * settings.max_depth - 0.5 * settings.min_depth
  far = jnp.where(seen.hit, seen.depth, behind)
  return Rendered(jnp.where(seen.hit[..., None], seen.image, _BACKGROUND), far,
                  (far < behind)[..., None].astype(jnp.float32))


def _rasterize(settings, depth, attributes, rotation, translation, blend,
               intrinsics, size):
  """A depth_mesh.View of the depth map under a rigid motion."""
  still = depth_mesh.points(depth, depth_mesh.focal_of(settings.fov))
  vertices = depth_mesh.transform(
      still, rotation, translation, settings.center_depth)
  if blend is not None:
    vertices = blend * vertices + (1 - blend) * still
  # Twice the largest depth: nothing that turns about the center is farther.
  return depth_mesh.render(vertices, attributes, intrinsics, size,
                           2 * settings.max_depth, settings.perspective)


def join(params: Any, generator: Any) -> dict[str, Any]:
  """Variables of the Generator3D, which `generator` describes.

  Args:
    params: of the four networks.
    generator: variables of the 2-D generator.
  """
  return {'params': {**params, 'generator': generator['params']},
          'buffers': {'generator': generator['buffers']}}


def _split(variables):
  """(params, generator) of `join`."""
  params = dict(variables['params'])
  return params, {'params': params.pop('generator'),
                  'buffers': variables['buffers']['generator']}


def generator(
    config: Any, front: cameras.Camera,
    sample_camera: Callable[[jax.Array], cameras.Camera]) -> Generator3D:
  """The Generator3D of a config's `model`; its variables are those of `join`.

  The representation is an Estimate; `_replace(light=...)` relights it.

  Args:
    config: as in `build`.
    front: the canonical camera, whose axis goes through the world's origin,
      the center of rotation.
    sample_camera: key -> Camera of the training data's distribution.
  """
  lifting = build(config)
  settings = lifting.settings
  # World units in a unit of depth.
  scale = float(jnp.linalg.norm(front.c2w[:3, 3])) / settings.center_depth
  reach = max(settings.max_depth - settings.center_depth,
              settings.center_depth - settings.min_depth,
              0.5 / depth_mesh.focal_of(settings.fov))
  return Generator3D(
      map=functools.partial(_map, lifting),
      synthesize=functools.partial(_synthesize, lifting),
      render=functools.partial(_render, settings, front, scale),
      mesh=functools.partial(_mesh, settings, front, scale),
      color=functools.partial(_color, settings, front),
      sample_camera=sample_camera, z_dim=config.generator.z_dim, num_ws=1,
      bound=scale * reach, image_size=lambda size: size, background='white',
      absolute_pose=False, solid=False)


def _map(lifting, variables, z, camera=None, psi=1.0, cutoff=None):
  del camera  # A 2-D generator has no camera conditioning.
  _, variables = _split(variables)
  return generator2d.map_latents(
      lifting.generator, variables, z, psi, cutoff)[:, :1]


def _synthesize(lifting, variables, ws, noise='const', key=None):
  return estimate(lifting, *_split(variables), ws[:, 0], noise, key)


def _render(settings, front, scale, variables, objects, ws, camera, size,
            key=None):
  del variables, ws, key  # A mesh needs no network and no samples.
  image = neutral(settings, objects)
  # From the frame of the canonical camera to that of each other one, both
  # with OpenCV's axes.
  back = jnp.swapaxes(camera.c2w[:, :3, :3], 1, 2)
  flip = cameras.OPENCV[:3]
  turn = flip[:, None] * (back @ front.c2w[:3, :3]) * flip
  offset = jnp.sum(
      back * (front.c2w[:3, 3] - camera.c2w[:, :3, 3])[:, None], -1)
  # `transform` turns about the center: what is left is the translation.
  center = jnp.array([0.0, 0.0, settings.center_depth])
  shift = flip * offset / scale + turn @ center - center
  solid = objects.cover * foreground(settings, objects.depth)[..., None]
  attributes = jnp.concatenate([image, solid], axis=-1)
  seen = _rasterize(settings, objects.depth, attributes, turn, shift,
                    objects.blend, camera.intrinsics, size)
  hit = seen.hit[..., None]
  color = jnp.where(hit, seen.image[..., :3], _BACKGROUND)
  directions = cameras.rays(camera, size, size).directions
  forward = -camera.c2w[:, None, None, :3, 2]
  along = jnp.sum(directions * forward, axis=-1)
  return Generated(color, color, scale * seen.depth / along,
                   jnp.where(hit, seen.image[..., 3:], 0.0)[..., 0])


def _mesh(settings, front, scale, variables, objects, resolution):
  """The part of the depth mesh in front of the border depth."""
  del variables, resolution  # One vertex for each pixel.
  points, normals, colors, solid = jax.device_get(
      _vertices(settings, objects))
  side = points.shape[0]
  faces = depth_mesh.faces(side, side)
  faces = faces[solid.reshape(-1)[faces].all(-1)]
  if not len(faces):
    raise mesh.EmptyField('The object has no surface: no depth is less than '
                          'border_depth; train for more steps.')
  used, faces = np.unique(faces, return_inverse=True)
  pose = np.asarray(front.c2w) * cameras.OPENCV
  world = scale * points.reshape(-1, 3)[used] @ pose[:3, :3].T + pose[:3, 3]
  # Outwards, which is towards the camera.
  outward = -normals.reshape(-1, 3)[used] @ pose[:3, :3].T
  return mesh.Mesh(
      world.astype(np.float32), faces.reshape(-1, 3).astype(np.int32),
      outward.astype(np.float32), colors.reshape(-1, 3)[used])


@functools.partial(jax.jit, static_argnums=0)
def _vertices(settings, objects):
  """Points, normals, colors in [0, 1] and foreground of one object's grid."""
  points = depth_mesh.points(
      objects.depth, depth_mesh.focal_of(settings.fov))
  colors = jnp.clip(neutral(settings, objects) / 2 + 0.5, 0, 1)
  solid = (objects.cover[0, ..., 0] > 0.5) & foreground(
      settings, objects.depth[0])
  return points[0], normals_of(settings, objects.relief)[0], colors[0], solid


def _color(settings, front, variables, objects, points):
  """Colors [N, 3] of points [N, 3] in the world, along the canonical axis."""
  del variables
  return _colors_at(settings, objects, front, points)


@functools.partial(jax.jit, static_argnums=0)
def _colors_at(settings, objects, front, points):
  colors = jnp.clip(neutral(settings, objects)[0] / 2 + 0.5, 0, 1)
  place, _ = cameras.project(front, points)
  # The outermost vertices are on the edges of the image.
  rows = list((place[:, ::-1] * (colors.shape[0] - 1)).T)
  return jnp.stack([jax.scipy.ndimage.map_coordinates(
      colors[..., i], rows, order=1, mode='nearest') for i in range(3)], -1)
