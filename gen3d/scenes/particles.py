"""Several objects of one prompt in one run (ProlificDreamer, 2305.16213).

The particles are scenes of the same kind with parameters of their own. Each
view shows one of them, drawn at random, so that a step's views are divided over
the devices as those of a single scene.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gen3d.choices import UserError
from gen3d.scenes import Params, Render, Scene, View

_AUX = 'particle'  # entry of Render.aux


def stack(scene: Scene, count: int) -> Scene:
  """The Scene of `count` particles, whose params have a leading axis.

  `show`, `mesh` and `color` are those of a single particle: they take the
  params of `select`.

  Args:
    scene: Scene.
    count: of particles.

  Raises:
    UserError: the scene measures values while it is trained.
  """
  if scene.running or scene.subjects > 1:
    raise UserError(
        'Several particles are for scenes of one object without running '
        'values, such as dreamfusion and mesh; set --config.particles=1.')
  return scene._replace(
      init=lambda key: jax.vmap(scene.init)(jax.random.split(key, count)),
      sample_view=partial(_sample_view, scene, count),
      render=partial(_render, scene),
      penalties=partial(_penalties, scene),
      project=jax.vmap(scene.project))


def select(params: Params, particle: jax.Array | int) -> Params:
  """The params of one particle."""
  return jax.tree.map(lambda x: x[particle], params)


def _sample_view(scene: Scene, count: int, key: jax.Array, step: Any,
                 part: Any) -> View:
  particle = jax.random.randint(jax.random.fold_in(key, count), (), 0, count)
  return scene.sample_view(key, step, part)._replace(
      subject=jnp.asarray(particle))


def _render(scene: Scene, params: Params, key: jax.Array, view: View) -> Render:
  render = scene.render(select(params, view.subject), key,
                        view._replace(subject=None))
  return render._replace(aux={**render.aux, _AUX: view.subject})


def _penalties(scene: Scene, params: Params, render: Render, step: Any
               ) -> dict[str, jax.Array]:
  aux = dict(render.aux)
  return scene.penalties(select(params, aux.pop(_AUX)),
                         render._replace(aux=aux), step)
