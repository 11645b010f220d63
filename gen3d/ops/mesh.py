"""Triangle meshes, and their extraction from density fields.

Vocabulary. A Mesh is in world units and world axes (y up, front to +z). A
grid is an array [X, Y, Z] of densities (per world unit of length) at the
points `origin + spacing * index`; the level is the density of the extracted
surface. All functions run on the host in NumPy; only `query` runs on an
accelerator.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from skimage import measure

from gen3d.choices import UserError

HALF_OPACITY_DEPTH = np.log(2.0)  # optical depth of opacity one half
CHUNK = 2**16  # points per query: bounds the memory of a grid's evaluation
COARSE_RESOLUTION = 64
SMOOTHING_ROUNDS = 4

# points [CHUNK, 3] -> (density [CHUNK], colors [CHUNK, 3] in [0, 1]). The
# number of points is constant, so that a jitted query is compiled once.
Query = Callable[[np.ndarray], tuple[Any, Any]]


class EmptyField(UserError):
  """A density field in which no ray is half opaque: it has no surface."""


class Mesh(NamedTuple):
  """Triangles of one material; an object is a Mesh or a tuple of them.

  `extract` returns closed meshes with counter-clockwise faces (seen from
  outside). Meshes from files may be open, and their faces oriented either
  way. Colors and textures hold display values (sRGB). Where there are both,
  a point's color is their product.
  """
  vertices: Any        # [V, 3] float, world
  faces: Any           # [F, 3] int
  normals: Any = None  # [V, 3] float, unit length, towards either side
  colors: Any = None   # [V, 3] float in [0, 1]
  uv: Any = None       # [V, 2] float; (0, 0) is the texture's lower left corner
  texture: Any = None  # [H, W, 3] uint8, repeated outside [0, 1]


def extract(query: Query, bound: float, resolution: int = 192,
            keep_share: float = 1.0, inset: float = 0.0,
            solid: bool = False) -> Mesh:
  """Extracts the closed, colored surface of a density field.

  A coarse grid over the whole cube locates the object; a fine grid over the
  object's bounding box gives the surface.

  Args:
    query: the field; see Query.
    bound: half the side of the cube, around the origin, that holds the
      object.
    resolution: grid points along the longest side of the object's box.
    keep_share: connected components of at least this fraction of the largest
      one's volume are kept; 1.0 keeps the largest only.
    inset: distance by which the surface is moved inwards.
    solid: whether what cannot be seen from outside belongs to the object, such
      as an empty space behind its surface. Not for a space with the cameras in
      it.

  Returns:
    A watertight Mesh with colors.

  Raises:
    EmptyField: no ray through the field is half opaque.
  """
  cube = np.outer([-bound, bound], np.ones(3))
  coarse, origin, spacing = sample_grid(
      query, cube, min(COARSE_RESOLUTION, resolution))
  level = auto_threshold(coarse, spacing)
  # Half the level and two cells of margin: parts thinner than a coarse cell
  # appear in the coarse grid only as a low density.
  box = _bounding_box(coarse > 0.5 * level, origin, spacing, cube, margin=2)
  density, origin, spacing = sample_grid(query, box, resolution)
  if _crosses_box(density > level, box, cube):
    density, origin, spacing = sample_grid(query, cube, resolution)
  level = auto_threshold(density, spacing)
  if solid:
    density = np.maximum(density, level / HALF_OPACITY_DEPTH * hidden_depth(
        density, spacing))
  vertices, faces = isosurface(density, level, origin, spacing)
  vertices, faces = keep_components(vertices, faces, keep_share)
  vertices = smooth(vertices, faces, SMOOTHING_ROUNDS)
  # Albedo is trained only where there is density, so it is read half a cell
  # below the surface.
  normals = vertex_normals(vertices, faces)
  inner = vertices - 0.5 * spacing * normals
  colors = map_chunks(lambda points: query(points)[1], inner)
  vertices = vertices - inset * normals
  return Mesh(vertices.astype(np.float32), faces.astype(np.int32),
              colors=np.clip(colors, 0, 1).astype(np.float32))


def sample_grid(query: Query, box: np.ndarray,
                resolution: int) -> tuple[np.ndarray, np.ndarray, float]:
  """Evaluates densities on a grid of cubic cells that covers a box.

  Args:
    query: the field; see Query.
    box: [2, 3], lower and upper corner.
    resolution: grid points along the longest side.

  Returns:
    density [X, Y, Z], origin [3], spacing.
  """
  extent = box[1] - box[0]
  spacing = float(extent.max() / (resolution - 1))
  counts = np.maximum(2, np.ceil(extent / spacing - 1e-6).astype(int) + 1)
  origin = 0.5 * (box[0] + box[1] - spacing * (counts - 1))

  def density_at(flat_index):
    index = np.stack(np.unravel_index(flat_index, counts), axis=-1)
    return query((origin + spacing * index).astype(np.float32))[0]

  density = map_chunks(density_at, np.arange(np.prod(counts)))
  density = density.reshape(counts)
  return density, origin, spacing


def auto_threshold(density: np.ndarray, spacing: float) -> float:
  """Returns the level whose surface agrees best with volume rendering.

  In a volume rendering the silhouette of an object is where the opacity
  1 - exp(-integral of density) of a ray is one half, and its surface is at
  the depth where the accumulated opacity reaches one half. Both are measured
  along the grid lines, in all six directions. A level's silhouette error is
  the number of rays that are half opaque but have no density above the level,
  or the other way round. Among the levels whose error is within 3 % of the
  half-opaque rays (less than the width of a cell) of the smallest error, the
  result is the one nearest to the median density at the half-opacity depth.

  Args:
    density: grid [X, Y, Z].
    spacing: side of its cells.

  Raises:
    EmptyField: no ray is half opaque.
  """
  peaks, opaque, surface_densities = [], [], []
  largest_depth = 0.0
  for axis in range(3):
    for rays in (np.moveaxis(density, axis, -1),
                 np.flip(np.moveaxis(density, axis, -1), -1)):
      rays = rays.reshape(-1, rays.shape[-1])
      depth = np.cumsum(rays, axis=-1, dtype=np.float64) * spacing
      hit = depth[:, -1] >= HALF_OPACITY_DEPTH
      first = np.argmax(depth[hit] >= HALF_OPACITY_DEPTH, axis=-1)
      surface_densities.append(rays[hit][np.arange(hit.sum()), first])
      largest_depth = max(largest_depth, depth[:, -1].max())
    # The largest density and the opacity of a ray are the same from both ends.
    peaks.append(rays.max(-1))
    opaque.append(hit)
  peaks, opaque = np.concatenate(peaks), np.concatenate(opaque)
  if not opaque.any():
    raise EmptyField(
        'The field is empty: no ray through it is half opaque (largest '
        f'density {density.max():.3g}, largest opacity '
        f'{1 - np.exp(-largest_depth):.2g}); train for more steps '
        '(--config.steps), or export another checkpoint (--step).')
  # errors[k]: a level just above the k-th smallest peak misses the half-opaque
  # rays up to there and adds the transparent ones after it.
  order = np.argsort(peaks)
  missed = np.cumsum(opaque[order])
  added = np.sum(~opaque) - np.cumsum(~opaque[order])
  errors = np.concatenate([[np.sum(~opaque)], missed + added])
  steps = np.concatenate([[0.0], peaks[order]])
  levels = 0.5 * (steps[:-1] + steps[1:])
  # A level of (nearly) zero would include the empty space.
  positive = levels > 1e-6 * peaks.max()
  good = positive & (errors[:-1] <= errors[:-1][positive].min()
                     + 0.03 * opaque.sum())
  surface_density = np.median(np.concatenate(surface_densities))
  return float(np.clip(
      surface_density, levels[good].min(), levels[good].max()))


def hidden_depth(density: np.ndarray, spacing: float) -> np.ndarray:
  """The least optical depth between each grid point and the outside.

  A volume rendering shows a surface where this is HALF_OPACITY_DEPTH. The least
  is over rays to all 26 neighbors of a point.

  Args:
    density: grid [X, Y, Z].
    spacing: side of its cells.

  Returns:
    Grid [X, Y, Z].
  """
  least = np.full(density.shape, np.inf, np.float32)
  for step in itertools.product((-1, 0, 1), repeat=3):
    if any(step):
      # A Python float, with which the grids stay float32.
      length = float(spacing * np.linalg.norm(step))
      least = np.minimum(least, length * _sum_along(density, step))
  return least


def _sum_along(grid, step):
  """Sums [X, Y, Z] along the lines in direction `step`, up to each point.

  The point itself counts by half. Components of `step` are -1, 0 or 1.
  """
  backwards = tuple(slice(None, None, -1 if s < 0 else 1) for s in step)
  axis = int(np.flatnonzero(step)[0])
  layers = np.moveaxis(grid[backwards], axis, 0)
  sums = np.empty(layers.shape, np.float32)
  # From one layer to the next, a line moves by one point along these axes.
  moved = np.flatnonzero(np.delete(step, axis))
  total = np.zeros(layers.shape[1:], np.float32)
  for layer, result in zip(layers, sums, strict=True):
    for other in moved:
      total = np.roll(total, 1, other)
      np.moveaxis(total, other, 0)[0] = 0.0
    result[:] = total + 0.5 * layer
    total += layer
  return np.moveaxis(sums, 0, axis)[backwards]


def isosurface(density: np.ndarray, level: float, origin: np.ndarray,
               spacing: float) -> tuple[np.ndarray, np.ndarray]:
  """Marching cubes, closed at the border of the grid.

  Args:
    density: grid [X, Y, Z], not negative.
    level: positive.
    origin: [3], world position of density[0, 0, 0].
    spacing: side of a cell.

  Returns:
    vertices [V, 3], faces [F, 3] (counter-clockwise seen from outside).
  """
  # The level set of this bounded function is that of the density. Marching
  # cubes interpolates linearly, which on raw densities that span decades puts
  # the vertices next to the empty grid points.
  soft = density / (density + level) - 0.5
  # Values exactly on the level would give triangles without area.
  soft = np.where(np.abs(soft) < 1e-4, np.where(soft < 0, -1e-4, 1e-4), soft)
  soft = np.pad(soft, 1, constant_values=-0.5).astype(np.float32)
  # scikit-image orients faces by the left-hand rule: with 'ascent' they are
  # counter-clockwise from outside. Minus one for the padding.
  vertices, faces, _, _ = measure.marching_cubes(
      soft, 0.0, gradient_direction='ascent')
  return (vertices.astype(np.float64) - 1) * spacing + origin, faces


def keep_components(vertices: np.ndarray, faces: np.ndarray,
                    keep_share: float) -> tuple[np.ndarray, np.ndarray]:
  """Removes small connected components and the surfaces of cavities.

  Surfaces of cavities enclose a negative volume and are not visible.

  Args:
    vertices: [V, 3].
    faces: [F, 3].
    keep_share: components of at least this fraction of the largest one's
      volume are kept.

  Returns:
    vertices, faces.
  """
  edges = np.concatenate([faces[:, :2], faces[:, 1:]])
  graph = scipy.sparse.coo_array(
      (np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
  count, label = scipy.sparse.csgraph.connected_components(graph, False)
  component = label[faces[:, 0]]
  volumes = np.bincount(component, _signed_volumes(vertices, faces), count)
  keep = (volumes >= keep_share * volumes.max()) & (volumes > 0)
  faces = faces[keep[component]]
  used, faces = np.unique(faces, return_inverse=True)
  return vertices[used], faces.reshape(-1, 3)


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
  """Enclosed volume; positive if the faces are oriented outwards."""
  return float(_signed_volumes(vertices, faces).sum())


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
  """Unit normals [V, 3]: means over the adjacent faces, weighted by area."""
  a, b, c = vertices[faces.T]
  cross = np.cross(b - a, c - a)
  total = np.stack([
      np.bincount(faces.ravel(), np.repeat(cross[:, i], 3), len(vertices))
      for i in range(3)], axis=-1)
  length = np.linalg.norm(total, axis=-1, keepdims=True)
  return total / np.maximum(length, 1e-20)


def smooth(vertices: np.ndarray, faces: np.ndarray, rounds: int,
           lam: float = 0.5, mu: float = -0.53) -> np.ndarray:
  """Taubin's lambda | mu smoothing (SIGGRAPH 1995) of a closed mesh.

  Each round moves every vertex towards the mean of its neighbors by a factor
  `lam` and then away from it by -`mu`: a low-pass filter that removes the
  staircase of marching cubes and approximately preserves the volume.

  Args:
    vertices: [V, 3].
    faces: [F, 3].
    rounds: number of pairs of steps.
    lam: factor of the shrinking step.
    mu: negative factor of the expanding step.

  Returns:
    vertices [V, 3].
  """
  edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
  # A closed mesh has every edge once in each direction: symmetric.
  graph = scipy.sparse.csr_array(
      (np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
  degree = graph.sum(axis=1)[:, None]
  for _ in range(rounds):
    for factor in (lam, mu):
      vertices = vertices + factor * (graph @ vertices / degree - vertices)
  return vertices


def weld(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Merges vertices at exactly the same place, such as those along seams.

  Returns:
    The distinct vertices [U, 3], and for each vertex its index among them [V].
  """
  # Adding zero turns -0.0, which is another row of bytes, into 0.0.
  rows = np.ascontiguousarray(np.asarray(vertices) + 0.0)
  keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * 3))).ravel()
  _, first, index = np.unique(keys, return_index=True, return_inverse=True)
  return rows[first], index.reshape(-1)


