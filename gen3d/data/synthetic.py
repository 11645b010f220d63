"""Photographs of surfaces from all around, in Blender's layout.

Real reconstruction data without a download: any mesh (io/surfaces.py) or an
object of the shapes world stands in the middle, and is seen from cameras on a
sphere around it that just have it in view. What is written is what NeRF's
Blender scenes consist of: transforms_{train,val,test}.json and RGBA pictures.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from PIL import Image

from gen3d.data import raster
from gen3d.data.captures import posed
from gen3d.data.shapes import captions, categories, primitives
from gen3d.data.shapes import render as shapes_render
from gen3d.ops import cameras, mesh, shading
from gen3d.ops.surfaces import Surface, fit

RADIUS = 1.0    # of the ball that holds the object
DISTANCE = 4.0  # of the cameras, as in NeRF's Blender scenes
_MARGIN = 1.05  # how much wider than the ball the cameras see
_GOLDEN = 180 * (3 - 5 ** 0.5)  # degrees between neighbors of the spiral


def surface_from_caption(text, resolution=160):
  """The typical object of the shapes world that a caption names.

  The true surface, by marching cubes of the known distance: the vertices have
  the color of the part that they lie on and the distance's gradient as
  normal. Colors that the caption does not say are white and gray.

  Args:
    text: such as 'a red car with blue wheels'.
    resolution: cells a side.

  Returns:
    tuple of one Surface, in a ball of radius categories.RADIUS.

  Raises:
    UserError: the caption names no object of the shapes world.
  """
  _, parts = _typical(text)
  bound = 1.1 * categories.RADIUS

  @jax.jit
  def query(points):
    # As a density that is 1 on the surface: what ops.mesh expects.
    return (jnp.exp(-10 * primitives.sdf(parts, points)),
            primitives.color(parts, points))

  density, origin, spacing = mesh.sample_grid(
      query, np.outer([-bound, bound], np.ones(3)), resolution)
  vertices, faces = mesh.isosurface(density, 1.0, origin, spacing)
  points = jnp.asarray(vertices, jnp.float32)
  normals = jax.jit(functools.partial(shapes_render.normals, parts))(points)
  return Surface(vertices, faces, np.asarray(normals, np.float64),
                 np.asarray(primitives.color(parts, points), np.float64)),


def render_views(text, split, count, size):
  """Pictures of that object in memory, by sphere tracing, without any file.

  Args:
    text: as in `of_caption`.
    split: 'train', 'val' or 'test'.
    count: how many pictures.
    size: pixels a side.

  Returns:
    posed.Posed. The light stays where it is in the world.

  Raises:
    UserError: the caption names no object of the shapes world.
  """
  spec, parts = _typical(text)
  c2w, intrinsics = views(count, split)
  scale = categories.RADIUS / RADIUS
  c2w[:, :3, 3] *= scale
  light = shading.Light(cameras.spherical(30.0, 60.0, jnp.float32(4.0)),
                        0.5, 0.5, 0.0)

  @jax.jit
  def look(camera):
    view = shapes_render.trace(parts, camera, size)
    # Straight alpha: a pixel's color is the object's alone.
    whole = view._replace(coverage=jnp.full_like(view.coverage, 255))
    colors = jnp.round(
        255 * shapes_render.shade_and_composite(whole, light, 0.0))
    return jnp.concatenate([colors.astype(jnp.uint8),
                            view.coverage[..., None]], axis=-1)

  camera = cameras.Camera(c2w.astype(np.float32),
                          intrinsics.astype(np.float32))
  half, distance = scale * RADIUS, scale * DISTANCE
  return posed.Posed(
      f'shapes world ({captions.plain(spec)})',
      tuple(f'{split}_{i:03d}' for i in range(count)), camera,
      np.stack([look(cameras.Camera(*pair)) for pair in zip(*camera)]),
      distance - half, distance + half,
      np.array([3 * [-half], 3 * [half]], np.float32), True)


def views(count, split, lowest=0.0):
  """Cameras around the ball: Camera, float64 NumPy [count, ...].

  Training cameras are spread evenly over the sphere above the elevation
  `lowest` (a spiral by the golden angle). Test and validation cameras go
  round twice while they climb from 10 to 60 degrees, validation half a step
  before the tests.
  """
  index = np.arange(count) + (0.0 if split == 'val' else 0.5)
  if split == 'train':
    low = np.sin(np.deg2rad(lowest))
    elevation = np.rad2deg(np.arcsin(low + (1 - low) * index / count))
    azimuth = _GOLDEN * index
  else:
    elevation = 10 + 50 * index / count
    azimuth = 720 * index / count
  half = _MARGIN * np.tan(np.arcsin(RADIUS / DISTANCE))
  camera = cameras.orbit(azimuth % 360, elevation, DISTANCE, 0.5 / half)
  return cameras.Camera(*(np.asarray(x, np.float64) for x in camera))


def write_blender(out, surfaces, *, train=100, test=25, size=200, lowest=0.0,
                  **look):
  """Photographs an object and writes pictures and cameras into a folder.

  The files have z up, as Blender does: the world's (x, y, z) is written as
  (x, -z, y). There are a fifth as many validation as test pictures. The JSON
  files come last: a folder with them is complete.

  Args:
    out: folder.
    surfaces: tuple of Surface, y up; they are fitted into the ball.
    train, test: how many pictures.
    size: pixels a side.
    lowest: least elevation of a training camera, degrees.
    **look: samples, ambient, light: see raster.render.

  Raises:
    UserError: the surfaces are empty.
  """
  out = pathlib.Path(out)
  triangles = raster.gather(fit(surfaces, RADIUS))
  counts = {'train': train, 'val': max(1, test // 5), 'test': test}
  progress = tqdm.tqdm(total=sum(counts.values()), desc='photographs',
                       disable=None)
  listings = {}
  for split, count in counts.items():
    (out / split).mkdir(parents=True, exist_ok=True)
    camera, frames = views(count, split, lowest), []
    for i, (c2w, intrinsics) in enumerate(zip(*camera)):
      image = raster.render(triangles, c2w, intrinsics, size, size, **look)
      Image.fromarray(image).save(out / split / f'r_{i}.png')
      frames.append({'file_path': f'./{split}/r_{i}',
                     'transform_matrix': (cameras.Z_UP.T @ c2w).tolist()})
      progress.update()
    angle = 2 * np.arctan(0.5 / camera.intrinsics[0, 0, 0])
    listings[split] = {'camera_angle_x': float(angle), 'frames': frames}
  progress.close()
  for split, listing in listings.items():
    (out / f'transforms_{split}.json').write_text(json.dumps(listing, indent=1))


def _typical(text):
  """(Spec, parts) of the typical object; unsaid colors are white and gray."""
  spec = captions.parse(text)
  spec = spec._replace(main=spec.main or 'white', second=spec.second or 'gray')
  return spec, categories.build(
      spec, lambda low, high: (low + high) / 2).parts
