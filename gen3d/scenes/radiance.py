"""A captured scene: a radiance field.

NeRF, Mip-NeRF, hybrid voxels and hybrid tri-planes are values of one config:
how a sample is encoded, how deep the network is, how rays are sampled.
Coarse-to-fine sampling: stratified samples, then importance samples from the
coarse weights.

The scene is in a unit frame in which what is to be reconstructed fills the
cube [-1, 1]^3.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.choices import check, pick
from gen3d.models import fields
from gen3d.ops import (
  cameras,
  encodings,
  losses,
  mesh,
  sampling,
  shading,
  volume,
)
from gen3d.scenes import Render, Scene, View, views

BACKGROUNDS = ('white', 'black', 'random', 'learned')
EXTENTS = ('box', 'range')
MODES = ('color', 'depth', 'normal', 'textureless')
SPACINGS = ('distance', 'disparity')
# The axes of a parameter along which neighbors are close in space.
_GRIDS = {'planes': (1, 2), 'grid': (0, 1, 2)}


class Frame(NamedTuple):
  """The unit frame, stored with the parameters but never trained.

  Attributes:
    to_world: [4, 4], similarity from the unit frame to the capture's world.
    bounds: [2], nearest and farthest distance in the unit frame.
    path: cameras.Camera [F] in the unit frame, a path for films.
  """
  to_world: Any
  bounds: Any
  path: Any


class Sampling(NamedTuple):
  """Sampling of rays.

  Attributes:
    extent: 'box' for the cube [-1, 1]^3, 'range' for the frame's bounds.
    spacing: 'distance' or 'disparity', even spacing of the coarse edges.
    coarse_samples, fine_samples: intervals of the first pass, and those that
      the second one has instead or in addition.
    include_coarse: whether the second pass has the first one's edges, too, as
      in NeRF; Mip-NeRF draws all anew.
    resample_padding: added to the blurred weights before the second pass
      (Mip-NeRF); 0 for neither blur nor padding.
  """
  extent: str
  spacing: str
  coarse_samples: int
  fine_samples: int
  include_coarse: bool
  resample_padding: float


def make(config: Any, frame: Frame, view_size: int = 64) -> Scene:
  """The Scene of a config (configs/nerf.py and its variants: `scene`).

  `render` needs of the view its rays [...], background and learned only, and
  takes one key, a key for each ray, or None. Its albedo is the color without
  the background; there are no normals. Where the coarse pass has a loss its
  image is in `Render.passes`.

  Args:
    config: ConfigDict.
    frame: Frame, a part of the initial parameters.
    view_size: of the images of `sample_view`, whose cameras are those of the
      frame's path.

  Raises:
    UserError: a name is not known.
  """
  sampling_config = _sampling(config)
  check('background', BACKGROUNDS, config.background)
  background = (fields.Background(**config.background_mlp)
                if config.background == 'learned' else None)
  render = partial(
      _render, field_of=_field_of(config), background=background,
      sampling_config=sampling_config, chunk=config.chunk,
      passes=_passes(config), coarse_image=bool(config.coarse.loss_weight))
  query = jax.jit(make_query(config))
  return Scene(
      init=partial(_init, field=_field(config), background=background,
                   passes=_passes(config), frame=frame),
      sample_view=partial(_sample_view, path=frame.path, size=view_size,
                          background=config.background),
      render=render,
      penalties=partial(_penalties, total_variation=config.total_variation),
      show=partial(_show, render, _field_of(config), epsilon=config.epsilon,
                   white=config.background != 'black'),
      modes=MODES, mesh=partial(_mesh, query), bound=1.0,
      color=lambda params, points: query(params, points)[1])


def make_query(config: Any) -> Callable:
  """(params, points [N, 3]) -> (density [N], color [N, 3]) of a config.

  The color is the mean over six directions, for a mesh has one color from all
  sides.

  Raises:
    UserError: an encoder or an activation is unknown.
  """
  field_of = _field_of(config)

  def query(params, points):
    samples = encodings.Gaussian(points, jnp.zeros_like(points))
    axes = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    density, colors = jax.vmap(lambda axis: field_of(params, 'fine')(
        samples, jnp.broadcast_to(axis, points.shape)))(axes)
    return density[0], jnp.mean(colors, axis=0)

  return query


def background_color(
    name: str, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
  """The color [*shape, 3] behind the photographs and the scene.

  Args:
    name: of BACKGROUNDS; black where it is 'learned'.
    key: of random colors.
    shape: of the leading axes.
  """
  if name == 'random':
    return jax.random.uniform(key, (*shape, 3))
  return jnp.full((*shape, 3), float(name == 'white'))


def _field(config):
  """The RadianceField of a config."""
  field = config.field
  without = lambda mapping, *keys: {
      key: value for key, value in mapping.items() if key not in keys}
  options = without(field.encode, 'name')
  if 'resolution' in options:  # A grid spans the contracted space.
    options['bound'] = 2.0 if config.contract else 1.0
  encoder = pick('encoder', fields.ENCODERS, field.encode.name)(**options)
  return fields.RadianceField(
      encoder, activation=pick('activation', fields.DENSITY_ACTIVATIONS,
                               field.activation),
      **without(field, 'encode', 'activation'))


def _field_of(config):
  """(params, name of a pass) -> volume.Field."""
  module, contract = _field(config), config.contract

  def field_of(params, name):
    def field(samples, directions):
      if contract:
        samples = encodings.contract(samples)
      output: Any = module.apply(params[name], samples, directions)
      return output

    return field

  return field_of


def _passes(config):
  """Names of the two passes' parameters."""
  return ('coarse' if config.coarse.separate else 'fine', 'fine')


