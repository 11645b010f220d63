"""Random views of an object: cameras, lights and backgrounds.

The distributions of DreamFusion (appendix) and of CLIP-Mesh. Scenes of
different kinds share them, so that their results can be compared.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.choices import pick
from gen3d.ops import backgrounds, cameras, schedules, shading
from gen3d.scenes import SampleView, View

# (ambient, diffuse, textureless) of the lights of previews.
SHADING_MODES = {'color': (0.4, 0.6, 0.0), 'albedo': (1.0, 0.0, 0.0),
                 'textureless': (0.2, 0.8, 1.0)}
# Modes of the `show` of scenes of one object.
MODES = (*SHADING_MODES, 'normal', 'depth')


def depth_image(distance: jax.Array, opacity: jax.Array, near: Any, far: Any
                ) -> jax.Array:
  """Gray image [H, W, 3] of a depth: white at `near`, black at `far`.

  Args:
    distance: [H, W] from the camera.
    opacity: [H, W], by which the brightness is multiplied.
    near, far: distances.
  """
  closeness = jnp.clip((far - distance) / (far - near), 0, 1)
  return jnp.broadcast_to(
      (opacity * closeness)[..., None], (*distance.shape, 3))


def object_depth(camera: Any, distance: jax.Array, opacity: jax.Array,
                 bound: float) -> jax.Array:
  """`depth_image` of an object within `bound` of the world's origin."""
  center = jnp.linalg.norm(camera.c2w[:3, 3])
  return depth_image(distance, opacity, center - bound, center + bound)


class CameraRange(NamedTuple):
  """Ranges of random cameras; the keywords of cameras.sample."""
  azimuth: tuple
  elevation: tuple
  distance: tuple
  focal: tuple
  jitter_position: float
  jitter_target: float
  jitter_up: float


class Lighting(NamedTuple):
  """Random lights (DreamFusion, appendix).

  Attributes:
    distance_range: of the light from the origin.
    albedo_steps: steps at the start of training without shading.
    shaded_prob: of a shaded view after them.
    textureless_prob: of a shaded view to be without texture.
    ambient, diffuse: intensities in a shaded view.
    normals_prob: of a view to show normals in place of colors (stage 2 of
      ProlificDreamer, stage 1 of CSD); a schedule.
  """
  distance_range: tuple
  albedo_steps: int
  shaded_prob: float
  textureless_prob: float
  ambient: float
  diffuse: float
  normals_prob: float | tuple = 0.0


class Backgrounds(NamedTuple):
  """Random backgrounds.

  Attributes:
    random_prob: how often the background is a random color, not the learned
      one.
    color_range: schedule of the random colors' range: 0 is gray, 1 all colors.
  """
  random_prob: float
  color_range: Any


class ClipMeshCameras(NamedTuple):
  """Ranges of CLIP-Mesh's cameras (2203.13333, supplement).

  Attributes:
    azimuth: degrees.
    elevation_beta: b of the beta distribution of the elevation, whose density
      is b (1 - x)^(b - 1).
    elevation_max: degrees, times a sample x of that distribution.
    distance: from the origin.
    fov: angle of view, degrees.
    shift: largest offset of the object along x and y.
  """
  azimuth: tuple
  elevation_beta: float
  elevation_max: float
  distance: tuple
  fov: tuple
  shift: float


class ClipMeshLight(NamedTuple):
  """CLIP-Mesh's light, as far from the origin as the camera.

  Attributes:
    ambient, diffuse: intensities. CLIP-Mesh has no ambient light and a power
      of 5, of which a diffuse surface reflects 5 / pi.
    untextured_steps: at the start of training, in which half of the views of a
      step show a gray object without texture.
    untextured_gray: its reflectance.
  """
  ambient: float
  diffuse: float
  untextured_steps: int
  untextured_gray: float


def sampler(config: Any) -> SampleView:
  """The sample_view of a scene's config (configs/dreamfusion.py: `scene`)."""
  return partial(
      dreamfusion, cameras_config=CameraRange(**config.camera),
      lighting=Lighting(**config.light),
      random_backgrounds=Backgrounds(
          config.random_background_prob, config.background_range),
      size=config.size)


def clip_mesh_sampler(config: Any) -> SampleView:
  """The sample_view of a scene's config (configs/clip_mesh.py: `scene`)."""
  return partial(
      clip_mesh, ranges=ClipMeshCameras(**config.camera),
      lighting=ClipMeshLight(**config.light), size=config.size)


# (config.scene) -> sample_view, by the name in a config.
DISTRIBUTIONS = {'dreamfusion': sampler, 'clip_mesh': clip_mesh_sampler}


def of_config(config: Any) -> SampleView:
  """The sample_view of a scene that names its distribution of views.

  Raises:
    UserError: the name is unknown.
  """
  return pick('distribution of views', DISTRIBUTIONS,
              config.view_distribution)(config)


