"""evaluation.textures on a ball that is colored by position."""

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from gen3d.evaluation import textures
from gen3d.io import meshes
from gen3d.ops import bake, cameras
from gen3d.ops import mesh as mesh_ops
from gen3d.render import finished

ORBIT = {'elevation': 20.0, 'distance': 3.0, 'focal': 1.2}


def color(points):
  return np.clip(0.5 + 0.5 * points, 0, 1)


def ball():
  shape = trimesh.creation.icosphere(3, 0.8)
  return mesh_ops.Mesh(np.asarray(shape.vertices, np.float32),
                       np.asarray(shape.faces))


@pytest.fixture(autouse=True)
def small(monkeypatch):
  for name, value in {'SIZE': 40, 'VIEWS': 2, '_ROWS': 2 ** 10}.items():
    monkeypatch.setattr(textures, name, value)
  textures._render.clear_cache()


@pytest.fixture
def run(tmp_path):
  """A workdir with a textured ball, and its Finished."""
  (tmp_path / 'config.json').write_text(json.dumps(
      {'task': 'text_to_3d', 'prompt': 'a ball', 'orbit': ORBIT}))
  meshes.save(tmp_path / textures.MESH, bake.bake(color, ball(), 128))

  def render(camera, size, mode):
    assert mode == 'albedo'
    return np.full((len(camera.c2w), size, size, 3), 255, np.uint8)

  return tmp_path, finished.Finished(
      render, None, finished.turntable(2, ORBIT), color=color)


def test_a_texture_of_the_same_colors_agrees_and_a_shifted_one_does_not(run):
  workdir, shown = run
  agreement, images = textures.compare(workdir, shown, color)
  assert agreement[:3] == ('a ball', 1280, 128)
  assert agreement.dense > 35
  assert agreement.volume < 15  # The volume is empty.
  assert np.mean(np.abs(images['textured'] - images['dense'])) < 0.003
  surface, = meshes.load(workdir / textures.MESH)
  meshes.save(workdir / textures.MESH, surface._replace(
      colors=None, texture=np.roll(surface.texture, 20, axis=0)))
  assert textures.compare(workdir, shown, color)[0].dense < 25


def test_renders_have_the_colors_of_the_visible_side():
  camera = finished.turntable(2, {**ORBIT, 'elevation': 0.0})
  shape = ball()
  images, coverage = textures.render(
      shape._replace(colors=color(shape.vertices)), camera)
  for image, c2w in zip(images, camera.c2w):
    nearest = 0.8 * cameras.normalize(c2w[:3, 3])
    np.testing.assert_allclose(image[20, 20], color(nearest), atol=0.04)
  np.testing.assert_array_equal(images[:, 0, 0], 1)
  np.testing.assert_array_equal(coverage[:, 0, 0], 0)
  assert np.asarray(Image.fromarray(np.uint8(255 * coverage[0]))).max() == 255


def test_dividing_keeps_the_surface_and_its_orientation():
  shape = ball()
  vertices, normals, faces = textures.divide(
      shape.vertices, shape.vertices, shape.faces)
  assert len(faces) == 4 * 1280 and len(vertices) == 642 + 1920
  divided = trimesh.Trimesh(vertices, faces, process=False)
  original = trimesh.Trimesh(shape.vertices, shape.faces, process=False)
  assert divided.is_watertight and divided.is_winding_consistent
  assert divided.volume == pytest.approx(original.volume, rel=1e-5)
  np.testing.assert_allclose(normals, vertices)


def test_a_mesh_without_a_texture_is_refused(run):
  workdir, shown = run
  meshes.save(workdir / textures.MESH, ball())
  with pytest.raises(ValueError, match=r'mesh\.glb has no texture; write it '
                     r'again by .*gen3d\.export .*--texture=1024'):
    textures.compare(workdir, shown, color)
