"""A texture on given meshes (SceneTex, 2311.17261).

The meshes are one surface with a common atlas (ops/merge.py), which does not
change; a field of the atlas (models/texture_field.py) gives the colors. Views
are rasterized, and the field is evaluated at the uv of each pixel. At the end
the texture is baked by the same field: what was trained is what is exported.

Frames. A file's meshes are in the file's world. The scene's frame is the same,
or, for views around objects, one in which everything has the size of an object
of DreamFusion's scenes. Each object has a frame of its own: of that size, with
its front to +z. A view that shows one object alone is of that frame.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, check, pick
from gen3d.models import texture_field
from gen3d.ops import (
  atlas,
  bake,
  camera_sets,
  cameras,
  merge,
  multires,
  raster,
  shading,
)
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh
from gen3d.scenes import Render, Running, Scene, View, views

RADIUS = 0.5  # of objects in their own frame: half of the longest side
# Of the field's output to a color in [0, 1].
ACTIVATIONS = {
    'sigmoid': jax.nn.sigmoid,
    # SceneTex's, whose output is in [-1, 1]: no gradient beyond.
    'clip': lambda x: jnp.clip(x / 2 + 0.5, 0.0, 1.0)}
AMBIENT = shading.Light(np.zeros(3, np.float32), 1.0, 0.0, 0.0)
SURVEY = 64  # views of each subject, from which the faces that are seen follow
KEYFRAMES = 'keyframes'  # the view distribution of a file of cameras
# config.camera -> ops.cameras.Camera [N], by the name in a config.
CAMERA_SETS = {'sphere': lambda config: camera_sets.sphere(**config),
               'room': lambda config: camera_sets.room(**config)}

# One list of meshes, with uv in [0, 1], for each file.
Objects = Sequence[Sequence[Mesh]]


def make(config: Any, objects: Objects | None = None,
         keyframes: cameras.Camera | None = None) -> Scene:
  """The Scene of a config (configs/scene_tex.py: `scene`).

  Args:
    config: ConfigDict.
    objects: the meshes; only needed to start a training, after which they are
      among the running values.
    keyframes: Camera [N] of the view distribution KEYFRAMES, needed by
      `sample_view`.

  Raises:
    UserError: a name in the config is unknown, its settings contradict, or the
      objects do not fit them.
  """
  cameras_of = _camera_set(config, keyframes)
  if config.each and cameras_of is not None:
    raise UserError(
        'Prompts of single meshes (--config.scene.each) need views around '
        "objects; set --config.scene.view_distribution='dreamfusion'.")
  sample_view = (partial(_from_set, cameras_of) if cameras_of
                 else views.of_config(config))
  subjects = len(names(config.meshes)) if config.each else 1
  if config.each:
    sample_view = partial(_of_subject, sample_view, subjects)
  field, color = _field(config)
  render = partial(_render, color=color, near=config.near, far=config.far,
                   samples=config.supersampling)
  point = jnp.zeros((1, 2))  # for the shapes of the parameters
  surface = None
  if objects is not None:
    surface = make_surface(
        objects, cameras_of() if cameras_of else None,
        anchors=config.anchors, turns=config.turn, far=config.far)
    surface['seen'] = seen_faces(
        surface, sample_view=sample_view, near=config.near, far=config.far,
        size=config.supersampling * config.size, count=SURVEY * subjects)
  return Scene(
      init=lambda key: {'field': field.init(
          key, point, jnp.zeros(1, int), point[None])},
      sample_view=sample_view,
      render=lambda params, key, view: render(params, view, config.size),
      penalties=lambda params, render, step: {},
      show=partial(_show, render, bound=config.bound), modes=views.MODES,
      mesh=partial(_mesh, jax.jit(color), config.texture_size),
      bound=config.bound, subjects=subjects,
      running=Running({'surface': surface}, lambda values, measured: values))


def _field(config):
  """(field, (params, uv, instances, anchors) -> colors [N, 3]) of a config."""
  activation = pick('activation', ACTIVATIONS, config.activation)
  grid = dict(config.grid)
  features, init_scale = grid.pop('features'), grid.pop('init_scale')
  field = texture_field.TextureField(
      multires.make_levels(**grid), features,
      texture_field.CrossAttention(**config.attention), **config.mlp,
      init_scale=init_scale)
  return field, lambda params, *points: activation(
      field.apply(params['field'], *points))


def _camera_set(config, keyframes):
  """() -> the config's Camera [N]; None for views around objects."""
  name = config.view_distribution
  check('distribution of views',
        [KEYFRAMES, *CAMERA_SETS, *views.DISTRIBUTIONS], name)
  if name in CAMERA_SETS:
    return partial(CAMERA_SETS[name], config.camera)
  return (lambda: keyframes) if name == KEYFRAMES else None


