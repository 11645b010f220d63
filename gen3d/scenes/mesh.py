"""A textured triangle mesh whose vertices and texture are optimized.

CLIP-Mesh (2203.13333) starts from a sphere, whose vertices are the control
points of a Loop surface. The second stage that Magic3D, ProlificDreamer and CSD
share starts from the mesh of a finished run.

The parameters are the offsets of the vertices from where they start, the
texture and, if the config has them, a normal map and a learned background. The
group 'surface' holds what does not change: faces, texture coordinates and maps
that are linear in the vertices. It is among the parameters, so that a run's
checkpoint is complete, but is not optimized; see Scene.fixed.

Vocabulary. V vertices, F faces and U texture coordinates: a vertex on a seam of
the texture has several. A texel has C = 3 channels, or 4 with an opacity. Depth
peeling gives layers, the nearest one first.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import check, pick
from gen3d.models import fields
from gen3d.ops import (
  cameras,
  images,
  raster,
  schedules,
  shading,
  silhouettes,
  surfaces,
  textures,
)
from gen3d.ops.mesh import Mesh
from gen3d.scenes import Render, Scene, View, views


def _itself(faces, count):
  """The map of vertices that are the surface's own, and no constant."""
  every = np.arange(count)
  one = lambda weight: surfaces.sparse_map(
      every, every, np.full(count, weight), (count, count))
  return one(1.0), one(0.0)


def _loop_limit(faces, count):
  _, constant = _itself(faces, count)
  return surfaces.loop_limit(faces, count), constant


# (faces, V) -> (map of the vertices to points of the surface, map that adds a
# constant without gradient), by the name in a config.
SURFACES = {'vertices': _itself, 'loop_limit': _loop_limit,
            'clip_mesh_limit': surfaces.refined_loop_limit}
MODES = (*views.SHADING_MODES, 'normal')
LAPLACIANS = ('positions', 'offsets')


class Surface(NamedTuple):
  """What does not change of an optimized mesh."""
  start: Any      # [V, 3], where the vertices start
  faces: Any      # [F, 3] int32
  uv: Any         # [U, 2]
  uv_faces: Any   # [F, 3] int32
  opposites: Any  # [F, 3] int32, see silhouettes.opposite_vertices
  limit: Any      # SparseMap from vertices to points of the surface
  constant: Any   # SparseMap: what is added to them, without gradient
  topology: Any   # surfaces.Topology


class Laplacian(NamedTuple):
  """The weight of the Laplacian, see schedules.bell.

  Attributes:
    of: 'positions' or 'offsets' of the vertices. The Laplacian of positions
      pulls towards a smaller and smoother surface, that of offsets towards the
      one at the start.
    start, end, rate: of schedules.bell.
  """
  of: str
  start: float
  end: float
  rate: float


class Fragment(NamedTuple):
  """What one layer shows at its pixels [H, W], with nothing where empty."""
  hit: Any       # [H, W] 1.0 or 0.0
  points: Any    # [H, W, 3]
  normals: Any   # [H, W, 3], towards the camera
  texel: Any     # [H, W, C]
  fragments: Any  # raster.Fragments


class Settings(NamedTuple):
  """How a mesh is rendered; see the configs."""
  size: int
  layers: int
  near: float
  far: float
  texture_blur: tuple
  mipmaps: bool


def make(config: Any, start: Mesh | None = None) -> Scene:
  """The Scene of a config (configs/refine.py, configs/clip_mesh.py: `scene`).

  Args:
    config: ConfigDict.
    start: the mesh at the start, with uv; None for a sphere. Only `init` needs
      it.

  Raises:
    UserError: a name is unknown.
  """
  check('surface', SURFACES, config.surface)
  check('Laplacian of', LAPLACIANS, config.laplacian.of)
  background = (fields.Background(**config.background_mlp)
                if config.get('background_mlp') else None)
  settings = Settings(
      config.size, config.layers, config.near, config.far,
      (config.texture.blur_sigma, config.texture.blur_radius),
      config.texture.mipmaps)
  render = partial(_render, background=background, settings=settings)
  return Scene(
      init=partial(_init, start=start, config=config, background=background),
      sample_view=views.of_config(config), render=render,
      penalties=partial(
          _penalties, laplacian=Laplacian(**config.laplacian),
          consistency=config.normal_consistency),
      show=partial(_show, background=background, settings=settings),
      mesh=partial(_mesh, settings=settings), bound=config.bound, fixed=('surface',), project=_project)


def surface_of(start: Mesh, kind: str) -> Surface:
  """The Surface of a mesh with uv, of NumPy arrays.

  Args:
    start: Mesh; vertices at one place are one, whatever their uv.
    kind: of SURFACES.

  Raises:
    UserError: an edge has more than two faces, of which `kind` allows none.
  """
  places, index = surfaces.weld(start.vertices)
  uv_faces = np.asarray(start.faces, np.int32)
  faces = index[uv_faces].astype(np.int32)
  limit, constant = SURFACES[kind](faces, len(places))
  return Surface(
      places, faces, np.asarray(start.uv, np.float32), uv_faces,
      silhouettes.opposite_vertices(faces), limit, constant,
      surfaces.topology(faces, len(places)))


