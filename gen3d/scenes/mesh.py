"""A textured triangle mesh whose vertices and texture are optimized.

CLIP-Mesh (2203.13333) starts from a sphere, whose vertices are the control
points of a Loop surface. The second stage that Magic3D, ProlificDreamer and CSD
share starts from the mesh of a finished run.

Optimized are the offsets of the vertices from where they start, the texture
and, if the config has them, a normal map and a learned background. What does
not change, 'surface', is with the parameters, too, so that a checkpoint is
complete: faces, texture coordinates and maps that are linear in the vertices.

Vocabulary. V vertices, F faces and U texture coordinates: a vertex on a seam of
the texture has several. A texel has C = 3 channels, or 4 with an opacity. Depth
peeling gives layers, the nearest one first.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, check, pick
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
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh
from gen3d.scenes import Render, Running, Scene, View, views


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
LAPLACIANS = ('positions', 'offsets')


class Surface(NamedTuple):
  """What does not change of an optimized mesh."""
  start: Any      # [V, 3], where the vertices start
  faces: Any      # [F, 3] int32
  uv: Any         # [U, 2]
  uv_faces: Any   # [F, 3] int32
  twins: Any      # [F, 3] int32, see silhouettes.edge_twins
  limit: Any      # SparseMap from vertices to points of the surface
  constant: Any   # SparseMap: what is added to them, without gradient
  topology: Any   # surfaces.Topology


class Vertices(NamedTuple):
  """Where the vertices are."""
  offsets: Any  # [V, 3] from the start
  control: Any  # [V, 3], start + offsets
  points: Any   # [V, 3] of the surface


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


class Layer(NamedTuple):
  """What one layer shows at its pixels."""
  hit: Any        # [H, W] 1.0, or 0.0 where it is empty
  points: Any     # [H, W, 3]
  normals: Any    # [H, W, 3], towards the camera
  texel: Any      # [H, W, C]
  antialias: Any  # image of the layer [H, W, K] -> image


class Settings(NamedTuple):
  """How a mesh is rendered.

  Attributes:
    size: pixels per side.
    layers: of depth peeling.
    near, far: planes of the cameras.
    texture_blur: (standard deviation, radius) in texels of the blur through
      which textures are seen.
    mipmaps: whether textures are read from a pyramid.
    smoothing: rounds of smoothing through which offsets are seen, each of
      which moves an offset halfway to the mean of its neighbors. A view's
      gradient then moves a neighborhood, not single vertices.
    outset: pixels by which the surface is moved outwards in the images of
      training, for a teacher in whose images silhouettes are that much larger.
  """
  size: int
  layers: int
  near: float
  far: float
  texture_blur: tuple
  mipmaps: bool
  smoothing: int
  outset: float


def make(config: Any, start: Mesh | None = None) -> Scene:
  """The Scene of a config (configs/refine.py, configs/clip_mesh.py: `scene`).

  Args:
    config: ConfigDict.
    start: the mesh at the start, with uv; None for a sphere. Not needed for
      parameters that exist.

  Raises:
    UserError: a name is unknown, or the mesh is no surface of the kind or
      larger than the cameras' range.
  """
  check('surface', SURFACES, config.surface)
  check('Laplacian of', LAPLACIANS, config.laplacian.of)
  if start is None:
    start = surfaces.icosphere(config.subdivisions)
    start = start._replace(vertices=config.radius * start.vertices)
  _check_size(start, config.bound)
  surface = surface_of(start, config.surface)
  background = (fields.Background(**config.background_mlp)
                if config.get('background_mlp') else None)
  settings = Settings(
      config.size, config.layers, config.near, config.far,
      (config.texture.blur_sigma, config.texture.blur_radius),
      config.texture.mipmaps, config.smoothing, config.outset)
  drawing = {'background': background, 'settings': settings}
  return Scene(
      init=partial(
          _init, shape=surface.start.shape, image=start.texture,
          side=config.texture.size, channels=config.texture.channels,
          normal_map=config.normal_map, background=background),
      sample_view=views.of_config(config), render=partial(_render, **drawing),
      penalties=partial(
          _penalties, laplacian=Laplacian(**config.laplacian),
          consistency=config.normal_consistency,
          variation=config.normal_variation, settings=settings),
      show=partial(_show, bound=config.bound, **drawing),
      mesh=partial(_mesh, settings=settings), bound=config.bound,
      modes=views.MODES, project=_project,
      running=Running({'surface': surface}, lambda values, measured: values))


def _check_size(start, bound):
  size = float(np.abs(start.vertices).max())
  if size > bound:
    raise UserError(
        f'The mesh reaches {size:.3g} from the origin, beyond the range of the '
        f'cameras, {bound:g}; start from its mesh file, which is scaled '
        '(--config.scene.start_from), or set --config.scene.bound and '
        'cameras that are farther away.')


def surface_of(start: Mesh, kind: str) -> Surface:
  """The Surface of a mesh with uv, of NumPy arrays.

  Args:
    start: Mesh; vertices at one place are one, whatever their uv.
    kind: of SURFACES.

  Raises:
    UserError: an edge has more than two faces, of which `kind` allows none.
  """
  places, index = mesh_ops.weld(np.asarray(start.vertices, np.float32))
  uv_faces = np.asarray(start.faces, np.int32)
  faces = index[uv_faces].astype(np.int32)
  limit, constant = SURFACES[kind](faces, len(places))
  return Surface(
      places, faces, np.asarray(start.uv, np.float32), uv_faces,
      silhouettes.edge_twins(faces), limit, constant,
      surfaces.topology(faces, len(places)))


def positions(params: Any, smoothing: int = 0) -> tuple[Surface, Vertices]:
  """The Surface of parameters and where its vertices are.

  Args:
    params: with 'surface' and 'offsets'.
    smoothing: see Settings.
  """
  surface = _records(params['surface'])
  # By a scan, so that one round is compiled.
  offsets, _ = jax.lax.scan(
      lambda x, _: (x + 0.5 * surfaces.apply(surface.topology.umbrella, x),
                    None), params['offsets'], length=smoothing)
  control = surface.start + offsets
  points = surfaces.apply(surface.limit, control) + (
      jax.lax.stop_gradient(surfaces.apply(surface.constant, control)))
  return surface, Vertices(offsets, control, points)


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


def _init(key, *, shape, image, side, channels, normal_map, background):
  """The parameters that are optimized; without an image, random texels."""
  key_texture, key_background = jax.random.split(key)
  if image is None:
    texture = jax.random.uniform(key_texture, (side, side, channels))
  else:
    texture = images.resize(jnp.asarray(image, jnp.float32) / 255, side)
    texture = jnp.concatenate([texture, jnp.ones((
        side, side, channels - texture.shape[-1]))], axis=-1)
  params = {'offsets': jnp.zeros(shape), 'texture': texture}
  if normal_map:
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
  layers = _layers(params, view.camera, settings.size, settings,
                   settings.outset)
  opacities = [_opacity(layer, view.light) for layer in layers]
  colors = [_shade(layer, view.light) for layer in layers]
  total = composite(
      [jnp.concatenate([color, layer.texel[..., :3]], axis=-1)
       for color, layer in zip(colors, layers)],
      opacities, [layer.antialias for layer in layers])
  image, albedo, opacity = jnp.split(total, (3, 6), axis=-1)
  behind = _behind(params, view, background)
  color_only = composite(colors, jax.lax.stop_gradient(opacities))[..., :3]
  distance, normals = _first(layers, view.camera)
  return Render(image + (1 - opacity) * behind, opacity[..., 0], distance,
                normals, albedo, {}, color_only, background=behind)


def _show(params, camera, size, modes, background_color=None, *, background,
          settings, bound):
  """Previews; see Scene."""
  for mode in modes:
    check('mode', views.MODES, mode)
  height, width = (size, size) if isinstance(size, int) else size
  layers = _layers(params, camera, (height, width), settings)
  learned = background_color is None
  view = View(camera, cameras.rays(camera, height, width), None,
              jnp.ones(3) if learned else jnp.asarray(background_color),
              jnp.float32(learned))
  behind = _behind(params, view, background)

  def image(mode):
    if mode == 'depth':
      distance, _ = _first(layers, camera)
      return views.object_depth(
          camera, distance, layers[0].hit, bound)
    if mode == 'normal':
      light = shading.Light(jnp.zeros(3), 1.0, 0.0, 1.0)
      color = lambda layer: 0.5 * (cameras.normalize(layer.normals) + 1)
    else:
      light = shading.camera_light(camera, *pick(
          'mode', views.SHADING_MODES, mode))
      color = partial(_shade, light=light)
    total = composite([color(layer) for layer in layers],
                      [_opacity(layer, light) for layer in layers],
                      [layer.antialias for layer in layers])
    return total[..., :3] + (1 - total[..., 3:]) * behind

  return {mode: jnp.clip(image(mode), 0.0, 1.0) for mode in modes}


def _behind(params, view, background):
  """The background [H, W, 3] or [3] of a view.

  A scene without a learned background has that of the view, whatever the
  value of `learned`.
  """
  if background is None:
    return view.background
  learned = background.apply(params['background'], view.rays.directions)
  return view.learned * learned + (1 - view.learned) * view.background


def _layers(params, camera, size, settings, outset=0.0):
  """The Layers of a view, the nearest one first."""
  surface, (_, _, points) = positions(params, settings.smoothing)
  if outset:
    # A pixel's width at the distance of each vertex.
    pixel = cameras.project(camera, points)[1] / (
        settings.size * camera.intrinsics[1, 1])
    points += outset * jax.lax.stop_gradient(
        pixel[:, None] * surfaces.vertex_normals(surface.topology, points))
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
    texture = jnp.concatenate(
        [texture, _blur(params['normal_map'], settings)], axis=-1)
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
    return Layer(
        hit, point, hit[..., None] * normal, texel[..., :channels],
        partial(silhouettes.antialias, fragments=seen, clip_positions=clip,
                faces=surface.faces, twins=surface.twins))

  return [layer(i) for i in range(settings.layers)]


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


def composite(colors: Sequence[jax.Array], opacities: Sequence[jax.Array],
              antialias: Sequence[Callable] = ()) -> jax.Array:
  """Layers over each other, premultiplied by opacity: [H, W, C + 1].

  From back to front, each result antialiased, as in CLIP-Mesh. The last channel
  is the opacity, so that any background may be put behind.

  Args:
    colors: [H, W, C] of each layer, the nearest one first.
    opacities: [H, W, 1] of each layer.
    antialias: image -> image of each layer, or none.
  """
  total = jnp.zeros((*opacities[0].shape[:-1], colors[0].shape[-1] + 1))
  for number in reversed(range(len(colors))):
    opacity = opacities[number]
    layer = jnp.concatenate([colors[number], jnp.ones_like(opacity)], axis=-1)
    total = opacity * layer + (1 - opacity) * total
    if antialias:
      total = antialias[number](total)
  return total


def _first(layers, camera):
  """(distance [H, W] from the camera, normals [H, W, 3]) of the first layer."""
  first = layers[0]
  offset = first.points - camera.c2w[:3, 3]
  squared = jnp.sum(offset * offset, axis=-1)
  return first.hit * jnp.sqrt(jnp.maximum(squared, 1e-12)), first.normals


def _penalties(params, render, step, *, laplacian, consistency, variation,
               settings):
  """{name: weighted scalar}; see Scene."""
  del render
  surface, (offsets, control, points) = positions(params, settings.smoothing)
  vertices = control if laplacian.of == 'positions' else offsets
  weight = schedules.bell(
      step, laplacian.start, laplacian.end, laplacian.rate)
  terms = {'laplacian': weight * surfaces.laplacian(
      surface.topology, vertices)}
  for name, function, schedule in (
      ('normal_consistency', surfaces.normal_consistency, consistency),
      ('normal_variation', surfaces.normal_variation, variation)):
    terms[name] = schedules.piecewise(step, schedule) * function(
        surface.topology, points)
  return terms


def _mesh(params, resolution, keep_share, *, settings):
  """The Mesh of parameters, opaque, with the texture as it is seen."""
  del resolution, keep_share
  surface, (_, _, points) = positions(params, settings.smoothing)
  normals = surfaces.vertex_normals(surface.topology, points)
  # One vertex for each texture coordinate, and the place that it is at.
  place = np.zeros(len(surface.uv), np.int64)
  place[np.asarray(surface.uv_faces)] = np.asarray(surface.faces)
  texture = jnp.clip(_blur(params['texture'][..., :3], settings), 0, 1)
  return Mesh(
      np.asarray(points)[place], np.asarray(surface.uv_faces),
      np.asarray(normals)[place], uv=np.asarray(surface.uv),
      texture=np.asarray(jnp.round(255 * texture), np.uint8))
