"""Fewer triangles for the same surface, by quadric edge collapse."""

import fast_simplification
import numpy as np

from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh


def decimate(mesh: Mesh, count: int) -> Mesh:
  """A surface with about `count` triangles (Garland and Heckbert, 1997).

  Args:
    mesh: its seams are merged.
    count: of the triangles; a mesh that has no more keeps them.

  Returns:
    Mesh with normals, without colors and texture: they are to be sampled anew.
  """
  vertices, index = mesh_ops.weld(mesh.vertices)
  faces = index[np.asarray(mesh.faces)]
  if len(faces) > count:
    # In the unit cube: the library's thresholds are absolute.
    origin, extent = vertices.min(0), np.ptp(vertices, axis=0).max()
    points, faces = fast_simplification.simplify(
        np.asarray((vertices - origin) / extent, np.float64),
        np.asarray(faces, np.int32), target_count=count)
    vertices = points * extent + origin
  a, b, c = vertices[faces.T]
  # xatlas needs faces with an area.
  areas = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
  faces = faces[areas > 1e-13 * np.ptp(vertices, axis=0).max() ** 2]
  used, faces = np.unique(faces, return_inverse=True)
  vertices, faces = vertices[used], faces.reshape(-1, 3)
  return Mesh(
      vertices.astype(np.float32), faces.astype(np.int32),
      mesh_ops.vertex_normals(vertices, faces).astype(np.float32))