def positions(params: Any) -> tuple[Surface, jax.Array]:
  """(the Surface, the positions [V, 3] of its points) of parameters."""
  surface = _records(params['surface'])
  control = surface.start + params['offsets']
  return surface, surfaces.apply(surface.limit, control) + (
      jax.lax.stop_gradient(surfaces.apply(surface.constant, control)))


def _records(surface):
  """A Surface, also of the nested dicts that a checkpoint is read as."""
  if isinstance(surface, Surface):
    return surface
  sparse = lambda x: surfaces.SparseMap(**x)
  return Surface(**{
      **surface, 'limit': sparse(surface['limit']),
      'constant': sparse(surface['constant']),
      'topology': surfaces.Topology(**{
          name: sparse(x) for name, x in surface['topology'].items()})})


def _init(key, *, start, config, background):
  """Parameters: `start`, or a sphere with random texels."""
  key_texture, key_background = jax.random.split(key)
  if start is None:
    start = surfaces.icosphere(config.sphere.subdivisions)
    start = start._replace(vertices=config.sphere.radius * start.vertices)
  surface = surface_of(start, config.surface)
  side, channels = config.texture.size, config.texture.channels
  if start.texture is None:
    texture = jax.random.uniform(key_texture, (side, side, channels))
  else:
    texture = images.resize(
        jnp.asarray(start.texture, jnp.float32) / 255, side)
    texture = jnp.concatenate([texture, jnp.ones((
        side, side, channels - texture.shape[-1]))], axis=-1)
  params = {'offsets': jnp.zeros(surface.start.shape), 'texture': texture,
            'surface': jax.tree.map(jnp.asarray, surface)}
  if config.normal_map:
    params['normal_map'] = jnp.broadcast_to(
        jnp.array([0.0, 0.0, 1.0]), (side, side, 3))
  if background is not None:
    params['background'] = background.init(key_background, jnp.zeros((1, 3)))
  return params


def _project(params):
  """Parameters with texels in [0, 1] and normals in [-1, 1]."""
  limits = {'texture': (0.0, 1.0), 'normal_map': (-1.0, 1.0)}
  return {name: jnp.clip(x, *limits[name]) if name in limits else x
          for name, x in params.items()}


def _render(params, key, view, *, background, settings):
  """A Render of `view`; nothing is jittered."""
  del key
  seen, antialias = _layers(params, view.camera, settings.size, settings)
  shade = partial(_shade, light=view.light)
  image, color_only, albedo, opacity = _composite(
      seen, antialias, lambda layer: jnp.concatenate(
          [shade(layer), layer.texel[..., :3]], axis=-1), view.light)
  distance, normals = _first(seen, view.camera)
  behind = _behind(params, view, background)
  return Render(
      image + (1 - opacity[..., None]) * behind, opacity, distance, normals,
      albedo, {}, color_only)


def _show(params, camera, size, modes, background_color=None, *, background,
          settings):
  """Previews; see Scene."""
  for mode in modes:
    check('mode', MODES, mode)
  height, width = (size, size) if isinstance(size, int) else size
  seen, antialias = _layers(params, camera, (height, width), settings)
  learned = background_color is None
  view = View(camera, cameras.rays(camera, height, width), None,
              jnp.ones(3) if learned else jnp.asarray(background_color),
              jnp.float32(learned))
  behind = _behind(params, view, background)

  def image(mode):
    if mode == 'normal':
      light = shading.Light(jnp.zeros(3), 1.0, 0.0, 1.0)
      color = lambda layer: 0.5 * (cameras.normalize(layer.normals) + 1)
    else:
      light = shading.camera_light(camera, *pick(
          'mode', views.SHADING_MODES, mode))
      color = partial(_shade, light=light)
    colors, _, _, opacity = _composite(
        seen, antialias, lambda layer: jnp.tile(color(layer), 2), light)
    return colors + (1 - opacity[..., None]) * behind

  return {mode: jnp.clip(image(mode), 0.0, 1.0) for mode in modes}


def _behind(params, view, background):
  """The background [H, W, 3] or [3] of a view.

  A scene without a learned background has that of the view, whatever
  `learned` says.
  """
  if background is None:
    return view.background
  learned = background.apply(params['background'], view.rays.directions)
  return view.learned * learned + (1 - view.learned) * view.background


