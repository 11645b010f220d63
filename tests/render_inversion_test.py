"""The files of an inversion, and that they can be loaded again."""

import hashlib
import json

import blob_generator
import jax
import jax.numpy as jnp
import models_nvidia_test
import numpy as np
import pytest
import tiny_eg3d
from PIL import Image

from gen3d import assets
from gen3d.gan import inference, projector
from gen3d.models import eg3d
from gen3d.ops import cameras
from gen3d.render import inversion

CAMERA = tiny_eg3d.CAMERA
PIXEL_LOSS = tiny_eg3d.PIXEL_LOSS


@pytest.fixture(scope='module')
def trained():
  return tiny_eg3d.with_noise(tiny_eg3d.trained())


def target_of(trained):
  camera = inference.camera_at(trained.camera, 30.0)
  return projector.Target(projector.render_image(
      trained, trained.variables, inference.map_seed(trained, 5), camera),
                          camera)


@pytest.fixture(scope='module')
def target(trained):
  return target_of(trained)


def test_files_can_be_loaded_again(trained, target, tmp_path, capsys):
  name, _ = assets.save(
      tmp_path / 'mine.safetensors', trained.variables,
      {'config': tiny_eg3d.config().to_dict(), 'camera': CAMERA})
  written = inversion.export(
      name, trained, target, PIXEL_LOSS, tmp_path / 'out', steps=4,
      tuning_steps=2, w_plus=True, views=(0.0, 90.0), frames=8)
  assert [p.name for p in written] == [
      'inversion.png', 'latent.npz', 'tuned.safetensors', 'tuned.json',
      'turntable.mp4']
  assert all(p.stat().st_size > 100 for p in written)
  assert sorted((tmp_path / 'out').iterdir()) == sorted(written)
  assert capsys.readouterr().err.splitlines()[-1].startswith(
      'The tuned object has no surface, so no mesh of it is written;')
  sheet = np.asarray(Image.open(written[0]))
  assert sheet.shape[1] == 5 * 130 - 2  # the image, two steps, two views
  image = 255 * np.clip(np.asarray(target.image) / 2 + 0.5, 0, 1)
  np.testing.assert_allclose(sheet[4:128:8, 4:128:8], image, atol=0.51)
  latent = np.load(written[1])
  assert latent['ws'].shape == (4, 8) and latent['projection_loss'].shape == (
      4,)
  assert not np.array_equal(latent['ws'][0], latent['ws'][1])
  again = inference.load(written[2])
  assert again.camera == CAMERA
  rendered = inference.make_renderer(again, ('image',))(
      latent['ws'], cameras.from_label(latent['label'][None]))[0].astype(int)
  np.testing.assert_allclose(
      sheet[4:128:8, 264:388:8], rendered, atol=1)


def test_a_ball_is_inverted_by_the_same_functions(tmp_path, monkeypatch):
  """The network's record is the only part that needs a known network."""
  ball = blob_generator.trained()
  monkeypatch.setattr(
      inversion.inference, 'record_of', lambda name: {'model': name})
  written = inversion.export(
      'ball', ball, target_of(ball), PIXEL_LOSS, tmp_path, steps=2,
      tuning_steps=1, w_plus=False, views=(0.0,), frames=8, resolution=16,
      texture=0)
  assert [p.name for p in written] == [
      'inversion.png', 'latent.npz', 'tuned.safetensors', 'tuned.json',
      'turntable.mp4', 'mesh.glb', 'mesh.ply']


def test_an_unwritable_folder_is_reported_before_the_work(
    trained, target, tmp_path, monkeypatch):
  monkeypatch.setattr(
      inversion.projector, 'project', lambda *_, **__: pytest.fail())
  export = lambda out: inversion.export(
      'shapes', trained, target, PIXEL_LOSS, out, steps=1, tuning_steps=1,
      w_plus=False, views=())
  file = tmp_path / 'file'
  file.write_text('mine')
  with pytest.raises(ValueError, match='file is a file; name a folder'):
    export(file)
  with pytest.raises(ValueError, match='file is a file; name a folder'):
    export(file / 'in')
  assert file.read_text() == 'mine'


def test_a_tuned_official_network_can_be_loaded_again(tmp_path, monkeypatch):
  module, rng = models_nvidia_test.NETWORK, np.random.default_rng(0)
  label = jnp.zeros((1, 25))
  shapes = jax.eval_shape(lambda: module.init(
      jax.random.key(0), jnp.zeros((1, 8)), label, label, 4,
      eg3d.ray_jitter(None, 1, 4, module.rendering)))
  draw = lambda: jax.tree.map(
      lambda x: rng.standard_normal(x.shape, np.float32), shapes)
  path = models_nvidia_test.pickled(tmp_path / 'n.pkl', draw())
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.chdir(tmp_path)
  out = tmp_path / 'out'
  for name in ('n.pkl', 'out/tuned_official.safetensors'):
    trained = inference.load(name)._replace(variables=draw())
    files = inference.save_tuned(inference.record_of(name), trained, out)
    assert files == (out / 'tuned_official.safetensors',
                     out / 'tuned_official.json')
    record = json.loads(files[1].read_text())
    assert record['model'] == 'n.pkl'
    assert record['official'] == {'path': str(path), 'sha256': digest}
    again = inference.load(files[0])
    assert again.generator.map.args[0] == trained.generator.map.args[0]
    assert (again.size, again.camera) == (trained.size, trained.camera)
    for field in ('z_dim', 'num_ws', 'bound', 'background'):
      assert getattr(again.generator, field) == getattr(
          trained.generator, field)
    jax.tree.map(np.testing.assert_array_equal, again.variables,
                 trained.variables)
