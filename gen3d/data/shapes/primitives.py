"""Colored primitives, their unions, and how far away they are.

A part is a row of numbers, in this order (see PART): which primitive it is,
where, how turned, how large, which color. Two primitives are enough: the
ellipsoid, and the prism, an upright extrusion of a rounded rectangle along
its own y axis that may be tapered, hollow and rounded at its edges, of which
boxes, cylinders, cones, capsules, tubes and tori are special cases. Rows are
made on the host; distances are functions of arrays that JAX may transform.
"""

import jax
import jax.numpy as jnp
import numpy as np

PART = {'ellipsoid': 0, 'center': slice(1, 4), 'rotation': slice(4, 13),
        'half': slice(13, 16), 'corner': 16, 'taper': 17, 'wall': 18,
        'round': 19, 'lean': 20, 'color': slice(21, 24)}
PART_SIZE = 24

X, Y, Z = np.eye(3)


def _turned(axis):
  """Rotation (rows: local axes) that takes the part's y axis to `axis`."""
  y = np.asarray(axis, float) / np.linalg.norm(axis)
  helper = Z if abs(y[2]) < 0.9 else X
  x = np.cross(y, helper)
  x /= np.linalg.norm(x)
  return np.stack([x, y, np.cross(x, y)])


def tilt(degrees, axis='x'):
  """Rotation (rows: local axes) about a world axis."""
  c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
  return np.array({'x': [[1, 0, 0], [0, c, s], [0, -s, c]],
                   'y': [[c, 0, -s], [0, 1, 0], [s, 0, c]],
                   'z': [[c, s, 0], [-s, c, 0], [0, 0, 1]]}[axis])


def prism(center, half, color, *, corner=0.0, taper=0.0, lean=0.0,
          wall=0.0, edge=0.0, rotation=None):
  """An extrusion along its y axis of a rounded rectangle (half x, half z).

  `half` is (x, y, z) with everything included; `taper` is how much narrower
  the top is than the middle (negative: wider) all around, `lean` the same
  in z only; `wall` > 0 makes it a pipe with walls of twice that thickness.
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


def box(center, half, color, edge=0.02, rotation=None, taper=0.0, lean=0.0):
  return prism(center, half, color, edge=edge, rotation=rotation,
               taper=taper, lean=lean)


def ball(center, radii, color, rotation=None):
  row = prism(center, np.ones(3) * radii, color, rotation=rotation)
  row[PART['ellipsoid']] = 1
  return row


def cylinder(center, radius, half, color, axis=Y, edge=0.01, taper=0.0):
  return prism(center, (radius, half, radius), color, corner=radius,
               edge=edge, rotation=_turned(axis), taper=taper)


def cone(base, tip, radius, color, edge=0.0):
  """A cone from the center of its base to its tip."""
  base, tip = np.asarray(base, float), np.asarray(tip, float)
  half = np.linalg.norm(tip - base) / 2
  return cylinder((base + tip) / 2, radius / 2, half, color, tip - base,
                  edge=edge, taper=radius / 2)


def capsule(a, b, radius, color):
  a, b = np.asarray(a, float), np.asarray(b, float)
  half = np.linalg.norm(b - a) / 2 + radius
  return cylinder((a + b) / 2, radius, half, color, b - a, edge=radius)


def tube(center, radius, wall, half, color, axis=Y, edge=0.0, taper=0.0):
  return prism(center, (radius, half, radius), color, corner=radius,
               wall=wall, edge=edge, rotation=_turned(axis), taper=taper)


def torus(center, radius, thickness, color, axis=Y):
  outer = radius + thickness
  return prism(center, (outer, thickness, outer), color, corner=outer,
               edge=thickness, wall=1e-4, rotation=_turned(axis))


def both(part, axis=0):
  """The part and its mirror image across the plane through the origin."""
  flip = np.ones(3)
  flip[axis] = -1
  twin = part.copy()
  twin[PART['center']] *= flip
  rotation = part[PART['rotation']].reshape(3, 3) * flip
  rotation[0] *= -1  # stays a rotation; sections are symmetric in x
  twin[PART['rotation']] = rotation.ravel()
  return [part, twin]


def corners(part):
  """The part mirrored into all four quadrants of the ground plane."""
  return [twin for half in both(part) for twin in both(half, axis=2)]


def part_distance(part, points):
  """Signed distance [...] of points to one part, or a lower bound of it.

  Args:
    part: [PART_SIZE], a row as in PART.
    points: three coordinate arrays [...]: kept apart, since a trailing axis
      of three would keep a CPU from using its vector registers.
  """
  center, rotation = part[PART['center']], part[PART['rotation']]
  rotation = rotation.reshape(3, 3)
  px, py, pz = (p - c for p, c in zip(points, center))
  local = [r[0] * px + r[1] * py + r[2] * pz for r in rotation]
  half_x, half_y, half_z = part[PART['half']]
  corner, taper, wall, edge, lean = part[16:21]

  # Prism: distance to the section's outline, then to the extruded profile.
  x, y, z = abs(local[0]), local[1], abs(local[2])
  height = jnp.maximum(half_y, 1e-4)
  slope, lean = taper / height, lean / height
  dx, dz = x - (half_x - corner), z - (half_z - corner) + lean * y
  outline = _length(jnp.maximum(dx, 0), jnp.maximum(dz, 0)) + (
      jnp.minimum(jnp.maximum(dx, dz), 0) - corner)
  side = (outline + slope * y) * jax.lax.rsqrt(
      1 + (abs(slope) + abs(lean)) ** 2)
  side = jnp.where(wall > 0, abs(side) - wall, side)
  above = abs(y) - half_y
  prism = _length(jnp.maximum(side, 0), jnp.maximum(above, 0)) + (
      jnp.minimum(jnp.maximum(side, above), 0) - edge)

  # Ellipsoid: first-order distance of the implicit function.
  inverse = 1 / jnp.maximum(part[PART['half']], 1e-4)
  scaled = [p * i for p, i in zip(local, inverse)]
  k0 = jnp.sqrt(sum(s * s for s in scaled) + 1e-12)
  k1 = jax.lax.rsqrt(sum((s * i) ** 2 for s, i in zip(scaled, inverse))
                     + 1e-12)
  return jnp.where(part[PART['ellipsoid']] > 0.5, k0 * (k0 - 1) * k1, prism)


def _length(a, b):
  return jnp.sqrt(a * a + b * b + 1e-14)


def sdf(parts, points):
  """Signed distance [N] of points [N, 3] to the object, negative inside."""
  parts, points = jnp.asarray(parts), tuple(points.T)
  nearest = lambda i, d: jnp.minimum(d, part_distance(parts[i], points))
  return jax.lax.fori_loop(
      0, parts.shape[0], nearest, jnp.full(points[0].shape, jnp.inf))


def color(parts, points):
  """Albedo [N, 3] of the part that is nearest to each point [N, 3]."""
  parts = jnp.asarray(parts)
  distances = jax.vmap(part_distance, (0, None))(parts, tuple(points.T))
  return parts[:, PART['color']][jnp.argmin(distances, axis=0)]