def sample_camera(key: jax.Array, ranges: CameraRange, part: tuple
                  ) -> cameras.Camera:
  """A random camera of a part of the azimuths.

  Args:
    key: of the random numbers.
    ranges: CameraRange.
    part: see scenes.Scene.sample_view.
  """
  low, high = ranges.azimuth
  azimuth = (low + (high - low) * part[0], low + (high - low) * part[1])
  return cameras.sample(key, **ranges._replace(azimuth=azimuth)._asdict())


def dreamfusion(key: jax.Array, step: Any, part: tuple = (0.0, 1.0), *,
                cameras_config: CameraRange, lighting: Lighting,
                random_backgrounds: Backgrounds, size: int) -> View:
  """A random View as in DreamFusion.

  Args:
    key, step, part: see scenes.Scene.sample_view.
    cameras_config: CameraRange.
    lighting: Lighting.
    random_backgrounds: Backgrounds.
    size: pixels per side.
  """
  # The number and order of keys are part of the random stream.
  keys = jax.random.split(key, 7)
  camera = sample_camera(keys[0], cameras_config, part)
  position = shading.sample_position(
      keys[1], camera.c2w[:3, 3], distance_range=lighting.distance_range)
  bernoulli = lambda key, p: jax.random.bernoulli(key, p).astype(jnp.float32)
  # A view without shading has the full ambient light: its image is the albedo.
  shaded = (bernoulli(keys[2], lighting.shaded_prob)
            * (step >= lighting.albedo_steps))
  textureless = shaded * bernoulli(keys[3], lighting.textureless_prob)
  light = shading.Light(
      position, ambient=1 - shaded + shaded * lighting.ambient,
      diffuse=shaded * lighting.diffuse, textureless=textureless,
      normals=bernoulli(keys[6], schedules.piecewise(
          step, lighting.normals_prob)) if lighting.normals_prob else None)
  # Around gray, the mean of all colors.
  color_range = schedules.piecewise(step, random_backgrounds.color_range)
  background = 0.5 + color_range * (jax.random.uniform(keys[4], (3,)) - 0.5)
  return View(camera, cameras.rays(camera, size, size), light,
              background=background,
              learned=1 - bernoulli(keys[5], random_backgrounds.random_prob))


def clip_mesh(key: jax.Array, step: Any, part: tuple = (0.0, 1.0), *,
              ranges: ClipMeshCameras, lighting: ClipMeshLight, size: int
              ) -> View:
  """A random View as in CLIP-Mesh.

  Args:
    key, step: see scenes.Scene.sample_view.
    part: where in the step this view is; azimuths are not stratified.
    ranges: ClipMeshCameras.
    lighting: ClipMeshLight.
    size: pixels per side.
  """
  keys = jax.random.split(key, 7)
  uniform = lambda key, range_: jax.random.uniform(
      key, minval=range_[0], maxval=range_[1])
  distance = uniform(keys[0], ranges.distance)
  elevation = ranges.elevation_max * (
      1 - jax.random.uniform(keys[1]) ** (1 / ranges.elevation_beta))
  camera = clip_mesh_camera(
      uniform(keys[2], ranges.azimuth), elevation, distance,
      uniform(keys[3], ranges.fov), ranges.shift * jax.random.uniform(
          keys[4], (2,), minval=-1.0))
  position = distance * shading.cosine_direction(
      jax.random.uniform(keys[5], (2,)), camera.c2w[:3, 3])
  # The first floor(n / 2) of a step's n views are textured.
  width = part[1] - part[0]
  index, half = jnp.round(part[0] / width), jnp.floor(
      jnp.round(1 / width) / 2)
  untextured = jnp.float32(
      (step < lighting.untextured_steps) & (index >= half))
  shade = 1 - untextured + untextured * lighting.untextured_gray
  light = shading.Light(position, shade * lighting.ambient,
                        shade * lighting.diffuse, untextured)
  return View(camera, cameras.rays(camera, size, size), light,
              backgrounds.clip_mesh(keys[6], size), jnp.float32(0.0))


def clip_mesh_camera(azimuth: Any, elevation: Any, distance: Any, fov: Any,
                     shift: jax.Array) -> cameras.Camera:
  """A camera of CLIP-Mesh, around an object that is shifted along x and y.

  Its images are mirrored left to right in the official code, whose up vector
  is -y; here they are not. There, too, the array of the projection matrix
  holds integers, so that 1 / tan(fov / 2) is rounded towards zero; here not.

  Args:
    azimuth: degrees, from +x towards +z.
    elevation, fov: degrees.
    distance: from the origin, before the shift.
    shift: [2] of the object; it is the camera that is moved.
  """
  # Azimuths of ops.cameras run from +z towards +x.
  camera = cameras.orbit(90.0 - azimuth, elevation, distance,
                         0.5 / jnp.tan(jnp.deg2rad(fov) / 2))
  return camera._replace(c2w=camera.c2w.at[..., :2, 3].add(-shift))
