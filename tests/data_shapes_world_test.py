"""Primitives, objects, examples and stored views of the shapes world."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.data.shapes import captions, categories, primitives
from gen3d.data.shapes import render as shapes_render
from gen3d.data.shapes import world as shapes_world
from gen3d.ops import cameras, shading

POINTS = np.random.default_rng(0).uniform(-1.2, 1.2, (500, 3)).astype(
    np.float32)


def _distance(part):
  return np.asarray(primitives.part_distance(
      jnp.float32(part), tuple(jnp.asarray(POINTS).T)))


def _exact_box(points, half):
  d = np.abs(points) - half
  return np.linalg.norm(np.maximum(d, 0), axis=-1) + np.minimum(d.max(-1), 0)


def test_primitives_have_their_analytic_distances():
  white = (1, 1, 1)
  radius = np.linalg.norm(POINTS[:, [0, 2]], axis=-1)
  half = np.array([.3, .5, .2])
  ball = _distance(primitives.ball((0, 0, 0), .4, white))
  np.testing.assert_allclose(
      ball, np.linalg.norm(POINTS, axis=-1) - .4, atol=1e-5)
  box = _distance(primitives.box((0, 0, 0), half, white, edge=0))
  np.testing.assert_allclose(box, _exact_box(POINTS, half), atol=1e-5)
  rounded = _distance(primitives.box((.1, 0, 0), half, white, edge=.05))
  np.testing.assert_allclose(
      rounded, _exact_box(POINTS - [.1, 0, 0], half - .05) - .05, atol=1e-5)
  pin = _distance(primitives.cylinder((0, 0, 0), .3, .5, white, edge=0))
  d = np.stack([radius - .3, np.abs(POINTS[:, 1]) - .5], -1)
  np.testing.assert_allclose(
      pin, np.linalg.norm(np.maximum(d, 0), axis=-1)
      + np.minimum(d.max(-1), 0), atol=1e-5)
  ring = _distance(primitives.torus((0, 0, 0), .5, .1, white))
  np.testing.assert_allclose(
      ring, np.hypot(radius - .5, POINTS[:, 1]) - .1, atol=2e-3)
  a, b = np.array([-.3, 0, .1]), np.array([.4, .2, 0])
  along = np.clip((POINTS - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
  pill = _distance(primitives.capsule(a, b, .15, white))
  np.testing.assert_allclose(
      pill, np.linalg.norm(POINTS - a - along[:, None] * (b - a), axis=-1)
      - .15, atol=1e-5)


def test_cone_has_its_inside_and_a_distance_at_most_a_sixth_too_large():
  part = primitives.cone((0, -.5, 0), (0, .5, 0), .4, (1, 1, 1))
  distance = _distance(part)
  radius = np.linalg.norm(POINTS[:, [0, 2]], axis=-1)
  y = POINTS[:, 1]
  inside = (np.abs(y) < .5) & (radius < .4 * (.5 - y))
  np.testing.assert_array_equal(distance < 0, inside)
  heights = np.linspace(-.5, .5, 400)
  rim = np.stack([.4 * (.5 - heights), heights], -1)
  disc = np.stack([np.linspace(0, .4, 200), np.full(200, -.5)], -1)
  profile = np.concatenate([rim, disc])
  exact = np.linalg.norm(
      np.stack([radius, y], -1)[:, None] - profile, axis=-1).min(1)
  # Above the tip it is up to a sixth too large; tracing goes 0.9 of it and
  # comes back where it went too far.
  assert (np.abs(distance) <= 1.18 * exact + 1e-3).all()


def test_sphere_tracing_of_an_analytic_sphere():
  parts = jnp.float32([primitives.ball((.05, 0, 0), .4, (1, 0, 0))])
  camera = cameras.orbit(30., 20., 1.7, 1.2)
  rays = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]),
                      cameras.rays(camera, 48, 48))
  t, coverage = shapes_render.sphere_trace(parts, rays)
  o = np.asarray(rays.origins - jnp.array([.05, 0, 0]))
  d = np.asarray(rays.directions)
  b = (o * d).sum(-1)
  root = b ** 2 - (o ** 2).sum(-1) + .16
  hit = root > 0
  assert 0.2 < hit.mean() < 0.8
  # Well inside the silhouette: exact distance, full coverage.
  inner = root > 0.02
  np.testing.assert_allclose(
      np.asarray(t)[inner], (-b - np.sqrt(np.maximum(root, 0)))[inner],
      atol=2e-3)
  assert (np.asarray(coverage)[inner] > 0.999).all()
  gap = np.sqrt((o ** 2).sum(-1) - b ** 2) - .4
  pixel = 1 / (48 * 1.2) * np.abs(b)
  assert (np.asarray(coverage)[gap > 1.5 * pixel] == 0).all()
  points = rays.origins + t[:, None] * rays.directions
  normals = np.asarray(shapes_render.normals(parts, points))[inner]
  expected = np.asarray(points - jnp.array([.05, 0, 0]))[inner] / .4
  np.testing.assert_allclose(normals, expected, atol=1e-2)


def test_union_has_distance_and_color_of_the_nearest_part():
  parts = jnp.float32([primitives.ball((-.3, 0, 0), .2, (1, 0, 0)),
                       primitives.ball((.3, 0, 0), .2, (0, 0, 1))])
  points = jnp.array([[-.3, .2, 0.], [.3, -.2, 0], [0, 0, 0]])
  np.testing.assert_allclose(
      primitives.sdf(parts, points), [0, 0, .1], atol=1e-5)
  np.testing.assert_array_equal(
      primitives.color(parts, points)[:2], [[1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize('category', captions.CATEGORIES)
def test_every_category_is_within_its_radius_and_has_both_colors(category):
  rng = np.random.default_rng(4)
  spec = captions.Spec(category, 'red', 'blue')
  for _ in range(3):
    built = categories.build(spec, rng.uniform)
    points = rng.normal(size=(4000, 3))
    points *= rng.uniform(0, .75, (4000, 1)) / np.linalg.norm(
        points, axis=-1, keepdims=True)
    points = jnp.float32(points)
    distance = np.asarray(primitives.sdf(built.parts, points))
    radius = np.linalg.norm(points, axis=-1)
    assert not (distance[radius > 0.7] < 0).any()
    assert (distance < 0).mean() > 0.003
    colors = built.parts[:, primitives.PART['color']]
    for wanted in ('red', 'blue'):
      gap = np.abs(colors - captions.COLORS[wanted]).max(-1)
      assert gap.min() <= 0.05


def test_examples_are_pure_functions_of_seed_split_and_index():
  one, two = (shapes_world.example(0, 'train', 7) for _ in range(2))
  np.testing.assert_array_equal(one.object.parts, two.object.parts)
  np.testing.assert_array_equal(one.camera_key, two.camera_key)
  for other in (shapes_world.example(1, 'train', 7),
                shapes_world.example(0, 'seen', 7),
                shapes_world.example(0, 'train', 8)):
    assert not np.array_equal(one.object.parts, other.object.parts)


def test_stored_views_equal_rendered_ones_and_damaged_files_are_replaced(
    tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path))
  views, specs = shapes_world.load_views(0, 'train', 5, 16)
  fresh, fresh_specs = shapes_world.render_views(0, 'train', range(5), 16)
  assert specs == fresh_specs
  jax.tree.map(np.testing.assert_array_equal, views, fresh)
  stored, = tmp_path.rglob('*.npz')
  content = stored.read_bytes()
  other = {str(i): np.zeros((5, 3)) for i in range(6)}
  for harm in (lambda: stored.write_bytes(content[:200]),
               lambda: np.savez(stored, **other)):
    harm()
    again, _ = shapes_world.load_views(0, 'train', 5, 16)
    jax.tree.map(np.testing.assert_array_equal, again, fresh)
  assert views.coverage.max() == 255


def test_shading_is_lambertian_over_the_background():
  views, _ = shapes_world.render_views(0, 'train', [3], 24)
  view = jax.tree.map(lambda x: x[0], views)
  ambient = shading.Light(jnp.zeros(3), 1.0, 0.0, jnp.zeros(()))
  background = jnp.full((24, 24, 3), .25)
  image = np.asarray(
      shapes_render.shade_and_composite(view, ambient, background))
  covered = view.coverage[..., None] / 255
  np.testing.assert_allclose(
      image, covered * view.albedo / 255 + (1 - covered) * .25, atol=1e-6)
  lit = shading.Light(
      view.camera.c2w[:3, 3], 0.0, 1.0, jnp.ones(()))
  white = np.asarray(shapes_render.shade_and_composite(
      view, lit, jnp.zeros((24, 24, 3))))
  assert np.ptp(white, axis=-1).max() < 1e-6 and white.max() > .7


def test_captioned_images_are_reproducible_and_their_captions_true():
  first = list(shapes_world.captioned_images(0, 'unseen', 2, 2, 16))
  again = list(shapes_world.captioned_images(0, 'unseen', 3, 1, 16))
  np.testing.assert_allclose(first[1][1], again[0][1], atol=1e-6)
  assert first[1][2] == again[0][2]
  for _, image, text, spec, label in first:
    assert image.shape == (16, 16, 3) and label.shape == (25,)
    assert all(s is None or s == truth
               for s, truth in zip(captions.parse(text), spec))
