"""Dream Fields' scene (Jain et al., 2112.01455, section 4).

A field of density and color within a cube, without light, seen from one
elevation. The transmittance of the views is rewarded up to a target, which
keeps the object small; the origin of the rays follows the mean of the density,
which keeps it in the cube. The guidance adds the backgrounds
(guidance/augmentations.py), so that a render is over black.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
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
from gen3d.scenes import Render, Running, Scene, View, dreamfusion, views

# (ambient, diffuse, textureless) of previews: the scene itself has no light.
SHADING_MODES = {'color': (1.0, 0.0, 0.0), 'albedo': (1.0, 0.0, 0.0),
                 'textureless': (0.2, 0.8, 1.0)}
PENALTIES = ('depth_variance', 'opacity_entropy')
# Of the NeRF-synthetic cameras, in image widths, and their distance: the
# transmittance's target is stated for these, 1.2 times the focal length, and
# a cube of half-width 1.
FOCAL, DISTANCE, TARGET_ZOOM = 1111.111 / 800, 4.0, 1.2
MIN_LENGTH = 1e-3  # of the part of a ray that is sampled


def make(config: Any) -> Scene:
  """The Scene of a config (configs/dream_fields.py: `scene`).

  Raises:
    UserError: a field, density bias or penalty is unknown.
  """
  for name in config.penalties:
    check('penalty', PENALTIES, name)
  field, bound = make_field(config), config.bound
  camera = views.CameraRange(**config.camera)

  def init(key):
    points = jnp.zeros((1, 3))  # for the shapes of the parameters
    return {'field': field.init(key, _at(points), points)}

  def sample_view(key, step, part=(0.0, 1.0)):
    del step
    drawn = views.sample_camera(key, camera, part)
    return View(drawn, cameras.rays(drawn, config.size, config.size), None,
                background=jnp.zeros(3), learned=jnp.float32(0.0))

  def render(params, key, view):
    rays = view.rays._replace(origins=view.rays.origins + params['origin'])
    edges = ray_edges(key, rays, bound, config.samples)
    pixels = volume.in_chunks(
        partial(shade, _field_of(field, params, bound), config.epsilon),
        (rays, edges), config.chunk)
    return _finish(pixels, view, bound)

  query = jax.jit(make_query(config))
  return Scene(
      init=init, sample_view=sample_view, render=render,
      penalties=partial(_penalties, transmittance=dict(config.transmittance),
                        weights=dict(config.penalties)),
      show=partial(dreamfusion.show, render, bound=bound,
                   modes_of_light=SHADING_MODES), modes=views.MODES,
      mesh=partial(_mesh, query, bound), bound=bound,
      color=lambda params, points: query(params, points + params['origin'])[1],
      running=Running({'origin': jnp.zeros(3)}, partial(
          track_origin, decay=config.origin_decay)))


def make_field(config: Any) -> nn.Module:
  """The field of a config, a Module.

  Raises:
    UserError: the field or the density bias is unknown.
  """
  settings = {k: v for k, v in config.field.items() if k != 'name'}
  return pick('field', FIELDS, config.field.name)(settings)


def make_query(config: Any) -> Callable:
  """(params, points [N, 3]) -> (density [N], color [N, 3]) of a config.

  Points are in the field's frame, whose origin is at params['origin'] in that
  of the cameras.
  """
  field, bound = make_field(config), config.bound

  def query(params, points):
    return _field_of(field, params, bound)(
        _at(points), jnp.zeros_like(points))

  return query


def _field_of(module: Any, params: Any, bound: float) -> volume.Field:
  """The field of a scene's parameters, empty beyond its cube."""
  return inside(partial(module.apply, params['field']), bound)


def ray_edges(key: jax.Array | None, rays: cameras.Rays, bound: float,
              count: int) -> jax.Array:
  """Edges [..., count + 1] of intervals within the cube, evenly spaced.

  As in the paper's code, a ray that misses the cube has a short interval
  beyond it, where the density is zero, and all edges are jittered, the first
  and the last one, too.

  Args:
    key: moves each edge by up to half an interval; None for no jitter.
    rays: Rays [...].
    bound: half-width of the cube.
    count: of intervals.
  """
  near, far = sampling.slabs(rays, bound)
  far = jnp.maximum(far, near + MIN_LENGTH)
  fractions = jnp.linspace(0.0, 1.0, count + 1)
  if key is not None:
    fractions = fractions + jax.random.uniform(
        key, (*near.shape[:-1], count + 1), minval=-0.5, maxval=0.5) / count
  return near + (far - near) * fractions


def inside(field: volume.Field, bound: float) -> volume.Field:
  """The field without density beyond the cube [-bound, bound]^3."""
  def masked(samples, directions):
    density, values = field(samples, directions)
    within = jnp.max(jnp.abs(samples.mean), axis=-1) <= bound
    return density * within, values

  return masked


