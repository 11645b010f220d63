"""Time and memory of the rasterizer of meshes, for gen3d.benchmark."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import notices
from gen3d.evaluation import speed
from gen3d.ops import cameras, raster, silhouettes, textures
from gen3d.ops.mesh import Mesh

TRIANGLES = (10_000, 100_000)
SIZE = 512  # side of the image, pixels
TEXTURE_SIZE = 1024


def run(*, repeats: int, plan_only: bool = False,
        out: str | os.PathLike | None = None,
        triangles: Sequence[int] = TRIANGLES, size: int = SIZE
        ) -> dict[str, Any]:
  """Measures images of meshes and their gradients, and prints the numbers.

  The mesh is seen from outside and covers two thirds of the image. 'faces' is
  `raster.rasterize` with interpolated normals; 'image' has in addition a
  mipmapped texture, a light, and antialiased silhouettes. Gradients are those
  of the mean square, by vertex positions and texture.

  Args:
    repeats: number of timed calls; the median counts.
    plan_only: whether to only print the memory that the compiler plans.
    out: a .json file for the numbers, or None.
    triangles: numbers of triangles.
    size: side of the image, pixels.

  Returns:
    {name: number}, as written to `out`.

  Raises:
    UserError: `out` cannot be written to.
  """
  return speed.written(
      lambda: _measure(triangles, size, repeats, plan_only), out)


def bumpy_sphere(triangles: int) -> Mesh:
  """A closed Mesh with normals and uv of about so many triangles.

  Its radius is between 0.85 and 1.15.
  """
  rows = max(2, round(np.sqrt(triangles / 4)))
  columns = max(3, round(triangles / (2 * rows)))
  polar, azimuth = np.meshgrid(
      np.linspace(0.01, np.pi - 0.01, rows + 1),
      np.linspace(0, 2 * np.pi, columns + 1), indexing='ij')
  radius = 1 + 0.15 * np.sin(5 * azimuth) * np.sin(polar) * np.sin(4 * polar)
  points = radius[..., None] * np.stack([
      np.sin(polar) * np.sin(azimuth), np.cos(polar),
      np.sin(polar) * np.cos(azimuth)], -1)
  index = np.arange(polar.size).reshape(polar.shape)
  a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
  faces = np.stack([a, b, c, a, c, d], -1).reshape(-1, 3)
  uv = np.stack([azimuth / (2 * np.pi), 1 - polar / np.pi], -1)
  points = points.reshape(-1, 3).astype(np.float32)
  normals = points / np.linalg.norm(points, axis=-1, keepdims=True)
  return Mesh(points, faces.astype(np.int32), normals=normals,
              uv=uv.reshape(-1, 2).astype(np.float32))


def _measure(triangles, size, repeats, plan_only):
  """{name: number} of all programs."""
  numbers = {'platform': jax.devices()[0].platform, 'image': size}
  print(f'rasterizer, {size} x {size} pixels, on one {numbers["platform"]}')

  def add(name, value, unit):
    numbers[name] = value
    speed.print_measurement(speed.Measurement(name, value, unit))

  for count in triangles:
    for name, function, arguments in programs(bumpy_sphere(count), size):
      name = f'{count:,} triangles, {name}'
      with notices.slow('Compiling'):
        compiled = jax.jit(function).lower(*arguments).compile()
      plan = compiled.memory_analysis()
      if plan is not None:
        add(f'{name}, planned memory in GB', (
            plan.temp_size_in_bytes + plan.output_size_in_bytes
            + plan.argument_size_in_bytes) / 1e9, 'GB')
      if not plan_only:
        seconds = speed.median_seconds(
            lambda: compiled(*arguments), repeats)  # noqa: B023
        add(name, seconds, 's')
  if not plan_only:
    add('peak memory in GB', speed.peak_gigabytes(), 'GB')
  return numbers


def programs(mesh: Mesh, size: int) -> list[tuple[str, Callable, tuple]]:
  """(name, function, its arguments) of what is measured of a Mesh.

  Args:
    mesh: with normals and uv.
    size: side of the image, pixels.
  """
  faces, normals, uv = (
      jnp.asarray(x) for x in (mesh.faces, mesh.normals, mesh.uv))
  twins = jnp.asarray(silhouettes.edge_twins(mesh.faces, mesh.vertices))
  camera = cameras.orbit(30.0, 20.0, 4.0, 1.6)
  image = jnp.asarray(np.random.default_rng(0).random(
      (TEXTURE_SIZE, TEXTURE_SIZE, 3)), jnp.float32)
  positions = raster.to_clip(
      camera, jnp.asarray(mesh.vertices), near=1.0, far=8.0)
  light = cameras.normalize(jnp.array([0.45, 0.75, 0.5]))

  def shaded(positions, image, faces, normals, uv, twins):
    fragments = raster.rasterize(positions, faces, size)
    places = raster.interpolate(uv, fragments, faces)
    footprint = raster.pixel_derivatives(uv, fragments, positions, faces)
    albedo = textures.texture(textures.build_mips(image), places, footprint)
    normal = cameras.normalize(raster.interpolate(normals, fragments, faces))
    color = albedo * jnp.sum(normal * light, axis=-1, keepdims=True)
    return silhouettes.antialias(color, fragments, positions, faces, twins)

  def visible(positions, image, faces, normals, uv, twins):
    del image, uv, twins
    fragments = raster.rasterize(positions, faces, size)
    return raster.interpolate(normals, fragments, faces)

  def gradient(function):
    return jax.grad(lambda *arguments: jnp.mean(function(*arguments) ** 2),
                    argnums=(0, 1))

  arguments = positions, image, faces, normals, uv, twins
  return [('faces forward', visible, arguments),
          ('faces forward and backward', gradient(visible), arguments),
          ('image forward', shaded, arguments),
          ('image forward and backward', gradient(shaded), arguments)]
