"""Objects of the shapes world: colored unions of primitives in a ball."""

from typing import NamedTuple

import numpy as np

from gen3d.data.shapes import captions
from gen3d.data.shapes.builders import BUILDERS, DARK, Draw
from gen3d.data.shapes.primitives import PART, ball

RADIUS = 0.5
MAX_PARTS = 24
# Columns of lengths: half, corner, taper, wall, round and lean.
_LENGTHS = slice(13, 21)


class Object(NamedTuple):
  """Parts of an object and its description.

  Attributes:
    parts: float32 [MAX_PARTS, PART_SIZE]; unused rows are far away.
    spec: captions.Spec.
  """
  parts: np.ndarray
  spec: captions.Spec


_CORNERS = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)


def _extent(part):
  """Corners [8, 3] of the part's own box, in units of its builder."""
  # An upper bound: a tapered or leaning part is as wide at one end only.
  outer = part[PART['half']] + part[PART['round']]
  outer[[0, 2]] += part[PART['wall']] + abs(part[PART['taper']])
  outer[2] += abs(part[PART['lean']])
  rotation = part[PART['rotation']].reshape(3, 3)
  return part[PART['center']] + (_CORNERS * outer) @ rotation


def build(spec: captions.Spec, draw: Draw) -> Object:
  """The object of a description.

  Args:
    spec: captions.Spec without None.
    draw: (low, high) -> number; the mean for the typical object, a
      generator's `uniform` for a random one.

  Returns:
    Object around the origin: its box within RADIUS along every axis, the
    corners of its box within 1.25 RADIUS.
  """
  colors = captions.COLORS
  tint = lambda name: np.clip(
      [c + draw(-0.04, 0.04) for c in colors[name]], 0, 1)
  parts = np.stack(BUILDERS[spec.category](
      draw, tint(spec.main), tint(spec.second)))
  # Objects rarely fill the corners of their box, hence 0.8.
  points = np.concatenate([_extent(p) for p in parts])
  low, high = points.min(0), points.max(0)
  half = (high - low) / 2
  scale = RADIUS / max(half.max(), 0.8 * np.linalg.norm(half))
  parts[:, PART['center']] = (parts[:, PART['center']] - (low + high) / 2
                              ) * scale
  parts[:, _LENGTHS] *= scale
  assert len(parts) <= MAX_PARTS, spec.category
  unused = ball((0, 1e3, 0), 0.1, DARK)
  return Object(np.concatenate(
      [parts, np.tile(unused, (MAX_PARTS - len(parts), 1))]
  ).astype(np.float32), spec)
