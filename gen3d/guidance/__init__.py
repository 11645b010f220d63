"""Guidance: the gradient of a rendered image with respect to a text.

score.py has score distillation by a diffusion model (SDS, CSD), texts.py the
texts of a view, prompts.py the view-dependent prompts, perp_neg.py the negative
prompts of other views. noising.py and student.py have what followed SDS: other
references and ways to noise an image, and the student of VSD. clip.py has the
cosine of CLIP with augmentations.py.

To add a guidance, write a module with a function that makes a Guidance and
enter it in GUIDANCES of tasks/text_to_3d.py, which needs no other change. Where
it is score distillation with another Noising or Reference, score.make makes it
of that function alone. Two examples of what the record provides for:

CLIP (clip.py) has no diffusion model and learns nothing along: `load` returns
the weights of the image tower and the text's features, `init` {}, `condition`
the features, and `loss` the negative cosine similarity with the features of an
augmented `render.image`.

VSD (student.py) learns a student: `init` makes its parameters, LoRA matrices
or a copy of the teacher's U-Net, and `loss` adds the student's denoising loss
to a surrogate whose gradient is eps_hat - eps_student. The task trains `params`
with the scene, by the optimizer config.guidance.optimizer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Frozen = Any  # pytree of arrays: weights and embeddings that are not trained
Params = Any  # pytree of arrays
Text = Any    # pytree of arrays
Metrics = dict[str, jax.Array]
Load = Callable[[str | tuple[str, ...], str], Frozen]
Init = Callable[[jax.Array, Frozen], Params]
# (frozen, camera), or (frozen, camera, subject) -> text
Condition = Callable[..., Text]
Loss = Callable[..., tuple[jax.Array, Metrics]]


class Guidance(NamedTuple):
  """A loss of rendered views, given a text.

  Attributes:
    load: (prompt, negative prompt) -> frozen, a pytree of the weights and
      embeddings that the other functions need. The only function that reads
      files. The prompt is a tuple of strings where a scene has several
      subjects.
    init: (key, frozen) -> params that are trained with the scene; {} for
      SDS and CSD.
    condition: (frozen, camera) -> text, a pytree for the view of one camera;
      (frozen, camera, subject) where `load` got several prompts.
    loss: (params, frozen, key, render, text, step) -> (loss, metrics) of one
      view, a scenes.Render without leading axis. Only the gradient of the loss
      has a meaning, its value need not have one.
  """
  load: Load
  init: Init
  condition: Condition
  loss: Loss
