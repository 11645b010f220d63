"""The texts of score distillation: embeddings of each view's prompts.

A prompt has the words of the view and the camera; the negative prompt has
neither. Further texts follow templates (prompts.expand).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gen3d.diffusion.teachers import Teacher, Weights
from gen3d.guidance import perp_neg, prompts
from gen3d.ops import cameras
from gen3d.ops import images as image_ops
from gen3d.ops.cameras import Camera

NearestView = Callable[[jax.Array, jax.Array], jax.Array]


class Frozen(NamedTuple):
  """Guidance's `frozen` of score distillation.

  Attributes:
    prompts: text with leading axis 4 N + 1: prompts.VIEWS of N prompts, then
      the negative prompt.
    weights: of the teacher.
    others: {name: rows of a template of score.make, see prompts.expand}.
    base: weights that a student is made of; None for those of the teacher.
  """
  prompts: Any
  weights: Any
  others: Any = None
  base: Any = None


class ViewText(NamedTuple):
  """Embeddings for B views, pytrees with leading axis B.

  Attributes:
    cond: the view-dependent prompt, with the camera.
    null: the negative prompt.
    camera: ops.cameras.Camera [B] of the views, for `add_depth`; None where it
      is done or the teacher has no depth conditioning.
    others: {name: text} of the templates of score.make.
    negatives: perp_neg.Negatives of the views; None without.
    pose: [B, 16] the camera-to-world matrices.
  """
  cond: Any
  null: Any
  camera: Any = None
  others: Any = None
  negatives: Any = None
  pose: Any = None


def load(teacher: Teacher, templates: Mapping[str, str],
         prompt: str | tuple[str, ...], negative_prompt: str) -> Frozen:
  """Guidance.load: the Frozen of the prompts and templates of score.make."""
  subjects = (prompt,) if isinstance(prompt, str) else prompt
  texts = {name: prompts.expand(template, subjects)
           for name, template in templates.items()}
  of_views = [text for one in subjects
              for text in prompts.with_views(one, teacher.fits)]
  groups = [[*of_views, negative_prompt], *texts.values()]
  # First the embeddings, whose text encoder is freed before `load` reads the
  # rest of the teacher.
  rows = teacher.embed([text for group in groups for text in group])
  ends = np.cumsum([len(group) for group in groups])
  first, *others = (jax.tree.map(lambda x, part=slice(*ends): x[part], rows)
                    for ends in zip([0, *ends], ends))
  return Frozen(first, teacher.load(), dict(zip(texts, others)))


def condition(teacher: Teacher, nearest_view: NearestView,
              templates: Mapping[str, str], negatives: bool, frozen: Frozen,
              camera: Camera, subject: jax.Array | int = 0) -> ViewText:
  """Guidance.condition: the ViewText of one camera, B = 1.

  Args:
    teacher, nearest_view, templates: of score.make.
    negatives: whether the text has those of perp_neg.
    frozen: Frozen.
    camera: Camera.
    subject: index of the prompt.
  """
  azimuth, elevation, _ = cameras.angles(camera.c2w[:3, 3])
  view = nearest_view(azimuth, elevation)
  label = cameras.to_label(camera)[None]
  take = lambda texts, row: jax.tree.map(lambda x: x[row][None], texts)
  with_camera = lambda text: teacher.add_camera(frozen.weights, text, label)
  first = len(prompts.VIEWS) * subject
  cond, others = with_camera(take(frozen.prompts, first + view)), {}
  for name, template in templates.items():
    text = take(frozen.others[name], prompts.row(template, subject, view))
    others[name] = with_camera(text) if '{' in template else text
  of_views = None
  if negatives:
    cond, of_views = perp_neg.texts(
        lambda view: with_camera(take(frozen.prompts, first + view)), azimuth,
        view == prompts.OVERHEAD)
  # The negative prompt stays without a camera, as in the teacher's training,
  # where captions are dropped together with cameras.
  null = jax.tree.map(lambda x: x[-1:], frozen.prompts)
  return ViewText(
      cond, null, jax.tree.map(lambda x: x[None], camera) if (
          teacher.depth_conditioned) else None,
      others, of_views, camera.c2w.reshape(1, 16))


def add_depth(teacher: Teacher, weights: Weights, text: ViewText,
              render: Any) -> ViewText:
  """The text of a view with depth conditioning by its render's depth map.

  All prompts get the same map, as with a ControlNet: their differences are then
  those of the words. The map has no gradient. The text is returned as it is
  where the teacher has no depth conditioning.

  Args:
    teacher: Teacher.
    weights: of the teacher.
    text: ViewText of one view, B = 1, with its camera.
    render: scenes.Render, or any record with `depth` [H, W], the distance
      along the rays, and `opacity` [H, W].
  """
  if not teacher.depth_conditioned:
    return text
  depth, opacity = jax.lax.stop_gradient((render.depth, render.opacity))
  maps = image_ops.depth_map(
      cameras.axial_depth(text.camera, depth[None]), opacity[None])
  add = lambda prompt: teacher.add_depth(weights, prompt, maps)
  negatives = text.negatives and text.negatives._replace(
      texts=tuple(map(add, text.negatives.texts)))
  return text._replace(
      cond=add(text.cond), null=add(text.null), camera=None,
      others={name: add(other) for name, other in (text.others or {}).items()},
      negatives=negatives)
