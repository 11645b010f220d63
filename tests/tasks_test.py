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


@pytest.mark.parametrize('content', [
    '', '[]', '5', '{"task": 5}', '{"task": "text_to_3d", "version": "x"}',
    '{"task": "text_to_3d", ', '[' * 10 ** 5])
def test_a_damaged_config_is_a_user_error(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(UserError, match=r'config\.json'):
    tasks.load_finished(tmp_path)


@pytest.mark.parametrize('settings', [{}, {'scene': 5}, {'scene': None}])
def test_a_config_without_the_settings_of_its_task_is_a_user_error(
    tmp_path, settings):
  (tmp_path / 'config.json').write_text(
      json.dumps({'task': 'text_to_3d', **settings}))
  with pytest.raises(UserError, match=(
      r"config\.json has not the settings of a run of the task 'text_to_3d'")):
    tasks.load_finished(tmp_path)
