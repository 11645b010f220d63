"""What can be trained: one record, one file per kind of training.

A task is made from a config by the `make` of its module; the engine's loop
runs any of them. Per-chip code names the mapped axis 'devices'.
"""

from collections.abc import Callable
from typing import NamedTuple

# By the name that a config gives; imported only when asked for.
TASKS = {
    'text_to_image': 'gen3d.tasks.text_to_image',
    'text_to_3d': 'gen3d.tasks.text_to_3d',
    'image_text': 'gen3d.tasks.clip',
    'gan': 'gen3d.tasks.gan',
    'reconstruction': 'gen3d.tasks.reconstruction',
}


class Task(NamedTuple):
  """Everything that the loop needs to know about a training.

  Attributes:
    init: key -> TrainState.
    step: (state, batch, key) -> (state, metrics). Pure, written for one chip;
      the loop maps it over the chips and compiles it. `key` is the run's key
      folded with the step and is the same on every chip: an example's own
      randomness comes from its index in the batch, so that the result does
      not depend on how the examples are spread.
    batches: (seed, first_step) -> iterator of batches (pytrees of NumPy
      arrays with a leading axis that is divided over the chips), beginning
      with the batch of step `first_step`.
    evaluate: (state, key) -> (scalars, images): {name: float} and
      {name: uint8 [H, W, 3]}. Runs on the host's side, on one chip.
    finish: (state, workdir) -> list of the files that it wrote.
    minimize_memory: whether the step's program is ordered for memory's sake on a CPU;
      see sharding.pmap.
    min_per_device: examples that a chip needs, where they are looked at together.
  """
  init: Callable
  step: Callable
  batches: Callable
  evaluate: Callable
  finish: Callable
  minimize_memory: bool = False
  min_per_device: int = 1
