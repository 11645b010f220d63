"""The texture scene: parity of its views, baking, objects alone, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import scene_tex as configs
from gen3d.choices import UserError
from gen3d.data import raster as numpy_raster
from gen3d.ops import camera_sets, cameras, images
from gen3d.ops.mesh import Mesh
from gen3d.scenes import View, texture


@pytest.fixture(scope='module')
def reference(reference_data):
  return reference_data('scenetex')


def _cube(center, side):
  """A cube whose six faces have a third of the unit square each."""
  corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
  vertices, uv, faces = [], [], []
  for index in range(6):
    axis, sign = divmod(index, 2)
    points = np.empty((4, 3))
    points[:, axis] = 2 * sign - 1
    order = [1, 2] if sign else [2, 1]
    points[:, (axis + order[0]) % 3] = 2 * corners[:, 0] - 1
    points[:, (axis + order[1]) % 3] = 2 * corners[:, 1] - 1
    vertices.append(center + points * side / 2)
    cell = np.array([index % 3, index // 3])
    uv.append((cell + 0.05 + 0.9 * corners) / 3)
    faces.append(np.array([[0, 1, 2], [0, 2, 3]]) + 4 * index)
  return Mesh(*map(np.concatenate, (vertices, faces)), uv=np.concatenate(uv))


def _config(**changes):
  config = configs.tiny().scene
  config.size, config.supersampling = 24, 2
  config.grid.init_scale = 4.0  # colors that differ from place to place
  config.update(changes)
  return config


CUBES = [[_cube(np.array([3.0, 0, 0]), 2.0)],
         [_cube(np.array([-3.0, 0, 1]), 1.0)]]


def _scene(config, objects=CUBES, keyframes=None):
  """The scene and its parameters at the start."""
  scene = texture.make(config, objects, keyframes)
  return scene, jax.jit(scene.init)(jax.random.key(0)) | scene.running.init


def test_pixels_are_those_of_the_official_rasterizer(reference):
  c2w = np.eye(4)
  rotation = reference['uv.R'][0]
  c2w[:3, :3] = rotation * [-1, 1, -1]
  c2w[:3, 3] = -rotation @ reference['uv.T'][0]
  camera = cameras.Camera(jnp.asarray(c2w, jnp.float32),
                          cameras.pinhole(camera_sets.focal_length(60.0)))
  faces = reference['uv.faces'].astype(np.int32)
  surface = {'vertices': reference['uv.verts'],
             'normals': np.ones_like(reference['uv.verts']),
             'uv': reference['uv.verts_uvs'], 'faces': faces,
             'instances': np.arange(len(faces), dtype=np.int32)}
  size = reference['uv.coords'].shape[1:3]
  faces_seen, points, _, uv = texture.visible(
      surface, View(camera, None, None, None, None), size, 0.01, 100.0)
  expected = reference['uv.pix_to_face'][0, ..., 0]
  # That rasterizer may miss pixels on an edge that two faces share.
  assert np.mean(np.asarray(faces_seen) != expected) < 0.02
  both = (faces_seen >= 0) & (expected >= 0)
  np.testing.assert_allclose(
      uv[both], reference['uv.coords'][0][both], atol=1e-4)
  depth = (np.asarray(points) - c2w[:3, 3]) @ -c2w[:3, 2]
  np.testing.assert_allclose(
      depth[both], reference['uv.zbuf'][0, ..., 0][both], atol=1e-4)
  maps = images.depth_map(jnp.asarray(depth), jnp.asarray(expected >= 0))
  np.testing.assert_allclose(
      maps[..., 0], reference['depth.controlnet'][0, 0], atol=1e-3)


def test_the_baked_texture_is_the_rendered_one():
  config = _config(texture_size=256)
  scene, params = _scene(config, CUBES[:1])
  camera = cameras.orbit(35.0, 25.0, 1.8, 1.3)
  shown = jax.jit(scene.show, static_argnums=(2, 3))(
      params, camera, 48, ('albedo',), jnp.ones(3))['albedo']
  mesh = scene.mesh(params, 0, 1.0)
  # In the file's frame: moved here to the scene's, an object of radius 1/2.
  np.testing.assert_allclose(mesh.vertices, CUBES[0][0].vertices, atol=1e-5)
  moved = mesh._replace(vertices=np.asarray(params['surface']['vertices']))
  rendered = numpy_raster.render(
      numpy_raster.gather([moved]), np.asarray(camera.c2w, np.float64),
      np.asarray(camera.intrinsics, np.float64), 48, 48, samples=2,
      ambient=1.0)
  alpha = rendered[..., 3:] / 255
  image = alpha * rendered[..., :3] / 255 + 1 - alpha
  error = np.sqrt(np.mean((image - np.asarray(shown)) ** 2))
  assert error < 0.02
  # Not a texture of one color, which would agree everywhere.
  assert np.asarray(shown)[alpha[..., 0] == 1].std(0).max() > 0.05


def test_a_face_that_no_camera_sees_gets_the_colors_nearest_to_it():
  # Cameras above the cube: its lower face, the third of six, is not seen.
  above = cameras.orbit([0.0, 90.0, 180.0, 270.0], 40.0, 8.0, 1.3)
  above = above._replace(c2w=above.c2w.at[:, :3, 3].add(
      jnp.array([3.0, 0.0, 0.0])))
  config = _config(texture_size=96, view_distribution='keyframes')
  scene, params = _scene(config, CUBES[:1], above)
  np.testing.assert_array_equal(
      params['surface']['seen'], np.arange(12) // 2 != 2)
  surface = {name: np.asarray(x) for name, x in params['surface'].items()}
  # The sides of the cube, each in a third of the texture, are numbered.
  number = lambda uv, *_: np.tile(
      ((3 * uv[:, :1]).astype(int) + 3 * (3 * uv[:, 1:]).astype(int)) / 5,
      (1, 3))
  lower = np.s_[96 - 28:96 - 4, 2 * 32 + 4:2 * 32 + 28]
  sides = lambda image: np.unique(np.round(image[lower] / 255 * 5)).tolist()
  assert sides(texture.bake_texture(number, surface, 96)) == [0, 1, 4, 5]
  del surface['seen']  # as in a run from before there was one
  assert sides(texture.bake_texture(number, surface, 96)) == [2]


def test_an_object_alone_is_in_the_middle_and_has_its_own_gradient():
  scene, params = _scene(_config(each=True, meshes='a.obj,b.obj'))
  assert scene.subjects == 2
  view = View(cameras.orbit(0.0, 0.0, 1.7, 1.3), None,
              texture.AMBIENT, jnp.zeros(3), 0.0)

  def loss(params, subject):
    render = scene.render(params, None, view._replace(subject=subject))
    return jnp.sum(render.image), render

  opacities, gradients = [], []
  gradient = jax.jit(jax.grad(loss, has_aux=True, allow_int=True))
  for subject in (0, 1):
    grad, render = gradient(params, jnp.int32(subject))
    opacities.append(np.asarray(render.opacity))
    gradients.append(np.asarray(grad['field']['params']['grid_1']))
    # The corners of the cube are at 5 / 4 of the radius 1 / 2.
    assert abs(render.depth[12, 12] - (1.7 - 0.625 / 3 ** 0.5)) < 0.01
  np.testing.assert_allclose(opacities[0], opacities[1], atol=1e-3)
  assert 0.2 < opacities[0].mean() < 0.9
  # In the atlas the objects are apart.
  assert all(np.abs(gradient).max() > 1e-3 for gradient in gradients)
  assert np.abs(gradients[0] - gradients[1]).max() > 1e-3
  sample_view = jax.jit(scene.sample_view)
  views = [int(sample_view(jax.random.key(i), 0).subject) for i in range(20)]
  assert set(views) == {0, 1}


def test_a_turned_object_has_its_front_to_the_camera():
  front = _cube(np.zeros(3), 1.0)
  back = front._replace(vertices=np.asarray(front.vertices) * [1, 1, 2])
  nose = back.vertices.copy()
  nose[back.vertices[:, 2] > 0] *= [0.2, 0.2, 1]  # narrow towards +z
  angle = np.deg2rad(90.0)
  turned = nose @ np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0],
                            [np.sin(angle), 0, np.cos(angle)]])
  # The nose is now at +x: 90 degrees from +z towards +x.
  assert np.ptp(turned[turned[:, 0] > 0.5][:, 2]) < 0.3
  surfaces = [
      texture.make_surface([[back._replace(vertices=v)]], None, anchors=2,
                           turns=(turn,), far=10.0)
      for v, turn in ((nose, 0.0), (turned, 90.0))]
  np.testing.assert_allclose(
      surfaces[0]['vertices'], surfaces[1]['vertices'], atol=1e-5)
  back_again = (surfaces[1]['vertices'] @ surfaces[1]['to_file'][:3, :3].T
                + surfaces[1]['to_file'][:3, 3])
  np.testing.assert_allclose(back_again, turned, atol=1e-5)


@pytest.mark.parametrize('distribution, camera', [
    ('sphere', {'distance': (2.0, 3.0), 'elevation': (0.0,),
                'azimuth': (0.0, 120.0, 240.0), 'field_of_view': (60.0,),
                'target': (0.0, 0.0, 0.0)}),
    ('room', {'low': (-1, 0, -1), 'high': (1, 0, 1), 'counts': (2, 1, 2),
              'elevation': (0.0,), 'azimuth': (0.0, 180.0),
              'field_of_view': (75.0,)}),
    ('keyframes', {})])
def test_views_from_a_set_of_cameras_are_in_the_files_frame(
    distribution, camera):
  config = _config(view_distribution=distribution, far=20.0)
  config.camera = camera
  path = cameras.orbit([0.0, 90.0], 10.0, 4.0, 0.9)
  scene, params = _scene(config, keyframes=path)
  np.testing.assert_allclose(
      params['surface']['vertices'][:24], CUBES[0][0].vertices)
  eyes, sample_view = set(), jax.jit(scene.sample_view)
  for i in range(12):
    view = sample_view(jax.random.key(i), 0)
    eyes.add(tuple(np.round(np.asarray(view.camera.c2w).ravel(), 3)))
    assert view.subject is None
  assert len(eyes) > 1
  render = jax.jit(scene.render)(params, None, view)
  assert np.isfinite(render.image).all()


@pytest.mark.parametrize('changes, words', [
    ({'meshes': ' , '}, 'config.scene.meshes'),
    ({'view_distribution': 'cave'}, "'cave'.*'room'"),
    ({'view_distribution': 'sphere'}, 'prompts? of single meshes'),
    ({'activation': 'tanh'}, "'tanh'.*'sigmoid'"),
    ({'turn': (0.0, 1.0, 2.0)}, '2 meshes and 3 values'),
])
def test_errors_name_the_key_and_a_remedy(changes, words):
  config = _config(each=True, meshes='a.obj,b.obj')
  with config.ignore_type():
    config.update(changes)
  with pytest.raises(UserError, match=f'(?i){words}'):
    _scene(config)


def test_a_scene_beyond_the_range_of_its_cameras():
  config = _config(view_distribution='keyframes', far=5.0)
  large = [[_cube(np.zeros(3), 400.0)]]
  with pytest.raises(UserError, match='config.scene.far.*scale the meshes'):
    _scene(config, large, cameras.orbit([0.0], 0.0, 2.0, 1.0))
