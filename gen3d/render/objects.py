"""Files of generated 3-D objects: sheets of views, films, meshes.

Everything goes through gan.Generator3D, of whatever kind the generator is.
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import files, notices
from gen3d.gan import inference
from gen3d.io import images as image_io
from gen3d.io import meshes, video
from gen3d.ops import mesh

SHEET_VIEWS = 8  # of each object on the exported sheet
_TURN_SECONDS = 5.0


def turn_fps(frames: int) -> int:
  """Frames per second of a film whose `frames` make a turn in 5 seconds."""
  return max(1, round(frames / _TURN_SECONDS))


def sheet_row(film: np.ndarray) -> list[np.ndarray]:
  """Panels of one row of a sheet.

  Args:
    film: uint8 [F, R, 3 R, 3] with all of inference.PANELS.

  Returns:
    The F images, then the raw image and the depth of the first view, each
    uint8 [R, R, 3].
  """
  side = film.shape[1]
  return [*film[:, :, :side], film[0][:, side:2 * side],
          film[0][:, 2 * side:]]


def sheet(trained: inference.Trained, seeds: Sequence[int],
          views: int = 5) -> np.ndarray:
  """One image uint8 [H, W, 3] with a `sheet_row` for each seed."""
  render = inference.make_renderer(trained)
  path = inference.camera_path(trained.camera, views)
  rows = [sheet_row(render(inference.map_seed(trained, seed), path))
          for seed in seeds]
  return image_io.tile(np.concatenate(rows), columns=views + 2)


def export(trained: inference.Trained, seeds: Sequence[int],
           out: str | os.PathLike, *, psi: float = 1.0,
           cutoff: int | None = None, frames: int = 48,
           resolution: int = 128, texture: int = 1024) -> list[pathlib.Path]:
  """Writes a sheet of views, and for each object a turntable and meshes.

  Args:
    trained: Trained.
    seeds: of the objects.
    out: folder.
    psi, cutoff: truncation and the number of layers that it applies to.
    frames: of a turntable.
    resolution: of the meshes' grid.
    texture: texels per side of their textures; 0 for vertex colors.

  Returns:
    The paths written. An object without a surface has no meshes; a message on
    stderr names its seed.

  Raises:
    UserError: `out` cannot be written to, or there is no texture of this size.
  """
  files.check_folder(out)
  out, written, rows = pathlib.Path(out), [], []
  render = inference.make_renderer(trained)
  extract = inference.make_mesh_extractor(trained, resolution)
  bake = inference.make_baker(trained, texture)
  path = inference.camera_path(trained.camera, frames)
  on_sheet = np.arange(SHEET_VIEWS) * frames // SHEET_VIEWS
  for seed in notices.track(seeds, 'Generating objects'):
    ws = inference.map_seed(trained, seed, psi, cutoff)
    film = render(ws, path)
    rows.append(np.stack(sheet_row(film[on_sheet])))
    stem = out / f'seed{seed:04d}'
    video.save(stem.with_suffix('.mp4'), film, turn_fps(frames))
    written.append(stem.with_suffix('.mp4'))
    written += save_meshes(
        extract, bake, ws, stem, f'Seed {seed} has no surface, so no mesh of '
        'it is written; truncation brings it closer to the mean object.')
  image_io.save(out / 'grid.png', image_io.tile(
      np.concatenate(rows), columns=SHEET_VIEWS + 2))
  return [out / 'grid.png', *written]


def save_meshes(extract: Callable[[jax.Array], mesh.Mesh],
                bake: Callable[[jax.Array, mesh.Mesh], mesh.Mesh],
                ws: jax.Array, stem: pathlib.Path,
                empty_message: str) -> list[pathlib.Path]:
  """Writes an object's mesh as .glb and .ply.

  Args:
    extract: by inference.make_mesh_extractor.
    bake: by inference.make_baker.
    ws: [L, D].
    stem: of the files' paths.
    empty_message: for stderr, where the object has no surface.

  Returns:
    The paths written, none where there is no surface.
  """
  try:
    with notices.slow('Extracting the mesh'):
      surface = extract(ws)
  except mesh.EmptyField:
    notices.message(empty_message)
    return []
  with notices.slow('Making the texture'):
    textured = bake(ws, surface)
  return meshes.save_formats(stem, ('glb', 'ply'), surface, textured)


def interpolate(trained: inference.Trained, seeds: Sequence[int],
                path: pathlib.Path, *, psi: float = 1.0,
                cutoff: int | None = None, frames: int = 48) -> pathlib.Path:
  """Writes a film that morphs from object to object and back to the first.

  w moves on straight lines between the objects, slowly near each of them. The
  camera makes one turn for each line.

  Args:
    trained: Trained.
    seeds: of the objects.
    path: of the film.
    psi, cutoff: truncation and the number of layers that it applies to.
    frames: for each line.

  Returns:
    `path`.
  """
  render = inference.make_renderer(trained)
  ws = jnp.stack([inference.map_seed(trained, seed, psi, cutoff)
                  for seed in (*seeds, seeds[0])])
  time = np.arange(frames) / frames
  eased = 3 * time ** 2 - 2 * time ** 3
  azimuths = inference.azimuths(trained.camera, frames)
  # A generator: the encoder takes frame by frame, so memory stays bounded.
  video.save(path, (
      render(start + fraction * (end - start),
             jax.tree.map(lambda x: x[None], inference.camera_at(
                 trained.camera, azimuth)))[0]
      for start, end in notices.track(
          itertools.pairwise(ws), 'Morphing objects', len(seeds))
      for fraction, azimuth in zip(eased, azimuths, strict=True)),
      turn_fps(frames))
  return path
