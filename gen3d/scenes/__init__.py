"""What is optimized for one prompt or one capture: records of functions."""

from collections.abc import Callable
from typing import Any, NamedTuple


class View(NamedTuple):
  """One look at a scene; leading axes, if any, are shared by all fields."""
  camera: Any      # ops.cameras.Camera
  rays: Any        # ops.cameras.Rays, [H, W, ...]
  light: Any       # ops.shading.Light
  background: Any  # [3] color put behind the object, NaN-free; see `learned`
  learned: Any     # [] 1.0: the scene's own background, 0.0: `background`


class Render(NamedTuple):
  """What a scene shows in one view, and what its penalties need."""
  image: Any       # [H, W, 3] in [0, 1], shaded, over the background
  opacity: Any     # [H, W] sum of the weights
  depth: Any       # [H, W] expected distance along the ray
  normals: Any     # [H, W, 3] expected unit normal, zero where empty
  albedo: Any      # [H, W, 3] in [0, 1], premultiplied by opacity
  aux: Any         # {name: array} for the scene's own penalties
  # [H, W, 3] the image less its background as a function of the colors alone
  # (how opaque they are has no gradient), for score distillation.
  color_only: Any = None


class Scene(NamedTuple):
  """A thing that can be looked at and optimized.

  Attributes:
    init: key -> params.
    sample_view: (key, step, part) -> View. `part` = (low, high) in [0, 1]
      is the part of the azimuths' range to draw from, so that the views of
      one step can be spread around the object; (0.0, 1.0) is all of it.
    render: (params, key, view) -> Render.
    penalties: (params, render, step) -> {name: scalar}, weighted.
    show: (params, camera, size, modes, background) -> {mode: image [size,
      size, 3]} to show to people, without chance, lit from beside the camera.
      A mode is 'color', 'albedo', 'normal' or 'textureless'; `background` is
      a color [3] or None for the scene's own. Compile it with static size
      and modes.
    query: (params, points [N, 3]) -> (density [N], albedo [N, 3]); no density
      where `render` does not look.
    bound: half-width of the cube around the origin that holds the object.
  """
  init: Callable
  sample_view: Callable
  render: Callable
  penalties: Callable
  show: Callable
  query: Callable
  bound: float