def _sampling(config):
  check('extent', EXTENTS, config.extent)
  check('spacing', SPACINGS, config.spacing)
  return Sampling(
      config.extent, config.spacing, config.coarse.samples,
      config.fine.samples, config.fine.include_coarse,
      config.fine.resample_padding)


def _init(key, *, field, background, passes, frame):
  keys = jax.random.split(key, 3)
  points = jnp.zeros((1, 3))  # for the shapes of the parameters
  samples = encodings.Gaussian(points, points)
  # Sorted, so that a pass's key does not depend on the order of the names.
  params = {name: field.init(keys[i], samples, points)
            for i, name in enumerate(sorted(set(passes)))}
  if background is not None:
    params['background'] = background.init(keys[2], points)
  return {**params, 'frame': jax.tree.map(jnp.float32, frame)}


def _sample_view(key, step, part=(0.0, 1.0), *, path, size, background):
  """A View from a random camera of a path; see Scene."""
  del step
  key_camera, key_background = jax.random.split(key)
  count = len(path.c2w)
  position = count * jax.random.uniform(
      key_camera, minval=part[0], maxval=part[1])
  index = jnp.clip(position.astype(jnp.int32), 0, count - 1)
  camera = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float32)[index], path)
  return View(camera, cameras.rays(camera, size, size), None,
              background_color(background, key_background), jnp.float32(1.0))


def _render(params, key, view, *, field_of, background, sampling_config, chunk,
            passes, coarse_image):
  """A Render of rays [...]; see `make`."""
  rays, behind = view.rays, view.background
  if background is not None:
    learned = background.apply(params['background'], rays.directions)
    behind = view.learned * learned + (1 - view.learned) * behind
  behind = jnp.broadcast_to(behind, rays.directions.shape)
  # A key for each ray, so that a ray's jitter does not depend on its chunk.
  if key is not None and key.ndim == 0:
    key = jax.random.split(key, rays.radii.shape[:-1])
  render_chunk = partial(
      _render_chunk, [field_of(params, name) for name in passes],
      jax.lax.stop_gradient(params['frame'].bounds), sampling_config,
      coarse_image)
  return volume.in_chunks(
      render_chunk, (rays, key, behind), chunk, rays.radii.ndim - 1)


def _render_chunk(pass_fields, bounds, sampling_config, coarse_image,
                  rays_keys_background):
  """A Render of rays [...], coarse to fine.

  Args:
    pass_fields: volume.Fields of the two passes.
    bounds: [2] nearest and farthest distance.
    sampling_config: Sampling.
    coarse_image: whether `passes` has the coarse pass's image.
    rays_keys_background: Rays [...], keys [...] or None, colors [..., 3].
  """
  rays, keys, behind = rays_keys_background
  # Where the coarse image is not used, XLA removes its colors.
  first, second = (partial(volume.march, field) for field in pass_fields)
  coarse, fine = volume.coarse_to_fine(
      first, second, rays, coarse_edges(rays, keys, bounds, sampling_config),
      lambda edges, samples: fine_edges(
          keys, edges, samples.weights, config=sampling_config))
  coarse_color = volume.composite(coarse.weights, coarse.values, behind)
  passes = (coarse_color,) if coarse_image else ()
  color = volume.composite(fine.weights, fine.values)
  opacity = jnp.sum(fine.weights, axis=-1)
  image = color + (1 - opacity[..., None]) * behind
  return Render(
      image, opacity, volume.expected_depth(fine.weights, fine.edges), None,
      color, {}, passes=passes)


