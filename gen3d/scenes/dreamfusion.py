"""DreamFusion's scene (Poole et al., 2209.14988, section 3 and appendix).

A field of density and albedo within a bounding sphere or cube, lit by a point
light, in front of a background that depends on the direction only.

Normals are the negative gradient of density. Where they are computed decides
the cost of a step: 'analytic' and 'finite' at every sample, as in the paper;
'surface' by finite differences at one point per ray, the expected depth, to
which shading is deferred. That is about five times faster.
"""

from collections.abc import Callable, Mapping
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
  schedules,
  shading,
  volume,
)
from gen3d.scenes import Render, Scene, View, views

FIELDS = {'mip_mlp': fields.MipMLP, 'triplane': fields.TriPlane}
NORMALS = ('analytic', 'finite', 'surface')
# Where rays enter and leave, and the norm that is at most the bound within.
BOUNDARIES = {'sphere': (sampling.intersect_sphere, 2),
              'box': (sampling.intersect_box, jnp.inf)}
PENALTIES = ('orientation', 'sparsity', 'opacity_entropy', 'depth_variance',
             'normal_smoothness')


class Sampling(NamedTuple):
  """Sampling of rays.

  Attributes:
    samples: intervals of the first pass.
    importance_samples: intervals of the second pass; 0 for one pass only.
    importance_stride: pixels between the rays of the first pass, where there
      is a second one.
    chunk: rays at a time, which bounds the memory.
  """
  samples: int
  importance_samples: int
  importance_stride: int
  chunk: int


class Normals(NamedTuple):
  """The method for normals, one of NORMALS, and its stencil's size."""
  kind: str
  epsilon: float


def make(config: Any) -> Scene:
  """The Scene of a config (configs/dreamfusion.py: `scene`).

  Raises:
    UserError: a field, density bias, boundary, penalty or kind of normals is
      unknown.
  """
  check('kind of normals', NORMALS, config.normals)
  for name in config.penalties:
    check('penalty', PENALTIES, name)
  field, background = _field(config), fields.Background(
      **config.background_mlp)
  boundary, _ = pick('boundary', BOUNDARIES, config.boundary)
  bound, near = config.bound, config.near

  def init(key):
    key_field, key_background = jax.random.split(key)
    points = jnp.zeros((1, 3))  # for the shapes of the parameters
    return {
        'field': field.init(
            key_field, encodings.Gaussian(points, points), points),
        'background': background.init(key_background, points)}

  render = partial(
      _render, field=field, background=background,
      intersect=lambda rays: boundary(rays, bound, closest=near),
      sampling_config=Sampling(
          config.samples, config.importance.samples, config.importance.stride,
          config.chunk),
      normals=Normals(config.normals, config.epsilon))
  query = jax.jit(make_query(config))
  return Scene(
      init=init,
      sample_view=views.sampler(config),
      render=render,
      penalties=partial(_penalties, weights=dict(config.penalties)),
      show=partial(show, render, bound=bound), modes=views.MODES,
      mesh=partial(_mesh, query, bound, config.get('inset', 0.0)), bound=bound,
      color=lambda params, points: query(params, points)[1])


def make_query(config: Any) -> Callable:
  """(params, points [N, 3]) -> (density [N], albedo [N, 3]) of a config.

  Density is zero beyond the boundary, where no ray is sampled.

  Raises:
    UserError: a field, density bias or boundary is unknown.
  """
  field, bound = _field(config), config.bound
  _, norm = pick('boundary', BOUNDARIES, config.boundary)

  def query(params, points):
    samples = encodings.Gaussian(points, jnp.zeros_like(points))
    density, albedo = field.apply(
        params['field'], samples, jnp.zeros_like(points))
    # The density there was never trained, and would be part of the mesh.
    within = jnp.linalg.norm(points, norm, axis=-1) <= bound
    return density * within, albedo

  return query


def _field(config):
  """The field of a config, a Module."""
  return pick('field', FIELDS, config.field.name)(
      density_bias=density_bias(config.density_bias),
      **_without_name(config.field))


def density_bias(settings: Mapping[str, Any]) -> Callable:
  """The function points [..., 3] -> [...] of settings with its `name`.

  Raises:
    UserError: the name is unknown.
  """
  return partial(pick('density bias', fields.DENSITY_BIASES, settings['name']),
                 **_without_name(settings))


def _mesh(query, bound, inset, params, resolution, keep_share):
  return mesh.extract(
      partial(query, params), bound, resolution, keep_share, inset, solid=True)


