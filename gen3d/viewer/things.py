"""What gen3d view can show: runs, 3-D GANs, captures and meshes.

A Thing is a record of functions, so that the page depends on none of their
kinds. Its frame is that of the scene: y is up.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from gen3d import files, notices
from gen3d.choices import UserError
from gen3d.data.captures import layouts, records
from gen3d.gan import inference, panels
from gen3d.io import meshes
from gen3d.ops import cameras
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.cameras import Camera
from gen3d.render.finished import Finished
from gen3d.viewer import screen

# Tiles of an image, which one compiled program renders at all sizes.
_TILE_ON_CPU, _TILE = 32, 128
_SIZES = (32, 64, 128, 256, 512)
_THUMBNAIL = 96  # pixels of the longer side
_MOST_FRAMES = 100  # frustums of a capture
_LAST_SEED = 999
_OBJECT = 'object'  # slider of a run with several
_GRAY = 0.75
_PANELS = {'color': 'image', 'raw': 'image_raw', 'normal': 'normal',
           'depth': 'depth', 'textureless': 'textureless'}
_BESIDE = {'depth': 0, 'normal': 255, 'textureless': 255}  # gray values
_DISTANCE = 2.8  # of the camera from a mesh, in its radii


class Slider(NamedTuple):
  """A number that the reader of the page chooses."""
  name: str
  low: float
  high: float
  step: float
  value: float


class Photograph(NamedTuple):
  """A camera of a capture, in the frame of what is shown, and its picture.

  Attributes:
    name: of the file.
    c2w: [4, 4], OpenGL axes.
    intrinsics: [3, 3], normalized.
    picture: uint8 [h, w, 3], small; None where the file cannot be read.
  """
  name: str
  c2w: np.ndarray
  intrinsics: np.ndarray
  picture: np.ndarray | None


# (camera of the window, width / height, size, mode, {slider: value},
# whether to stop) -> uint8 image of the whole window, or None where stopped
Draw = Callable[
    [Camera, float, int, str, Mapping[str, float], Callable[[], bool]],
    np.ndarray | None]


class Thing(NamedTuple):
  """Something that the page can show.

  Attributes:
    title: for the list of the page.
    note: a sentence about it.
    home: first Camera.
    center: point [3] that is looked at from there.
    modes: of `draw`, or of `meshes`.
    sizes: of `draw`, ascending.
    draw: Draw, or None where nothing is rendered here.
    sliders: numbers that `draw` gets.
    photographs: of a capture.
    meshes: {mode: content of .glb files}, which the browser renders.
    newer: () -> the Thing of a newer checkpoint, or None.
  """
  title: str
  note: str
  home: Camera
  center: np.ndarray
  modes: Sequence[str] = ()
  sizes: Sequence[int] = ()
  draw: Draw | None = None
  sliders: Sequence[Slider] = ()
  photographs: Sequence[Photograph] = ()
  meshes: Mapping[str, Sequence[bytes]] = {}
  newer: Callable[[], 'Thing | None'] = lambda: None


def of_finished(title: str, note: str, shown: Finished,
                photographs: Sequence[Photograph] = (),
                newer: Callable[[], Thing | None] = lambda: None) -> Thing:
  """The Thing of a scene.

  Args:
    title, note, newer: see Thing.
    shown: the scene.
    photographs: in world units.
  """
  tile = _TILE_ON_CPU if jax.default_backend() == 'cpu' else _TILE
  at_once = jax.local_device_count()

  objects = [shown, *shown.others]

  def draw(camera, aspect, size, mode, values, stopped):
    del aspect
    chosen = objects[int(values.get(_OBJECT, 1)) - 1]
    every = screen.tiles(camera, max(1, size // tile))
    count, done = len(every.c2w), []
    for start in range(0, count, at_once):
      if done and stopped():
        return None
      # The last part is filled up: another number would be compiled anew.
      index = np.minimum(np.arange(start, start + at_once), count - 1)
      done.append(chosen.render(
          Camera(*(x[index] for x in every)), tile, mode))
    return screen.join(np.concatenate(done)[:count])

  home = Camera(*(np.asarray(x)[0] for x in shown.path))
  to_scene = (np.eye(4) if shown.to_world is None
              else np.linalg.inv(np.asarray(shown.to_world, np.float64)))
  return Thing(
      title, note, home, screen.orbit_center(home.c2w), tuple(shown.offered),
      [size for size in _SIZES if size >= tile], draw,
      [Slider(_OBJECT, 1, len(objects), 1, 1)] if len(objects) > 1 else (),
      photographs=[p._replace(c2w=records.transform_poses(to_scene, p.c2w))
                   for p in photographs], newer=newer)


def of_generator(title: str, note: str, trained: inference.Trained,
                 newer: Callable[[], Any] = lambda: None,
                 programs: dict | None = None) -> Thing:
  """The Thing of a 3-D GAN: two seeds, between which it moves, and truncation.

  Args:
    title, note: see Thing.
    trained: the generator.
    newer: () -> (note, variables) of a newer checkpoint, or None.
    programs: {(size, panel): compiled function} of an earlier checkpoint.
  """
  programs = {} if programs is None else programs
  generator = trained.generator
  gray = 255 if generator.background == 'white' else 0
  synthesize = programs.setdefault('synthesize', jax.jit(
      lambda variables, ws: generator.synthesize(
          variables, ws[None], 'const', None)))
  last: list[Any] = [None, None]

  def representation(values):
    if last[0] != values:
      first, second = (inference.map_seed(
          trained, int(values[name]), values['truncation'])
                       for name in ('seed', 'second seed'))
      share = values['share of the second']
      ws = (1 - share) * first + share * second
      last[:] = dict(values), (
          trained.variables, synthesize(trained.variables, ws), ws)
    return last[1]

  def draw(camera, aspect, size, mode, values, stopped):
    del stopped
    panel = _PANELS[mode]
    # What shows the shape has a ray for each pixel of the image: nothing that
    # these panels need is of the size of the training.
    rays = (generator.image_size(size) if panel in panels.GEOMETRY else size)
    program = programs.setdefault((size, mode), jax.jit(
        lambda shared, camera: panels.row(generator.render(
            shared[0], shared[1], shared[2][None], camera, rays, None),
                                          (panel,), camera)))
    square = Camera(*(x[None] for x in screen.in_square(camera, aspect)))
    image = np.asarray(program(representation(values), square))
    return screen.pad_square(image, aspect, _BESIDE.get(mode, gray))

  def newer_thing():
    found = newer()
    return found and of_generator(
        title, found[0], trained._replace(variables=found[1]), newer, programs)

  home = Camera(*map(np.asarray, inference.camera_at(trained.camera, 0.0)))
  return Thing(
      title, note, home, screen.orbit_center(home.c2w), tuple(_PANELS),
      [max(trained.size // 2, 1), trained.size], draw,
      (Slider('seed', 0, _LAST_SEED, 1, 0),
       Slider('truncation', 0.0, 1.0, 0.05, 1.0),
       Slider('second seed', 0, _LAST_SEED, 1, 1),
       Slider('share of the second', 0.0, 1.0, 0.02, 0.0)), newer=newer_thing)


def of_mesh(path: str | os.PathLike) -> Thing:
  """The Thing of a mesh file, which the browser itself renders.

  Raises:
    UserError: the file cannot be read.
  """
  with notices.slow('Reading the mesh'):
    parts = meshes.load(path)
    points = np.concatenate([part.vertices for part in parts])
    center = (points.min(0) + points.max(0)) / 2
    radius = max(float(np.linalg.norm(points - center, axis=-1).max()), 1e-6)
    shown = {'color': parts, 'normal': map(_by_normals, parts),
             'textureless': map(_untextured, parts)}
    content = {mode: [_glb(part) for part in parts]
               for mode, parts in shown.items()}
  home = cameras.orbit(30.0, 20.0, _DISTANCE * radius, 1.2, center)
  faces = sum(len(part.faces) for part in parts)
  return Thing(
      pathlib.Path(path).name,
      f'{len(points):,} vertices, {faces:,} triangles.',
      Camera(*map(np.asarray, home)), center, tuple(content), meshes=content)


def of_capture(path: str | os.PathLike) -> Thing:
  """The Thing of a capture alone: its cameras.

  Raises:
    UserError: the capture cannot be read.
  """
  shown = photographs(path)
  c2w = np.stack([p.c2w for p in shown])
  center = records.closest_point(c2w)
  if center is None:
    center = np.mean([screen.orbit_center(x) for x in c2w], axis=0)
  radius = np.linalg.norm(c2w[:, :3, 3] - center, axis=-1).max()
  home = cameras.orbit(30.0, 30.0, _DISTANCE * radius, 1.2, center)
  return Thing(pathlib.Path(path).name, f'{len(shown)} cameras.',
               Camera(*map(np.asarray, home)), center, photographs=shown)


def photographs(path: str | os.PathLike) -> list[Photograph]:
  """The cameras of a capture, of all splits, and small pictures.

  Of many, evenly chosen ones.

  Raises:
    UserError: the capture cannot be read.
  """
  frames = layouts.read(path).frames
  chosen = np.unique(np.linspace(
      0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).astype(int))
  found = []
  for frame in notices.track(
      [frames[index] for index in chosen], 'Reading the photographs'):
    size, picture = frame.size or (1, 1), None
    try:
      with files.open_image(frame.file) as image:
        size = frame.size or image.size
        image.draft('RGB', (_THUMBNAIL, _THUMBNAIL))  # faster, for JPEG
        picture = _thumbnail(image)
    except (OSError, UserError, ValueError, SyntaxError):
      pass  # The camera is shown without its picture.
    found.append(Photograph(
        frame.name, frame.c2w, frame.model(*size).intrinsics(), picture))
  return found


def _thumbnail(image):
  """Small uint8 [h, w, 3] of an image, over white."""
  small = image.convert('RGBA')
  small.thumbnail((_THUMBNAIL, _THUMBNAIL))
  white = Image.new('RGBA', small.size, 'white')
  return np.asarray(Image.alpha_composite(white, small).convert('RGB'))


def _by_normals(mesh):
  normals = mesh.normals if mesh.normals is not None else (
      mesh_ops.vertex_normals(mesh.vertices, mesh.faces))
  return mesh._replace(colors=0.5 * (np.asarray(normals) + 1), uv=None,
                       texture=None)


def _untextured(mesh):
  return mesh._replace(colors=np.full((len(mesh.vertices), 3), _GRAY), uv=None,
                       texture=None)


def _glb(mesh):
  """The content of a .glb of a mesh."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'mesh.glb'
    meshes.save(path, mesh)
    return path.read_bytes()
