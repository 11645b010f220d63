"""Augmentations before an image encoder, against loops and Dream Fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.guidance import augmentations
from gen3d.scenes import Render


def black(key, size):
  del key
  return jnp.zeros((size, size, 3))


@pytest.fixture
def render():
  rng = np.random.default_rng(0)
  opacity = rng.uniform(size=(12, 12)).astype(np.float32)
  color = opacity[..., None] * rng.uniform(size=(12, 12, 3)).astype('f')
  behind = rng.uniform(size=(12, 12, 3)).astype(np.float32)
  return Render(color + (1 - opacity[..., None]) * behind, opacity,
                *(None,) * 4, background=behind), color


def test_crop_and_composites_are_those_of_dream_fields(reference_data):
  reference = reference_data('dreamfields')
  column, row, crop, size = (
      int(x) for x in reference['aug.crop_ix_iy_n_nclip'])
  layers = np.concatenate([reference['aug.z'], reference['aug.acc']], -1)
  image = augmentations.crop_and_resize(
      jnp.asarray(layers), jnp.array([row, column]), crop, size)
  color, opacity = image[..., :3], image[..., 3:]
  np.testing.assert_allclose(color, reference['aug.fg'], atol=1e-5)
  np.testing.assert_allclose(
      opacity, reference['aug.acc_resized'], atol=1e-5)
  for composite, name in (
      (augmentations.over, 'premultiplied'),
      (augmentations.over_as_released, 'as_released')):
    np.testing.assert_allclose(
        composite(color, opacity, reference['aug.bg']),
        reference[f'aug.composite_{name}'], atol=1e-5)


def test_layers_are_without_the_background_of_the_render(render):
  drawn, color = render
  pixels = augmentations.layers(drawn)
  np.testing.assert_allclose(pixels[..., :3], color, atol=1e-6)
  np.testing.assert_array_equal(pixels[..., 3], drawn.opacity)
  over_black = drawn._replace(image=color, background=None)
  np.testing.assert_allclose(
      augmentations.layers(over_black)[..., :3], color, atol=1e-6)


def test_crops_are_parts_of_the_render(render):
  drawn, color = render
  images = augmentations.crops(
      jax.random.key(1), drawn, count=32, crop=8, size=8, background=black)
  assert images.shape == (32, 8, 8, 3)
  offsets = set()
  for image in images:
    found = [(i, j) for i in range(5) for j in range(5)
             if np.allclose(image, color[i:i + 8, j:j + 8], atol=1e-5)]
    assert len(found) == 1
    offsets.add(found[0])
  assert len(offsets) > 8
  # The last offset never occurs, as in Dream Fields' code.
  assert {i for pair in offsets for i in pair} == {0, 1, 2, 3}


def test_crops_have_different_backgrounds_where_there_is_no_object(render):
  empty = render[0]._replace(
      opacity=jnp.zeros((12, 12)), image=render[0].background)
  augment = jax.jit(augmentations._crops(
      10, count=3, crop=12, composite='over', perspective=0.2,
      background={'squares': 4, 'blur_radius': 2, 'blur_max': 1.0}))
  images = augment(jax.random.key(0), empty)
  assert images.shape == (3, 10, 10, 3)
  assert jnp.all((images >= 0) & (images <= 1))
  assert np.abs(images[0] - images[1]).max() > 0.05
  with pytest.raises(UserError, match='larger than the render'):
    augmentations.crops(jax.random.key(0), empty, count=1, crop=13, size=8,
                        background=black)


def test_perspective_maps_corners_to_corners():
  side = 64
  grid = (np.arange(side) + 0.5) * 2 / side - 1
  x, y = np.meshgrid(grid, grid)
  ramp = jnp.asarray(np.stack([x, y], -1), jnp.float32)
  corners = jnp.array([[-0.8, -0.6], [0.9, -0.7], [0.7, 0.8], [-0.6, 0.9]])
  image = augmentations.distort(ramp, corners)
  for (row, column), corner in zip(
      ((0, 0), (0, -1), (-1, -1), (-1, 0)), corners, strict=True):
    # Half a pixel from the corner itself.
    np.testing.assert_allclose(image[row, column], corner, atol=0.03)
  # Straight lines stay straight: the diagonals cross at the center.
  def cross(a, b, c, d):
    matrix = np.stack([b - a, c - d], 1)
    return a + np.linalg.solve(matrix, c - a)[0] * (b - a)
  own = np.asarray(corners)
  np.testing.assert_allclose(
      image[31:33, 31:33].mean((0, 1)), cross(own[0], own[2], own[1], own[3]),
      atol=0.01)
  square = jnp.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
  np.testing.assert_allclose(
      augmentations.distort(ramp, square), ramp, atol=1e-5)


def test_whole_render_keeps_its_background(render):
  images = augmentations.whole(
      jax.random.key(0), render[0], size=12, kernel='lanczos2')
  np.testing.assert_allclose(images, render[0].image[None], atol=1e-5)