def shade(field: volume.Field, epsilon: float,
          rays_and_edges: tuple[cameras.Rays, jax.Array]
          ) -> dict[str, jax.Array]:
  """Pixels [...] of rays, premultiplied by opacity, and their density.

  Args:
    field: volume.Field of RayGaussians.
    epsilon: of the normals' stencil.
    rays_and_edges: Rays [..., 3] and edges [..., N + 1].

  Returns:
    {'color' [..., 3], 'opacity', 'depth', 'normals' [..., 3],
    'depth_variance', 'density' (its sum over the samples), 'moment' [..., 3]
    (the sum of density times position)}.
  """
  rays, edges = rays_and_edges
  ray_samples = volume.march(field, rays, edges, volume.edge_quadrature(
      cast=encodings.middle_gaussians))
  weights, density = ray_samples.weights, ray_samples.density
  opacity = jnp.sum(weights, axis=-1)
  depth = volume.expected_depth(weights, edges)
  points = jax.lax.stop_gradient(
      rays.origins + depth[..., None] * rays.directions)
  normals = shading.difference_normals(
      lambda samples, directions: field(_at(samples.mean), directions),
      encodings.Gaussian(points, jnp.zeros_like(points)), rays.directions,
      epsilon)
  return {'color': volume.composite(weights, ray_samples.values),
          'opacity': opacity, 'depth': depth,
          'normals': opacity[..., None] * normals,
          'depth_variance': losses.depth_variance(weights, edges),
          'density': jnp.sum(density, axis=-1),
          'moment': jnp.einsum(
              '...n,...nc->...c', density, ray_samples.samples.mean)}


def center_of_density(density: jax.Array, moment: jax.Array) -> jax.Array:
  """Mean point [3] of all samples, weighted by density; 0 where it is 0.

  Args:
    density: [...], sums over samples.
    moment: [..., 3], sums of density times position.
  """
  total = jnp.sum(density)
  return jnp.sum(moment, axis=tuple(range(moment.ndim - 1))) / jnp.where(
      total > 0, total, 1.0)


def track_origin(running: dict[str, jax.Array], center: jax.Array, *,
                 decay: float) -> dict[str, jax.Array]:
  """The origin [3] as moving average of the centers [3] of density."""
  return {'origin': decay * running['origin'] + (1 - decay) * center}


def transmittance_loss(opacity: jax.Array, target: jax.Array | float
                       ) -> jax.Array:
  """-min(1 - target, mean transmittance) [] (2112.01455, eq. 6).

  Args:
    opacity: [...] of the pixels.
    target: mean opacity below which there is no more reward.
  """
  return -jnp.minimum(1 - target, jnp.mean(1 - opacity))


def target_scale(camera: cameras.Camera, bound: float) -> jax.Array:
  """Factor [] of the target opacity for a camera and a cube.

  The same share of the cube's silhouette is opaque for every focal length and
  distance. As in the paper's code, it is 1.2 for the paper's cameras.
  """
  zoom = camera.intrinsics[..., 0, 0] / FOCAL
  _, _, distance = cameras.angles(camera.c2w[..., :3, 3])
  return zoom**2 / (distance / (DISTANCE * bound))**2 / TARGET_ZOOM


def _at(points):
  """RayGaussians without extent."""
  zero = jnp.zeros_like(points[..., 0])
  return encodings.RayGaussian(points, zero, zero)


def _finish(pixels, view, bound):
  """The Render of a view's pixels."""
  behind = jnp.broadcast_to(view.background, pixels['color'].shape)
  image = pixels['color'] + (1 - pixels['opacity'][..., None]) * behind
  center = jax.lax.stop_gradient(
      center_of_density(pixels['density'], pixels['moment']))
  return Render(
      image, pixels['opacity'], pixels['depth'], pixels['normals'],
      pixels['color'], {'depth_variance': pixels['depth_variance'],
                        'target_scale': target_scale(view.camera, bound)},
      background=behind, measured=center)


def _penalties(params, render, step, *, transmittance, weights):
  """The weighted penalties {name: scalar}, each a mean over the rays."""
  del params
  opacity = render.opacity
  target = render.aux['target_scale'] * schedules.exponential(
      step, transmittance['start'], transmittance['end'],
      transmittance['steps'])
  terms = {'depth_variance': render.aux['depth_variance'],
           'opacity_entropy': losses.opacity_entropy(opacity)}
  return {'transmittance': transmittance['weight'] * transmittance_loss(
      opacity, target)} | {
          name: schedules.piecewise(step, weight) * jnp.mean(terms[name])
          for name, weight in weights.items()}


def _mesh(query, bound, params, resolution, keep_share):
  """The surface in the cameras' frame; see scenes.Scene."""
  extracted = mesh.extract(
      partial(query, params), bound, resolution, keep_share=keep_share)
  return extracted._replace(
      vertices=extracted.vertices - jax.device_get(params['origin']))


def _fourier_mlp(settings):
  return fields.FourierMLP(**settings)


def _triplane(settings):
  bias = dreamfusion.density_bias(settings.pop('density_bias'))
  return fields.TriPlane(density_bias=bias, **settings)


# settings of a config -> Module, by name.
FIELDS = {'fourier_mlp': _fourier_mlp, 'triplane': _triplane}
