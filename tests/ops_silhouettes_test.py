"""Antialiasing against areas of polygons and finite differences."""

import itertools
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.ops import raster, silhouettes, textures

rasterize = jax.jit(raster.rasterize, static_argnames=('size', 'layers'))
antialias = jax.jit(silhouettes.antialias)


def sphere(rows, columns, radius=0.7):
  """(clip positions [V, 4], faces [F, 3]) of a closed mesh, in perspective."""
  polar, azimuth = np.meshgrid(
      np.linspace(0, np.pi, rows + 1)[1:-1],
      np.linspace(0, 2 * np.pi, columns, endpoint=False) + 0.1, indexing='ij')
  points = np.stack([np.cos(azimuth) * np.sin(polar), np.cos(polar),
                     np.sin(azimuth) * np.sin(polar)], -1).reshape(-1, 3)
  points = radius * np.concatenate([points, [[0, 1, 0], [0, -1, 0]]])
  index = np.arange((rows - 1) * columns).reshape(rows - 1, columns)
  turned = np.roll(index, -1, 1)
  top, bottom = index.size + 0 * index[0], index.size + 1 + 0 * index[0]
  faces = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in (
      (index[:-1], turned[:-1], index[1:]),
      (turned[:-1], turned[1:], index[1:]),
      (top, turned[0], index[0]), (bottom, index[-1], turned[-1]))])
  depth = 3 - points[:, 2]
  return np.stack([2.5 * points[:, 0], 2.5 * points[:, 1],
                   (6 * depth - 10) / 4, depth], -1).astype(np.float32), faces


def coverage(clip, faces, size):
  """The antialiased image [H, W, 1] of white faces on black."""
  fragments = raster.rasterize(clip, faces, size)
  image = jnp.where(fragments.faces[..., None] < 0, 0.0, 1.0)
  return silhouettes.antialias(image, fragments, clip, faces)


def test_area_and_its_gradient_are_those_of_a_polygon():
  size = 40
  faces = np.array([[0, 1, 2], [0, 2, 3]])
  clip = np.float32([[-0.5, -0.63, 0, 1], [0.71, -0.4, 0, 1],
                     [0.44, 0.66, 0, 1], [-0.6, 0.35, 0, 1]])
  clip *= np.float32([[1], [2], [0.5], [3]])

  def area(clip):
    x, y = (size / 2 * clip[:, i] / clip[:, 3] for i in range(2))
    return jnp.sum(x * jnp.roll(y, -1) - y * jnp.roll(x, -1)) / 2

  got, gradient = jax.jit(jax.value_and_grad(
      lambda clip: jnp.sum(coverage(clip, faces, size))))(clip)
  np.testing.assert_allclose(got, area(clip), rtol=2e-3)
  expected = jax.grad(area)(clip)
  # The rule of one pixel for each row or column is coarse at corners.
  np.testing.assert_allclose(gradient[:, :2], expected[:, :2], rtol=0.1)
  assert not np.any(gradient[:, 2])


def test_silhouette_of_faces_that_cover_no_center():
  clip, faces = sphere(60, 90)
  size = 48
  area = jax.jit(jax.value_and_grad(
      lambda clip: jnp.sum(coverage(clip, faces, size))))
  scaled = lambda scale: area(clip * np.float32([scale, scale, 1, 1]))[0]
  value, gradient = area(clip)
  gradient = np.sum(gradient[:, :2] * clip[:, :2])
  # The area grows with the square of the scale.
  np.testing.assert_allclose(gradient, 2 * value, rtol=0.03)
  difference = (scaled(1.03) - scaled(0.97)) / 0.06
  np.testing.assert_allclose(gradient, difference, rtol=0.03)


