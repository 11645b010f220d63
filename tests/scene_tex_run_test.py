"""A scene textured by Stable Diffusion and a ControlNet, from the command."""

import json
import os

import checkpoint_folders as folders
import commands
import numpy as np

from gen3d.io import meshes

SMALL = {'steps': 2, 'views': 2, 'scene.size': 16, 'scene.grid.count': 2,
         'scene.grid.base': 4, 'scene.attention.hidden': 4,
         'scene.anchors': 4, 'scene.mlp.width': 8, 'scene.mlp.layers': 2,
         'orbit.distance': 3.0, 'export.texture': 64, 'export.size': 16,
         'export.frames': 8}
# Two triangles, a part with texture coordinates and one without.
ROOM = '''
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
vt 0 0
vt 1 0
vt 1 1
o wall
f 1/1 2/2 3/3
f 1/1 3/3 4/2
o floor
f 1 2 5
'''


def test_train_exports_a_textured_scene(tmp_path):
  teacher = folders.write_small_stable_diffusion(tmp_path)
  (tmp_path / 'room.obj').write_text(ROOM)
  camera = np.eye(4)
  camera[:3, 3] = 0.5, 0.5, 2.0
  (tmp_path / 'path.json').write_text(json.dumps({
      'camera_angle_x': 1.0,
      'frames': [{'transform_matrix': camera.tolist()}]}))
  done = commands.run(
      'gen3d.train', '--config=configs/scene_tex.py:paper',
      '--config.prompt=a dog', f'--config.teacher.path={teacher["path"]}',
      f'--config.teacher.control={teacher["control"]}',
      f'--config.scene.meshes={tmp_path / "room.obj"}',
      '--config.scene.view_distribution=keyframes',
      f'--config.scene.keyframes={tmp_path / "path.json"}',
      f'--workdir={tmp_path / "run"}',
      *(f'--config.{key}={value}' for key, value in SMALL.items()),
      env={**os.environ, 'GEN3D_CACHE': str(tmp_path / 'cache')})
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'on 2 cpu device(s)' in done.stderr
  assert 'unwrapped' in done.stderr
  mesh, = meshes.load(tmp_path / 'run' / 'mesh.glb')
  assert mesh.texture.shape == (64, 64, 3) and len(mesh.faces) == 3
  np.testing.assert_allclose(mesh.vertices.min(0), 0, atol=1e-6)
  np.testing.assert_allclose(mesh.vertices.max(0), 1, atol=1e-6)
