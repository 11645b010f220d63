"""Texture lookup against scipy and known footprints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gen3d.ops import textures

texture = jax.jit(textures.texture, static_argnames='wrap')
build_mips = jax.jit(textures.build_mips, static_argnames='levels')


@pytest.mark.parametrize('wrap, mode', [
    ('wrap', 'grid-wrap'), ('clamp', 'nearest')])
def test_bilinear_lookup_equals_scipy(wrap, mode):
  rng = np.random.default_rng(0)
  image = rng.random((9, 12, 3)).astype(np.float32)
  uv = rng.uniform(-1.5, 2.5, size=(7, 30, 2)).astype(np.float32)
  got = texture(jnp.asarray(image), jnp.asarray(uv), wrap=wrap)
  rows, columns = (1 - uv[..., 1]) * 9 - 0.5, uv[..., 0] * 12 - 0.5
  expected = np.stack([
      ndimage.map_coordinates(image[..., i], [rows, columns], order=1,
                              mode=mode) for i in range(3)], -1)
  np.testing.assert_allclose(got, expected, atol=2e-6)


def test_mipmaps_are_box_filters():
  rng = np.random.default_rng(1)
  image = rng.random((16, 8, 2)).astype(np.float32)
  pyramid = build_mips(jnp.asarray(image))
  assert [x.shape for x in pyramid] == [
      (16, 8, 2), (8, 4, 2), (4, 2, 2), (2, 1, 2), (1, 1, 2)]
  np.testing.assert_allclose(
      pyramid[2], image.reshape(4, 4, 2, 4, 2).mean((1, 3)), atol=1e-6)
  # Sides that are not powers of two: every texel has the same weight.
  image = rng.random((13, 6, 1)).astype(np.float32)
  pyramid = build_mips(jnp.asarray(image), levels=3)
  assert [x.shape[:2] for x in pyramid] == [(13, 6), (6, 3), (3, 1)]
  for level in pyramid:
    np.testing.assert_allclose(level.mean(), image.mean(), rtol=1e-5)


def test_level_is_the_logarithm_of_the_longer_axis():
  # 4 x 1 texels of a 64 x 32 texture, turned in the image.
  angle = 0.7
  turn = np.array([[np.cos(angle), -np.sin(angle)],
                   [np.sin(angle), np.cos(angle)]])
  footprint = np.diag([4 / 32, 1 / 64]) @ turn
  scales = np.array([1, 2.0 ** 0.5, 2, 0.1, 99])[:, None, None]
  level = jax.jit(textures.mip_level, static_argnums=(1, 2))
  np.testing.assert_allclose(
      level(scales * footprint, (64, 32), 6), [2, 2.5, 3, 0, 5], atol=1e-5)
  gradient = jax.jit(jax.grad(lambda d: textures.mip_level(d, (8, 8), 4)))
  assert np.all(np.isfinite(gradient(0.5 * np.eye(2))))


def test_pyramid_is_read_between_two_levels():
  rng = np.random.default_rng(2)
  pyramid = build_mips(rng.random((16, 16, 3)), levels=4)
  uv = rng.uniform(-1, 2, size=(20, 2))
  levels = np.array([0.0, 0.4, 1.0, 2.7, 5.0])
  derivatives = np.broadcast_to(
      (2.0 ** levels / 16)[:, None, None, None] * np.eye(2), (5, 20, 2, 2))
  got = texture(pyramid, np.broadcast_to(uv, (5, 20, 2)), derivatives)
  of_level = [texture(image, uv) for image in pyramid]
  for level, colors in zip(levels, got, strict=True):
    lower = min(int(level), 2)
    share = min(level, 3.0) - lower
    expected = (1 - share) * of_level[lower] + share * of_level[lower + 1]
    np.testing.assert_allclose(colors, expected, atol=1e-5)


def test_gradients_equal_differences():
  rng = np.random.default_rng(3)
  arguments = [jnp.asarray(x, jnp.float32) for x in (
      rng.random((8, 8, 2)), rng.random((30, 2)),
      rng.normal(scale=0.3, size=(30, 2, 2)))]
  cotangent = jnp.asarray(rng.normal(size=(30, 2)), jnp.float32)

  @jax.jit
  def loss(image, uv, derivatives):
    return jnp.sum(cotangent * textures.texture(
        textures.build_mips(image), uv, derivatives))

  gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments)
  for i, gradient in enumerate(gradients):
    step = 1e-3 * rng.normal(size=gradient.shape).astype(np.float32)
    ahead, behind = list(arguments), list(arguments)
    ahead[i], behind[i] = ahead[i] + step, behind[i] - step
    difference = (loss(*ahead) - loss(*behind)) / 2
    np.testing.assert_allclose(
        jnp.sum(gradient * step), difference, rtol=0.05, atol=1e-5)


def test_wrong_arguments():
  image, uv = jnp.zeros((4, 4, 3)), jnp.zeros((2, 2))
  with pytest.raises(ValueError, match="'wrap' or 'clamp', not 'zero'"):
    textures.texture(image, uv, wrap='zero')
  with pytest.raises(ValueError, match='derivatives'):
    textures.texture([image, image[::2, ::2]], uv)


def test_texture_of_scenetex_equals_pytorch3d(reference_data):
  data = reference_data('scenetex')
  image, uv = data['uv.texture'][0], data['uv.coords'][0]
  # There (0, 0) and (1, 1) are the centers of the texels in the corners.
  sides = np.array([image.shape[1], image.shape[0]])
  got = texture(jnp.asarray(image), jnp.asarray(
      (uv * (sides - 1) + 0.5) / sides), wrap='clamp')
  covered = data['uv.pix_to_face'][0, ..., 0] >= 0
  np.testing.assert_allclose(
      got[covered], data['uv.image'][0][covered], atol=1e-5)
