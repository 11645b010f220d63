"""Targets of an inversion and its perceptual losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_eg3d
from PIL import Image

from gen3d.gan import eg3d, inference, inversion
from gen3d.models import perceptual

CAMERA = inference.camera_at(tiny_eg3d.CAMERA, 30.0)


@pytest.fixture(scope='module')
def trained():
  return tiny_eg3d.trained()


def test_the_features_of_clip_depend_on_positions():
  loss = inversion.clip_loss()
  rng = np.random.default_rng(0)
  x = np.full((3, 48, 48, 3), 0.9, np.float32)
  x[0, 10:20, 10:20] = x[1, 11:21, 10:20] = x[2, 28:38, 28:38] = (.8, .1, .1)
  x += rng.normal(size=x.shape).astype(np.float32) / 500
  embed = jax.jit(loss.embed)
  maps = embed(loss.weights, x)
  assert [m.shape for m in maps] == [(3, 6, 6, 128)] * 4
  # Unit states of all patches; the distance is a mean over patches.
  np.testing.assert_allclose(jnp.sum(maps[2][0] ** 2), 1.0, rtol=1e-5)
  pick = lambda i: tuple(m[i] for m in maps)
  same, near, far = (float(perceptual.distance(pick(0), pick(i)))
                     for i in range(3))
  assert same == 0 and near < far / 2
  slope = jax.jit(jax.grad(lambda y: jnp.sum(perceptual.distance(
      loss.embed(loss.weights, y), pick(slice(0, 1))))))(x[1:2])
  assert np.isfinite(slope).all() and np.abs(slope).max() > 0


@pytest.fixture(scope='module')
def vgg16(tmp_path_factory):
  """A file of random weights, and files of LPIPS with equal weights."""
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp('vgg16')
  tensors, width = {}, 3
  convs = [c for stage in perceptual.VGG16.stages for c in stage.convs]
  for conv in convs:
    shape = (conv.features, width, 3, 3)
    tensors[f'features.{conv.index}.weight'] = rng.standard_normal(
        shape, np.float32) / (3 * width ** 0.5)
    tensors[f'features.{conv.index}.bias'] = np.zeros(
        conv.features, np.float32)
    width = conv.features
  np.savez(folder / 'vgg16.npz', **tensors)
  widths = [stage.convs[-1].features for stage in perceptual.VGG16.stages]
  for name, weight in (('ones', 1), ('fours', 4)):
    np.savez(folder / f'{name}.npz', **{
        f'lin{i}.model.1.weight': np.full((1, width, 1, 1), weight, np.float32)
        for i, width in enumerate(widths)})
  return folder


def test_vgg16_with_and_without_the_weights_of_lpips(vgg16):
  x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)

  def distance(*files):
    loss = inversion.vgg16_loss(*(vgg16 / f for f in files))
    # Larger images are shrunk first.
    large = jax.eval_shape(loss.embed, loss.weights, jax.ShapeDtypeStruct(
        (1, 512, 512, 3), jnp.float32))
    assert large[0].shape == (1, 256, 256, 64)
    embed = jax.jit(loss.embed)
    return float(perceptual.distance(*(
        embed(loss.weights, image[None]) for image in x))[0])

  plain = distance('vgg16.npz')
  assert plain > 0.1
  np.testing.assert_allclose(distance('vgg16.npz', 'ones.npz'), plain,
                             rtol=1e-5)
  np.testing.assert_allclose(distance('fours.npz', 'vgg16.npz'), 4 * plain,
                             rtol=1e-5)
  with pytest.raises(ValueError, match=r'missing: features\.0'):
    inversion.vgg16_loss(vgg16 / 'ones.npz')


def test_images_that_do_not_fit_are_refused(trained, tmp_path):
  (tmp_path / 'a.png').write_text('no image')
  with pytest.raises(ValueError, match='cannot be read as an image'):
    inversion.read_target(
        trained, tmp_path / 'a.png', CAMERA)
  Image.new('RGB', (20, 16)).save(tmp_path / 'b.png')
  with pytest.raises(ValueError, match='20 x 16 pixels; crop it to a square'):
    inversion.read_target(trained, tmp_path / 'b.png', CAMERA)
  Image.new('RGBA', (64, 64), (255, 0, 51, 255)).save(tmp_path / 'c.png')
  target = inversion.read_target(trained, tmp_path / 'c.png', CAMERA)
  assert target.image.shape == (16, 16, 3)
  np.testing.assert_allclose(target.image[3, 5], [1, -1, -.6], atol=1e-5)


def with_background(trained, white):
  module = trained.generator.map.args[0]
  module = module.clone(
      rendering=module.rendering._replace(white_background=white))
  return trained._replace(generator=eg3d.make(
      module, trained.generator.z_dim, CAMERA, None))


@pytest.mark.parametrize('white', [True, False])
def test_transparent_pixels_get_the_background_of_the_generator(
    trained, tmp_path, white):
  behind = 1 if white else -1
  read = lambda name: inversion.read_target(
      with_background(trained, white), tmp_path / name, CAMERA).image
  Image.new('RGBA', (16, 16), (255, 0, 0, 0)).save(tmp_path / 'none.png')
  np.testing.assert_array_equal(read('none.png'), behind)
  Image.new('RGBA', (16, 16), (255, 0, 0, 51)).save(tmp_path / 'faint.png')
  np.testing.assert_allclose(
      read('faint.png')[3, 4], np.array([.2, -.2, -.2]) + .8 * behind,
      atol=1e-2)
  Image.new('LA', (16, 16), (128, 0)).save(tmp_path / 'gray.png')
  np.testing.assert_array_equal(read('gray.png'), behind)
  palette = Image.new('P', (16, 16), 1)
  palette.putpalette([255, 0, 0, 0, 255, 0])
  palette.save(tmp_path / 'palette.png', transparency=1)
  np.testing.assert_array_equal(read('palette.png'), behind)
  palette.save(tmp_path / 'opaque.png', transparency=0)
  np.testing.assert_array_equal(read('opaque.png')[3, 4], [-1, 1, -1])


def test_the_orientation_of_exif_is_applied(trained, tmp_path):
  pixels = np.zeros((16, 16, 3), np.uint8)
  pixels[:4] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # The top of the file is the right side.
  Image.fromarray(pixels).save(tmp_path / 'a.png', exif=exif)
  image = inversion.read_target(trained, tmp_path / 'a.png', CAMERA).image
  np.testing.assert_array_equal(image[:, 12:], 1)
  np.testing.assert_array_equal(image[:, :12], -1)


@pytest.mark.parametrize('kind, dtype', [
    ('png', np.uint16), ('tiff', np.uint16), ('tiff', '>u2'),
    ('tiff', np.int32)])
def test_gray_images_of_16_bits(trained, tmp_path, kind, dtype):
  pixels = np.full((16, 16), 30_000, dtype)
  pixels[:8] = 65_535
  path = tmp_path / f'a.{kind}'
  Image.fromarray(pixels).save(path)
  image = inversion.read_target(trained, path, CAMERA).image
  np.testing.assert_array_equal(image[:6], 1)
  np.testing.assert_allclose(image[10:], 2 * 30_000 / 65_535 - 1, atol=4e-3)


@pytest.mark.parametrize('pixels, sentence', [
    (np.full((16, 16), 70_000, np.int32), 'more than 16 bits'),
    (np.full((16, 16), 40, np.float32), 'floats are from 40 to 40')])
def test_images_without_a_known_white_are_refused(
    trained, tmp_path, pixels, sentence):
  Image.fromarray(pixels).save(tmp_path / 'a.tiff')
  with pytest.raises(ValueError, match=rf'a\.tiff cannot be .*{sentence}'):
    inversion.read_target(trained, tmp_path / 'a.tiff', CAMERA)


def test_the_size_of_images_is_that_of_the_super_resolution():
  module = tiny_eg3d.trained().generator.map.args[0]
  sizes = lambda **changes: eg3d.make(module.clone(
      super_resolution=module.super_resolution._replace(**changes)), 8,
      CAMERA, None).image_size
  assert sizes(size=8, up=(False, True))(32) == 16
  assert sizes(size=8, up=(True, True))(4) == 32
  larger = sizes(size=8, up=(False, True), shrink=False)
  assert (larger(4), larger(32)) == (16, 64)
