"""Meshes without a texture, by names: files, objects of the shapes world."""

from gen3d.data import synthetic
from gen3d.io import surfaces
from gen3d.ops import atlas
from gen3d.ops.mesh import Mesh

SHAPES = 'shapes:'  # names of objects of the shapes world begin so


def read(name: str, up: str, uv_size: int,
         resolution: int) -> tuple[Mesh, ...]:
  """Reads meshes with uv in [0, 1], one for each material and node.

  Args:
    name: a mesh file, or 'shapes:' and a category: the typical object.
    up: the file's upward axis, 'y' or 'z'; the meshes have y up.
    uv_size: texels per side of the texture that they are to get.
    resolution: grid points along an object of the shapes world.

  Raises:
    UserError: the file cannot be read, or the shapes world has no such
      category.
  """
  if not name.startswith(SHAPES):
    return surfaces.load_parts(name, up, uv_size=uv_size)
  mesh, = synthetic.surface_from_caption(
      f'a {name.removeprefix(SHAPES)}', resolution)
  return atlas.unwrap(mesh._replace(colors=None), uv_size),
