"""Volume rendering against a loop and against a closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import cameras, encodings, volume


def test_weights_and_colors_agree_with_a_loop():
  rng = np.random.default_rng(0)
  density = rng.exponential(2.0, size=(5, 7))
  edges = np.sort(rng.uniform(1, 3, size=(5, 8)), axis=-1)
  colors = rng.random((5, 7, 3))
  background = rng.random((5, 3))
  weights = volume.alpha_weights(jnp.asarray(density), jnp.asarray(edges))
  image = volume.composite(weights, jnp.asarray(colors),
                           jnp.asarray(background))
  for ray in range(5):
    light, color = 1.0, np.zeros(3)
    for i in range(7):
      alpha = 1 - np.exp(-density[ray, i] * (edges[ray, i + 1]
                                             - edges[ray, i]))
      np.testing.assert_allclose(weights[ray, i], light * alpha, atol=1e-6)
      color += light * alpha * colors[ray, i]
      light *= 1 - alpha
    np.testing.assert_allclose(
        image[ray], color + light * background[ray], atol=1e-6)


def test_constant_density_has_beers_law_and_its_mean_depth():
  sigma, near, far = 1.7, 2.0, 5.0
  edges = jnp.linspace(near, far, 2001)
  weights = volume.alpha_weights(jnp.full(2000, sigma), edges)
  length = far - near
  opacity = 1 - np.exp(-sigma * length)
  np.testing.assert_allclose(weights.sum(), opacity, rtol=1e-5)
  depth = near + (1 - (1 + sigma * length) * np.exp(-sigma * length)) / (
      sigma * opacity)
  np.testing.assert_allclose(
      volume.expected_depth(weights, edges), depth, rtol=1e-4)


def test_gradient_of_constant_density():
  edges = jnp.linspace(0.0, 2.0, 33)
  opacity = lambda sigma: volume.alpha_weights(jnp.full(32, sigma), edges).sum()
  np.testing.assert_allclose(jax.grad(opacity)(0.9), 2 * np.exp(-1.8),
                             rtol=1e-5)


def test_gradient_is_finite_behind_a_wall_and_where_all_is_empty():
  edges = jnp.linspace(0.0, 1.0, 5)
  for density in (jnp.array([1e6, 1e6, 0.0, 5.0]), jnp.zeros(4)):
    depth = lambda d: volume.expected_depth(volume.alpha_weights(d, edges), edges)
    assert np.all(np.isfinite(jax.grad(depth)(density)))
  assert float(volume.alpha_weights(jnp.array([1e6, 0, 0, 0.0]), edges)[0]) == 1.0


def test_march_asks_the_field_at_the_frustums():
  camera = cameras.orbit(30.0, 10.0, 3.0, 1.2)
  rays = cameras.rays(camera, 2, 3)
  edges = jnp.broadcast_to(jnp.linspace(2.0, 4.0, 6), (2, 3, 6))

  def field(samples, directions):
    return (jnp.exp(-jnp.sum(samples.mean**2, -1)),
            jnp.concatenate([samples.mean, directions], -1))

  march = volume.march(field, rays, edges)
  gaussian = encodings.conical_frustums(rays, edges)
  np.testing.assert_array_equal(march.values[..., :3], gaussian.mean)
  np.testing.assert_allclose(
      march.values[..., 2, 3:], rays.directions, rtol=1e-6)
  np.testing.assert_array_equal(
      march.weights, volume.alpha_weights(march.density, edges))
  points = volume.march(field, rays, edges, encodings.midpoints)
  np.testing.assert_allclose(
      points.samples.mean[..., 0, :], rays.origins + 2.2 * rays.directions,
      atol=1e-6)


def test_map_rays_in_any_chunks():
  rays = cameras.rays(cameras.orbit(0.0, 0.0, 2.0, 1.0), 3, 5)
  whole = jnp.sin(rays.directions * 3)
  for chunk in (1, 4, 15, 100):
    mapped = volume.map_rays(
        lambda r: {'a': jnp.sin(r.directions * 3), 'b': r.radii[:, 0]},
        rays, chunk)
    np.testing.assert_allclose(mapped['a'], whole, atol=1e-6)
    np.testing.assert_array_equal(mapped['b'], rays.radii[..., 0])
