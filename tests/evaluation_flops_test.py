"""Counts of operations against hand counts, and of a text-to-3D step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dreamfusion, prolific_dreamer, score_distillation
from gen3d.evaluation import flops, guidances, speed
from gen3d.tasks import text_to_3d


def test_products_and_convolutions_are_two_operations_for_each_factor():
  product = lambda a, b: jnp.einsum('bik,bkj->bij', a, b)
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (
      (5, 3, 7), (5, 7, 4))]
  assert flops.by_scope(product, shapes, []) == {'other': 2 * 5 * 3 * 7 * 4}
  convolution = lambda x, w: jax.lax.conv_general_dilated(
      x, w, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=2)
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (
      (1, 8, 8, 6), (3, 3, 3, 10))]
  # 4 x 4 pixels of 10 features, each of 3 x 3 pixels of half of the features.
  assert flops.by_scope(convolution, shapes, []) == {
      'other': 2 * 16 * 10 * 9 * 3}


@pytest.mark.parametrize('stride, groups', [(1, 1), (2, 1), (1, 2)])
def test_a_gradient_costs_the_forward_pass_for_each_argument(stride, groups):
  def loss(x, w):
    return jnp.sum(jnp.square(jax.lax.conv_general_dilated(
        x, w, (stride, stride), 'SAME', feature_group_count=groups,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))))

  arguments = np.zeros((2, 8, 8, 4)), np.zeros((3, 3, 4 // groups, 6))
  forward = flops.by_scope(loss, arguments, [])['other']
  both = flops.by_scope(jax.grad(loss, (0, 1)), arguments, [])['other']
  assert both == pytest.approx(3 * forward, rel=0.35 if stride > 1 else 1e-9)


def test_loops_conditionals_and_backward_passes_count_in_their_scope():
  def layer(x, w):
    with jax.named_scope('first'):
      x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, 6)
    with jax.named_scope('second'), jax.named_scope('first'):
      return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w).sum()

  x, w = np.zeros((2, 3)), np.zeros((3, 3))
  one = 2 * 2 * 3 * 3
  assert flops.by_scope(layer, (x, w), ['first', 'second']) == {
      'first': 6 * one, 'second': 2 * one, 'other': 0}
  gradient = flops.by_scope(
      jax.jit(jax.grad(jax.checkpoint(layer))), (x, w), ['first', 'second'])
  # Forward, again (but for the last product), and with respect to x.
  assert gradient['first'] >= 18 * one and gradient['other'] == 0


def _step(config):
  task = text_to_3d.make(config)
  return speed.step_flops(task, task.costs().scopes,
                          task.init(jax.random.key(0)),
                          next(iter(task.batches(0, 0))))


def test_parts_of_a_text_to_3d_step_and_its_noise_predictions():
  sds, asd, vsd = (_step(config) for config in (
      dreamfusion.tiny(), score_distillation.tiny(), prolific_dreamer.tiny()))
  assert sds['render'] > 0 and sds['unet'] > 0
  assert sds['student'] == 0 and vsd['student'] > 0
  assert sds['render'] == asd['render'] == vsd['render']
  # SDS evaluates the teacher with and without prompt, ASD once more.
  config = score_distillation.tiny()
  cost = guidances.cost_of(config)
  assert cost.evaluations == 3 * config.views * config.steps
  assert cost.tflop == pytest.approx(
      config.steps * sum(asd.values()) / 1e12)
