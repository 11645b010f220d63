"""Metrics of faces against official values, closed forms and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from scipy.spatial.transform import Rotation

from gen3d.metrics import face_model, faces
from gen3d.models import deep3d


def turned(points, angle, scale, shift):
  c, s = scale * np.cos(angle), scale * np.sin(angle)
  return points @ np.array([[c, s], [-s, c]]) + shift


def test_alignments_equal_the_official_ones(reference_data):
  data, compared = reference_data('arcface'), 0
  for key in data.files:
    case, _, name = key.partition('.M_')
    if case.startswith('align') and name:
      _, *size = name.removesuffix('_f64').split('_')
      actual = faces.alignment(
          data[f'{case}.landmarks'], *map(int, size), fit=name.split('_')[0])
      np.testing.assert_allclose(actual, data[key], atol=1e-4)
      compared += 1
  assert compared >= 16
  for name in ('insightface', 'treb1en'):
    np.testing.assert_allclose(
        faces.template(112), data[f'template_{name}_112'], atol=1e-4)


def test_a_warp_equals_that_of_opencv(reference_data):
  data = reference_data('arcface')
  np.testing.assert_allclose(
      faces.alignment(data['warp.landmarks']), data['warp.M_f64'], atol=1e-4)
  source, matrix = data['warp.src_hwc'], data['warp.M_f64']
  expected = data['warp.out_cv2_uint8'].astype(int)
  actual = faces.warp(source, matrix, len(expected))
  assert actual.dtype == np.uint8 and np.abs(actual - expected).max() <= 1
  actual = faces.warp(source.astype(np.float32), matrix, len(expected))
  np.testing.assert_allclose(
      actual[::2, ::2], data['warp.out_cv2_float_sub2'], atol=0.01)


@pytest.mark.parametrize('fit', ['insightface', 'treb1en'])
@pytest.mark.parametrize('size', [112, 128, 224, 256])
def test_similar_landmarks_are_moved_to_the_template(fit, size):
  goal = faces.template(size)
  matrix = faces.alignment(turned(goal, 0.4, 2.5, [30., -7.]), size, fit)
  np.testing.assert_allclose(
      turned(goal, 0.4, 2.5, [30., -7.]) @ matrix[:, :2].T + matrix[:, 2],
      goal, atol=1e-9)


def test_fits_minimize_distances_in_the_crop_or_in_the_image():
  goal = faces.template()
  noise = np.random.default_rng(0).normal(0, 3, (5, 2))
  landmarks = turned(goal, -0.3, 1.7, [10., 20.]) + noise

  def residual(matrix, inverse):
    full = np.vstack([matrix, [0, 0, 1]])
    if inverse:
      back = np.linalg.inv(full)
      return np.sum((goal @ back[:2, :2].T + back[:2, 2] - landmarks) ** 2)
    return np.sum((landmarks @ full[:2, :2].T + full[:2, 2] - goal) ** 2)

  one, other = (faces.alignment(landmarks, fit=fit)
                for fit in ('insightface', 'treb1en'))
  assert residual(one, False) < residual(other, False)
  assert residual(other, True) < residual(one, True)
  for direction in np.eye(4):
    a, b, c, d = 1e-3 * direction
    step = np.array([[a, -b, c], [b, a, d]])
    assert residual(one, False) <= min(
        residual(one + step, False), residual(one - step, False))
  with pytest.raises(ValueError, match='not to 100'):
    faces.alignment(landmarks, 100)
  with pytest.raises(ValueError, match='fit of landmarks'):
    faces.alignment(landmarks, fit='umeyama')


def test_a_warp_is_bilinear_and_black_outside():
  image = np.random.default_rng(0).integers(0, 256, (5, 6, 2), np.uint8)
  half = faces.warp(image.astype(float), np.array(
      [[1., 0, -1.5], [0, 1, -1]]), 4)
  np.testing.assert_allclose(
      half[:, :, 0], (image[1:, 1:5, 0] / 2. + image[1:, 2:, 0] / 2.))
  np.testing.assert_array_equal(
      faces.warp(image, np.array([[1., 0, 0], [0, 1, 0]]), 5), image[:, :5])
  far = faces.warp(image, np.array([[1., 0, 9], [0, 1, 0]]), 5)
  assert not far.any() and far.dtype == np.uint8


def test_crops_with_missing_landmarks_are_black_and_counted():
  images = np.full((4, 130, 120, 3), 9, np.uint8)
  landmarks = np.stack([faces.template()] * 4)
  landmarks[1, 2] = np.nan
  landmarks[2, 0] = [-1, 5]
  landmarks[3] = 50
  crops, found = faces.align(images, landmarks)
  assert found.tolist() == [True, False, False, False]
  assert (crops[0] == 9).all() and not crops[1:].any()


def test_the_central_part_by_nearest_pixels():
  images = np.arange(49).reshape(1, 7, 7)
  index = [0, 1, 3, 5]  # floor(i 7 / 4), as PyTorch
  np.testing.assert_array_equal(
      faces.central(images, 4)[0], images[0][np.ix_(index, index)])
  big = np.arange(700)[None, :, None].repeat(700, 2)
  column = faces.central(big, 224, faces.CENTRAL)[0, :, 0]
  start = (700 - 658.8235) / 2
  assert column[0] == int(start) and column[-1] == int(
      start + 223 * 658.8235 / 224)
  # The ratio of the focal lengths of EG3D's images and the reconstructor's.
  np.testing.assert_allclose(
      faces.CENTRAL, 4.2647 / (1015 / 224), atol=1e-4)


def test_depths_are_compared_up_to_scale_and_offset():
  rng = np.random.default_rng(0)
  a, b = rng.random((2, 30, 30)) + 1
  error = faces.depth_error
  np.testing.assert_allclose(error(a, 3 * a + 5), 0, atol=1e-12)
  np.testing.assert_allclose(error(a, 9 - 2 * a), 4)
  np.testing.assert_allclose(
      error(a, b), 2 - 2 * np.corrcoef(a.ravel(), b.ravel())[0, 1])
  # Only where both have a depth.
  part, other = a.copy(), 2 * a
  part[:9], other[:, 20:], part[20, 3] = 0, np.inf, np.nan
  other[0] = 7
  np.testing.assert_allclose(error(part, other), 0, atol=1e-12)
  for empty in (np.zeros((30, 30)), np.full((30, 30), np.nan),
                np.full((30, 30), 2.7)):
    assert np.isnan(error(a, empty))


def test_scores_leave_failures_out_and_count_them():
  assert faces.score([1., np.nan, 3., np.inf]) == faces.Score(2.0, 4, 2)
  nothing = faces.score([np.nan])
  assert np.isnan(nothing.mean) and nothing.failed == nothing.count == 1
  same = faces.cosines([[1., 0], [0, 2], [0, 0]], [[3., 0], [0, -1], [1, 0]])
  np.testing.assert_array_equal(same, [1, -1, np.nan])


def test_poses_are_compared_by_rotation_vectors():
  rng = np.random.default_rng(0)
  a = Rotation.from_rotvec(0.3 * rng.normal(size=(6, 3)))
  b = Rotation.from_rotvec(a.as_rotvec() + [0.1, 0, -0.2])
  errors = faces.pose_errors(a.as_matrix(), b.as_matrix())
  np.testing.assert_allclose(errors, (0.01 + 0.04) / 3)
  world = Rotation.from_rotvec([0.2, -0.5, 0.1])
  turned_world = (world * a).as_matrix()
  turned_world[2, 0, 0] = np.nan
  errors = faces.pose_errors(a.as_matrix(), turned_world)
  assert errors[0] > 0.01 and np.isnan(errors[2])
  errors = faces.pose_errors(a.as_matrix(), turned_world, remove_offset=True)
  np.testing.assert_allclose(np.delete(errors, 2), 0, atol=1e-12)
  assert np.isnan(faces.pose_errors(
      np.full((1, 3, 3), np.nan), np.eye(3)[None], True)).all()


# A face of 12 x 9 vertices: a plane, bent towards the viewer in the middle.
ROWS, COLUMNS = 12, 9
COUNT = ROWS * COLUMNS


def triangles():
  corner = np.arange(COUNT).reshape(ROWS, COLUMNS)
  a, b, c, d = (x.ravel() for x in (corner[:-1, :-1], corner[:-1, 1:],
                                    corner[1:, :-1], corner[1:, 1:]))
  return np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])


def face_files(folder, seed=0):
  """The files of a small face model, in both forms, from the same arrays."""
  rng = np.random.default_rng(seed)
  y, x = np.meshgrid(np.linspace(1, -1, ROWS), np.linspace(-.8, .8, COLUMNS),
                     indexing='ij')
  mean = np.stack([x, y, .5 - x * x - y * y / 2], -1).reshape(-1, 3)
  shapes = rng.normal(0, .01, (3 * COUNT, 199))
  expressions = rng.normal(0, .01, (3 * COUNT, 79))
  info = {'tri': triangles() + 1,
          'keypoints': rng.integers(1, COUNT + 1, (1, 68))}
  ready, made = folder / 'ready', folder / 'made'
  ready.mkdir(), made.mkdir()
  scipy.io.savemat(ready / 'BFM_model_front.mat', {
      'meanshape': mean.reshape(1, -1), 'idBase': shapes[:, :80],
      'exBase': expressions[:, :64], **info})
  # The originals have more vertices, in another order, and other units.
  front = rng.permutation(COUNT + 5)[:COUNT]
  trimmed = rng.permutation(COUNT + 11)[:COUNT + 5]
  spread = lambda values, index, count: np.stack([
      values.reshape(COUNT, 3, -1)[index.index(i)] if i in index
      else np.full((3, values.shape[-1]), 7.) for i in range(count)]).reshape(
          3 * count, -1)
  rows = trimmed[front].tolist()
  deviation = rng.uniform(1, 2, 199)
  scipy.io.savemat(made / '01_MorphableModel.mat', {
      'shapeMU': 1e5 * spread(mean.reshape(-1, 1), rows, COUNT + 11),
      'shapePC': 1e5 * spread(shapes, rows, COUNT + 11) / deviation,
      'shapeEV': deviation[:, None]})
  scipy.io.savemat(made / 'BFM_front_idx.mat', {'idx': front[:, None] + 1})
  scipy.io.savemat(
      made / 'BFM_exp_idx.mat', {'trimIndex': trimmed[:, None] + 1})
  scipy.io.savemat(made / 'facemodel_info.mat', info)
  np.savetxt(made / 'std_exp.txt', deviation[:79][None])
  bases = 1e5 * spread(expressions, front.tolist(), COUNT + 5) / deviation[:79]
  (made / 'Exp_Pca.bin').write_bytes(
      np.int32(79).tobytes() + np.zeros(3 * (COUNT + 5), '<f4').tobytes()
      + bases.T.astype('<f4').tobytes())
  return ready, made


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  return face_files(tmp_path_factory.mktemp('bfm'))


def coefficients(n=1, seed=0, **given):
  rng = np.random.default_rng(seed)
  x = {name: 0.1 * rng.normal(size=(n, width)).astype(np.float32)
       for name, width in deep3d.WIDTHS.items()}
  return deep3d.Coefficients(**{**x, **given})


def test_both_forms_of_the_face_model_are_one(folders):
  ready, made = (face_model.load(folder) for folder in folders)
  assert ready.mean.shape == (COUNT, 3) and ready.identity.shape == (
      80, COUNT, 3) and ready.expression.shape == (64, COUNT, 3)
  for a, b in zip(ready, made, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  np.testing.assert_allclose(ready.mean.mean(0), 0, atol=1e-6)
  file = face_model.load(folders[0] / 'BFM_model_front.mat')
  np.testing.assert_array_equal(file.faces, triangles())


def test_a_reconstruction_equals_its_formulas(folders):
  model = face_model.load(folders[0])
  x = coefficients(2)
  face = jax.jit(face_model.reconstruct, static_argnums=2)(model, x, 112)
  for n in range(2):
    shape = (model.mean + np.tensordot(x.identity[n], model.identity, 1)
             + np.tensordot(x.expression[n], model.expression, 1))
    turn = Rotation.from_euler('xyz', x.angles[n]).as_matrix()
    points = shape @ turn.T + x.translation[n] - [0, 0, 10]
    np.testing.assert_allclose(
        face_model.camera_to_world(x.angles)[n], turn.T, atol=1e-6)
    # Pixels of 224 x 224, y down, in front of a camera that faces -z.
    pixels = 112 + 1015 * points[:, :2] * [1, -1] / -points[:, 2:]
    known = pixels[model.landmarks]
    five = [known[[36, 39]].mean(0), known[[42, 45]].mean(0), known[30],
            known[48], known[54]]
    np.testing.assert_allclose(
        face.landmarks[n], np.array(five) - 0.5, atol=2e-3)
    # A vertex's depth is that of its pixel, where the surface is smooth.
    middle = COLUMNS * (ROWS // 2) + COLUMNS // 2
    column, row = (pixels[middle] / 2).astype(int)
    np.testing.assert_allclose(
        face.depth[n, row, column], -points[middle, 2], atol=0.02)
  assert (np.asarray(face.depth)[:, 0] == 0).all()
  covered = np.asarray(face.depth)[np.asarray(face.depth) > 0]
  assert covered.min() > 7 and covered.max() < 13


def test_the_depth_map_is_no_mirror_image(folders):
  # Nearer on the viewer's right and at the top.
  model = face_model.load(folders[0])
  tilt = np.zeros_like(model.mean)
  tilt[:, 2] = 0.3 * model.mean[:, 0] + 0.2 * model.mean[:, 1]
  model = model._replace(mean=model.mean * [1, 1, 0] + tilt)
  zero = deep3d.Coefficients(*(np.zeros((1, w), np.float32)
                               for w in deep3d.WIDTHS.values()))
  depth = jax.jit(face_model.reconstruct, static_argnums=2)(
      model, zero, 112).depth[0]
  assert depth[56, 30] > depth[56, 82] > 0 and depth[90, 56] > depth[20, 56]
  np.testing.assert_allclose(depth[56, 56], 10, atol=0.01)


def test_eg3d_camera_of_a_face_in_front_and_of_one_that_is_turned():
  zeros = lambda width: np.zeros((2, width), np.float32)
  angles, translation = zeros(3), zeros(3)
  angles[1, 1] = np.deg2rad(30)
  x = deep3d.Coefficients(
      zeros(80), zeros(64), zeros(80), angles, zeros(27), translation)
  camera = face_model.camera_of(x)
  # In front of the head, at the distance 10 * 0.27, less the offset of the
  # origin; the length is that of EG3D's sphere.
  expected = np.array([0, .006, 2.7 + .161])
  np.testing.assert_allclose(
      camera.c2w[0, :3, 3], 2.7 * expected / np.linalg.norm(expected),
      atol=1e-6)
  np.testing.assert_allclose(camera.c2w[0, :3, :3], np.eye(3), atol=1e-6)
  np.testing.assert_allclose(camera.intrinsics[:, 0, 0], 4.2647, rtol=1e-4)
  # A head that turns left is seen from its right: the camera's axis still goes
  # through the head, which is at the offset.
  turned = camera.c2w[1]
  np.testing.assert_allclose(np.linalg.norm(turned[:3, 3]), 2.7, rtol=1e-6)
  position = 2.7 * turned[:3, 2] + np.array([0, .006, .161])
  np.testing.assert_allclose(
      turned[:3, 3], 2.7 * position / np.linalg.norm(position), atol=1e-5)


def test_wrong_face_models_are_user_errors(folders, tmp_path):
  with pytest.raises(ValueError, match='has neither BFM_model_front.mat'):
    face_model.load(tmp_path)
  with pytest.raises(ValueError, match='There is no file .*none.mat'):
    face_model.load(tmp_path / 'none.mat')
  bad = tmp_path / 'bad.mat'
  bad.write_bytes(b'no matrices')
  with pytest.raises(ValueError, match='cannot be read as a .mat'):
    face_model.load(bad)
  scipy.io.savemat(bad, {'meanshape': np.zeros(3)})
  with pytest.raises(ValueError, match='has no idBase'):
    face_model.load(bad)
  content = scipy.io.loadmat(folders[0] / 'BFM_model_front.mat')
  content = {k: v for k, v in content.items() if k[0] != '_'}
  for name, value in (('idBase', np.zeros((6, 80))),
                      ('tri', np.array([[1, 2, COUNT + 1]])),
                      ('keypoints', np.ones((1, 5)))):
    scipy.io.savemat(bad, {**content, name: value})
    with pytest.raises(ValueError, match='not of the face model'):
      face_model.load(bad)
  (folders[1] / 'Exp_Pca.bin').rename(tmp_path / 'Exp_Pca.bin')
  with pytest.raises(ValueError, match='Exp_Pca.bin'):
    face_model.load(folders[1])
  (tmp_path / 'Exp_Pca.bin').rename(folders[1] / 'Exp_Pca.bin')


def test_bytes_become_inputs_of_arcface():
  np.testing.assert_allclose(
      faces.arcface_input(np.array([0, 255], np.uint8)), jnp.array([-1., 1]))
