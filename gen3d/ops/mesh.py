"""Triangle meshes out of density fields.

Vocabulary. A Mesh is in world units and in the world's axes (y up, front to
+z); its faces are counter-clockwise seen from outside. A grid is an array
[X, Y, Z] of densities (per world unit of length) at the points
`origin + spacing * index`. The level is the density that the surface is put
at. These are host-side NumPy functions: only `query` touches an accelerator.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from skimage import measure

from gen3d.choices import UserError

HALF = np.log(2.0)  # the optical depth at which opacity is one half


class EmptyField(UserError):
  """A density field without a surface at the level that is asked for."""


class Mesh(NamedTuple):
  """A colored triangle mesh."""
  vertices: Any  # [V, 3] float32, world
  faces: Any     # [F, 3] int32, counter-clockwise from outside
  colors: Any   # [V, 3] float32 in [0, 1], as displayed (sRGB)


def extract(query, bound, resolution=192, threshold='auto', chunk=2**16,
            share=1.0, smoothing=4):
  """The surface of a density field, closed and colored.

  A coarse grid over the whole bound finds the box that holds the object, a
  fine grid over that box gives the surface.

  Args:
    query: points [N, 3] -> (density [N], albedo [N, 3]); N is always `chunk`,
      so that a jitted query is compiled once.
    bound: half the side of the cube that holds the object, or its corners
      [2, 3].
    resolution: grid points along the longest side of the object's box.
    threshold: the level, or 'auto' for `auto_threshold`.
    chunk: points per query; bounds the memory.
    share: components with at least this share of the largest one's volume
      stay; 1.0 keeps the largest only.
    smoothing: rounds of Taubin smoothing, against the grid's staircase.

  Returns:
    A watertight Mesh.

  Raises:
    EmptyField: at this threshold.
  """
  box = np.asarray(bound, np.float64)
  box = np.outer([-box, box], np.ones(3)) if box.ndim == 0 else box
  coarse, origin, spacing = sample_grid(query, box, min(64, resolution), chunk)
  level = _level(coarse, spacing, threshold)
  # Half the level and two cells of margin: what is thinner than a coarse cell
  # shows there only as a faint density.
  tight = _box_of(coarse > 0.5 * level, origin, spacing, box, margin=2)
  density, origin, spacing = sample_grid(query, tight, resolution, chunk)
  if _touches_inner_side(density > level, tight, box):
    density, origin, spacing = sample_grid(query, box, resolution, chunk)
  level = _level(density, spacing, threshold)
  vertices, faces = isosurface(density, level, origin, spacing)
  vertices, faces = keep_components(vertices, faces, share)
  vertices = smooth(vertices, faces, smoothing)
  # Albedo is learned where the density is, not in the air around it.
  inside = vertices - 0.5 * spacing * vertex_normals(vertices, faces)
  colors = _in_chunks(lambda points: query(points)[1], inside, chunk)
  return Mesh(vertices.astype(np.float32), faces.astype(np.int32),
              np.clip(colors, 0, 1).astype(np.float32))


def sample_grid(query, box, resolution, chunk=2**16):
  """Densities on a grid of cubes that covers `box` [2, 3].

  Returns:
    density [X, Y, Z], origin [3], spacing; the longest side has `resolution`
    points.
  """
  extent = box[1] - box[0]
  spacing = float(extent.max() / (resolution - 1))
  counts = np.maximum(2, np.ceil(extent / spacing - 1e-6).astype(int) + 1)
  origin = 0.5 * (box[0] + box[1] - spacing * (counts - 1))
  flat = np.arange(np.prod(counts))

  def at(index):
    points = np.stack(np.unravel_index(index, counts), axis=-1)
    return query((origin + spacing * points).astype(np.float32))[0]

  density = _in_chunks(at, flat, chunk).reshape(counts)
  return density, origin, spacing


def auto_threshold(density, spacing):
  """The level at which the mesh looks like the volume rendering.

  A viewer sees the edge of a soft object where a ray's opacity
  1 - exp(-integral of density) is one half, and its surface at the depth
  where the accumulated opacity passes one half. Both are read off the grid's
  own axis-parallel rays. Among the levels whose silhouette (rays that meet a
  density above the level) agrees best with the half-opaque rays, give or take
  3 % of them (less than a grid cell's width), this is the nearest one to the
  median density at the half-opacity depth, seen from the six sides.

  Args:
    density: grid [X, Y, Z].
    spacing: its cells' side.

  Raises:
    UserError: no ray is half opaque.
  """
  peaks, opaque, at_depth = [], [], []
  depths = 0.0
  for axis in range(3):
    for rays in (np.moveaxis(density, axis, -1),
                 np.flip(np.moveaxis(density, axis, -1), -1)):
      rays = rays.reshape(-1, rays.shape[-1])
      depth = np.cumsum(rays, axis=-1, dtype=np.float64) * spacing
      hit = depth[:, -1] >= HALF
      first = np.argmax(depth[hit] >= HALF, axis=-1)
      at_depth.append(rays[hit][np.arange(hit.sum()), first])
      depths = max(depths, depth[:, -1].max())
    peaks.append(rays.max(-1))
    opaque.append(hit)
  peaks, opaque = np.concatenate(peaks), np.concatenate(opaque)
  at_depth = np.concatenate(at_depth)
  if not opaque.any():
    raise EmptyField(
        'The field is empty: no ray through it is half opaque (largest '
        f'density {density.max():.3g}, largest opacity '
        f'{1 - np.exp(-depths):.2g}); train longer, or give a threshold below '
        'that density.')
  order = np.argsort(peaks)
  # Level just above the k-th peak: opaque rays below it are missed, clear
  # rays above it are added.
  missed = np.cumsum(opaque[order])
  added = np.sum(~opaque) - np.cumsum(~opaque[order])
  wrong = np.concatenate([[np.sum(~opaque)], missed + added])
  levels = np.concatenate([[0.0], peaks[order]])
  between = 0.5 * (levels[:-1] + levels[1:])
  # A level at or below zero would take the empty space in.
  usable = between > 1e-6 * peaks.max()
  good = usable & (wrong[:-1] <= wrong[:-1][usable].min()
                   + 0.03 * opaque.sum())
  wanted = np.median(at_depth)
  low, high = between[good].min(), between[good].max()
  return float(np.clip(wanted, low, high))


def isosurface(density, level, origin, spacing):
  """Marching cubes: vertices [V, 3] and faces [F, 3], closed at the border.

  Args:
    density: grid [X, Y, Z], not negative.
    level: positive.
    origin: [3], world position of density[0, 0, 0].
    spacing: side of a cell.
  """
  # The same surface as that of the density, but the interpolated vertices do
  # not stick to the empty side of a cell when densities span decades.
  soft = density / (density + level) - 0.5
  # A value exactly on the level makes triangles without area.
  soft = np.where(np.abs(soft) < 1e-4, np.where(soft < 0, -1e-4, 1e-4), soft)
  soft = np.pad(soft, 1, constant_values=-0.5).astype(np.float32)
  # scikit-image goes by the left-hand rule, so 'ascent' looks outwards here.
  vertices, faces, _, _ = measure.marching_cubes(
      soft, 0.0, gradient_direction='ascent')
  return (vertices.astype(np.float64) - 1) * spacing + origin, faces


def keep_components(vertices, faces, share=1.0):
  """The outer surfaces whose volume is >= `share` of the largest one's.

  Surfaces of hollows, which enclose a negative volume, are dropped: nobody
  sees them.
  """
  edges = np.concatenate([faces[:, :2], faces[:, 1:]])
  graph = scipy.sparse.coo_array(
      (np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
  count, label = scipy.sparse.csgraph.connected_components(graph, False)
  component = label[faces[:, 0]]
  volumes = np.bincount(component, _signed_volumes(vertices, faces), count)
  keep = (volumes >= share * volumes.max()) & (volumes > 0)
  faces = faces[keep[component]]
  used, faces = np.unique(faces, return_inverse=True)
  return vertices[used], faces.reshape(-1, 3)


def volume(vertices, faces):
  """Enclosed volume; positive when the faces look outwards."""
  return float(_signed_volumes(vertices, faces).sum())


def vertex_normals(vertices, faces):
  """Outward unit normals [V, 3], averaged over faces by area."""
  a, b, c = vertices[faces.T]
  cross = np.cross(b - a, c - a)
  total = np.stack([
      np.bincount(faces.ravel(), np.repeat(cross[:, i], 3), len(vertices))
      for i in range(3)], axis=-1)
  length = np.linalg.norm(total, axis=-1, keepdims=True)
  return total / np.maximum(length, 1e-20)


def smooth(vertices, faces, rounds, shrink=0.5, swell=-0.53):
  """Taubin's smoothing (SIGGRAPH 1995): Laplacian steps that keep volume.

  A round moves every vertex towards the mean of its neighbors by `shrink`
  and then away from it by -`swell`, which removes the staircase and lets the
  shape be.
  """
  edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
  # In a closed mesh each edge comes once in each direction.
  graph = scipy.sparse.csr_array(
      (np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
  degree = graph.sum(axis=1)[:, None]
  for _ in range(rounds):
    for factor in (shrink, swell):
      vertices = vertices + factor * (graph @ vertices / degree - vertices)
  return vertices


def _level(density, spacing, threshold):
  if threshold == 'auto':
    return auto_threshold(density, spacing)
  if not np.any(density > threshold):
    raise EmptyField(
        f'The field is empty at the threshold {threshold:g}: its largest '
        f'density is {density.max():.3g}; train longer, or give a threshold '
        'below that.')
  return float(threshold)


def _box_of(mask, origin, spacing, box, margin):
  """Corners [2, 3] around the true cells, within `box`."""
  where = np.argwhere(mask)
  low = origin + spacing * (where.min(0) - margin)
  high = origin + spacing * (where.max(0) + margin)
  return np.stack([np.maximum(low, box[0]), np.minimum(high, box[1])])


def _touches_inner_side(mask, tight, box):
  """Whether the object leaves `tight` through a side that is not `box`'s."""
  for axis in range(3):
    for end in (0, -1):
      inner = abs(tight[end, axis] - box[end, axis]) > 1e-9
      if inner and np.take(mask, end, axis).any():
        return True
  return False


def _signed_volumes(vertices, faces):
  a, b, c = vertices[faces.T]
  return np.einsum('fi,fi->f', a, np.cross(b, c)) / 6


def _in_chunks(function, inputs, chunk):
  """function(inputs), `chunk` rows at a time, the last ones repeated."""
  outputs = []
  for start in range(0, len(inputs), chunk):
    part = inputs[start:start + chunk]
    padded = np.concatenate(
        [part, np.repeat(part[-1:], chunk - len(part), axis=0)])
    outputs.append(np.asarray(function(padded))[:len(part)])
  return np.concatenate(outputs)
