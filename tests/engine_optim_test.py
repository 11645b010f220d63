"""Optimizers and schedules against their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen3d.engine import optim
from gen3d.engine import state as states


@pytest.mark.parametrize('schedule, middle, end', [
    ('constant', 2., 2.), ('linear', 1., 0.), ('cosine', 1., 0.),
    ('trapezoid', 2., 0.), ('exponential', 2. * .1**.5, .2)])
def test_learning_rate_schedules(schedule, middle, end):
  rate = optim.learning_rate(
      {'learning_rate': 2., 'schedule': schedule, 'warmup': 10}, 110)
  np.testing.assert_allclose(
      [rate(step) for step in (0, 4, 9, 10, 60, 110)],
      [.2, 1., 2., 2., middle, end], atol=1e-6)


def test_learning_rate_rises_exponentially_from_its_start():
  rate = optim.learning_rate(
      {'learning_rate': 1e-4, 'start': 1e-5, 'warmup': 1500})
  # The schedule of Dream Fields, as in its code.
  np.testing.assert_allclose(
      [rate(step) for step in (0, 10, 750, 1499, 1500, 5000)],
      [1e-5, 1.01546899e-5, 3.16227766e-5, 9.98466121e-5, 1e-4, 1e-4],
      rtol=1e-5)


def test_adamw_matches_its_formula_and_does_not_decay_vectors():
  config = {'name': 'adamw', 'learning_rate': .1, 'b1': .8, 'b2': .9,
            'eps': 1e-3, 'weight_decay': .5}
  params = {'w': jnp.full([2, 2], 3.), 'b': jnp.full([2], 3.)}
  grads = jax.tree.map(lambda x: jnp.full(x.shape, .5), params)
  optimizer = optim.make_optimizer(config)
  state = states.create(params, optimizer)
  m = v = 0.
  want = {'w': 3., 'b': 3.}
  for t in (1, 2, 3):
    state = optim.apply_gradients(state, grads, optimizer)
    m, v = .8 * m + .2 * .5, .9 * v + .1 * .25
    update = m / (1 - .8**t) / (np.sqrt(v / (1 - .9**t)) + 1e-3)
    want = {'w': want['w'] - .1 * (update + .5 * want['w']),
            'b': want['b'] - .1 * update}
  for name, value in want.items():
    np.testing.assert_allclose(state.params[name], value, rtol=1e-5)
  assert state.step == 3


def test_clip_bounds_the_global_gradient_norm():
  optimizer = optim.make_optimizer(
      {'name': 'adam', 'learning_rate': 1., 'clip': 1., 'b1': 0.})
  state = states.create({'a': jnp.zeros(1), 'b': jnp.zeros(1)}, optimizer)
  grads = {'a': jnp.full(1, 30.), 'b': jnp.full(1, 40.)}
  state = optim.apply_gradients(state, grads, optimizer)
  np.testing.assert_allclose(state.opt_state[1][0].mu['a'], .6, rtol=1e-6)
  np.testing.assert_allclose(state.opt_state[1][0].mu['b'], .8, rtol=1e-6)


def test_lr_multipliers_scale_the_updates_of_a_group():
  config = {'name': 'adamw', 'learning_rate': .1, 'weight_decay': .5}
  params = {'slow': {'w': jnp.full([2, 2], 3.)}, 'rest': jnp.full([2, 2], 3.)}
  moved = {}
  for multipliers in ({}, {'slow': .2}):
    optimizer = optim.make_optimizer({**config, 'lr_multipliers': multipliers})
    state = optim.apply_gradients(
        states.create(params, optimizer), params, optimizer)
    moved[bool(multipliers)] = jax.tree.map(
        lambda a, b: a - b, state.params, params)
  np.testing.assert_allclose(
      moved[True]['slow']['w'], .2 * moved[False]['slow']['w'], rtol=1e-5)
  np.testing.assert_array_equal(moved[True]['rest'], moved[False]['rest'])
  with pytest.raises(ValueError, match="Did you mean 'slow'"):
    wrong = optim.make_optimizer({**config, 'lr_multipliers': {'slw': .2}})
    optim.apply_gradients(states.create(params, wrong), params, wrong)


def test_lr_multiplier_that_depends_on_the_step():
  params = {'slow': jnp.ones(2), 'rest': jnp.ones(2)}
  optimizer = optim.make_optimizer({
      'name': 'adam', 'learning_rate': .1,
      'lr_multipliers': {'slow': lambda step: jnp.where(step < 2, .5, 2.)}})
  state = states.create(params, optimizer)
  moved = []
  for _ in range(4):
    # Equal gradients: each of Adam's steps is as long as the learning rate.
    after = optim.apply_gradients(state, params, optimizer)
    moved.append([float(state.params[name][0] - after.params[name][0])
                  for name in ('slow', 'rest')])
    state = after
  np.testing.assert_allclose(
      moved, [[.05, .1], [.05, .1], [.2, .1], [.2, .1]], rtol=1e-4)


def test_lr_multipliers_apply_to_nested_groups():
  params = {'a': {'slow': {'w': jnp.ones(2)}, 'w': jnp.ones(2)}}
  optimizer = optim.make_optimizer({
      'name': 'adam', 'learning_rate': .1, 'lr_multipliers': {'slow': .5}})
  state = optim.apply_gradients(
      states.create(params, optimizer), params, optimizer)
  np.testing.assert_allclose(state.params['a']['slow']['w'], .95, rtol=1e-4)
  np.testing.assert_allclose(state.params['a']['w'], .9, rtol=1e-4)


def test_muon_step_has_equal_singular_values():
  rng = np.random.default_rng(0)
  params = {'kernel': jnp.zeros((3, 3, 4, 8)), 'bias': jnp.zeros(8)}
  grads = {'kernel': jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32),
           'bias': jnp.full(8, 2.)}
  # One direction has a hundred times the gradient.
  grads['kernel'] = grads['kernel'].at[..., 0].multiply(100.)
  optimizer = optim.make_optimizer({'name': 'muon', 'learning_rate': .1})
  state = optim.apply_gradients(
      states.create(params, optimizer), grads, optimizer)
  moved = -np.asarray(state.params['kernel']).reshape(36, 8)
  sizes = np.linalg.svd(moved, compute_uv=False)
  # .2 sqrt(36) in every direction, up to the iteration's tolerance.
  assert np.all(np.abs(sizes / (.1 * .2 * 6) - 1) < .4), sizes
  u, _, v = np.linalg.svd(np.asarray(grads['kernel']).reshape(36, 8),
                          full_matrices=False)
  assert np.sum(moved * (u @ v)) > .95 * np.sum(sizes)
  # Adam's first step, with Nesterov's look ahead.
  np.testing.assert_allclose(
      state.params['bias'], -.1 * (.9 * .1 / (1 - .9**2) + 1), rtol=1e-4)


def test_muon_matches_optax():
  rng = np.random.default_rng(1)
  shapes = {'a': (3, 3, 4, 8), 'b': (5, 20), 'c': (2, 2, 16, 4)}
  draw = lambda: {name: {'kernel': jnp.asarray(
      rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
  params, grads = draw(), draw()
  axes = lambda tree: jax.tree.map(
      lambda x: optax.contrib.MuonDimensionNumbers(
          tuple(range(x.ndim - 1)), x.ndim - 1), tree)
  theirs = optax.contrib.muon(
      .1, consistent_rms=.2, weight_decay=.01,
      muon_weight_dimension_numbers=axes)
  ours = optim.make_optimizer(
      {'name': 'muon', 'learning_rate': .1, 'weight_decay': .01})
  expected, got = params, params
  state, other = ours.init(params), theirs.init(params)
  # Of gradients that stay the same, both momenta are multiples.
  for _ in range(3):
    updates, other = theirs.update(grads, other, expected)
    expected = optax.apply_updates(expected, updates)
    updates, state = ours.update(grads, state, got)
    got = optax.apply_updates(got, updates)
  jax.tree.map(partial(np.testing.assert_allclose, atol=2e-4), got, expected)


def test_ema_decay_ramps_up():
  optimizer = optim.make_optimizer({'name': 'adam', 'learning_rate': .1})
  state = states.create({'a': jnp.zeros(1)}, optimizer, ema=True)
  average = 0.
  for step in range(200):
    state = optim.apply_gradients(state, {'a': jnp.ones(1)}, optimizer, .9)
    decay = min(.9, (1 + step) / (10 + step))
    average = decay * average + (1 - decay) * float(state.params['a'][0])
  np.testing.assert_allclose(state.ema['a'][0], average, rtol=1e-4)


@pytest.mark.parametrize('config, sentence', [
    ({'name': 'adm'}, "Did you mean 'adam'"),
    ({'name': 'adam', 'learning_rte': 1}, "Did you mean 'learning_rate'"),
    ({'name': 'adam', 'schedule': 'cosin'}, "Did you mean 'cosine'"),
    ({'name': 'adam', 'schedule': 'cosine'}, 'needs the number of `steps`'),
    ({'name': 'adam', 'weight_decay': .1}, "for 'adamw'"),
    ({'name': 'adam', 'learning_rate': -1e-3}, 'give a number from 0 on'),
    ({'name': 'adam', 'learning_rate': float('nan')}, 'is nan; give a number'),
])
def test_wrong_optimizer_configs_are_user_errors(config, sentence):
  with pytest.raises(ValueError, match=sentence):
    optim.make_optimizer({'learning_rate': 1., **config})


def test_trapezoid_falls_over_its_cooldown_only():
  rate = lambda steps: optim.learning_rate({
      'learning_rate': 2., 'schedule': 'trapezoid', 'warmup': 10,
      'cooldown': 40}, steps)
  np.testing.assert_allclose(
      [rate(110)(step) for step in (9, 60, 70, 90, 110)], [2., 2., 2., 1., 0.],
      atol=1e-6)
  # A longer run shares its beginning with a shorter one.
  np.testing.assert_allclose(
      [rate(110)(step) for step in range(70)],
      [rate(500)(step) for step in range(70)], atol=1e-6)