def show(
    render: Callable, params: Any, camera: cameras.Camera, size: Any,
    modes: Any, background: jax.Array | None = None, *, bound: float,
    modes_of_light: Any = views.SHADING_MODES) -> dict[str, jax.Array]:
  """Previews; see Scene. Shading is deferred for all kinds of normals.

  Args:
    render: of a Scene.
    params, camera, size, modes, background: see Scene.
    bound: radius that the mode 'depth' covers.
    modes_of_light: {mode: (ambient, diffuse, textureless)}.

  Returns:
    {mode: image [H, W, 3]}.

  Raises:
    UserError: a mode is unknown.
  """
  rays = cameras.rays(camera, size, size)
  ambient_only = shading.Light(jnp.zeros(3), 1.0, 0.0, 0.0)
  learned = background is None
  view = View(camera, rays, ambient_only,
              jnp.zeros(3) if learned else jnp.asarray(background),
              jnp.float32(learned))
  rendered = render(params, None, view)
  opacity = rendered.opacity[..., None]
  # In ambient light the image is the albedo over the background.
  behind = rendered.image - rendered.albedo
  points = rays.origins + rendered.depth[..., None] * rays.directions
  normals = cameras.normalize(rendered.normals)

  def image(mode):
    if mode == 'normal':
      return 0.5 * opacity * (normals + 1) + behind
    if mode == 'depth':
      return views.object_depth(
          camera, rendered.depth, rendered.opacity, bound)
    ambient, diffuse, textureless = pick('mode', modes_of_light, mode)
    base = opacity if textureless else rendered.albedo
    return behind + base * shading.lambertian(
        jnp.ones_like(points), normals, points,
        shading.camera_light(camera, ambient, diffuse))

  return {mode: jnp.clip(image(mode), 0.0, 1.0) for mode in modes}


def _render(params, key, view, *, field, background, intersect,
            sampling_config, normals):
  """A Render of `view`; without a key nothing is jittered."""
  # Background, then edges of one or two passes, then pixels.
  field = partial(field.apply, params['field'])
  learned = background.apply(params['background'], view.rays.directions)
  behind = view.learned * learned + (1 - view.learned) * view.background
  near, far, _ = intersect(view.rays)
  edges = sampling.stratified(key, near, far, sampling_config.samples)
  shade = lambda *rays_and_edges: volume.in_chunks(
      partial(_shade, field, view.light, normals), rays_and_edges,
      sampling_config.chunk)
  if sampling_config.importance_samples:
    _, pixels = volume.coarse_to_fine(
        partial(subsampled_weights, field, sampling_config.importance_stride,
                sampling_config.chunk),
        shade, view.rays, edges, partial(
            importance_edges, count=sampling_config.importance_samples))
  else:
    pixels = shade(view.rays, edges)
  image = pixels['color'] + (1 - pixels['opacity'][..., None]) * behind
  return Render(image, pixels['opacity'], pixels['depth'], pixels['normals'],
                pixels['albedo'],
                {name: pixels[name] for name in (
                    'orientation', 'depth_variance')}, pixels['color_only'],
                background=behind)


def _shade(field, light, normals_config, rays_and_edges):
  """Pixels of rays [..., 3], without background: {name: array [...]}."""
  rays, edges = rays_and_edges
  if normals_config.kind == 'surface':
    return _shade_surface(field, light, normals_config.epsilon, rays,
                          volume.march(field, rays, edges))

  # Normals are composited like values, so that one evaluation gives both.
  def with_normals(samples, directions):
    density, values, normals = sample_normals(
        field, samples, directions, normals_config)
    return density, jnp.concatenate([values, normals], axis=-1)

  ray_samples = volume.march(with_normals, rays, edges)
  albedo, normals = jnp.split(ray_samples.values, 2, axis=-1)
  ray_samples = ray_samples._replace(values=albedo)
  color = shading.lambertian(albedo, normals, ray_samples.samples.mean, light)
  weights = ray_samples.weights
  return _pixels(
      ray_samples, color=volume.composite(weights, color),
      normals=volume.composite(weights, normals),
      color_only=volume.composite(jax.lax.stop_gradient(weights), color),
      orientation=losses.orientation(weights, normals, rays.directions))