def coarse_edges(rays: cameras.Rays, keys: jax.Array | None,
                 bounds: jax.Array, config: Sampling) -> jax.Array:
  """Edges [..., coarse_samples + 1] of the first pass.

  Args:
    rays: Rays [...].
    keys: [...], or None for no jitter.
    bounds: [2] nearest and farthest distance.
    config: Sampling.
  """
  if config.extent == 'box':
    near, far, _ = sampling.intersect_box(rays, 1.0, closest=bounds[0])
  else:
    near, far = (jnp.broadcast_to(bound, rays.radii.shape)
                 for bound in bounds)
  return _each_ray(
      partial(sampling.stratified, count=config.coarse_samples,
              disparity=config.spacing == 'disparity'), keys, near, far)


def fine_edges(keys: jax.Array | None, edges: jax.Array, weights: jax.Array,
               *, config: Sampling) -> jax.Array:
  """Edges [..., N + 1] of the second pass: importance samples.

  Args:
    keys: [...], or None for no jitter.
    edges: of the first pass.
    weights: of the first pass, without gradient.
    config: Sampling.
  """
  if config.resample_padding:
    weights = sampling.blur_weights(weights, config.resample_padding)
  # N intervals have N + 1 edges; N edges are added to those of the first pass.
  count = config.fine_samples + (0 if config.include_coarse else 1)

  def draw(key, edges, weights):
    # The first pass used the key itself.
    key = None if key is None else jax.random.fold_in(key, 1)
    return sampling.importance(key, edges, weights, count)

  drawn = _each_ray(draw, keys, edges, weights)
  return sampling.sort_union(edges, drawn) if config.include_coarse else drawn


def _each_ray(function, keys, *arrays):
  """`function` of each ray's key and arrays; of all at once without keys."""
  # One vmap for each axis of the keys.
  for _ in range(0 if keys is None else keys.ndim):
    function = jax.vmap(function)
  return function(keys, *arrays)


def _show(render, field_of, params, camera, size, modes, background=None, *,
          epsilon, white):
  """Previews; see scenes.Scene. `size` may be (height, width).

  In the mode 'depth' near is white.
  """
  for mode in modes:
    check('mode', MODES, mode)
  height, width = (size, size) if isinstance(size, int) else size
  learned = background is None
  if learned:
    background = jnp.full(3, float(white))
  rays = cameras.rays(camera, height, width)
  rendered = render(params, None, View(
      camera, rays, None, background, jnp.float32(learned)))
  opacity = rendered.opacity[..., None]
  # The albedo of this scene is its color without the background.
  behind = rendered.image - rendered.albedo
  points = rays.origins + rendered.depth[..., None] * rays.directions

  def image(mode):
    if mode == 'color':
      return rendered.image
    if mode == 'depth':
      near, far = params['frame'].bounds
      return views.depth_image(
          rendered.depth, rendered.opacity, near, far)
    # Computed for previews only, at the expected depth.
    normals = shading.difference_normals(
        field_of(params, 'fine'),
        encodings.Gaussian(points, jnp.zeros_like(points)), rays.directions,
        epsilon)
    if mode == 'normal':
      return 0.5 * opacity * (normals + 1) + behind
    return behind + opacity * shading.lambertian(
        jnp.ones_like(points), normals, points,
        shading.camera_light(camera, 0.2, 0.8))

  return {mode: jnp.clip(image(mode), 0.0, 1.0) for mode in modes}


def _mesh(query, params, resolution, keep_share):
  return mesh.extract(partial(query, params), 1.0, resolution,
                      keep_share=keep_share)


def _penalties(params, render, step, *, total_variation):
  """{'total_variation': scalar}, weighted, where the field has grids."""
  del render, step
  if not total_variation:
    return {}
  grids = params['fine']['params']['encode']
  return {'total_variation': total_variation * sum(
      losses.total_variation(grids[name], axes)
      for name, axes in _GRIDS.items() if name in grids)}
