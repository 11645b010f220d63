"""Scores of text-to-3D runs, on meshes with known scores."""

import functools
import json
import os
import pathlib

import jax
import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.data.shapes import captions, categories, primitives
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.metrics import shape as shape_metrics
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


def test_shape_scores_of_the_typical_object_at_another_scale_and_place():
  iou, f_score, error = text_to_3d_evaluation.shape_scores(
      _mesh_of('mug', 0.8, (.05, 0, 0)), captions.parse('a mug'))
  assert iou > 0.85 and f_score > 0.98
  assert np.isnan(error)  # The prompt names no color.


def test_shape_scores_of_another_category_are_low():
  iou, f_score, _ = text_to_3d_evaluation.shape_scores(
      _mesh_of('hammer'), captions.parse('a mug'))
  assert iou < 0.5 and f_score < 0.8


def test_color_error_is_of_the_parts_that_the_prompt_names():
  spec = captions.parse('a red mushroom with white stem')
  mesh = _mesh_of('mushroom', 0.9)
  true, named = text_to_3d_evaluation.true_colors(spec, mesh.vertices / 0.9)
  assert 0.5 < named.mean() <= 1
  error = lambda colors, text: text_to_3d_evaluation.shape_scores(
      mesh._replace(colors=colors), captions.parse(text))[2]
  prompt = 'a red mushroom with white stem'
  assert error(true, prompt) < 0.03
  assert error(np.clip(true + 0.2, 0, 1.2), prompt) > 0.15
  # The stem's color is open.
  stem = np.abs(true - captions.COLORS['white']).max(-1) < 1e-3
  assert 0.1 < stem.mean() < 0.9
  wrong_stem = np.where(stem[:, None], captions.COLORS['blue'], true)
  assert error(wrong_stem, 'a red mushroom') < 0.05
  assert error(wrong_stem, prompt) > 0.1


def test_table_has_a_row_for_each_run_and_the_means_of_the_splits():
  scores = [text_to_3d_evaluation.RunScores(*values) for values in (
      ('a red car', 'seen', 1., .5, .4, .6, np.nan),
      ('a blue cat', 'unseen', .5, .5, .2, .4, .1))]
  lines = text_to_3d_evaluation.table(scores).splitlines()
  assert len(lines) == 2 + 2 + 3
  assert lines[2] == '| a red car | seen | 100 % | 50 % | 0.40 | 0.60 | nan |'
  assert lines[-2] == (
      '| **mean of 1** | unseen | 50 % | 50 % | 0.20 | 0.40 | 0.100 |')
  assert lines[-1] == (
      '| **mean of 2** | all | 75 % | 50 % | 0.30 | 0.50 | 0.100 |')


def test_folder_without_finished_runs_is_refused(tmp_path):
  with pytest.raises(ValueError, match='no finished text-to-3D run'):
    text_to_3d_evaluation.score_runs(None, tmp_path)


def test_stored_scores_are_reused_until_the_mesh_is_newer(
    tmp_path, monkeypatch):
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'finished.json').write_text('{}')
  (run / 'config.json').write_text(json.dumps({'task': 'text_to_3d'}))
  (run / 'mesh.ply').touch()
  rates = iter([0.1, 0.2, 0.3])
  monkeypatch.setattr(
      text_to_3d_evaluation, '_score_run',
      lambda pair, folder: text_to_3d_evaluation.RunScores(
          'a red car', 'seen', next(rates), 0.0, 0.0, 0.0, np.nan))
  color = lambda **options: text_to_3d_evaluation.score_runs(
      None, tmp_path, **options)[0].color
  assert color() == 0.1
  assert color() == 0.1
  later = (run / 'evaluation.json').stat().st_mtime + 1
  os.utime(run / 'mesh.ply', (later, later))
  assert color() == 0.2
  assert color(force=True) == 0.3


def test_scores_over_other_backgrounds_are_computed_again(
    tmp_path, monkeypatch):
  (tmp_path / 'finished.json').touch()
  (tmp_path / 'mesh.ply').touch()
  old = text_to_3d_evaluation.RunScores('a car', 'seen', *(5 * [0.5]))
  (tmp_path / 'evaluation.json').write_text(json.dumps(old._asdict()))
  new = old._replace(textureless=0.75)
  monkeypatch.setattr(
      text_to_3d_evaluation, '_score_run', lambda pair, folder: new)
  assert text_to_3d_evaluation.score_run(None, tmp_path) == new
  monkeypatch.setattr(text_to_3d_evaluation, '_score_run', None)
  assert text_to_3d_evaluation.score_run(None, tmp_path) == new


def test_run_that_cannot_be_evaluated_is_named_and_left_out(capsys):
  def score(folder):
    if folder.name == 'b':
      raise UserError('its prompt has no category.')
    return folder.name

  folders = [pathlib.Path('runs', name) for name in 'abc']
  assert text_to_3d_evaluation.each(folders, score) == ['a', 'c']
  assert capsys.readouterr().err == (
      'runs/b cannot be evaluated and is left out: its prompt has no '
      'category.\n')
  with pytest.raises(UserError, match='None of the 1 runs can be evaluated'):
    text_to_3d_evaluation.each(folders[1:2], score)


def test_damaged_run_is_named_and_left_out(tmp_path, capsys):
  for name, content in (('a', '{"task": "text_to_3d"}'), ('b', '{'),
                        ('c', '{"task": "gan"}')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(content)
    (tmp_path / name / 'finished.json').touch()
  assert text_to_3d_evaluation.finished_runs(tmp_path) == [tmp_path / 'a']
  assert f'{tmp_path}/b is left out' in capsys.readouterr().err


@pytest.mark.parametrize('content', [
    '', '{"prompt": "a red', '[]', '5', '{}', '{"colour": 1}',
    '{"prompt": 5, "split": "seen"}'])
def test_damaged_scores_are_computed_again(
    tmp_path, monkeypatch, capsys, content):
  (tmp_path / 'run').mkdir()
  stored = tmp_path / 'run' / 'evaluation.json'
  stored.write_text(content)
  (tmp_path / 'run' / 'finished.json').write_text('{}')
  (tmp_path / 'run' / 'config.json').write_text(
      json.dumps({'task': 'text_to_3d'}))
  scores = text_to_3d_evaluation.RunScores('a car', 'seen', 1., 0., 0., 0., 0.)
  monkeypatch.setattr(
      text_to_3d_evaluation, '_score_run', lambda pair, folder: scores)
  for _ in range(2):
    assert text_to_3d_evaluation.score_runs(None, tmp_path) == [scores]
  assert capsys.readouterr().err.count(
      'evaluation.json is damaged and is made again') == 1
