"""Maps of cameras: positions of what is drawn."""

import jax.numpy as jnp
import numpy as np
from posed_layouts import around, points_in_front, write_blender

from gen3d.data import maps
from gen3d.data.captures import posed
from gen3d.data.images import dataset
from gen3d.ops import cameras

COUNT = 6


def test_map_is_darkest_at_the_cameras():
  labels = np.asarray(cameras.to_label(cameras.orbit(
      jnp.full(COUNT, 93.), jnp.full(COUNT, 43.), 2.7, 4.2)))
  drawn = maps.map_of_images(
      dataset.Images('memory', ('',) * COUNT, labels, None, 8), width=240)
  row, column = np.unravel_index(
      np.argmin(drawn.sum(-1)[20:-20, 20:-20]), (80, 200))
  assert abs((column + 20) / 240 * 360 - 180 - 93) < 4
  assert abs(90 - (row + 20) / 120 * 180 - 43) < 4


def test_map_has_cameras_and_box(tmp_path):
  points, _ = points_in_front(around())
  write_blender(tmp_path, around(), points)
  found = posed.open_posed(tmp_path)
  picture_ = maps.map_of_posed(found, 400)
  assert picture_.shape == (200, 400, 3) and picture_.dtype == np.uint8
  red = (picture_ == (200, 40, 40)).all(-1)
  blue = (picture_ == (26, 58, 128)).all(-1)
  # From above the box is in the middle, cameras all around it.
  rows, columns = np.nonzero(red[:, :200])
  low, high = (rows.min(), columns.min()), (rows.max(), columns.max())
  rows, columns = np.nonzero(blue[:, :200])
  assert rows.min() < low[0] - 10 and rows.max() > high[0] + 10
  assert columns.max() > high[1] + 10
  # From the side no camera is below the box, and some are above it.
  rows, _ = np.nonzero(blue[:, 200:])
  box_rows, _ = np.nonzero(red[:, 200:])
  assert rows.max() <= box_rows.max()
