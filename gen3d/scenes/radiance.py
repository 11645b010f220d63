"""A captured scene: light as it leaves every point in every direction.

NeRF, Mip-NeRF, hybrid voxels and hybrid tri-planes are values of one config:
how a sample is encoded, how deep the network is, where along a ray it is
asked. Rays are looked at twice: coarsely, then where the first look found
something.

The scene lives in a unit frame in which what is to be reconstructed fills
the cube [-1, 1]^3.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.choices import check, pick
from gen3d.models import fields
from gen3d.ops import cameras, encodings, losses, sampling, shading, volume
from gen3d.scenes import Render, Scene, View

BACKGROUNDS = ('white', 'black', 'random', 'learned')
EXTENTS = ('box', 'range')
MODES = ('color', 'depth', 'normal', 'textureless')
SPACINGS = ('distance', 'disparity')
# The axes of a parameter along which neighbors are close in space.
_GRIDS = {'planes': (1, 2), 'grid': (0, 1, 2)}


class Frame(NamedTuple):
  """Where the unit frame is, kept with the parameters but never trained.

  Attributes:
    to_world: [4, 4], similarity from the unit frame to the capture's world.
    bounds: [2], nearest and farthest distance in the unit frame.
    path: cameras.Camera [F] in the unit frame, to show the scene from.
  """
  to_world: Any
  bounds: Any
  path: Any


def make(config, frame):
  """The Scene of a config (configs/nerf.py and its neighbors: `scene`).

  Its `render` asks the view for rays [...], background and learned only and
  wants a key for each ray, or None. `Render.aux['colors']` has what the
  looks saw that the loss judges, the fine one last; there are no normals, and
  albedo is the light before the background.

  Args:
    config: ConfigDict.
    frame: Frame, which the parameters begin with.

  Raises:
    UserError: if a name is not known.
  """
  check('extent', EXTENTS, config.extent)
  check('spacing', SPACINGS, config.spacing)
  check('background', BACKGROUNDS, config.background)
  names = ('coarse' if config.coarse.separate else 'fine', 'fine')
  field, sky = _field(config), fields.Background(**config.background_mlp)

  def init(key):
    keys = jax.random.split(key, 3)
    points = jnp.zeros((1, 3))
    sample = encodings.Gaussian(points, points)
    params = {name: field.init(keys[i], sample, points)
              for i, name in enumerate(sorted(set(names)))}
    if config.background == 'learned':
      params['background'] = sky.init(keys[2], points)
    return {**params, 'frame': jax.tree.map(jnp.float32, frame)}

  def ask(params, name):
    def answer(samples, directions):
      if config.contract:
        samples = encodings.contract(samples)
      return field.apply(params[name], samples, directions)

    return answer

  def render(params, keys, view):
    rays, backdrop = view.rays, view.background
    if config.background == 'learned':
      own = sky.apply(params['background'], rays.directions)
      backdrop = view.learned * own + (1 - view.learned) * backdrop
    backdrop = jnp.broadcast_to(backdrop, rays.directions.shape)
    bounds = jax.lax.stop_gradient(params['frame'].bounds)
    look = partial(_look, [ask(params, name) for name in names], bounds,
                   config)
    return volume.in_chunks(
        look, (rays, keys, backdrop), config.chunk, rays.radii.ndim - 1)

  def query(params, points):
    samples = encodings.Gaussian(points, jnp.zeros_like(points))
    # A mesh has one color from all sides: the mean of six directions.
    axes = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    density, colors = jax.vmap(lambda axis: ask(params, 'fine')(
        samples, jnp.broadcast_to(axis, points.shape)))(axes)
    return density[0], jnp.mean(colors, axis=0)

  return Scene(
      init=init, sample_view=None, render=render,
      penalties=partial(_penalties, config=config),
      show=partial(_show, render, ask, config), query=query, bound=1.0)


def backdrop(config, key, shape=()):
  """The color [*shape, 3] that is put behind the pictures and the scene."""
  if config.background == 'random':
    return jax.random.uniform(key, (*shape, 3))
  return jnp.full((*shape, 3), float(config.background == 'white'))


def _field(config):
  field = config.field
  without = lambda mapping, *keys: {
      key: value for key, value in mapping.items() if key not in keys}
  options = without(field.encode, 'name')
  if 'resolution' in options:  # A grid spans what points are squeezed into.
    options['bound'] = 2.0 if config.contract else 1.0
  encoder = pick('encoder', fields.ENCODERS, field.encode.name)(**options)
  return fields.RadianceField(
      encoder, activation=pick('activation', fields.DENSITIES,
                               field.activation),
      **without(field, 'encode', 'activation'))


def _look(answers, bounds, config, rays_keys_backdrop):
  """What rays [...] see, coarse and fine; see scenes.Render."""
  rays, keys, behind = rays_keys_backdrop
  coarse, fine = answers
  edges = _stratified(rays, keys, bounds, config)
  march = volume.march(coarse, rays, edges)
  first = volume.composite(march.weights, march.values, behind)
  march = volume.march(
      fine, rays, _resample(keys, edges, march.weights, config.fine))
  light = volume.composite(march.weights, march.values)
  opacity = jnp.sum(march.weights, axis=-1)
  color = light + (1 - opacity[..., None]) * behind
  judged = (first, color) if config.coarse.loss else (color,)
  return Render(color, opacity,
                volume.expected_depth(march.weights, march.edges), None,
                light, {'colors': judged})


def _stratified(rays, keys, bounds, config):
  """Edges [..., N + 1] of the first look."""
  if config.extent == 'box':
    near, far, _ = sampling.intersect_box(rays, 1.0, closest=bounds[0])
  else:
    near, far = (jnp.broadcast_to(bound, rays.radii.shape)
                 for bound in bounds)
  return _each_ray(
      partial(sampling.stratified, count=config.coarse.samples,
              disparity=config.spacing == 'disparity'), keys, near, far)


def _resample(keys, edges, weights, config):
  """Edges [..., N + 1] where the first look saw something."""
  weights = jax.lax.stop_gradient(weights)
  if config.padding:
    weights = sampling.blur_weights(weights, config.padding)
  # So many distances beside the first ones, or so many intervals instead.
  count = config.samples if config.merge else config.samples + 1

  def find(key, edges, weights):
    key = None if key is None else jax.random.fold_in(key, 1)
    return sampling.importance(key, edges, weights, count)

  found = _each_ray(find, keys, edges, weights)
  return sampling.sort_union(edges, found) if config.merge else found


def _each_ray(function, keys, *arrays):
  """`function` of each ray's key and arrays; of all at once without keys."""
  for _ in range(0 if keys is None else keys.ndim):
    function = jax.vmap(function)
  return function(keys, *arrays)