def transform(mesh: Mesh, matrix: np.ndarray) -> Mesh:
  """Applies an affine map [4, 4] to the vertices and normals of a mesh."""
  linear = np.asarray(matrix)[:3, :3]
  vertices = mesh.vertices @ linear.T + matrix[:3, 3]
  if mesh.normals is None:
    return mesh._replace(vertices=vertices)
  # Normals transform by the inverse transpose; as rows, by the inverse. The
  # pseudo-inverse keeps flattened nodes of a file readable.
  normals = mesh.normals @ np.linalg.pinv(linear)
  length = np.linalg.norm(normals, axis=-1, keepdims=True)
  return mesh._replace(
      vertices=vertices, normals=normals / np.maximum(length, 1e-12))


def normalize_to_ball(meshes: Sequence[Mesh],
                      radius: float = 1.0) -> tuple[Mesh, ...]:
  """Translates and scales meshes together into a ball around the origin.

  The center of their bounding box moves to the origin and the vertex that is
  farthest from it to the ball's surface.

  Raises:
    UserError: there is no triangle, a vertex is not finite, or all vertices
      coincide.
  """
  points = np.concatenate([m.vertices[np.unique(m.faces)] for m in meshes]
                          or [np.zeros((0, 3))])
  if not len(points) or not np.isfinite(points).all():
    raise UserError('The mesh has no triangles, or vertices that are not '
                    'finite; export it again with finite coordinates.')
  center = (points.min(0) + points.max(0)) / 2
  extent = np.linalg.norm(points - center, axis=-1).max()
  if extent <= 0:
    raise UserError('All vertices of the mesh are at one place; export it '
                    'again with distinct vertices.')
  return tuple(m._replace(vertices=(m.vertices - center) * (radius / extent))
               for m in meshes)


