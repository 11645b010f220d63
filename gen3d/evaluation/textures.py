"""How well the textures of exported meshes agree with their fields.

Each finished text-to-3D run's mesh.glb is rendered by ops/raster.py from eight
views, without light, and compared with two other images. Dense: the same
surface, its faces divided in four, with a color of the field at each vertex;
what differs is the texture alone. Volume: the albedo of the volume rendering,
from which the surface differs, too.
"""

import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.engine import checkpoints
from gen3d.evaluation import text_to_3d as runs_evaluation
from gen3d.io import images as image_io
from gen3d.io import meshes
from gen3d.metrics import image as image_metrics
from gen3d.ops import bake, cameras, raster, textures
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh
from gen3d.render import finished
from gen3d.tasks import text_to_3d

VIEWS = 8
SIZE = 256  # pixels a side
MESH = 'mesh.glb'  # as render.finished.export writes it
_SAMPLES = 2  # points along a pixel's side
_NEAR, _FAR = 0.1, 100.0  # planes of the cameras
_ROWS = 2 ** 16  # vertices and faces are padded to multiples, for the compiler


class Agreement(NamedTuple):
  """PSNR of a textured mesh's renders, in dB, means over the views.

  Attributes:
    prompt: of the run.
    faces: number of the mesh's faces.
    texels: per side of the texture.
    dense: PSNR with the vertex-dense mesh, over the object's pixels.
    volume: PSNR with the volume rendering, over all pixels (white background).
  """
  prompt: str
  faces: int
  texels: int
  dense: float
  volume: float


def report(runs: str | os.PathLike,
           out: str | os.PathLike | None = None) -> str:
  """The table of all finished text-to-3D runs in a folder.

  Args:
    runs: folder of workdirs.
    out: folder for a sheet of images of each run, in rows: textured, dense,
      volume; None for no sheets.

  Raises:
    UserError: there is no finished run, or a mesh without a texture.
  """
  lines = ['| prompt | faces | texels a side | dB to the dense mesh | '
           'dB to the volume |', '|---|---|---|---|---|']

  def line(folder):
    run = text_to_3d.load(folder)
    if run.color is None:
      raise UserError('its scene is a mesh, so that there is no field to '
                      'compare it with.')
    row, images = compare(folder, run, run.color)
    if out:
      image_io.save(pathlib.Path(out) / f'{folder.name}.png', image_io.tile(
          np.concatenate(list(images.values())), VIEWS))
    return (f'| {row.prompt} | {row.faces} | {row.texels} | '
            f'{row.dense:.1f} | {row.volume:.1f} |')

  return '\n'.join([*lines, *runs_evaluation.each(
      runs_evaluation.finished_runs(runs), line)])


def compare(workdir: str | os.PathLike, run: finished.Finished,
            color: bake.Color) -> tuple[Agreement, dict[str, np.ndarray]]:
  """The Agreement of a run's mesh file with its field, and the images.

  Args:
    workdir: of a finished text-to-3D run.
    run: the finished object.
    color: that of `run`.

  Returns:
    Agreement, and {'textured', 'dense', 'volume': float [VIEWS, SIZE, SIZE,
    3] in [0, 1], on white}.

  Raises:
    UserError: the mesh file is missing or has no texture.
  """
  workdir = pathlib.Path(workdir)
  surface, = meshes.load(workdir / MESH)
  if surface.texture is None:
    raise UserError(
        f'{workdir / MESH} has no texture; write it again by python -m '
        f'gen3d.export --workdir={workdir} --texture=1024.')
  config = checkpoints.load_config(workdir)
  camera = finished.turntable(VIEWS, dict(config.orbit))
  textured, coverage = render(surface, camera)
  dense, _ = render(dense_colors(color, surface), camera)
  volume = run.render(camera, SIZE, 'albedo') / np.float32(255)
  error = np.sum((textured - dense) ** 2, axis=(1, 2, 3))
  object_psnr = -10 * np.log10(error / (3 * np.sum(coverage, axis=(1, 2))))
  return Agreement(
      config.prompt, len(surface.faces), len(surface.texture),
      float(np.mean(object_psnr)),
      float(np.mean(image_metrics.psnr(textured, volume)))), {
          'textured': textured, 'dense': dense, 'volume': volume}


def dense_colors(color: bake.Color, surface: Mesh) -> Mesh:
  """A surface with four times as many faces, and vertex colors of a field.

  Args:
    color: see render.finished.Finished.
    surface: with normals.
  """
  vertices, normals, faces = divide(
      np.asarray(surface.vertices), np.asarray(surface.normals),
      np.asarray(surface.faces))
  points = bake.inner_points(
      vertices, normals, bake.inner_depth(surface))
  return Mesh(vertices, faces, normals, np.clip(mesh_ops.map_chunks(
      color, points.astype(np.float32)), 0, 1))


def divide(vertices: np.ndarray, normals: np.ndarray, faces: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(vertices, normals, faces) with each face divided at its edges' middles."""
  a, b, c = faces.T
  edges = np.sort(np.stack([a, b, b, c, c, a], -1).reshape(-1, 2), axis=-1)
  keys, index = np.unique(
      edges @ [len(vertices), 1], return_inverse=True)
  ends = np.stack(np.divmod(keys, len(vertices)), -1)
  ab, bc, ca = len(vertices) + index.reshape(-1, 3).T
  extend = lambda x: np.concatenate([x, x[ends].mean(1)])
  return extend(vertices), extend(normals), np.stack([
      a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], -1).reshape(-1, 3)


def render(surface: Mesh, camera: cameras.Camera
           ) -> tuple[np.ndarray, np.ndarray]:
  """Renders a surface without light, on white, and its coverage.

  Args:
    surface: with uv and a texture, or with colors.
    camera: Camera [F].

  Returns:
    images [F, SIZE, SIZE, 3] in [0, 1], coverage [F, SIZE, SIZE] in [0, 1].
  """
  attributes = surface.colors if surface.texture is None else surface.uv
  pad = lambda x: np.pad(np.asarray(x), ((0, -len(x) % _ROWS), (0, 0)))
  texture = () if surface.texture is None else tuple(textures.build_mips(
      jnp.float32(surface.texture) / 255))
  images = np.asarray(_render(
      jnp.float32(pad(surface.vertices)), jnp.int32(pad(surface.faces)),
      jnp.float32(pad(attributes)), texture, camera))
  return images[..., :3], images[..., 3]


@jax.jit
def _render(vertices, faces, attributes, pyramid, camera):
  """Views [F, SIZE, SIZE, 4]: color over white, coverage."""
  def view(camera):
    clip = cameras.clip_positions(camera, vertices, _NEAR, _FAR)
    fragments = raster.rasterize(clip, faces, _SAMPLES * SIZE)
    values = raster.interpolate(attributes, fragments, faces)
    if pyramid:
      values = textures.texture(list(pyramid), values, raster.pixel_derivatives(
          attributes, fragments, clip, faces))
    covered = (fragments.faces >= 0)[..., None]
    image = jnp.concatenate([jnp.where(covered, values, 1.0),
                             covered.astype(jnp.float32)], axis=-1)
    return jnp.mean(image.reshape(SIZE, _SAMPLES, SIZE, _SAMPLES, 4), (1, 3))

  return jax.lax.map(view, camera)