def _show(render, ask, config, params, camera, size, modes, background=None):
  """Images to look at; see scenes.Scene. `size` may be (height, width).

  'depth' is a mode of its own: white is near.
  """
  for mode in modes:
    check('mode', MODES, mode)
  height, width = (size, size) if isinstance(size, int) else size
  learned = background is None
  if learned:
    background = jnp.full(3, float(config.background != 'black'))
  rays = cameras.rays(camera, height, width)
  seen = render(params, None, View(
      camera, rays, None, background, jnp.float32(learned)))
  opacity = seen.opacity[..., None]
  behind = seen.image - seen.albedo

  def normals():
    points = rays.origins + seen.depth[..., None] * rays.directions
    found = shading.difference_normals(
        ask(params, 'fine'),
        encodings.Gaussian(points, jnp.zeros_like(points)), rays.directions,
        config.epsilon)
    return points, found

  def image(mode):
    if mode == 'color':
      return seen.image
    if mode == 'depth':
      near, far = params['frame'].bounds
      return jnp.broadcast_to(jnp.clip(
          (far - seen.depth) / (far - near), 0, 1)[..., None] * opacity,
                              seen.image.shape)
    points, found = normals()
    if mode == 'normal':
      return 0.5 * opacity * (found + 1) + behind
    return behind + opacity * shading.lambertian(
        jnp.ones_like(points), found, points,
        shading.camera_light(camera, 0.2, 0.8))

  return {mode: jnp.clip(image(mode), 0.0, 1.0) for mode in modes}


def _penalties(params, render, step, *, config):
  """{'total_variation': scalar}, weighted, where the field has grids."""
  del render, step
  if not config.total_variation:
    return {}
  grids = params['fine']['params']['encode']
  return {'total_variation': config.total_variation * sum(
      losses.total_variation(grids[name], axes)
      for name, axes in _GRIDS.items() if name in grids)}
