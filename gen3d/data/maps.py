"""Maps of cameras as images: positions on a sphere, or views of a scene."""

import numpy as np
from PIL import Image, ImageDraw

from gen3d.choices import UserError
from gen3d.data.captures.posed import Posed
from gen3d.data.captures.records import frustum
from gen3d.data.images.dataset import Images

_TEXT, _LINE = (20, 20, 20), (200, 200, 200)


def map_of_images(images: Images, width: int = 720) -> np.ndarray:
  """Histogram of the directions of cameras: uint8 [width / 2, width, 3].

  Azimuth runs from the left (-180 degrees, the back) over the middle (0, the
  front, +z) to the right, elevation from the bottom to the top. Dark cells
  have many cameras.

  Args:
    images: Images with labels.
    width: of the map in pixels.

  Raises:
    UserError: the images have no cameras.
  """
  if not images.labels.shape[1]:
    raise UserError(f'{images.where} has no cameras to draw.')
  # The last column of the camera-to-world matrix, which is stored by rows.
  position = images.labels[:, [3, 7, 11]].astype(np.float64)
  distance = np.linalg.norm(position, axis=1)
  azimuth = np.rad2deg(np.arctan2(position[:, 0], position[:, 2]))
  elevation = np.rad2deg(np.arcsin(
      np.clip(position[:, 1] / np.maximum(distance, 1e-9), -1, 1)))
  # Rows are reversed: elevation grows upwards, the rows of an image downwards.
  cells = np.histogram2d(
      elevation, azimuth, (60, 120), ((-90, 90), (-180, 180)))[0][::-1]
  # Logarithmic, so that single cameras stay visible beside dense clusters.
  brightness = 1 - np.log1p(cells) / np.log1p(max(cells.max(), 1))
  dark, light = np.array([38, 70, 140]), np.array([246, 246, 244])
  colors = dark + brightness[..., None] * (light - dark)
  image = Image.fromarray(colors.astype(np.uint8)).resize(
      (width, width // 2), Image.Resampling.NEAREST)
  draw = ImageDraw.Draw(image)
  for degrees in range(-150, 180, 30):
    x = (degrees + 180) / 360 * width
    draw.line((x, 0, x, width // 2), _LINE)
    draw.text((x + 2, width // 2 - 14), f'{degrees}°', (90, 90, 90))
  for degrees in range(-60, 90, 30):
    y = (90 - degrees) / 180 * width // 2
    draw.line((0, y, width, y), _LINE)
    draw.text((2, y - 12), f'{degrees}°', (90, 90, 90))
  draw.text((4, 2), f'{len(position)} cameras, distance '
            f'{distance.min():.2f} to {distance.max():.2f}', _TEXT)
  return np.asarray(image)


def map_of_posed(posed: Posed, width: int = 960) -> np.ndarray:
  """Cameras and box of a scene, uint8 [width / 2, width, 3].

  The left half is the view from above (x to the right, z, the front,
  downwards), the right half the view from +x (z to the left, y upwards). The
  box is red; a camera is its position and the edges of its frustum.

  Args:
    posed: Posed.
    width: of the map in pixels.
  """
  side = width // 2
  c2w = np.asarray(posed.camera.c2w, np.float64)
  intrinsics = np.asarray(posed.camera.intrinsics, np.float64)
  corners = np.stack(np.meshgrid(*np.asarray(posed.box).T, indexing='ij'),
                     -1).reshape(-1, 3)
  points = np.concatenate([c2w[:, :3, 3], corners])
  center = (points.min(0) + points.max(0)) / 2
  # One scale for both panels, with a margin.
  extent = 1.15 * max(np.ptp(points, axis=0).max(), 1e-9)
  image = Image.new('RGB', (width, side), 'white')
  draw = ImageDraw.Draw(image)
  # World axes to the right and downwards, their signs, and a title.
  panels = (((0, 2), (1, 1), 'from above: x right, z down'),
            ((2, 1), (-1, -1), 'from the side: z left, y up'))
  for panel, (axes, signs, title) in enumerate(panels):

    def project(points, left=panel * side, axes=axes, signs=signs):
      flat = (points - center)[..., list(axes)] * signs / extent + 0.5
      return [(x + left, y) for x, y in flat * side]

    for pose, k in zip(c2w, intrinsics):
      _draw_camera(draw, project(np.concatenate(
          [pose[None, :3, 3], frustum(pose, k, 0.06 * extent)])))
    flat = project(corners)
    draw.rectangle((*np.min(flat, 0), *np.max(flat, 0)), None, (200, 40, 40),
                   2)
    draw.text((panel * side + 6, 4), title, _TEXT)
  draw.line((side, 0, side, side), _LINE)
  size = np.ptp(np.asarray(posed.box), axis=0)
  draw.text((6, side - 16), f'{len(c2w)} cameras; box '
            f'{" x ".join(f"{s:.3g}" for s in size)}; near {posed.near:.3g}, '
            f'far {posed.far:.3g}', _TEXT)
  return np.asarray(image)


def _draw_camera(draw, points):
  """Draws a camera's position and the four edges of its frustum."""
  position, *corners = points
  for corner in corners:
    draw.line((position, corner), (110, 140, 190))
  draw.line((*corners, corners[0]), (110, 140, 190))
  x, y = position
  draw.ellipse((x - 2, y - 2, x + 2, y + 2), (26, 58, 128))
