"""ID, Depth and Pose of a generator, with small networks in real files."""

import blob_generator
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_state
from metrics_faces_test import face_files

from gen3d.data.images.dataset import Images
from gen3d.evaluation import faces as face_evaluation
from gen3d.evaluation import fid
from gen3d.gan import inference
from gen3d.metrics import face_model, faces
from gen3d.models import arcface, deep3d
from gen3d.ops import cameras

SIZE = blob_generator.SIZE
SPEC = arcface.Spec('iresnet', ((2, 1), (2, 1), (2, 1), (4, 1)), 6)
RECONSTRUCTOR = deep3d.Spec(((2, 1), (2, 1)))


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  """The user's files: of ArcFace, the reconstructor and the face model."""
  folder = tmp_path_factory.mktemp('files')
  recognition = torch_state.random(arcface.Network(SPEC), (
      jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32),))
  estimation = torch_state.random(deep3d.Network(RECONSTRUCTOR), (
      jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),))
  for i in range(7):  # Faces near the mean.
    estimation[f'final_layers.{i}.weight'] *= np.float32(0.02)
    estimation[f'final_layers.{i}.bias'] *= np.float32(0.1)
  return (str(torch_state.save(folder / 'backbone.pth', recognition)),
          str(torch_state.save(folder / 'epoch_20.pth', estimation,
                               'net_recon', opt_00={})),
          str(face_files(folder)[0]))


@pytest.fixture
def source():
  rng = np.random.default_rng(0)
  labels = cameras.to_label(cameras.orbit(
      rng.uniform(-40, 40, 5), rng.uniform(-15, 15, 5), 2.0, 1.5))
  return Images('cats', tuple('abcde'), np.asarray(labels), lambda i: None,
                SIZE)


def test_views_are_of_one_object_from_cameras_of_the_data(source):
  trained = blob_generator.trained()
  conditions = []
  inner = trained.generator.map
  trained = trained._replace(generator=trained.generator._replace(
      map=lambda variables, z, camera, *rest: conditions.append(
          camera) or inner(variables, z, camera, *rest)))
  parts = list(face_evaluation.generated_views(trained, source, 18))
  assert [len(x.images) for x in parts] == [16, 2]
  # The generator's own frontal camera conditions all of them.
  assert conditions == [None] * len(conditions)
  views = parts[0]
  assert views.images.shape == (16, 2, SIZE, SIZE, 3)

  @jax.jit
  def by_hand(i, label):
    key = jax.random.fold_in(jax.random.key(0), i)
    z = jax.random.normal(key, (1, 5))
    ws = inner(trained.variables, z, None, 1.0, None)
    ball = trained.generator.synthesize(trained.variables, ws, 'const', None)
    camera = cameras.from_label(label[None])
    generated = trained.generator.render(
        trained.variables, ball, ws, camera, SIZE, None)
    return camera, generated, cameras.axial_depth(camera, generated.depth)[0]

  draw = fid.camera_draws(trained, source, 0)
  for view, labels in enumerate((draw(np.arange(3), 0), draw(
      np.arange(3), 1))):
    for i in range(3):
      camera, generated, axial = jax.device_get(by_hand(i, labels[i]))
      expected = np.floor(np.clip(generated.image * 127.5 + 128, 0, 255))
      np.testing.assert_allclose(
          views.images[i, view], expected[0], atol=1)
      if view == 0:
        np.testing.assert_allclose(
            views.camera_to_world[i], camera.c2w[0, :3, :3], atol=1e-6)
        opaque = generated.opacity[0] > 0.5
        np.testing.assert_allclose(
            views.depth[i][opaque], axial[opaque], rtol=1e-5)
        assert not views.depth[i][~opaque].any()


