"""render.finished on an analytic scene: renderers, films, sheets, meshes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen3d.choices import UserError
from gen3d.io import meshes, video
from gen3d.ops import bake, cameras
from gen3d.ops import mesh as mesh_ops
from gen3d.render import finished
from gen3d.scenes import Scene

MODES = ('color', 'normal', 'textureless')
RADIUS = 0.5


class Blob:
  """A large and a small ball.

  Images are constant, of a value that depends on all arguments.
  """
  bound = 1.0

  def __init__(self):
    self.traces = []

  def show(self, params, camera, size, modes, background):
    self.traces.append((size, tuple(modes)))
    height, width = (size, size) if isinstance(size, int) else size
    value = {'color': 0.1, 'normal': 0.3, 'textureless': 0.6}
    white = 0.0 if background is None else background[0]
    azimuth = cameras.angles(camera.c2w[:3, 3])[0] % 360 / 3600
    return {mode: jnp.full((height, width, 3), value[mode] + azimuth
                           + 0.1 * params + 0.1 * white) for mode in modes}

  def query(self, params, points):
    del params
    inside = jnp.maximum(
        RADIUS - jnp.linalg.norm(points - jnp.array([0.2, 0, 0]), axis=-1),
        0.1 - jnp.linalg.norm(points - jnp.array([-0.75, 0, 0]), axis=-1))
    return jnp.clip(4000 * inside, 0, 400), points + 0.5

  def color(self, params, points):
    return self.query(params, points)[1]

  def mesh(self, params, resolution, keep_share):
    return mesh_ops.extract(
        lambda points: self.query(params, points), 1.0, resolution, keep_share)

  def scene(self):
    return Scene(*(getattr(self, name, None) for name in Scene._fields))


def value_of(mode, azimuth, params=1.0, white=1.0):
  base = {'color': 0.1, 'normal': 0.3, 'textureless': 0.6}[mode]
  return np.round(255 * (
      base + azimuth / 3600 + 0.1 * params + 0.1 * white))


def path(frames=4):
  return finished.turntable(
      frames, {'elevation': 10.0, 'distance': 3.0, 'focal': 1.2})


def blob_run(**options):
  return finished.from_scene(
      Blob().scene(), jnp.float32(1.0), path(), **options)


def test_turntable_is_a_full_circle_from_the_front():
  azimuth, elevation, distance = cameras.angles(path(4).c2w[:, :3, 3])
  np.testing.assert_allclose(azimuth % 360, [0, 90, 180, 270], atol=1e-3)
  np.testing.assert_allclose(elevation, 10, atol=1e-3)
  np.testing.assert_allclose(distance, 3, rtol=1e-5)


@pytest.mark.parametrize('size', [8, (8, 12)])
def test_renderer_puts_different_modes_side_by_side(size):
  render = finished.make_renderer(Blob().scene(), size)
  film = render(jnp.float32(1.0), path(3))
  width = 8 if size == 8 else 12
  assert film.shape == (3, 8, 3 * width, 3) and film.dtype == np.uint8
  for i, mode in enumerate(MODES):
    for image, azimuth in zip(film, (0, 120, 240)):
      part = image[:, i * width:(i + 1) * width]
      np.testing.assert_allclose(part, value_of(mode, azimuth), atol=1)


def test_background_is_passed_on_or_left_to_the_scene():
  for background, white in (((0.5, 0.5, 0.5), 0.5), (None, 0.0)):
    render = finished.make_renderer(
        Blob().scene(), 4, ('normal',), background)
    np.testing.assert_allclose(
        render(jnp.float32(0.0), path(1)), value_of('normal', 0, 0, white),
        atol=1)


def test_render_takes_one_camera_or_a_path():
  run = blob_run()
  film = run.render(run.path, 6, MODES)
  for i, mode in enumerate(MODES):
    for frame in range(4):
      camera = cameras.Camera(*(np.asarray(x)[frame] for x in run.path))
      image = run.render(camera, 6, mode)
      assert image.shape == (6, 6, 3) and image.dtype == np.uint8
      np.testing.assert_array_equal(image, film[frame, :, 6 * i:6 * i + 6])


def test_a_film_is_one_program_and_compiled_once():
  blob = Blob()
  run = finished.from_scene(blob.scene(), jnp.float32(1.0), path(8))
  for _ in range(2):
    run.render(run.path, 6, MODES)
  assert set(blob.traces) == {(6, MODES)} and len(blob.traces) == 1
  run.render(run.path, 6, 'color')
  assert blob.traces[1:] == [(6, ('color',))]


def test_mesh_is_in_the_frame_that_to_world_leads_to():
  plain = blob_run().mesh(48)
  np.testing.assert_allclose(
      plain.vertices.min(0), [0.2 - RADIUS, -RADIUS, -RADIUS], atol=0.02)
  to_world = np.diag([5.0, 5, 5, 1])
  to_world[:3, 3] = [1, 2, 3]
  moved = blob_run(to_world=to_world).mesh(48, 1.0)
  np.testing.assert_allclose(
      moved.vertices, 5 * plain.vertices + [1, 2, 3], atol=1e-5)
  assert moved.vertices.dtype == plain.vertices.dtype == np.float32
  np.testing.assert_array_equal(moved.faces, plain.faces)


def test_components_are_kept_by_the_runs_setting_or_the_argument():
  smallest_x = lambda mesh: mesh.vertices[:, 0].min()
  run = blob_run(defaults=finished.ExportOptions(keep_share=1e-3))
  # Smoothing shrinks a ball of three cells visibly.
  np.testing.assert_allclose(smallest_x(run.mesh(48)), -0.85, atol=0.05)
  np.testing.assert_allclose(smallest_x(run.mesh(48, 1.0)), -0.3, atol=0.02)


def test_export_options_are_read_from_a_config():
  options = finished.export_options({'frames': 5, 'fps': 12, 'size': 64})
  assert options == finished.ExportOptions(fps=12, size=64)
  with pytest.raises(ValueError, match=r'--config\.export\.texture'):
    finished.export_options({'texture': 3})
  with pytest.raises(ValueError, match="mesh format 'stl'"):
    finished.export_options({'formats': ('glb', 'stl')})


def test_export_writes_film_sheet_and_meshes(tmp_path):
  options = finished.ExportOptions(
      resolution=24, size=16, fps=5, texture=64)
  run = blob_run(defaults=options)._replace(path=path(16))
  written = finished.export(run, tmp_path / 'new')
  assert written == [tmp_path / 'new' / name for name in finished.FILES]
  assert {p.name for p in (tmp_path / 'new').iterdir()} == {
      *finished.FILES}
  film, fps = video.load(tmp_path / 'new' / 'turntable.mp4')
  assert film.shape == (16, 16, 48, 3) and fps == 5
  # The sheet has eight views of the first mode only.
  sheet = np.asarray(Image.open(tmp_path / 'new' / 'preview.png'))
  assert sheet.shape[1] == 4 * 16 + 3 * 2
  for view in range(4):
    np.testing.assert_allclose(
        sheet[:16, 18 * view:18 * view + 16], value_of('color', 45 * view),
        atol=1)
  coarse, = meshes.load(tmp_path / 'new' / 'mesh.ply')
  finished.export(run, tmp_path / 'fine', options._replace(resolution=48))
  fine, = meshes.load(tmp_path / 'fine' / 'mesh.ply')
  assert len(fine.vertices) > 2 * len(coarse.vertices)


@pytest.mark.parametrize('to_world', [None, 5.0])
def test_textures_have_the_color_of_the_field_in_its_own_frame(
    tmp_path, to_world):
  matrix = None
  if to_world:
    matrix = np.diag([to_world] * 3 + [1.0])
    matrix[:3, 3] = [1, 2, 3]
  options = finished.ExportOptions(
      resolution=32, size=16, texture=128, formats=('glb', 'ply'))
  run = blob_run(defaults=options, to_world=matrix)
  finished.export(run, tmp_path)
  textured, = meshes.load(tmp_path / 'mesh.glb')
  plain, = meshes.load(tmp_path / 'mesh.ply')
  assert textured.texture.shape == (128, 128, 3) and plain.texture is None
  np.testing.assert_allclose(textured.colors, 1)
  np.testing.assert_allclose(textured.vertices[textured.faces],
                             plain.vertices[plain.faces], atol=1e-6)
  points = textured.vertices
  if to_world:
    points = (points - [1, 2, 3]) / to_world
  np.testing.assert_allclose(
      bake.vertex_colors(textured), np.clip(points + 0.5, 0, 1), atol=0.06)


def test_without_a_texture_or_a_color_function_the_mesh_is_as_it_is(tmp_path):
  run = blob_run()
  surface = run.mesh(16)
  assert finished.textured(run, surface, 0) is surface
  assert finished.textured(run._replace(color=None), surface, 64) is surface


@pytest.mark.parametrize('colored', ['by the field', 'final'])
def test_reduced_meshes_have_the_colors_of_the_object(tmp_path, colored):
  options = finished.ExportOptions(
      resolution=48, size=16, texture=128, faces=300, ground=True)
  run = blob_run(defaults=options)
  if colored == 'final':
    run = run._replace(color=None)
  finished.export(run, tmp_path)
  textured, = meshes.load(tmp_path / 'mesh.glb')
  plain, = meshes.load(tmp_path / 'mesh.ply')
  shift, = np.unique(json.loads((tmp_path / finished.SIMILARITY).read_text())[
      'scene_to_mesh'][1][3])
  assert abs(shift - RADIUS) < 0.05
  for mesh, colors in ((textured, bake.vertex_colors(textured)),
                       (plain, plain.colors)):
    assert 250 < len(mesh.faces) <= 300
    assert abs(mesh.vertices[:, 1].min()) < 1e-6
    points = mesh.vertices - [0, shift, 0]
    np.testing.assert_allclose(colors, np.clip(points + 0.5, 0, 1), atol=0.08)


def test_too_few_triangles_are_refused(tmp_path):
  with pytest.raises(UserError, match='reduced to 3 triangles.*at least 4'):
    finished.export(blob_run(), tmp_path, finished.ExportOptions(faces=3))
