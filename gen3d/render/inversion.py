"""Files of an inversion: comparison sheet, latent, tuned weights, film, mesh.
"""

import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import files
from gen3d.gan import inference, projector
from gen3d.io import images as image_io
from gen3d.io import video
from gen3d.ops import bake, cameras
from gen3d.render import objects

_MIN_PIXELS = 128  # a side of the panels on the sheet


def export(name: str | os.PathLike, trained: inference.Trained,
           target: projector.Target, loss: projector.PerceptualLoss,
           out: str | os.PathLike, *, steps: int, tuning_steps: int,
           w_plus: bool, views: Sequence[float], frames: int = 48,
           resolution: int = 128, texture: int = 1024) -> list[pathlib.Path]:
  """Inverts a target and writes all files of the result.

  Args:
    name: that `trained` was loaded by.
    trained: Trained.
    target: Target.
    loss: PerceptualLoss.
    out: folder.
    steps, w_plus: of projector.project.
    tuning_steps: of projector.pivotal_tuning.
    views: further azimuths on the sheet, in degrees.
    frames: of the film.
    resolution: of the meshes' grid.
    texture: texels per side of the .glb's texture; 0 for vertex colors.

  Returns:
    The paths written. An object without a surface has no meshes; a message on
    stderr says so.

  Raises:
    UserError: `out` cannot be written to, or there is no texture of this size.
  """
  bake.check_size(texture)
  files.check_folder(out)
  out, record = pathlib.Path(out), inference.record_of(name)
  # Opened before the work, so that an unwritable folder fails early.
  with files.atomic_write(out / 'latent.npz') as latent:
    ws, variables, projection_loss = projector.project(
        trained, target, loss, steps=steps, w_plus=w_plus)
    projected = trained._replace(variables=variables)
    variables, tuning_loss = projector.pivotal_tuning(
        projected, target, loss, ws, steps=tuning_steps)
    np.savez(latent, ws=ws, label=cameras.to_label(target.camera),
             projection_loss=projection_loss, tuning_loss=tuning_loss)

  # All images are of the tuned weights, but for one of the projection.
  tuned = trained._replace(variables=variables)
  render = inference.make_renderer(tuned, ('image',))
  image_io.save(out / 'inversion.png', _sheet(
      target, projected, render, ws, 'w+' if w_plus else 'w', views))
  weights = inference.save_tuned(record, tuned, out)
  video.save(out / 'turntable.mp4', render(
      ws, inference.camera_path(trained.camera, frames)),
             objects.turn_fps(frames))
  return [out / 'inversion.png', out / 'latent.npz', *weights,
          out / 'turntable.mp4', *objects.save_meshes(
              inference.make_mesh_extractor(tuned, resolution),
              inference.make_baker(tuned, texture), ws, out / 'mesh',
              'The tuned object has no surface, so no mesh of it is written; '
              'fewer steps of tuning keep it closer to the training data.')]


def _sheet(target, projected, render, ws, space, views):
  """The target, its projection, the tuned object, and that from `views`."""
  own = jax.tree.map(lambda x: x[None], target.camera)
  turned = inference.camera_at(projected.camera, jnp.float32(views))
  both = jax.tree.map(lambda *x: jnp.concatenate(x), own, turned)
  row = np.concatenate([
      image_io.to_uint8(target.image[None] / 2 + 0.5),
      inference.make_renderer(projected, ('image',))(ws, own),
      render(ws, both)])
  # Small images are enlarged, so that the labels fit below them.
  scale = -(-_MIN_PIXELS // row.shape[1])
  return image_io.tile(
      row.repeat(scale, 1).repeat(scale, 2), len(row),
      ['picture', space, 'tuned', *(f'tuned, {x:g} degrees' for x in views)])