def pictures(n=2):
  """Views whose two images differ, with a depth map of a ball."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (n, 2, 8, 8, 3), np.uint8).repeat(
      14, 2).repeat(14, 3)
  y, x = np.meshgrid(*[np.linspace(-1, 1, 112)] * 2, indexing='ij')
  depth = np.where(x * x + y * y < 0.9, 3 + x * x + 0.3 * y, 0)
  turn = np.asarray(face_model.rotation(0.2 * rng.normal(size=(n, 3))))
  return face_evaluation.Views(images, np.stack([depth] * n), turn)


@pytest.fixture
def stand_ins(monkeypatch):
  """FaceNetworks whose networks are functions of a few pixels, and these."""
  embed = lambda images: images[:, 8::32, 8::32].reshape(len(images), -1)
  coefficients = lambda images: deep3d.Coefficients(*(
      images[:, :40, :40, 0].reshape(len(images), -1)[:, :width]
      for width in deep3d.WIDTHS.values()))

  def reconstruct(shift, x):
    near = jnp.mean(x.identity, 1)[:, None, None]
    depth = 3 + near * jnp.linspace(0, 1, 224)[:, None] ** 2 + jnp.linspace(
        0, 0.2, 224)
    return face_model.Face(depth, shift + near + jnp.broadcast_to(
        1.4 * faces.TEMPLATE + 30, (len(near), 5, 2)))

  monkeypatch.setattr(arcface, 'embed', lambda network, x: embed(x))
  monkeypatch.setattr(deep3d, 'coefficients',
                      lambda network, x: coefficients(x))
  monkeypatch.setattr(face_model, 'reconstruct', reconstruct)
  networks = face_evaluation.FaceNetworks(
      arcface.ArcFace(SPEC, jnp.zeros(1)),
      deep3d.Reconstructor(RECONSTRUCTOR, jnp.zeros(1)), jnp.zeros(1))
  return networks, embed, coefficients, reconstruct


def test_numbers_are_those_of_the_networks_on_the_crops(stand_ins):
  networks, embed, coefficients, reconstruct = stand_ins
  views = pictures()
  measured = face_evaluation.measurer(networks)(views)
  scaled = lambda images: images / 127.5 - 1
  # ID: the nearest pixels, without alignment; images have 112 pixels already.
  np.testing.assert_allclose(measured.identity, faces.cosines(
      *(embed(scaled(views.images[:, i])) for i in (0, 1))), atol=1e-5)
  # The reconstructor sees the central part, enlarged to 224 pixels.
  two = [coefficients(np.float32(faces.central(
      views.images[:, i], 224, faces.CENTRAL)) / 255) for i in (0, 1)]
  np.testing.assert_allclose(
      measured.rotations[:, 0], views.camera_to_world)
  np.testing.assert_allclose(
      measured.rotations[:, 1], face_model.camera_to_world(two[0].angles),
      atol=1e-5)
  found = [reconstruct(0.0, x) for x in two]
  own = faces.central(views.depth, 224, faces.CENTRAL)
  np.testing.assert_allclose(
      measured.depth, [faces.depth_error(*pair) for pair in zip(
          own, found[0].depth)], rtol=1e-4)
  assert 0 < measured.depth[0] < 4
  # Aligned: the landmarks of the crop, in pixels of the image.
  step = 112 * faces.CENTRAL / 224
  crops = [faces.align(views.images[:, i], (
      112 - 224 * step) / 2 + (found[i].landmarks + 0.5) * step - 0.5)[0]
           for i in (0, 1)]
  np.testing.assert_allclose(measured.identity_aligned, faces.cosines(
      *map(embed, map(scaled, crops))), atol=0.02)
  assert np.abs(measured.identity_aligned - measured.identity).max() > 0.03


def test_failures_are_counted_and_left_out(stand_ins):
  networks, *_ = stand_ins
  views = pictures(3)
  views.depth[1] = 0
  # Landmarks of no image.
  measured = face_evaluation.measurer(networks._replace(
      model=jnp.full(1, 500.)))(views)
  assert np.isnan(measured.depth).tolist() == [False, True, False]
  assert faces.score(measured.depth).failed == 1
  assert np.isnan(measured.identity_aligned).all()
  assert np.isfinite(measured.identity).all()
  without = face_evaluation.measurer(networks._replace(
      recognizer=None, model=None))(views)
  assert without.identity is None and without.depth is None
  assert without.rotations.shape == (3, 2, 3, 3)


def test_a_report_names_its_protocol(paths, monkeypatch, source):
  trained = blob_generator.trained()
  monkeypatch.setattr(inference, 'load', lambda name: trained)
  monkeypatch.setattr(
      fid, 'open_both', lambda network, data: (trained, source))
  text = face_evaluation.report('blob', 'photos', *paths, samples=3)
  head, *lines = text.splitlines()
  assert head == ('our protocol (after Carver, 2306.12423; not EG3D\'s), 3 '
                  'samples of blob, cameras of cats, frontal conditioning')
  assert [line.rsplit(' ', 5)[0] for line in lines] == [
      'ID, not aligned', 'ID, aligned by the reconstruction', 'Depth', 'Pose',
      'Pose without a constant offset']
  assert all(line.endswith(' of 3 failed') for line in lines)
  assert -1 <= float(lines[0].split()[3].rstrip(',')) <= 1
  # Without data and with one file.
  text = face_evaluation.report('blob', '', paths[0], samples=2)
  head, line = text.splitlines()
  assert 'cameras of the generator' in head and line.startswith('ID, not')


def test_missing_files_are_user_errors(paths):
  recognition, estimation, model = paths
  with pytest.raises(ValueError, match='give --arcface .ID.'):
    face_evaluation.report('blob')
  with pytest.raises(ValueError, match='needs the reconstructor'):
    face_evaluation.report('blob', '', recognition, '', model)
  with pytest.raises(ValueError, match='--samples=1 is too few'):
    face_evaluation.report('blob', '', recognition, samples=1)
  with pytest.raises(ValueError, match='no section'):
    face_evaluation.load_networks('', recognition)
  networks = face_evaluation.load_networks('', estimation)
  assert networks.recognizer is None and networks.model is None