def test_shaded_image_of_occluding_meshes_against_differences():
  clip, faces = sphere(8, 12)
  # A second, smaller one in front, to the right.
  second = clip * np.float32(0.5) + np.float32([0.9, 0.3, -0.8, 0.4])
  half, size = len(clip), 128
  colors = 0.1 * clip[:, :3]
  colors = np.concatenate([colors + [0.2, 0.8, 0.5], colors + [0.7, 0.1, 0.6]])
  colors = jnp.asarray(colors, jnp.float32)
  clip = jnp.concatenate([clip, second])
  faces = np.concatenate([faces, faces + half])
  x, y = np.meshgrid(np.arange(size) / 2, np.arange(size) / 2)
  weight = jnp.asarray(np.stack([
      np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1), jnp.float32)

  def loss(clip):
    fragments = raster.rasterize(clip, faces, size)
    image = raster.interpolate(colors, fragments, faces)
    return jnp.sum(weight * silhouettes.antialias(
        image, fragments, clip, faces))

  loss = jax.jit(jax.value_and_grad(loss))
  _, gradient = loss(clip)
  got, expected = [], []
  first = np.arange(len(clip)) < half
  for part, axis in itertools.product((first, ~first), (0, 1)):
    step = np.zeros(clip.shape, np.float32)
    step[part, axis] = clip[part, 3]
    # Moved by up to two pixels, so that pixels change their face.
    moves = np.linspace(-2, 2, 5) * 2 / size
    values = [loss(clip + move * step)[0] for move in moves]
    got.append(np.sum(gradient * step))
    expected.append(np.polyfit(moves, values, 1)[0])
  np.testing.assert_allclose(
      got, expected, atol=0.02 * np.max(np.abs(expected)))


def test_edges_within_a_surface_are_not_blended():
  clip, faces = sphere(20, 30)
  rng = np.random.default_rng(0)
  fragments = rasterize(clip, faces, size=40)
  image = jnp.asarray(rng.random((40, 40, 3)), jnp.float32)
  got = antialias(image, fragments, clip, faces, silhouettes.edge_twins(faces))
  inner = np.asarray(fragments.faces) >= 0
  inner = np.all([np.roll(inner, step, axis) for axis in (0, 1)
                  for step in (1, 0, -1)], axis=0)
  np.testing.assert_array_equal(got[inner], image[inner])
  assert np.any(got != image)
  # Repeated vertices make every edge a border, unless they are merged.
  apart = clip[faces.ravel()]
  own = np.arange(faces.size).reshape(-1, 3)
  bordered = antialias(
      image, fragments, apart, own, silhouettes.edge_twins(own))
  assert np.mean(bordered[inner] != image[inner]) > 0.5
  merged = antialias(
      image, fragments, apart, own, silhouettes.edge_twins(own, apart))
  np.testing.assert_allclose(merged, got, atol=1e-6)


def test_views_and_layers_at_once_equal_mapped_ones(monkeypatch):
  clip, faces = sphere(8, 12)
  clips = jnp.stack([clip, clip * np.float32([0.6, 1.2, 1, 1])])
  rng = np.random.default_rng(0)
  fragments = rasterize(clips, faces, size=24, layers=2)
  image = jnp.asarray(rng.random((2, 2, 24, 24, 3)), jnp.float32)
  together = partial(silhouettes.antialias, faces=faces)
  single = jax.vmap(jax.vmap(together), (0, 0, None))

  def differentiated(function):
    def loss(clips):
      result = function(image, fragments, clips)
      return jnp.sum(result[..., 0] * image[..., 1]), result

    gradient, result = jax.jit(jax.grad(loss, has_aux=True))(clips)
    return gradient, result

  gradient, result = differentiated(together)
  assert np.any(result != image) and np.any(gradient[1] != 0)
  # More pairs than are in work at a time.
  monkeypatch.setattr(silhouettes, 'PAIRS', 32)
  mapped_gradient, mapped = differentiated(single)
  np.testing.assert_allclose(mapped, result, atol=1e-6)
  np.testing.assert_allclose(mapped_gradient, gradient, rtol=1e-4, atol=1e-3)


def test_edge_twins():
  faces = np.array([[0, 1, 2], [2, 1, 3], [3, 1, 4], [1, 3, 5]])
  twins = silhouettes.edge_twins(faces)
  # Edge 1-2 is shared by two faces; 1-3 by three.
  np.testing.assert_array_equal(
      twins, [[5, -1, -1], [-1, -1, 0], [-1, -1, -1], [-1, -1, -1]])
  with pytest.raises(TypeError, match='edge_twins'):
    jax.jit(lambda faces: coverage(np.zeros((6, 4), np.float32), faces, 4)
            )(faces)


def test_programs_are_xla_operations_on_every_platform():
  clip, faces = sphere(4, 6)
  image = jnp.ones((8, 8, 3))

  def loss(clip, image):
    fragments = raster.rasterize(clip, faces, 16, layers=2)
    uv = raster.interpolate(clip[:, :2], fragments, faces)
    slopes = raster.pixel_derivatives(clip[:, :2], fragments, clip, faces)
    colors = textures.texture(textures.build_mips(image), uv, slopes)
    return jnp.sum(silhouettes.antialias(colors, fragments, clip, faces))

  exported = jax.export.export(
      jax.jit(jax.grad(loss, (0, 1))), platforms=('cpu', 'cuda', 'tpu'))(
          jnp.asarray(clip), image)
  assert 'while' in exported.mlir_module()
  assert 'custom_call' not in exported.mlir_module()
