"""What people get of a finished scene: a film, a sheet of views, a mesh."""

import pathlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.engine import sharding
from gen3d.io import images as image_io
from gen3d.io import meshes, video
from gen3d.ops import cameras

SHOWN = ('color', 'normal', 'textureless')


class Shown(NamedTuple):
  """A scene, its parameters, and how it is looked at.

  Attributes:
    scene: scenes.Scene.
    params: of the scene.
    path: cameras.Camera [F], the frames of its film.
    modes: of scene.show, side by side in the film.
    to_world: [4, 4], similarity that the mesh is written through.
    defaults: {'resolution', 'size', 'fps', 'share'} of `export` that its
      config asks for.
  """
  scene: Any
  params: Any
  path: Any
  modes: tuple
  to_world: Any
  defaults: Any


def turntable(frames, orbit):
  """Cameras [frames] once around at {'elevation', 'distance', 'focal'}."""
  return cameras.orbit(np.linspace(0.0, 360.0, frames, endpoint=False),
                       **orbit)


def export(shown, workdir, *, resolution, size, fps, share=1.0):
  """Writes what a person wants to have of a scene.

  Args:
    shown: Shown.
    workdir: where turntable.mp4, preview.png, mesh.glb and mesh.ply go.
    resolution: of the mesh's grid.
    size: of the frames, in pixels.
    fps: of the film.
    share: of the mesh's pieces, those with at least this share of the largest
      one's volume are kept.

  Returns:
    The paths written.

  Raises:
    UserError: if there is no surface to export.
  """
  workdir = pathlib.Path(workdir)
  scene, path = shown.scene, shown.path
  film = viewer(scene, size, shown.modes)(shown.params, path)
  video.save(workdir / 'turntable.mp4', film, fps)
  eight = np.arange(8) * len(film) // 8
  azimuths = np.round(cameras.angles(path.c2w[eight, :3, 3])[0]) % 360
  image_io.save(workdir / 'preview.png', image_io.tile(
      film[eight][:, :, :size], 4, [f'{a:z.0f} degrees' for a in azimuths]))
  surface = scene.mesh(shown.params, resolution, share)
  matrix = np.asarray(shown.to_world)
  surface = surface._replace(vertices=(
      surface.vertices @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32))
  meshes.save(workdir / 'mesh.glb', surface)
  meshes.save(workdir / 'mesh.ply', surface)
  return [workdir / name for name in (
      'turntable.mp4', 'preview.png', 'mesh.glb', 'mesh.ply')]


def viewer(scene, size, modes=SHOWN, background=(1.0, 1.0, 1.0)):
  """A compiled (params, cameras [N]) -> uint8 [N, size, M size, 3].

  The M `modes` side by side; size, modes and background as scenes.Scene.show
  has them. The views are divided over this process's devices.
  """
  if background is not None:
    background = jnp.asarray(background, jnp.float32)

  def look(params, camera):
    images = scene.show(params, camera, size, modes, background)
    image = jnp.concatenate([images[mode] for mode in modes], axis=1)
    return jnp.round(255 * image).astype(jnp.uint8)

  return sharding.map_over_devices(
      lambda params, path: jax.lax.map(partial(look, params), path))