def _shade_surface(field, light, epsilon, rays, ray_samples):
  """Pixels with shading deferred to one point per ray: the expected depth."""
  weights = ray_samples.weights
  opacity = jnp.sum(weights, axis=-1)
  depth = volume.expected_depth(weights, ray_samples.edges)
  # Shading is not to move the surface.
  points = jax.lax.stop_gradient(
      rays.origins + depth[..., None] * rays.directions)
  point = encodings.Gaussian(points, jnp.zeros_like(points))
  normals = shading.difference_normals(field, point, rays.directions, epsilon)
  # All samples of a ray have the shade of its surface.
  shade = shading.lambertian(jnp.ones_like(points), normals, points, light)
  white = light.textureless
  if light.normals is not None:  # `shade` then has the color.
    white = jnp.maximum(white, light.normals)
  values = (1 - white) * ray_samples.values + white
  shaded = lambda weights: shade * volume.composite(weights, values)
  return _pixels(
      ray_samples, color=shaded(weights),
      color_only=shaded(jax.lax.stop_gradient(weights)),
      normals=opacity[..., None] * normals,
      orientation=losses.orientation(
          opacity[..., None], normals[..., None, :], rays.directions))


def _pixels(ray_samples, **shaded):
  """The pixels that do not depend on the kind of normals, and `shaded`."""
  weights, edges = ray_samples.weights, ray_samples.edges
  return {'opacity': jnp.sum(weights, axis=-1),
          'depth': volume.expected_depth(weights, edges),
          'albedo': volume.composite(weights, ray_samples.values),
          'depth_variance': losses.depth_variance(weights, edges), **shaded}


def subsampled_weights(
    field: volume.Field, stride: int, chunk: int, rays: cameras.Rays,
    edges: jax.Array) -> jax.Array:
  """Weights [H, W, N] of a pass that evaluates one ray of each square.

  The rays of a square of `stride` pixels have the largest weights at its four
  corners, so that nothing at least that many pixels wide is lost between them.

  Args:
    field: volume.Field.
    stride: pixels between the rays that are evaluated.
    chunk: rays at a time.
    rays: Rays [H, W].
    edges: [H, W, N + 1].
  """
  corners = jax.tree.map(lambda x: x[::stride, ::stride], (rays, edges))
  weights = volume.in_chunks(
      lambda corner: volume.march(field, *corner).weights, corners, chunk)
  # From corners to squares, along one axis after the other: the maximum of a
  # corner and the next one, repeated for the pixels of the square.
  if stride > 1:
    for axis in (0, 1):
      count = weights.shape[axis]
      following = jnp.take(weights, jnp.minimum(
          jnp.arange(count) + 1, count - 1), axis)
      weights = jnp.repeat(jnp.maximum(weights, following), stride, axis)
    weights = weights[:edges.shape[0], :edges.shape[1]]
  return weights


def importance_edges(
    edges: jax.Array, weights: jax.Array, count: int) -> jax.Array:
  """Edges [..., count + 1] of `count` intervals where the weights are high.

  Args:
    edges: [..., N + 1] of the first pass.
    weights: [..., N] of the first pass.
    count: of intervals.
  """
  return sampling.importance(
      None, edges, sampling.blur_weights(weights), count + 1)


def sample_normals(
    field: volume.Field, samples: encodings.Gaussian, directions: jax.Array,
    config: Normals) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Density [...], values [..., C] and unit normals [..., 3] of samples.

  Args:
    field: volume.Field.
    samples: Gaussian [..., 3].
    directions: [..., 3].
    config: Normals, 'analytic' or 'finite'.
  """
  if config.kind == 'finite':
    density, values = field(samples, directions)
    return density, values, shading.difference_normals(
        field, samples, directions, config.epsilon)

  def at_mean(mean):
    return field(encodings.Gaussian(mean, samples.variance), directions)

  # A sample's density depends on its own mean only, so that one VJP of ones
  # gives the gradients of all samples.
  density, vjp, values = jax.vjp(at_mean, samples.mean, has_aux=True)
  gradient, = vjp(jnp.ones_like(density))
  return density, values, cameras.normalize(-gradient)


def _penalties(params, render, step, *, weights):
  """The weighted penalties {name: scalar}, each a sum over the rays.

  Sums, because the gradient of score distillation is a sum over pixels: so a
  weight means the same at every resolution.
  """
  del params
  terms = {
      'orientation': render.aux['orientation'],
      'sparsity': losses.sparsity(render.opacity),
      'opacity_entropy': losses.opacity_entropy(render.opacity),
      'depth_variance': render.aux['depth_variance'],
      'normal_smoothness': losses.normal_smoothness(
          render.normals, render.opacity),
  }
  return {name: schedules.piecewise(step, weight)
          * jnp.sum(terms[name])
          for name, weight in weights.items()}


def _without_name(config):
  return {key: value for key, value in config.items() if key != 'name'}