def names(meshes: str) -> tuple[str, ...]:
  """The files of --config.scene.meshes, which are separated by commas.

  Raises:
    UserError: there are none.
  """
  files = tuple(filter(None, map(str.strip, meshes.split(','))))
  if not files:
    raise UserError('The texture needs meshes; give their files, for example '
                    'by --config.scene.meshes=chair.glb,table.obj.')
  return files


def make_surface(
    objects: Objects, every: cameras.Camera | None, *, anchors: int,
    turns: Sequence[float], far: float) -> dict[str, np.ndarray]:
  """The surface of the meshes, which is not trained.

  Args:
    objects: the meshes.
    every: Camera [N] in the files' frame, all that there are; None for views
      around objects.
    anchors: number of them on each instance.
    turns: degrees from +z to an object's front, towards +x; one number for
      all objects or one for each.
    far: largest depth that is rendered.

  Returns:
    {name: array} with V vertices, F faces and I instances: vertices, normals
    [V, 3] in the scene's frame; own_vertices, own_normals [V, 3] in the
    objects' frames; subjects [V], the index of the object; uv [V, 2]; faces
    [F, 3]; instances [F]; anchors [I, A, 2]; to_file [4, 4] from the scene's
    frame.

  Raises:
    UserError: the numbers of turns and of objects differ, or a part of the
      scene is beyond `far`.
  """
  turns = list(turns) * (len(objects) if len(turns) == 1 else 1)
  if len(turns) != len(objects):
    raise UserError(
        f'There are {len(objects)} meshes and {len(turns)} values of '
        '--config.scene.turn; give one for all or one for each.')
  merged = merge.merge([mesh for parts in objects for mesh in parts])
  subjects = np.repeat(np.arange(len(objects)), [
      sum(len(mesh.vertices) for mesh in parts) for parts in objects])
  in_file = merged.vertices.astype(np.float64), merged.normals
  own = [_framed(*(x[subjects == index] for x in in_file), turn=turn)
         for index, turn in enumerate(turns)]
  if every is not None:
    _check_range(merged.vertices, every, far)
    vertices, normals, to_file = *in_file, np.eye(4)
  else:
    vertices, normals, to_file = own[0] if len(own) == 1 else _framed(
        *in_file, turn=0.0)
  rows = {'vertices': vertices, 'normals': normals, 'uv': merged.uv,
          'own_vertices': np.concatenate([x[0] for x in own]),
          'own_normals': np.concatenate([x[1] for x in own]),
          'anchors': merge.sample_anchors(merged, anchors), 'to_file': to_file}
  return {
      **{name: np.asarray(x, np.float32) for name, x in rows.items()},
      'faces': merged.faces, 'instances': merged.instances,
      'subjects': subjects.astype(np.int32)}


def _check_range(vertices, every, far):
  """Raises UserError where a vertex is farther than `far` from a camera."""
  low, high = vertices.min(0), vertices.max(0)
  eyes = np.asarray(every.c2w)[:, :3, 3]
  # The corner of the box that is farthest from each camera.
  reach = np.linalg.norm(
      np.maximum(np.abs(eyes - low), np.abs(high - eyes)), axis=-1).max()
  if reach > far:
    raise UserError(
        f'The meshes reach {reach:.3g} from a camera, beyond the largest depth '
        f'of {far:.3g}; raise --config.scene.far, or scale the meshes to the '
        "unit of --config.scene.camera's positions.")


