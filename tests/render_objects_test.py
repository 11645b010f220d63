"""Sheets, films and meshes of objects, of EG3D and of a ball."""

import blob_generator
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_eg3d
import trimesh

from gen3d.gan import inference
from gen3d.io import meshes
from gen3d.ops import bake
from gen3d.render import objects


@pytest.fixture(scope='module', params=['eg3d', 'blob'])
def trained(request):
  kinds = {'eg3d': lambda: tiny_eg3d.dense(tiny_eg3d.trained()),
           'blob': blob_generator.trained}
  return kinds[request.param]()


def pixels(trained):
  return trained.generator.image_size(trained.size)


def view(trained, seed, azimuth, psi=1.0, cutoff=None):
  ws = inference.map_seed(trained, seed, psi, cutoff)
  return inference.make_renderer(trained)(
      ws, inference.camera_at(trained.camera, np.array([azimuth])))[0]


@pytest.fixture
def films(monkeypatch):
  """{file name: frames} of the films that are written."""
  written = {}
  monkeypatch.setattr(
      objects.video, 'save', lambda path, film, fps: written.update(
          {path.name: np.stack(list(film))}))
  return written


def test_rows_are_views_then_the_raw_image_and_depth_of_the_first(trained):
  path = inference.camera_at(trained.camera, np.array([0.0, 90.0]))
  ws = inference.map_seed(trained, 0)
  whole = inference.make_renderer(trained)(ws, path)
  # Beside an image, all panels have its size.
  alone = {panel: inference.make_renderer(trained, ('image', panel))(ws, path)[
      :, :, pixels(trained):] for panel in inference.PANELS}
  expected = [*alone['image'], alone['image_raw'][0], alone['depth'][0]]
  row = objects.sheet_row(whole)
  assert len(row) == len(expected)
  for a, b in zip(row, expected, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_sheet_has_a_row_for_each_seed(trained):
  side = pixels(trained)
  sheet = objects.sheet(trained, (0, 1), views=3)
  assert sheet.shape == (2 * (side + 2) - 2, 5 * (side + 2) - 2, 3)
  for row, seed in enumerate((0, 1)):
    top = row * (side + 2)
    np.testing.assert_array_equal(
        sheet[top:top + side, :side], view(trained, seed, 0.0)[:, :side])


def test_exported_files_and_the_size_of_the_mesh(trained, tmp_path):
  written = objects.export(
      trained, (0, 1), tmp_path, frames=8, resolution=24, texture=64)
  assert [p.name for p in written] == [
      'grid.png', *(f'seed{i:04d}{s}' for i in (0, 1)
                    for s in ('.mp4', '.glb', '.ply'))]
  textured, = meshes.load(tmp_path / 'seed0001.glb')
  ws = inference.map_seed(trained, 1)
  colors = inference.make_mesh_extractor(trained, 24)(ws).colors
  # A box of 64 texels a side has few of them.
  np.testing.assert_allclose(bake.vertex_colors(textured).mean(0),
                             colors.mean(0), atol=0.1)
  assert textured.texture.shape == (64, 64, 3)
  surface = trimesh.load_mesh(tmp_path / 'seed0000.ply')
  assert surface.is_watertight
  expected = 2 * trained.generator.bound
  if 'center' in trained.variables['params']:  # The ball's diameter.
    _, radius = trained.generator.synthesize(
        trained.variables, inference.map_seed(trained, 0)[None], 'const', None)
    expected = 2 * radius[0]
  np.testing.assert_allclose(surface.extents, expected, rtol=0.1)


def test_a_film_morphs_from_object_to_object_and_back(
    trained, tmp_path, films):
  objects.interpolate(trained, [0, 1], tmp_path / 'x.mp4', frames=4)
  film, side = films['x.mp4'], pixels(trained)
  assert film.shape == (8, side, 3 * side, 3)
  np.testing.assert_array_equal(film[0], view(trained, 0, 0.0))
  np.testing.assert_array_equal(film[4], view(trained, 1, 0.0))
  # A quarter of the way, 3/16 - 2/64 of it in w; and on the way back.
  start, end = (inference.map_seed(trained, seed) for seed in (0, 1))
  quarter = jax.tree.map(
      lambda x: x[None], inference.camera_at(trained.camera, 90.0))
  for frame, a, b in ((1, start, end), (5, end, start)):
    np.testing.assert_array_equal(film[frame], inference.make_renderer(
        trained)(a + (3 / 16 - 2 / 64) * (b - a), quarter)[0])


def test_truncation_applies_to_films_and_turntables(trained, tmp_path, films):
  for cutoff in (None, 1):
    options = {'psi': 0.3, 'cutoff': cutoff}
    objects.export(
        trained, (0, 1), tmp_path, frames=8, resolution=12, texture=0,
        **options)
    objects.interpolate(
        trained, (0, 1), tmp_path / 'x.mp4', frames=4, **options)
    np.testing.assert_array_equal(
        films['seed0001.mp4'][2], view(trained, 1, 90.0, 0.3, cutoff))
    np.testing.assert_array_equal(
        films['x.mp4'][4], view(trained, 1, 0.0, 0.3, cutoff))
  assert not np.array_equal(
      view(trained, 1, 0.0, 0.3), view(trained, 1, 0.0, 0.3, 1))


@pytest.mark.parametrize('trained', [
    tiny_eg3d.trained, lambda: blob_generator.trained(density_scale=0.0)],
    ids=['eg3d', 'blob'])
def test_an_object_without_a_surface_lacks_only_its_mesh(
    trained, tmp_path, capsys):
  written = objects.export(
      trained(), (3, 4), tmp_path, frames=8, resolution=12)
  assert [p.name for p in written] == [
      'grid.png', 'seed0003.mp4', 'seed0004.mp4']
  assert 'Seed 3 has no surface' in capsys.readouterr().err


def test_objects_of_a_ball_are_balls_at_the_place_of_the_ball():
  """The images agree with the closed form, whatever the code between."""
  ball = blob_generator.trained()
  ws = inference.map_seed(ball, 2)
  path = inference.camera_at(ball.camera, np.array([0.0, 90.0]))
  film = inference.make_renderer(ball, ('image',))(ws, path)
  (center,), (radius,) = ball.generator.synthesize(
      ball.variables, ws[None], 'const', None)
  for image, c2w, focal in zip(film, path.c2w, path.intrinsics[:, 0, 0]):
    offset = c2w[:3, :3].T @ (center - c2w[:3, 3])
    x = 0.5 - focal * offset[0] / offset[2]
    y = 0.5 + focal * offset[1] / offset[2]
    dark = np.argwhere(image.min(-1) < 230)
    middle = (dark.min(0) + dark.max(0) + 1) / 2 / len(image)
    np.testing.assert_allclose(middle, [y, x], atol=0.04)
    np.testing.assert_allclose(
        np.ptp(dark[:, 0]) / len(image),
        -2 * focal * radius / offset[2], atol=0.12)
  assert jnp.isfinite(center).all()