def _layers(params, camera, size, settings):
  """(Fragments of each layer, function that antialiases an image of one)."""
  surface, points = positions(params)
  clip = cameras.clip_positions(
      camera, points, settings.near, settings.far)
  fragments = raster.rasterize(
      clip, surface.faces, size, layers=settings.layers)
  if settings.layers == 1:
    fragments = jax.tree.map(lambda x: x[None], fragments)
  texture = _blur(params['texture'], settings)
  normals = surfaces.vertex_normals(surface.topology, points)
  attributes = [points, normals]
  if 'normal_map' in params:
    texture = jnp.concatenate([texture, _blur(params['normal_map'], settings)], axis=-1)
    attributes.append(surfaces.vertex_tangents(
        surface.topology, points, normals, surface.uv[surface.uv_faces]))
  attributes = jnp.concatenate(attributes, axis=-1)
  flat = cameras.normalize(
      surfaces.face_normals(surface.topology, points), 1e-30)
  pyramid = textures.build_mips(texture) if settings.mipmaps else texture
  channels = params['texture'].shape[-1]

  def layer(number):
    seen = jax.tree.map(lambda x: x[number], fragments)
    hit = (seen.faces >= 0).astype(jnp.float32)
    point, normal, *tangent = jnp.split(raster.interpolate(
        attributes, seen, surface.faces), attributes.shape[-1] // 3, axis=-1)
    uv = raster.interpolate(surface.uv, seen, surface.uv_faces)
    slopes = raster.pixel_derivatives(
        surface.uv, seen, clip, surface.faces, surface.uv_faces)
    texel = textures.texture(pyramid, uv, slopes)
    normal = (shading.tangent_space_normal(
        texel[..., channels:], normal, *tangent) if tangent
              else cameras.normalize(normal))
    normal = shading.visible_normal(
        normal, flat[jnp.maximum(seen.faces, 0)],
        cameras.normalize(camera.c2w[:3, 3] - point))
    return Fragment(hit, point, hit[..., None] * normal,
                    texel[..., :channels], seen)

  def antialias(image, seen):
    return silhouettes.antialias(
        image, seen.fragments, clip, surface.faces, surface.opposites)

  return [layer(i) for i in range(settings.layers)], antialias


def _blur(texture, settings):
  """A texture as it is seen: with a low-pass filter, as in CLIP-Mesh."""
  sigma, radius = settings.texture_blur
  return images.reflected_blur(texture, sigma, radius)


def _shade(layer, light):
  """The color [H, W, 3] of a layer, not multiplied by its opacity."""
  return shading.lambertian(
      layer.texel[..., :3], layer.normals, layer.points, light)


def _opacity(layer, light):
  """The opacity [H, W, 1] of a layer; a textureless surface is opaque."""
  hit = layer.hit[..., None]
  if layer.texel.shape[-1] == 3:
    return hit
  alpha = layer.texel[..., 3:]
  return hit * (alpha + light.textureless * (1 - alpha))


def _composite(seen, antialias, color, light):
  """Layers over each other, without a background.

  Args:
    seen: Fragments of the layers.
    antialias: see _layers.
    color: Fragment -> [H, W, 6], two colors that are not premultiplied.
    light: shading.Light.

  Returns:
    ([H, W, 3] the first color, [H, W, 3] the same without a gradient to
    opacity and silhouettes, [H, W, 3] the second color, opacity [H, W]).
  """
  # Back to front, antialiased after each layer, as in CLIP-Mesh; premultiplied
  # colors and opacity, so that any background may be put behind them.
  total = jnp.zeros((*seen[0].hit.shape, 7))
  only = jnp.zeros((*seen[0].hit.shape, 3))
  for layer in reversed(seen):
    opacity, colors = _opacity(layer, light), color(layer)
    one = jnp.ones_like(opacity)
    total = opacity * jnp.concatenate([colors, one], -1) + (
        1 - opacity) * total
    total = antialias(total, layer)
    constant = jax.lax.stop_gradient(opacity)
    only = constant * colors[..., :3] + (1 - constant) * only
  return total[..., :3], only, total[..., 3:6], total[..., 6]


def _first(seen, camera):
  """(distance [H, W] from the camera, normals [H, W, 3]) of the first layer."""
  first = seen[0]
  offset = first.points - camera.c2w[:3, 3]
  squared = jnp.sum(offset * offset, axis=-1)
  return first.hit * jnp.sqrt(jnp.maximum(squared, 1e-12)), first.normals


def _penalties(params, render, step, *, laplacian, consistency):
  """{'laplacian', 'normal_consistency': weighted scalars}; see Scene."""
  del render
  surface, points = positions(params)
  vertices = params['offsets'] + (
      surface.start if laplacian.of == 'positions' else 0.0)
  weight = schedules.bell(
      step, laplacian.start, laplacian.end, laplacian.rate)
  return {
      'laplacian': weight * surfaces.laplacian(surface.topology, vertices),
      'normal_consistency': schedules.piecewise(step, consistency)
                            * surfaces.normal_consistency(
                                surface.topology, points)}


def _mesh(params, resolution, keep_share, *, settings):
  """The Mesh of parameters; its texture has the size of the parameters'."""
  del resolution, keep_share
  surface, points = positions(params)
  normals = surfaces.vertex_normals(surface.topology, points)
  # One vertex for each texture coordinate, and the place that it is at.
  place = np.zeros(len(surface.uv), np.int64)
  place[np.asarray(surface.uv_faces)] = np.asarray(surface.faces)
  texture = jnp.clip(_blur(params['texture'][..., :3], settings), 0, 1)
  return Mesh(
      np.asarray(points)[place], np.asarray(surface.uv_faces),
      np.asarray(normals)[place], uv=np.asarray(surface.uv),
      texture=np.asarray(jnp.round(255 * texture), np.uint8))