def _framed(vertices, normals, turn):
  """(vertices, normals, matrix back [4, 4]) in a frame of standard size."""
  center, scale = merge.box_frame(vertices, RADIUS)
  c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
  # Turns +x and +z by `turn` from +z to +x: the object's front becomes +z.
  rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
  back = np.eye(4)
  back[:3, :3], back[:3, 3] = rotation / scale, center
  return (vertices - center) @ rotation * scale, normals @ rotation, back


def _of_subject(sample_view, subjects, key, step, part=(0.0, 1.0)):
  """A View of one subject, drawn uniformly."""
  index = jax.random.randint(jax.random.fold_in(key, 1), (), 0, subjects)
  return sample_view(key, step, part)._replace(subject=index)


def _from_set(cameras_of, key, step, part=(0.0, 1.0)):
  """A View by one camera of a set, in ambient light, over gray."""
  del step
  every = cameras_of()
  count = len(every.c2w)
  share = jax.random.uniform(key, minval=part[0], maxval=part[1])
  index = jnp.minimum((count * share).astype(int), count - 1)
  return View(jax.tree.map(lambda x: jnp.asarray(x)[index], every), None,
              AMBIENT, jnp.full(3, 0.5), jnp.float32(0.0))


def _render(params, view, size, *, color, near, far, samples):
  """A Render of `view`, by samples^2 points in each pixel; see Scene."""
  surface = params['surface']
  height, width = (size, size) if isinstance(size, int) else size
  instances, points, normals, uv = visible(
      surface, view, (samples * height, samples * width), near, far)
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  albedo = color(params, flat(uv), flat(instances), surface['anchors']
                 ).reshape(points.shape)
  mask = (instances >= 0)[..., None].astype(jnp.float32)
  shaded = shading.lambertian(albedo, normals, points, view.light)
  distance = jnp.linalg.norm(
      points - view.camera.c2w[:3, 3], axis=-1, keepdims=True)

  def pixel(values):
    return jnp.mean((mask * values).reshape(
        height, samples, width, samples, -1), axis=(1, 3))

  opacity = pixel(1.0)
  without_background = pixel(shaded)
  return Render(
      without_background + (1 - opacity) * view.background, opacity[..., 0],
      (pixel(distance) / jnp.maximum(opacity, 1e-6))[..., 0],
      pixel(normals), pixel(albedo), {}, without_background)


