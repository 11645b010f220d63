"""A small regression, as a task for the tests of the engine."""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.engine import optim, sharding
from gen3d.engine import state as states
from gen3d.tasks import Task


def make(config):
  """Fits tanh(x W) V to sin(x).

  The gradients of step `nan_at` are NaN; a batch takes `pause` seconds.
  """
  optimizer = optim.make_optimizer({
      'name': 'adamw', 'learning_rate': 1e-2, 'clip': 1.,
      'schedule': 'cosine', 'warmup': 5}, 1000)

  def init(key):
    first, second = jax.random.split(key)
    params = {'w': jax.random.normal(first, (4, 16)),
              'v': jax.random.normal(second, (16, 3)), 'b': jnp.zeros(3)}
    return states.create(params, optimizer, ema=True,
                         frozen={'scale': jnp.float32(2.)},
                         extra={'mean_loss': jnp.float32(0.)})

  def loss_fn(params, frozen, batch, key):
    def example(x, y, index):
      noise = jax.random.normal(jax.random.fold_in(key, index), y.shape)
      out = jnp.tanh(x @ params['w']) @ params['v'] + params['b']
      return jnp.mean((frozen['scale'] * out - y - .1 * noise)**2)
    losses = jax.vmap(example)(batch['x'], batch['y'], batch['index'])
    return jnp.mean(losses)

  def step(state, batch, key):
    loss, grads = jax.value_and_grad(loss_fn)(
        state.params, state.frozen, batch, key)
    grads = jax.lax.pmean(grads, 'devices')
    poison = jnp.where(state.step + 1 == config.nan_at, jnp.nan, 0.)
    grads = jax.tree.map(lambda g: g + poison, grads)
    state = optim.apply_gradients(state, grads, optimizer, ema_decay=.99)
    mean = .9 * state.extra['mean_loss'] + .1 * jax.lax.pmean(loss, 'devices')
    return state.replace(extra={'mean_loss': mean}), {'loss': loss}

  def batches(seed, first_step):
    step = first_step
    while True:
      rng = np.random.default_rng([seed, step])
      x = rng.normal(size=(config.rows, 4)).astype(np.float32)
      time.sleep(config.pause)
      sent = sharding.rows(config.rows)
      if sent is not None:  # The other rows must not be read.
        x[np.setdiff1d(np.arange(config.rows), sent)] = np.nan
      yield {'x': x, 'y': np.sin(x[:, :3]),
             'index': np.arange(config.rows, dtype=np.int32)}
      step += 1

  def evaluate(state, key):
    image = jnp.uint8(255 * jax.random.uniform(key, (4, 4, 3)))
    return {'eval/b': state.ema['b'].sum()}, {'noise': np.asarray(image)}

  def finish(state, workdir):
    path = pathlib.Path(workdir) / 'result.json'
    path.write_text(json.dumps({'step': int(state.step)}))
    return [path]

  return Task(init, step, batches, evaluate, finish)
