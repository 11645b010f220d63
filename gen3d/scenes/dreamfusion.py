"""DreamFusion's scene (Poole et al., 2209.14988, section 3 and appendix).

A field of density and albedo within a bounding sphere or cube, lit by a point
light, in front of a background that depends on the direction only.

Normals are the negative gradient of density. Where they are taken decides
what a step costs: 'analytic' and 'finite' at every sample, as in the paper;
'surface' by finite differences at one point per ray, the expected depth, and
shading is deferred to it, which is about five times faster.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gen3d.choices import check, pick
from gen3d.models import fields
from gen3d.ops import (
  cameras,
  encodings,
  losses,
  sampling,
  schedules,
  shading,
  volume,
)
from gen3d.scenes import Render, Scene, View

FIELDS = {'mip_mlp': fields.MipMLP, 'triplane': fields.TriPlane}
NORMALS = ('analytic', 'finite', 'surface')
# Where rays enter and leave, and the norm that is at most the bound within.
BOUNDARIES = {'sphere': (sampling.intersect_sphere, 2),
              'box': (sampling.intersect_box, jnp.inf)}
# (ambient, diffuse, textureless) of what is shown to people.
LOOKS = {'color': (0.4, 0.6, 0.0), 'albedo': (1.0, 0.0, 0.0),
         'textureless': (0.2, 0.8, 1.0)}


def make(config):
  """The Scene of a config (configs/dreamfusion.py: `scene`).

  Raises:
    UserError: if a field, blob, boundary or kind of normals is not known.
  """
  blob = partial(pick('blob', fields.BLOBS, config.blob.name),
                 **_without_name(config.blob))
  field = pick('field', FIELDS, config.field.name)(
      blob=blob, **_without_name(config.field))
  background = fields.Background(**config.background_mlp)
  check('kind of normals', NORMALS, config.normals)
  boundary, norm = pick('boundary', BOUNDARIES, config.boundary)

  def intersect(rays):
    return boundary(rays, config.bound, closest=config.near)

  def init(key):
    key_field, key_background = jax.random.split(key)
    points = jnp.zeros((1, 3))
    return {
        'field': field.init(
            key_field, encodings.Gaussian(points, points), points),
        'background': background.init(key_background, points)}

  render = partial(_render, field=field, background=background,
                   intersect=intersect, config=config)

  def query(params, points):
    samples = encodings.Gaussian(points, jnp.zeros_like(points))
    density, albedo = field.apply(
        params['field'], samples, jnp.zeros_like(points))
    # Beyond the boundary no ray has looked; what is there would be a mesh's.
    within = jnp.linalg.norm(points, norm, axis=-1) <= config.bound
    return density * within, albedo

  return Scene(
      init=init, sample_view=partial(_sample_view, config=config),
      render=render, penalties=partial(_penalties, config=config),
      show=partial(_show, render), query=query, bound=config.bound)


def _sample_view(key, step, part=(0.0, 1.0), *, config):
  """A random View of DreamFusion's distribution; see Scene.

  A background that is not learned has any color where `background_spread` is
  one, and gray where it is zero.
  """
  keys = jax.random.split(key, 7)
  low, high = config.camera.azimuth
  azimuth = (low + (high - low) * part[0], low + (high - low) * part[1])
  camera = cameras.sample(keys[0], **{**config.camera, 'azimuth': azimuth})
  position = shading.sample_position(
      keys[1], camera.c2w[:3, 3], norm=config.light.norm)
  chance = lambda key, p: jax.random.bernoulli(key, p).astype(jnp.float32)
  shaded = (chance(keys[2], config.light.shaded)
            * (step >= config.light.albedo_steps))
  textureless = shaded * chance(keys[3], config.light.textureless)
  light = shading.Light(
      position,
      ambient=1 - shaded + shaded * config.light.ambient,
      diffuse=shaded * config.light.diffuse, textureless=textureless)
  spread = schedules.piecewise(step, config.background_spread)
  background = 0.5 + spread * (jax.random.uniform(keys[4], (3,)) - 0.5)
  return View(camera, cameras.rays(camera, config.size, config.size), light,
              background=background,
              learned=1 - chance(keys[5], config.random_background))


def _show(render, params, camera, size, modes, background=None):
  """Images to look at; see Scene. Shading is deferred, whatever the normals."""
  rays = cameras.rays(camera, size, size)
  ambient_only = shading.Light(jnp.zeros(3), 1.0, 0.0, 0.0)
  learned = background is None
  view = View(camera, rays, ambient_only,
              jnp.zeros(3) if learned else jnp.asarray(background),
              jnp.float32(learned))
  seen = render(params, None, view)
  opacity = seen.opacity[..., None]
  behind = seen.image - seen.albedo
  points = rays.origins + seen.depth[..., None] * rays.directions
  normals = cameras.normalize(seen.normals)

  def image(mode):
    if mode == 'normal':
      return 0.5 * opacity * (normals + 1) + behind
    ambient, diffuse, textureless = pick('mode', LOOKS, mode)
    base = opacity if textureless else seen.albedo
    return behind + base * shading.lambertian(
        jnp.ones_like(points), normals, points,
        shading.camera_light(camera, ambient, diffuse))

  return {mode: jnp.clip(image(mode), 0.0, 1.0) for mode in modes}


def _render(params, key, view, *, field, background, intersect, config):
  """What the scene shows in `view`; without a key nothing is jittered."""
  field = partial(field.apply, params['field'])
  sky = background.apply(params['background'], view.rays.directions)
  behind = view.learned * sky + (1 - view.learned) * view.background
  near, far, _ = intersect(view.rays)
  edges = sampling.stratified(key, near, far, config.samples)
  if config.importance.samples:
    edges = _focus(field, view.rays, edges, config)
  seen = volume.in_chunks(partial(_shade, field, view.light, config),
                          (view.rays, edges), config.chunk)
  image = seen['color'] + (1 - seen['opacity'][..., None]) * behind
  return Render(image, seen['opacity'], seen['depth'], seen['normals'],
                seen['albedo'], {'orientation': seen['orientation'],
                                 'spread': seen['spread']}, seen['colors'])


def _shade(field, light, config, rays_and_edges):
  """Colors (without background), depths and normals of rays [..., 3]."""
  rays, edges = rays_and_edges
  if config.normals == 'surface':
    march = volume.march(field, rays, edges)
    return _shade_surface(field, light, config, rays, march)

  def with_normals(samples, directions):
    density, values, normals = _normals_at(field, samples, directions, config)
    return density, jnp.concatenate([values, normals], axis=-1)

  march = volume.march(with_normals, rays, edges)
  albedo, normals = jnp.split(march.values, 2, axis=-1)
  march = march._replace(values=albedo)
  color = shading.lambertian(
      albedo, normals, march.samples.mean, light)
  composite = partial(volume.composite, march.weights)
  return _seen(march, color=composite(color), normals=composite(normals),
               colors=volume.composite(
                   jax.lax.stop_gradient(march.weights), color),
               orientation=losses.orientation(
                   march.weights, normals, rays.directions))


def _shade_surface(field, light, config, rays, march):
  """Shading deferred to one point per ray: the expected depth."""
  opacity = jnp.sum(march.weights, axis=-1)
  depth = volume.expected_depth(march.weights, march.edges)
  # Where the surface is, is not what shading is to change.
  points = jax.lax.stop_gradient(
      rays.origins + depth[..., None] * rays.directions)
  point = encodings.Gaussian(points, jnp.zeros_like(points))
  normals = shading.difference_normals(
      field, point, rays.directions, config.epsilon)
  shade = shading.lambertian(jnp.ones_like(points), normals, points, light)
  white = light.textureless
  values = (1 - white) * march.values + white
  lit = lambda weights: shade * volume.composite(weights, values)
  return _seen(march, color=lit(march.weights),
               colors=lit(jax.lax.stop_gradient(march.weights)),
               normals=opacity[..., None] * normals,
               orientation=losses.orientation(
                   opacity[..., None], normals[..., None, :],
                   rays.directions))


def _seen(march, **rest):
  """What all ways of shading have in common, and the rest."""
  return {'opacity': jnp.sum(march.weights, axis=-1),
          'depth': volume.expected_depth(march.weights, march.edges),
          'albedo': volume.composite(march.weights, march.values),
          'spread': losses.depth_variance(march.weights, march.edges), **rest}


def _focus(field, rays, edges, config):
  """Edges [H, W, samples + 1] where a first look sees something.

  The look is without gradient and along one ray of each square of `stride`
  pixels; the rays of a square share what is seen at its four corners, so that
  nothing at least `stride` pixels wide is lost between them.
  """
  stride = config.importance.stride
  look = lambda rays_and_edges: volume.march(field, *rays_and_edges).weights
  corner = jax.tree.map(lambda x: x[::stride, ::stride], (rays, edges))
  weights = jax.lax.stop_gradient(volume.in_chunks(look, corner, config.chunk))
  if stride > 1:
    for axis in (0, 1):
      count = weights.shape[axis]
      after = jnp.take(weights, jnp.minimum(
          jnp.arange(count) + 1, count - 1), axis)
      weights = jnp.repeat(jnp.maximum(weights, after), stride, axis)
    weights = weights[:edges.shape[0], :edges.shape[1]]
  return sampling.importance(None, edges, sampling.blur_weights(weights),
                             config.importance.samples + 1)


def _normals_at(field, samples, directions, config):
  """Density, values and unit normals of every sample."""
  if config.normals == 'finite':
    density, values = field(samples, directions)
    return density, values, shading.difference_normals(
        field, samples, directions, config.epsilon)

  def of_mean(mean):
    return field(encodings.Gaussian(mean, samples.variance), directions)

  density, pull, values = jax.vjp(of_mean, samples.mean, has_aux=True)
  gradient, = pull(jnp.ones_like(density))
  return density, values, cameras.normalize(-gradient)


def _penalties(params, render, step, *, config):
  """The weighted penalties {name: scalar}, each a sum over the rays.

  Sums, because the score's surrogate is one over pixels: so a weight means
  the same at every resolution.
  """
  terms = {
      'orientation': render.aux['orientation'],
      'opacity': losses.sparsity(render.opacity),
      'entropy': losses.entropy(render.opacity),
      'spread': render.aux['spread'],
      'roughness': losses.normal_smoothness(render.normals, render.opacity),
  }
  return {name: schedules.piecewise(step, weight)
          * jnp.sum(pick('penalty', terms, name))
          for name, weight in config.penalties.items()}


def _without_name(config):
  return {key: value for key, value in config.items() if key != 'name'}
