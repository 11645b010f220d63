"""Light fields: ray features, mixtures of matrices, text conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen3d.models import light_field
from gen3d.ops import cameras

SHAPE = light_field.LightFieldShape(width=24, layers=3, experts=3)


def test_features_encode_direction_and_points_of_the_ray():
  rays = cameras.rays(cameras.orbit(40.0, 20.0, 1.6, 1.3), 4, 4)
  features = np.asarray(light_field.features(rays.origins, rays.directions))
  assert features.shape == (4, 4, 108)
  for i, j in np.ndindex(4, 4):
    o, d = np.asarray(rays.origins[i, j]), np.asarray(rays.directions[i, j])
    # By trying all points of the ray.
    points = o + np.linspace(0, 4, 40_001)[:, None] * d
    nearest = points[np.argmin(np.linalg.norm(points, axis=1))]
    places = np.concatenate(
        [nearest / .6 + s * d for s in (-2/3, -1/3, 0, 1/3, 2/3)])
    angles = np.pi * np.concatenate([places, 2 * places, 4 * places])
    np.testing.assert_allclose(features[i, j], np.concatenate(
        [d, places, np.sin(angles), np.cos(angles)]), atol=4e-3)


def test_features_are_independent_of_the_origin_on_the_ray():
  rays = cameras.rays(cameras.orbit(40.0, 20.0, 1.6, 1.3), 4, 4)
  np.testing.assert_allclose(
      light_field.features(rays.origins + .5 * rays.directions,
                           rays.directions),
      light_field.features(rays.origins, rays.directions), atol=1e-5)


def test_a_layer_equals_an_explicit_mixture_of_matrices():
  layer = light_field.TextDense(width=5, experts=3, zero_init=False)
  h = jax.random.normal(jax.random.key(0), (2, 4, 6))
  text = jax.random.normal(jax.random.key(1), (2, 7))
  variables = layer.init(jax.random.key(2), h, text)
  p = jax.tree.map(np.asarray, variables['params'])
  out = layer.apply(variables, h, text)
  for b, n in np.ndindex(2, 4):
    mixture = text[b] @ p['mixture']['kernel'] + p['mixture']['bias']
    bias = text[b] @ p['bias']['kernel'] + p['bias']['bias']
    y = sum(mixture[k] * (h[b, n] @ p['experts'][k]) for k in range(3)) + bias
    np.testing.assert_allclose(out[b, n], y, atol=1e-4)


def test_two_texts_learn_two_images_from_zero_output():
  model = light_field.LightField(SHAPE, 3)
  rays = cameras.rays(cameras.orbit(0.0, 0.0, 1.6, 1.3), 12, 12)
  features = jnp.stack(
      2 * [light_field.features(rays.origins, rays.directions)])
  text = jnp.array([[1., 0, 0, 1], [0, 1., 1, 0]])
  params = model.init(jax.random.key(0), features, text)
  assert jnp.abs(model.apply(params, features, text)).max() == 0
  # A disc on the left that is red, one on the right that is blue.
  y, x = np.mgrid[-1:1:12j, -1:1:12j]
  disc = lambda at: (x - at) ** 2 + y ** 2 < .2
  truth = np.stack([disc(-.4)[..., None] * np.array([1., 0, 0]),
                    disc(.4)[..., None] * np.array([0, 0, 1.])])
  optimizer = optax.adam(5e-3)

  @jax.jit
  def learn(params, state):
    loss = lambda p: jnp.mean((model.apply(p, features, text) - truth) ** 2)
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return value, optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(150):
    value, params, state = learn(params, state)
  assert value < 0.1 * np.var(truth)
