"""Colored primitives, their unions and signed distances.

A part is a row of PART_SIZE numbers, in the order of PART: kind, center,
rotation, size, color. There are two kinds: the ellipsoid, and the prism, an
extrusion of a rounded rectangle along its own y axis that may be tapered,
hollow and rounded at its edges. Boxes, cylinders, cones, capsules, tubes and
tori are prisms. Rows are computed in NumPy, distances in JAX.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PART = {'ellipsoid': 0, 'center': slice(1, 4), 'rotation': slice(4, 13),
        'half': slice(13, 16), 'corner': 16, 'taper': 17, 'wall': 18,
        'round': 19, 'lean': 20, 'color': slice(21, 24)}
PART_SIZE = 24

X, Y, Z = np.eye(3)

Vector = Sequence[float] | np.ndarray  # [3]


def _turned(axis):
  """Rotation [3, 3] (rows: local axes) from the part's y axis to `axis`."""
  y = np.asarray(axis, float) / np.linalg.norm(axis)
  helper = Z if abs(y[2]) < 0.9 else X  # not parallel to y
  x = np.cross(y, helper)
  x /= np.linalg.norm(x)
  return np.stack([x, y, np.cross(x, y)])


def tilt(degrees: float, axis: str = 'x') -> np.ndarray:
  """Rotation [3, 3] (rows: local axes) about a world axis, 'x', 'y' or 'z'."""
  c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
  return np.array({'x': [[1, 0, 0], [0, c, s], [0, -s, c]],
                   'y': [[c, 0, -s], [0, 1, 0], [s, 0, c]],
                   'z': [[c, s, 0], [-s, c, 0], [0, 0, 1]]}[axis])


def prism(center: Vector, half: Vector, color: Vector, *,
          corner: float = 0.0, taper: float = 0.0, lean: float = 0.0,
          wall: float = 0.0, edge: float = 0.0,
          rotation: np.ndarray | None = None) -> np.ndarray:
  """An extrusion of a rounded rectangle along its y axis.

  Args:
    center: [3].
    half: half the outer size (x, y, z), roundings and walls included.
    color: [3] in [0, 1].
    corner: radius of the rectangle's corners.
    taper: by which the top is narrower than the middle on all sides, and the
      bottom wider.
    lean: the same in z only.
    wall: half the thickness of the walls of a pipe; 0 for a solid.
    edge: radius of the edges.
    rotation: [3, 3], rows are the local axes; None for the world's.

  Returns:
    Row [PART_SIZE].
  """
  row = np.zeros(PART_SIZE)
  half = np.asarray(half, float)
  row[PART['center']] = center
  row[PART['rotation']] = (np.eye(3) if rotation is None else rotation).ravel()
  row[PART['half']] = np.maximum(half - edge - [wall, 0, wall], 0.0)
  row[PART['corner']] = max(min(corner - edge, *(half - edge)[[0, 2]]), 0)
  row[PART['taper']] = taper
  row[PART['lean']] = lean
  row[PART['wall']] = wall
  row[PART['round']] = edge
  row[PART['color']] = color
  return row


def box(center: Vector, half: Vector, color: Vector, edge: float = 0.02,
        rotation: np.ndarray | None = None, taper: float = 0.0,
        lean: float = 0.0) -> np.ndarray:
  """A box with rounded edges; arguments as of `prism`."""
  return prism(center, half, color, edge=edge, rotation=rotation,
               taper=taper, lean=lean)


def ball(center: Vector, radii: float | Vector, color: Vector,
         rotation: np.ndarray | None = None) -> np.ndarray:
  """An ellipsoid with one radius or with three along its axes."""
  row = prism(center, np.ones(3) * radii, color, rotation=rotation)
  row[PART['ellipsoid']] = 1
  return row


def cylinder(center: Vector, radius: float, half: float, color: Vector,
             axis: Vector = Y, edge: float = 0.01,
             taper: float = 0.0) -> np.ndarray:
  """A cylinder along `axis` of height 2 `half`; the rest as of `prism`."""
  return prism(center, (radius, half, radius), color, corner=radius,
               edge=edge, rotation=_turned(axis), taper=taper)


def cone(base: Vector, tip: Vector, radius: float, color: Vector,
         edge: float = 0.0) -> np.ndarray:
  """A cone from the center of its base to its tip."""
  base, tip = np.asarray(base, float), np.asarray(tip, float)
  half = float(np.linalg.norm(tip - base)) / 2
  return cylinder((base + tip) / 2, radius / 2, half, color, tip - base,
                  edge=edge, taper=radius / 2)


def capsule(a: Vector, b: Vector, radius: float,
            color: Vector) -> np.ndarray:
  """All points within `radius` of the segment from a to b."""
  a, b = np.asarray(a, float), np.asarray(b, float)
  half = float(np.linalg.norm(b - a)) / 2 + radius
  return cylinder((a + b) / 2, radius, half, color, b - a, edge=radius)


