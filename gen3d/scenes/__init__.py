"""Scenes: what is optimized for one prompt or one capture.

A scene is a record of functions of its parameters. It may be a field, a mesh
or anything else that can be rendered from a view and turned into a mesh; the
tasks and the guidance depend on this record only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gen3d.ops.mesh import Mesh


class View(NamedTuple):
  """A camera with its light and background.

  In a batch of views all fields have the same leading axes.
  """
  camera: Any      # ops.cameras.Camera; None where only rays are given
  rays: Any        # ops.cameras.Rays, [H, W, ...]
  light: Any       # ops.shading.Light; None for scenes with their own light
  background: Any  # [3] or [H, W, 3] behind the object, finite; see `learned`
  learned: Any     # [] 1.0: the scene's own background, 0.0: `background`
  # [] int: which subject of the scene is shown, alone; None for all.
  subject: Any = None


class Render(NamedTuple):
  """A rendered view, with what the penalties need."""
  image: Any       # [H, W, 3] in [0, 1], shaded, over the background
  opacity: Any     # [H, W] sum of the weights
  depth: Any       # [H, W] expected distance along the ray
  normals: Any     # [H, W, 3] expected unit normal, zero where empty, or None
  albedo: Any      # [H, W, 3] in [0, 1], premultiplied by opacity
  aux: Any         # {name: array} for the scene's own penalties
  # [H, W, 3] the image without its background, for score distillation: no
  # gradient flows through opacity. None where a scene does not compute it.
  color_only: Any = None
  # Images [H, W, 3] of the coarse passes that have a loss of their own.
  passes: Any = ()
  # [H, W, 3] what is behind the object in `image`; None for black.
  background: Any = None
  # A pytree for Running.update.
  measured: Any = None


class Running(NamedTuple):
  """Values that training measures, or keeps, instead of optimizing.

  They are part of the scene's params (a dict) wherever these are an argument.

  Attributes:
    init: {name: array}, at the start.
    update: (values, measured) -> values after a step; `measured` is the mean
      of Render.measured over the step's views.
  """
  init: Any
  update: Any


Params = Any  # a pytree
# (key, step, part) -> View
SampleView = Callable[..., View]
# (params, key, view) -> Render
RenderView = Callable[[Params, Any, View], Render]
# (params, render, step) -> {name: weighted scalar}
Penalties = Callable[[Params, Render, Any], dict[str, jax.Array]]
# (params, camera, size, modes, background) -> {mode: image}
Show = Callable[..., dict[str, jax.Array]]
# (params, resolution, keep_share) -> Mesh
ExtractMesh = Callable[[Params, int, float], Mesh]
# (params, points [N, 3]) -> colors [N, 3]
Color = Callable[[Params, Any], Any]


def _unchanged(params: Params) -> Params:
  return params


class Scene(NamedTuple):
  """A representation that can be rendered and optimized.

  Attributes:
    init: key -> params.
    sample_view: (key, step, part) -> View, a random training view. `part` =
      (low, high) in [0, 1] is the part of the range of views (azimuths, or
      positions on a camera path) to draw from, so that the views of one step
      can be distributed around the object; (0.0, 1.0) is all of it.
    render: (params, key, view) -> Render. Without a key nothing is jittered.
    penalties: (params, render, step) -> {name: scalar}, weighted.
    show: (params, camera, size, modes, background) -> {mode: image [size,
      size, 3]}, deterministic previews, lit from beside the camera. A mode is
      'color', 'normal', 'textureless' or another one of the scene ('albedo',
      'depth'); `background` is a color [3] or None for the scene's own.
      Compile it with static size and modes.
    mesh: (params, resolution, keep_share) -> Mesh. `resolution` is that of
      the grid that a volume is sampled on; connected components with at least
      `keep_share` of the largest one's volume are kept.
    bound: half-width of the cube around the origin that holds the object.
    project: params -> params within their range, after each step.
    subjects: number of parts with a prompt each. Where there are several, a
      view shows one of them alone, whose index is `view.subject`.
    color: (params, points [N, 3]) -> colors [N, 3] in [0, 1], from all sides
      and without shading, from which the mesh's texture is baked. None where
      the mesh has its final colors. Call it with ops.mesh.CHUNK points, for
      which it is compiled.
    running: Running, or None.
    modes: of `show`.
  """
  init: Callable[[jax.Array], Params]
  sample_view: SampleView
  render: RenderView
  penalties: Penalties
  show: Show
  mesh: ExtractMesh
  bound: float
  project: Callable[[Params], Params] = _unchanged
  subjects: int = 1
  color: Color | None = None
  running: Running | None = None
  modes: tuple[str, ...] = ('color', 'normal', 'textureless')
