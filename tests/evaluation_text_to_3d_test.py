"""The README's numbers on objects whose verdict is known."""

import functools
import json
import os

import jax
import numpy as np
import pytest

from gen3d.data.shapes import captions, categories, primitives
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.metrics import shape as shape_metrics
from gen3d.models import clip_pair
from gen3d.ops import mesh as mesh_ops


def _mesh_of(category, scale=1.0, shift=(0.0, 0.0, 0.0)):
  """The category's typical object as a mesh, moved."""
  typical = categories.build(
      captions.Spec(category, 'red', 'blue'), lambda lo, hi: (lo + hi) / 2)
  cells = shape_metrics.cell_centers(0.75, 96)
  sdf = jax.jit(functools.partial(primitives.sdf, typical.parts))
  density = np.exp(-10 * np.asarray(sdf(cells))).reshape(96, 96, 96)
  vertices, faces = mesh_ops.isosurface(
      density, 1.0, cells[0], float(cells[1, 2] - cells[0, 2]))
  return mesh_ops.Mesh(
      scale * vertices + np.array(shift), faces, colors=np.ones_like(vertices))


def test_a_true_object_scores_full_marks_wherever_it_is():
  said = captions.parse('a mug')
  iou, f_score = text_to_3d_evaluation.geometry(_mesh_of('mug', 0.8, (.05, 0, 0)), said)
  assert iou > 0.85 and f_score > 0.98


def test_another_object_scores_less():
  said = captions.parse('a mug')
  iou, f_score = text_to_3d_evaluation.geometry(_mesh_of('hammer'), said)
  assert iou < 0.5 and f_score < 0.8


def test_captions_of_held_out_examples_are_of_their_split():
  for split in ('seen', 'unseen'):
    for text in text_to_3d_evaluation.held_out_captions(split, 20):
      said = captions.parse(text)
      assert captions.unseen(said.category, said.main) == (split == 'unseen')


def test_the_table_has_a_row_each_and_the_means():
  verdicts = [text_to_3d_evaluation.Verdict('a red car', 'seen', 1., .5, .4, .6),
              text_to_3d_evaluation.Verdict('a blue cat', 'unseen', .5, .5, .2, .4)]
  lines = text_to_3d_evaluation.table(verdicts).splitlines()
  assert len(lines) == 2 + 2 + 3
  assert lines[-1] == '| **mean of 2** | all | 75 % | 50 % | 0.30 | 0.50 |'


def test_a_folder_without_runs_is_a_sentence(tmp_path):
  with pytest.raises(ValueError, match='no finished text-to-3D run'):
    text_to_3d_evaluation.judge_runs(None, tmp_path)


@pytest.mark.optimized
def test_the_shipped_judge_finds_captions_of_real_pictures():
  rates = text_to_3d_evaluation.judge_real(clip_pair.load(), count=96)
  assert rates['seen'].rate > 0.9 and rates['unseen'].rate > 0.7


def test_a_mesh_that_was_made_again_is_judged_again(tmp_path, monkeypatch):
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'finished.json').write_text('{}')
  (run / 'config.json').write_text(json.dumps({'task': 'text_to_3d'}))
  (run / 'mesh.ply').touch()
  rates = iter([0.1, 0.2, 0.3])
  monkeypatch.setattr(
      text_to_3d_evaluation, '_judge_run', lambda judge, folder: text_to_3d_evaluation.Verdict(
          'a red car', 'seen', next(rates), 0.0, 0.0, 0.0))
  judged = lambda **kw: text_to_3d_evaluation.judge_runs(None, tmp_path, **kw)[0].color
  assert judged() == 0.1
  assert judged() == 0.1
  later = (run / 'evaluation.json').stat().st_mtime + 1
  os.utime(run / 'mesh.ply', (later, later))
  assert judged() == 0.2
  assert judged(force=True) == 0.3
