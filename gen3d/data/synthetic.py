"""Synthetic posed images, rendered from meshes or objects of the shapes world.

Reconstruction data without a download: a mesh (io/meshes.py) or an object of
the shapes world is placed at the origin and rendered from cameras on a sphere
that just frame it. `write_blender` writes the layout of NeRF's Blender scenes:
transforms_{train,val,test}.json and RGBA images.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gen3d import notices
from gen3d.data import raster
from gen3d.data.captures import posed
from gen3d.data.shapes import captions, categories, primitives
from gen3d.data.shapes import render as shapes_render
from gen3d.ops import cameras, shading
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh

RADIUS = 1.0    # of the ball that holds the object
DISTANCE = 4.0  # of the cameras, as in NeRF's Blender scenes
_MARGIN = 1.05  # width of the images relative to that of the ball
_GOLDEN_ANGLE = 180 * (3 - 5 ** 0.5)  # degrees


def surface_from_caption(text: str,
                         resolution: int = 160) -> tuple[Mesh]:
  """Meshes the typical object of the shapes world that a caption names.

  The surface is extracted by marching cubes from the signed distance of the
  object's parts. A vertex has the color of the part that it lies on and the
  gradient of the distance as normal.

  Args:
    text: such as 'a red car with blue wheels'; colors that it does not name
      are white and gray.
    resolution: grid points per side.

  Returns:
    Tuple of one Mesh with normals and colors, in a ball of radius
    categories.RADIUS.

  Raises:
    UserError: the caption names no object of the shapes world.
  """
  _, parts = _typical_object(text)
  bound = 1.1 * categories.RADIUS

  @jax.jit
  def query(points):
    # A density that is 1 on the surface: `isosurface` takes positive levels.
    return (jnp.exp(-10 * primitives.sdf(parts, points)),
            primitives.color(parts, points))

  density, origin, spacing = mesh_ops.sample_grid(
      query, np.outer([-bound, bound], np.ones(3)), resolution)
  vertices, faces = mesh_ops.isosurface(density, 1.0, origin, spacing)
  points = jnp.asarray(vertices, jnp.float32)
  normals, colors = jax.jit(lambda points: (
      shapes_render.normals(parts, points),
      primitives.color(parts, points)))(points)
  return Mesh(vertices, faces, np.asarray(normals, np.float64),
              np.asarray(colors, np.float64)),


def render_views(text: str, split: str, count: int,
                 size: int) -> posed.Posed:
  """Renders the object of `surface_from_caption` in memory, by sphere tracing.

  Args:
    text: as in `surface_from_caption`.
    split: 'train', 'val' or 'test'.
    count: number of images.
    size: pixels per side.

  Returns:
    posed.Posed; the light is fixed in the world.

  Raises:
    UserError: the caption names no object of the shapes world.
  """
  spec, parts = _typical_object(text)
  c2w, intrinsics = sphere_cameras(count, split)
  # The object stays in the ball of the shapes world; cameras move closer.
  scale = categories.RADIUS / RADIUS
  c2w[:, :3, 3] *= scale
  light = shading.Light(cameras.spherical(30.0, 60.0, jnp.float32(4.0)),
                        0.5, 0.5, 0.0)

  @jax.jit
  def render(camera):
    view = shapes_render.trace(parts, camera, size)
    # Full coverage gives colors without background: straight alpha.
    opaque = view._replace(coverage=jnp.full_like(view.coverage, 255))
    colors = jnp.round(
        255 * shapes_render.shade_and_composite(opaque, light, 0.0))
    return jnp.concatenate([colors.astype(jnp.uint8),
                            view.coverage[..., None]], axis=-1)

  camera = cameras.Camera(c2w.astype(np.float32),
                          intrinsics.astype(np.float32))
  half, distance = scale * RADIUS, scale * DISTANCE
  return posed.Posed(
      f'shapes world ({captions.plain(spec)})',
      tuple(f'{split}_{i:03d}' for i in range(count)), camera,
      np.stack([render(cameras.Camera(*pair)) for pair in zip(*camera)]),
      distance - half, distance + half,
      np.array([3 * [-half], 3 * [half]], np.float32), True)


def sphere_cameras(count: int, split: str,
                   lowest: float = 0.0) -> cameras.Camera:
  """Cameras around the ball: Camera with float64 NumPy arrays [count, ...].

  Training cameras are distributed evenly, on a golden-angle spiral, over the
  part of the sphere above the elevation `lowest` (degrees). Test and
  validation cameras make two turns from 10 to 60 degrees of elevation,
  validation half a step before test.
  """
  index = np.arange(count) + (0.0 if split == 'val' else 0.5)
  if split == 'train':
    low = np.sin(np.deg2rad(lowest))
    elevation = np.rad2deg(np.arcsin(low + (1 - low) * index / count))
    azimuth = _GOLDEN_ANGLE * index
  else:
    elevation = 10 + 50 * index / count
    azimuth = 720 * index / count
  # Half the width, at depth 1, of the cone that touches the ball.
  half = _MARGIN * np.tan(np.arcsin(RADIUS / DISTANCE))
  camera = cameras.orbit(azimuth % 360, elevation, DISTANCE, 0.5 / half)
  return cameras.Camera(*(np.asarray(x, np.float64) for x in camera))


def write_blender(out: str | os.PathLike, meshes: Sequence[Mesh], *,
                  train: int = 100, test: int = 25, size: int = 200,
                  lowest: float = 0.0, **shading_options: Any) -> None:
  """Renders an object and writes images and cameras into a folder.

  The files have z up, as Blender does: the world's (x, y, z) is written as
  (x, -z, y). There are a fifth as many validation as test images. The JSON
  files are written last: a folder that has them is complete.

  Args:
    out: folder.
    meshes: of the object, y up; they are normalized to the ball.
    train: number of training images.
    test: number of test images.
    size: pixels per side.
    lowest: smallest elevation of a training camera, degrees.
    **shading_options: samples, ambient, light; see raster.render.

  Raises:
    UserError: the meshes are empty.
  """
  out = pathlib.Path(out)
  triangles = raster.gather(mesh_ops.normalize_to_ball(meshes, RADIUS))
  counts = {'train': train, 'val': max(1, test // 5), 'test': test}
  listings = {}
  for split, count in counts.items():
    (out / split).mkdir(parents=True, exist_ok=True)
    camera, frames = sphere_cameras(count, split, lowest), []
    for i, (c2w, intrinsics) in enumerate(notices.track(
        zip(*camera), f'Rendering {split} images', count)):
      image = raster.render(
          triangles, c2w, intrinsics, size, size, **shading_options)
      Image.fromarray(image).save(out / split / f'r_{i}.png')
      frames.append({'file_path': f'./{split}/r_{i}',
                     'transform_matrix': (cameras.Z_UP.T @ c2w).tolist()})
    angle = 2 * np.arctan(0.5 / camera.intrinsics[0, 0, 0])
    listings[split] = {'camera_angle_x': float(angle), 'frames': frames}
  for split, listing in listings.items():
    (out / f'transforms_{split}.json').write_text(json.dumps(listing, indent=1))


def _typical_object(text):
  """(Spec, parts) with mean parameters; missing colors are white and gray."""
  spec = captions.parse(text)
  spec = spec._replace(main=spec.main or 'white', second=spec.second or 'gray')
  return spec, categories.build(
      spec, lambda low, high: (low + high) / 2).parts