def visible(surface: dict[str, jax.Array], view: View, size: tuple[int, int],
            near: float, far: float
            ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """What a view shows at the center of each pixel.

  Args:
    surface: see `make_surface`.
    view: its camera is in the frame of its subject, or else of the scene.
    size: (H, W).
    near, far: range of depths.

  Returns:
    (instances int [H, W], -1 where nothing is seen, points [H, W, 3], normals
    [H, W, 3] towards the camera, uv [H, W, 2]).
  """
  vertices, normals, fragments = _rasterize(surface, view, size, near, far)
  faces = surface['faces']
  points, normals, uv = jnp.split(raster.interpolate(
      jnp.concatenate([vertices, normals, surface['uv']], axis=-1),
      fragments, faces), (3, 6), axis=-1)
  seen = jnp.maximum(fragments.faces, 0)
  a, b, c = jnp.moveaxis(vertices[faces[seen]], -2, 0)
  unit = cameras.normalize
  normals = shading.visible_normal(
      unit(normals), unit(jnp.cross(b - a, c - a)),
      unit(view.camera.c2w[:3, 3] - points))
  instances = jnp.where(fragments.faces >= 0, surface['instances'][seen], -1)
  return instances, points, cameras.normalize(normals), uv


def _rasterize(surface, view, size, near, far):
  """(vertices, normals [V, 3] in the view's frame, raster.Fragments)."""
  alone = view.subject is not None
  vertices, normals = (surface['own_' + name if alone else name]
                       for name in ('vertices', 'normals'))
  clip = cameras.clip_positions(view.camera, vertices, near, far)
  if alone:
    # The rasterizer leaves out faces that are not finite.
    own = surface['subjects'] == view.subject
    clip = jnp.where(own[:, None], clip, jnp.nan)
  return vertices, normals, raster.rasterize(clip, surface['faces'], size)


def seen_faces(surface: dict[str, Any], *, sample_view: Callable,
               near: float, far: float, size: int, count: int) -> np.ndarray:
  """Which faces [F] at least one of `count` training views shows, bool.

  Args:
    surface: see `make_surface`.
    sample_view: see scenes.Scene.
    near, far: range of depths.
    size: pixels per side of a view.
    count: of views, distributed over the range of views.
  """
  @jax.jit
  def survey(surface):
    def add(seen, index):
      view = sample_view(jax.random.key(index), 0,
                         (index / count, (index + 1) / count))
      _, _, fragments = _rasterize(surface, view, (size, size), near, far)
      # A negative index would be of the last face; this one is dropped.
      face = jnp.where(fragments.faces < 0, len(seen), fragments.faces)
      return seen.at[face].set(True, mode='drop'), None

    start = jnp.zeros(len(surface['faces']), bool)
    return jax.lax.scan(add, start, jnp.arange(count))[0]

  return np.asarray(survey(surface))


def _show(render, params, camera, size, modes, background=None, *, bound):
  """Previews; see Scene."""
  behind = jnp.full(3, 0.5) if background is None else jnp.asarray(background)

  def image(mode):
    light = AMBIENT
    if mode not in ('normal', 'depth'):
      light = shading.camera_light(
          camera, *pick('mode', views.SHADING_MODES, mode))
    rendered = render(params, View(camera, None, light, behind, 0.0), size)
    if mode == 'depth':
      return views.object_depth(
          camera, rendered.depth, rendered.opacity, bound)
    if mode != 'normal':
      return rendered.image
    opacity = rendered.opacity[..., None]
    return 0.5 * (rendered.normals + opacity) + (1 - opacity) * behind

  return {mode: jnp.clip(image(mode), 0.0, 1.0) for mode in modes}


def _mesh(color, size, params, resolution, keep_share):
  """The Mesh with its texture, in the files' frame; see Scene."""
  del resolution, keep_share  # of volumes
  surface = jax.tree.map(np.asarray, params['surface'])
  mesh = Mesh(surface['vertices'], surface['faces'], surface['normals'],
              uv=surface['uv'])
  return mesh_ops.transform(mesh, surface['to_file'])._replace(
      texture=bake_texture(partial(color, params), surface, size))


def bake_texture(color: Callable, surface: dict[str, np.ndarray],
                 size: int) -> np.ndarray:
  """The texture uint8 [size, size, 3] of a field.

  Faces that no camera sees, such as the underside of a car, were not trained.
  They get the colors of the nearest points of the same instance that were.

  Args:
    color: (uv [N, 2], instances [N], anchors [I, A, 2]) -> [N, 3] in [0, 1].
    surface: see `make_surface`. With 'seen' [F], see `seen_faces`; in runs
      that were trained before there was such an array all faces count as seen.
    size: texels per side.
  """
  found = atlas.texels(surface['uv'], surface['faces'], size)
  uv = np.stack([found.columns + 0.5, size - found.rows - 0.5], -1) / size
  instances = surface['instances'][found.faces]
  colors = np.zeros((len(uv), 3))
  for index, anchors in enumerate(surface['anchors']):
    own = instances == index
    # One instance at a time, so that a chunk is one block of attention.
    of_points = partial(_of_instance, color, anchors[None])
    if own.any():
      colors[own] = mesh_ops.map_chunks(
          of_points, uv[own].astype(np.float32))
  points = atlas.interpolate(found, surface['faces'], surface['vertices'])
  seen = surface.get('seen', np.ones(len(surface['faces']), bool))
  colors = bake.fill_unseen(colors, points, seen[found.faces], instances)
  return bake.fill(found, colors, size)


def _of_instance(color, anchors, uv):
  return color(uv, np.zeros(len(uv), np.int32), anchors)
