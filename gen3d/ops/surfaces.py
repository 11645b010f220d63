"""Surfaces with looks: triangles with colors or a texture, from anywhere.

A Surface is of one material; an object is a tuple of them. Unlike mesh.Mesh,
which is what our own exporter makes, its faces may be open, turned either way,
and textured. Colors are display values (sRGB) in [0, 1], as pictures are.
"""

from typing import Any, NamedTuple

import numpy as np

from gen3d.choices import UserError


class Surface(NamedTuple):
  """Triangles of one material, in the world (y up)."""
  vertices: Any          # [V, 3]
  faces: Any             # int [F, 3]
  normals: Any           # [V, 3], unit; either side
  colors: Any           # [V, 3]; multiplies the texture where there is one
  uv: Any = None         # [V, 2]: (0, 0) is the texture's bottom left corner
  texture: Any = None    # uint8 [H, W, 3], repeated beyond [0, 1]


def fit(surfaces, radius=1.0):
  """The surfaces moved and scaled together into a ball around the origin.

  The middle of their bounding box becomes the origin; the vertex that is
  farthest from it lies on the ball.

  Raises:
    UserError: there is no vertex, or all are at one place.
  """
  points = np.concatenate([s.vertices[np.unique(s.faces)] for s in surfaces]
                          or [np.zeros((0, 3))])
  if not len(points) or not np.isfinite(points).all():
    raise UserError('The mesh has no triangles, or vertices that are not '
                    'finite.')
  middle = (points.min(0) + points.max(0)) / 2
  extent = np.linalg.norm(points - middle, axis=-1).max()
  if extent <= 0:
    raise UserError('All vertices of the mesh are at one place.')
  return tuple(s._replace(vertices=(s.vertices - middle) * (radius / extent))
               for s in surfaces)