def map_chunks(function: Callable[[np.ndarray], Any],
               inputs: np.ndarray) -> np.ndarray:
  """Concatenated function(inputs), CHUNK rows at a time, padded by the last."""
  outputs = []
  for start in range(0, len(inputs), CHUNK):
    part = inputs[start:start + CHUNK]
    padded = np.concatenate(
        [part, np.repeat(part[-1:], CHUNK - len(part), axis=0)])
    outputs.append(np.asarray(function(padded))[:len(part)])
  return np.concatenate(outputs)


def _bounding_box(mask, origin, spacing, limits, margin):
  """Corners [2, 3] around the true cells plus `margin` cells, in `limits`."""
  where = np.argwhere(mask)
  low = origin + spacing * (where.min(0) - margin)
  high = origin + spacing * (where.max(0) + margin)
  return np.stack([np.maximum(low, limits[0]), np.minimum(high, limits[1])])


def _crosses_box(mask, box, limits):
  """True if the object reaches a side of `box` that is inside `limits`."""
  for axis in range(3):
    for end in (0, -1):
      inner = abs(box[end, axis] - limits[end, axis]) > 1e-9
      if inner and np.take(mask, end, axis).any():
        return True
  return False


def _signed_volumes(vertices, faces):
  """Volumes [F] of the tetrahedra between the origin and the faces."""
  a, b, c = vertices[faces.T]
  return np.einsum('fi,fi->f', a, np.cross(b, c)) / 6
