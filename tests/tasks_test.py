"""The table of tasks, and runs of another task than a caller needs."""

import importlib
import json

import pytest

from gen3d import tasks
from gen3d.choices import UserError
from gen3d.tasks import reconstruction, text_to_3d


def test_tasks_whose_runs_can_be_shown_are_those_with_load():
  assert set(tasks.FINISHED) == {
      name for name, module in tasks.TASKS.items()
      if hasattr(importlib.import_module(module), 'load')}


@pytest.mark.parametrize('load, task, needed', [
    (tasks.load_finished, 'gan', 'text_to_3d or reconstruction'),
    (tasks.load_finished, 'unknown', 'text_to_3d or reconstruction'),
    (text_to_3d.load_run, 'reconstruction', 'text_to_3d'),
    (reconstruction.load, 'text_to_3d', 'reconstruction')])
def test_a_run_of_another_task_is_a_user_error(tmp_path, load, task, needed):
  (tmp_path / 'config.json').write_text(json.dumps({'task': task}))
  with pytest.raises(
      UserError, match=f"of the task '{task}'; .* workdir of a {needed} run"):
    load(tmp_path)


def test_a_run_without_a_task_is_a_user_error(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='of the task None'):
    tasks.load_finished(tmp_path)
