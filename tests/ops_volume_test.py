"""Volume rendering against a loop and against a closed form."""

from functools import partial

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


def test_gradient_is_finite_behind_an_opaque_interval_and_in_empty_space():
  edges = jnp.linspace(0.0, 1.0, 5)
  for density in (jnp.array([1e6, 1e6, 0.0, 5.0]), jnp.zeros(4)):
    depth = lambda d: volume.expected_depth(
        volume.alpha_weights(d, edges), edges)
    assert np.all(np.isfinite(jax.grad(depth)(density)))
  opaque = volume.alpha_weights(jnp.array([1e6, 0, 0, 0.0]), edges)
  assert float(opaque[0]) == 1.0


def test_march_evaluates_the_field_at_the_conical_frustums():
  camera = cameras.orbit(30.0, 10.0, 3.0, 1.2)
  rays = cameras.rays(camera, 2, 3)
  edges = jnp.broadcast_to(jnp.linspace(2.0, 4.0, 6), (2, 3, 6))

  def field(samples, directions):
    return (jnp.exp(-jnp.sum(samples.mean**2, -1)),
            jnp.concatenate([samples.mean, directions], -1))

  samples = volume.march(field, rays, edges)
  gaussian = encodings.conical_frustums(rays, edges)
  np.testing.assert_array_equal(samples.values[..., :3], gaussian.mean)
  np.testing.assert_allclose(
      samples.values[..., 2, 3:], rays.directions, rtol=1e-6)
  np.testing.assert_array_equal(
      samples.weights, volume.alpha_weights(samples.density, edges))
  points = volume.march(field, rays, edges, volume.edge_quadrature(
      cast=lambda rays, edges: encodings.points_at(
          rays, volume.midpoints(edges))))
  np.testing.assert_allclose(
      points.samples.mean[..., 0, :], rays.origins + 2.2 * rays.directions,
      atol=1e-6)


def _ray():
  return cameras.Rays(jnp.zeros((1, 3)), jnp.array([[0.0, 0.0, 1.0]]),
                      jnp.full((1, 1), 1e-3))


def test_activation_is_applied_before_or_after_averaging():
  distances = jnp.array([[1.0, 2.0, 4.0]])
  field = lambda samples, directions: (samples.mean[..., 2], directions)
  square = jnp.square
  edges = volume.march(field, _ray(), distances, volume.edge_quadrature(
      square, lambda rays, edges: encodings.points_at(rays, edges[..., :-1])))
  np.testing.assert_allclose(edges.interval_weights, volume.alpha_weights(
      jnp.array([[1.0, 4.0]]), distances), rtol=1e-6)
  middle = volume.march(
      field, _ray(), distances, volume.midpoint_quadrature(square))
  np.testing.assert_allclose(middle.interval_weights, volume.alpha_weights(
      jnp.array([[1.5**2, 3.0**2]]), distances), rtol=1e-6)


def test_samples_at_midpoint_quadrature_have_half_of_the_intervals_beside():
  distances = jnp.linspace(0.0, 2.0, 5)[None]
  field = lambda samples, directions: (samples.mean[..., 2], samples.mean)
  samples = volume.march(
      field, _ray(), distances, volume.midpoint_quadrature(jnp.exp))
  w = np.asarray(samples.interval_weights[0])
  np.testing.assert_allclose(samples.weights[0], [
      w[0] / 2, (w[0] + w[1]) / 2, (w[1] + w[2]) / 2, (w[2] + w[3]) / 2,
      w[3] / 2], rtol=1e-6)
  # The same as the mean of the ends' values in every interval.
  value = np.asarray(distances[0])
  np.testing.assert_allclose(
      volume.composite(samples.weights, samples.values)[0, 2],
      np.sum(w * (value[1:] + value[:-1]) / 2), rtol=1e-6)


def test_union_of_two_passes_is_one_pass_at_all_their_distances():
  field = lambda samples, directions: (
      3 * jnp.sin(5 * samples.mean[..., 2]), jnp.cos(7 * samples.mean))
  first = jnp.array([[0.5, 1.0, 1.6, 2.1]])
  second = jnp.array([[0.7, 0.8, 2.5]])
  quadrature = volume.midpoint_quadrature(jax.nn.softplus)
  march = partial(volume.march, field, quadrature=quadrature)
  passes = volume.union(*volume.coarse_to_fine(
      march, march, _ray(), first, lambda distances, samples: second),
      quadrature)
  once = volume.march(
      field, _ray(), jnp.sort(jnp.concatenate([first, second], -1)),
      quadrature)
  for one_pass in passes:
    np.testing.assert_array_equal(one_pass.edges, once.edges)
    np.testing.assert_array_equal(
        one_pass.interval_weights, once.interval_weights)
  np.testing.assert_allclose(
      sum(volume.composite(p.weights, p.values) for p in passes),
      volume.composite(once.weights, once.values), rtol=1e-6)


def test_second_pass_has_its_own_field_and_gives_the_first_no_gradient():
  edges = jnp.linspace(1.0, 3.0, 5)[None]
  fields = [lambda samples, directions, a=a: (
      a * samples.mean[..., 2], a * samples.mean) for a in (1.0, 2.0)]
  resample = lambda edges, samples: edges + jnp.sum(samples.weights)
  coarse, fine = volume.coarse_to_fine(
      *(partial(volume.march, field) for field in fields), _ray(), edges,
      resample)
  alone = volume.march(fields[0], _ray(), edges)
  np.testing.assert_array_equal(coarse.weights, alone.weights)
  moved = volume.march(
      fields[1], _ray(), edges + jnp.sum(alone.weights))
  np.testing.assert_array_equal(fine.values, moved.values)

  def second(scale):
    first = lambda samples, directions: (
        scale * samples.mean[..., 2], samples.mean)
    return jnp.sum(volume.coarse_to_fine(
        *(partial(volume.march, field) for field in (first, fields[1])),
        _ray(), edges, resample)[1].values)

  assert jax.grad(second)(1.0) == 0


def test_map_rays_does_not_depend_on_the_chunk():
  rays = cameras.rays(cameras.orbit(0.0, 0.0, 2.0, 1.0), 3, 5)
  whole = jnp.sin(rays.directions * 3)
  for chunk in (1, 4, 15, 100):
    mapped = volume.map_rays(
        lambda r: {'a': jnp.sin(r.directions * 3), 'b': r.radii[:, 0]},
        rays, chunk)
    np.testing.assert_allclose(mapped['a'], whole, atol=1e-6)
    np.testing.assert_array_equal(mapped['b'], rays.radii[..., 0])