def tube(center: Vector, radius: float, wall: float, half: float,
         color: Vector, axis: Vector = Y, edge: float = 0.0,
         taper: float = 0.0) -> np.ndarray:
  """A hollow cylinder of outer `radius`; arguments as of `prism`."""
  return prism(center, (radius, half, radius), color, corner=radius,
               wall=wall, edge=edge, rotation=_turned(axis), taper=taper)


def torus(center: Vector, radius: float, thickness: float, color: Vector,
          axis: Vector = Y) -> np.ndarray:
  """A torus with radii `radius` and `thickness` around `axis`."""
  outer = radius + thickness
  return prism(center, (outer, thickness, outer), color, corner=outer,
               edge=thickness, wall=1e-4, rotation=_turned(axis))


def both(part: np.ndarray, axis: int = 0) -> list[np.ndarray]:
  """The part and its mirror image at the plane where `axis` is 0."""
  flip = np.ones(3)
  flip[axis] = -1
  twin = part.copy()
  twin[PART['center']] *= flip
  rotation = part[PART['rotation']].reshape(3, 3) * flip
  # Mirrored once more in its own x, in which sections are symmetric, so that
  # it stays a rotation.
  rotation[0] *= -1
  twin[PART['rotation']] = rotation.ravel()
  return [part, twin]


def corners(part: np.ndarray) -> list[np.ndarray]:
  """The part mirrored into the four quadrants of the ground plane."""
  return [twin for half in both(part) for twin in both(half, axis=2)]


def part_distance(part: jax.Array,
                  points: Sequence[jax.Array]) -> jax.Array:
  """Signed distance [...] to one part, exact or approximate near the surface.

  Args:
    part: [PART_SIZE], a row as in PART.
    points: x, y and z, arrays [...] each, since a trailing axis of three
      prevents vector instructions on a CPU.
  """
  center, rotation = part[PART['center']], part[PART['rotation']]
  rotation = rotation.reshape(3, 3)
  px, py, pz = (p - c for p, c in zip(points, center))
  local = [r[0] * px + r[1] * py + r[2] * pz for r in rotation]
  half_x, half_y, half_z = part[PART['half']]
  corner, taper, wall, edge, lean = part[16:21]

  # Prism: distance to the outline of the section, then of its extrusion.
  x, y, z = abs(local[0]), local[1], abs(local[2])
  height = jnp.maximum(half_y, 1e-4)
  slope, lean = taper / height, lean / height
  # The section at height y is a rectangle with rounded corners.
  dx, dz = x - (half_x - corner), z - (half_z - corner) + lean * y
  outline = _length(jnp.maximum(dx, 0), jnp.maximum(dz, 0)) + (
      jnp.minimum(jnp.maximum(dx, dz), 0) - corner)
  # Sides that are not vertical: the gradient's norm bounds the distance.
  side = (outline + slope * y) * jax.lax.rsqrt(
      1 + (abs(slope) + abs(lean)) ** 2)
  side = jnp.where(wall > 0, abs(side) - wall, side)
  above = abs(y) - half_y
  prism = _length(jnp.maximum(side, 0), jnp.maximum(above, 0)) + (
      jnp.minimum(jnp.maximum(side, above), 0) - edge)

  # Ellipsoid: f / |grad f| of its implicit function (Quilez's k0, k1).
  inverse = 1 / jnp.maximum(part[PART['half']], 1e-4)
  scaled = [p * i for p, i in zip(local, inverse)]
  k0 = jnp.sqrt(sum(s * s for s in scaled) + 1e-12)
  k1 = jax.lax.rsqrt(sum((s * i) ** 2 for s, i in zip(scaled, inverse))
                     + 1e-12)
  return jnp.where(part[PART['ellipsoid']] > 0.5, k0 * (k0 - 1) * k1, prism)


def _length(a, b):
  return jnp.sqrt(a * a + b * b + 1e-14)


def sdf(parts: Any, points: jax.Array) -> jax.Array:
  """Signed distance to a union of parts, negative inside.

  Args:
    parts: [P, PART_SIZE].
    points: [N, 3].

  Returns:
    [N].
  """
  # A loop, since a vmap over parts would hold [P, N] distances in memory.
  rows, axes = jnp.asarray(parts), tuple(points.T)
  nearest = lambda i, d: jnp.minimum(d, part_distance(rows[i], axes))
  return jax.lax.fori_loop(
      0, rows.shape[0], nearest, jnp.full(axes[0].shape, jnp.inf))


def color(parts: Any, points: jax.Array) -> jax.Array:
  """Albedo [N, 3] of the part nearest to each point [N, 3]."""
  parts = jnp.asarray(parts)
  distances = jax.vmap(part_distance, (0, None))(parts, tuple(points.T))
  return parts[:, PART['color']][jnp.argmin(distances, axis=0)]
