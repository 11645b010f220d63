"""data.synthetic: cameras on a sphere, objects of captions, scene files."""

import ghostscript
import numpy as np
import pytest
import trimesh
from PIL import Image

from gen3d.choices import UserError
from gen3d.data import synthetic
from gen3d.data.shapes import captions
from gen3d.io import meshes


def test_cameras_of_all_splits_frame_the_ball_and_differ():
  train, val, test = (synthetic.sphere_cameras(n, s) for n, s in (
      (50, 'train'), (5, 'val'), (20, 'test')))
  for camera in (train, val, test):
    positions = camera.c2w[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(positions, axis=-1), 4, rtol=1e-5)
    assert positions[:, 1].min() >= 0
    # The ball fits into the image and nearly fills it.
    half = np.tan(np.arcsin(1 / 4))
    edge = 0.5 / camera.intrinsics[:, 0, 0]
    assert np.all((edge > half) & (edge < 1.1 * half))
  # Even: half of the hemisphere's area lies below 30 degrees.
  assert abs(np.mean(train.c2w[:, 1, 3] < 2.0) - 0.5) < 0.05
  below = synthetic.sphere_cameras(50, 'train', lowest=-90.0).c2w[:, 1, 3]
  assert abs(np.mean(below < 0) - 0.5) < 0.05
  for places in (train.c2w, np.concatenate([val.c2w, test.c2w])):
    apart = np.linalg.norm(places[:, None, :3, 3] - places[:, :3, 3], axis=-1)
    assert np.min(apart + 9 * np.eye(len(apart))) > 0.2


def test_object_of_a_caption_has_the_named_colors():
  surface, = synthetic.surface_from_caption(
      'a red mushroom with white stem', 48)
  for name in ('red', 'white'):
    near = np.abs(surface.colors - captions.COLORS[name]).max(-1) < 0.05
    assert near.mean() > 0.1
  height = lambda name: np.mean(surface.vertices[np.abs(
      surface.colors - captions.COLORS[name]).max(-1) < 0.05, 1])
  assert height('red') > height('white') + 0.1
  a, b, c = surface.vertices[surface.faces.T]
  flat = np.cross(b - a, c - a)
  agree = np.sum(flat * surface.normals[surface.faces[:, 0]], -1) > 0
  assert agree.mean() > 0.95
  with pytest.raises(ValueError, match='No object of the shapes world'):
    synthetic.surface_from_caption('a zebra')


def test_scene_of_a_mesh_with_a_postscript_texture_starts_no_program(
    tmp_path, monkeypatch):
  started = ghostscript.plant(tmp_path, monkeypatch)
  box = trimesh.creation.box()
  box.visual = trimesh.visual.TextureVisuals(
      np.zeros((len(box.vertices), 2)), trimesh.visual.material.SimpleMaterial(
          Image.new('RGB', (4, 4))))
  box.export(tmp_path / 'a.obj')
  texture, = tmp_path.glob('*.png')
  texture.write_bytes(ghostscript.POSTSCRIPT)
  with pytest.raises(UserError, match='it is a PostScript file'):
    meshes.load(tmp_path / 'a.obj')
  assert not started.exists()
