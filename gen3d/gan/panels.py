"""Images of a generated object side by side: color, depth, normals, shape.

Normals are those of the surface that the depth describes. A density's gradient
would be finer, but each kind of generator has another density, and LiftedGAN
has none.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gen3d.gan import Generated
from gen3d.ops import cameras, depth_mesh, shading

NAMES = ('image', 'image_raw', 'depth', 'normal', 'textureless')
# Of the depth alone: as many rays as pixels are worthwhile.
GEOMETRY = NAMES[2:]
_AMBIENT, _DIFFUSE = 0.2, 0.8


def row(generated: Generated, names: Sequence[str],
        camera: cameras.Camera) -> jax.Array:
  """The first object's panels: uint8 [R, len(names) R, 3].

  Args:
    generated: images of N objects.
    names: of NAMES. Without one of an image, R is the number of rays, r.
    camera: [N], that they were rendered from.
  """
  first = jax.tree.map(lambda x: x[:1], generated)
  camera = jax.tree.map(lambda x: x[:1], camera)
  colored = set(names) - set(GEOMETRY)
  side = (generated.image if colored else generated.depth).shape[1]

  def panel(name):
    if name in ('image', 'image_raw'):
      image = getattr(first, name) / 2 + 0.5
    elif name == 'depth':
      image = depth_to_gray(first)[..., None]
    else:
      image = _lit(first, camera, name)
    return jax.image.resize(
        jnp.broadcast_to(image[0], (*image.shape[1:3], 3)), (side, side, 3),
        'nearest')

  images = jnp.concatenate([panel(name) for name in names], axis=1)
  return jnp.round(255 * jnp.clip(images, 0, 1)).astype(jnp.uint8)


def depth_to_gray(generated: Generated) -> jax.Array:
  """Brightness [N, r, r] of a depth panel: near is bright.

  The range of brightness is that of the depths of opaque pixels. Where the
  opacity is low the depth has no meaning, so brightness is multiplied by it.
  """
  opaque = jnp.where(generated.opacity > 0.5, generated.depth, jnp.nan)
  # Percentiles: a few outliers must not set the range.
  near, far = jnp.nanpercentile(opaque, jnp.array([1.0, 99.0]))
  closeness = jnp.clip(
      (far - generated.depth) / jnp.maximum(far - near, 1e-6), 0, 1)
  return generated.opacity * jnp.nan_to_num(0.2 + 0.8 * closeness)


def normals(generated: Generated, camera: cameras.Camera) -> jax.Array:
  """World normals [N, r, r, 3] of the surfaces that the depth describes.

  Args:
    generated: images of N objects.
    camera: [N], that they were rendered from.
  """
  return -depth_mesh.normals(_points(generated, camera))


def _points(generated, camera):
  """Points [N, r, r, 3] at the depth, in the world."""
  rays = cameras.rays(camera, *generated.depth.shape[-2:])
  return rays.origins + generated.depth[..., None] * rays.directions


def _lit(generated, camera, name):
  """The normals as colors, or the white surface in a light, over white."""
  colors = 0.5 + 0.5 * normals(generated, camera)
  if name == 'textureless':
    one = jax.tree.map(lambda x: x[0], camera)
    points = _points(generated, camera)
    colors = shading.lambertian(
        jnp.ones_like(points), 2 * colors - 1, points,
        shading.camera_light(one, _AMBIENT, _DIFFUSE))
  opacity = generated.opacity[..., None]
  return opacity * colors + 1 - opacity
