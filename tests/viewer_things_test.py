"""viewer.things and viewer.opening: what can be shown, and its images."""

import json

import blob_generator
import jax
import jax.numpy as jnp
import numpy as np
import posed_layouts
import pytest
import trimesh

from configs import dreamfusion
from gen3d.choices import UserError
from gen3d.engine import checkpoints, sharding
from gen3d.engine import state as states
from gen3d.io import meshes
from gen3d.ops import cameras
from gen3d.render import finished
from gen3d.scenes import Scene
from gen3d.tasks import text_to_3d
from gen3d.viewer import opening, screen, things

VALUES = {'seed': 0, 'truncation': 1.0, 'second seed': 1,
          'share of the second': 0.0}


def never():
  return False


class Sky:
  """A scene whose colors are the directions of the rays, times a parameter."""
  modes = ('color', 'depth')

  def __init__(self):
    self.traces = 0

  def show(self, params, camera, size, modes, background):
    self.traces += 1
    directions = cameras.rays(camera, size, size).directions
    return dict.fromkeys(modes, params * (0.5 + 0.5 * directions))

  def scene(self):
    return Scene(*(getattr(self, name, None) for name in Scene._fields))


def sky(**options):
  made = Sky()
  path = finished.turntable(
      4, {'elevation': 10.0, 'distance': 3.0, 'focal': 1.2})
  return made, finished.from_scene(
      made.scene(), jnp.float32(1.0), path, **options)


def window(aspect=1.5):
  wxyz, position = screen.to_browser(cameras.orbit(40.0, 15.0, 3.0, 1.2).c2w)
  return screen.from_browser(wxyz, position, 0.8, aspect)


def test_image_of_any_size_is_by_one_program_that_of_the_window():
  made, shown = sky()
  thing = things.of_finished('a', 'b', shown)
  for size in (32, 96):
    image = thing.draw(window(), 1.5, size, 'color', {}, never)
    expected = made.show(1.0, window(), size, ('color',), None)['color']
    np.testing.assert_allclose(
        image, np.round(255 * np.asarray(expected)), atol=1)
  assert made.traces == 1 + 2  # by the test itself
  assert thing.modes == ('color', 'depth') and thing.sizes[0] == 32
  np.testing.assert_allclose(thing.center, 0, atol=1e-6)
  assert thing.draw(window(), 1.5, 96, 'color', {}, lambda: True) is None


def test_reloaded_run_is_rendered_by_the_compiled_program():
  made, shown = sky(load_params=lambda step: [jnp.float32(step / 10)])
  before = shown.render(window(), 32, 'color')
  later = shown.reload(5).reload(2)
  np.testing.assert_allclose(
      later.render(window(), 32, 'color'), 0.2 * before, atol=1)
  assert made.traces == 1


def test_slider_chooses_the_object_of_a_run_with_several():
  made, shown = sky(
      load_params=lambda step: [jnp.float32(step / 10), jnp.float32(0.3)],
      others=[jnp.float32(0.5)])
  thing = things.of_finished('a', 'b', shown)
  slider, = thing.sliders
  assert slider[:] == ('object', 1, 2, 1, 1)
  draw = lambda thing, **values: thing.draw(
      window(), 1.5, 32, 'color', values, never)
  first = draw(thing)
  np.testing.assert_allclose(draw(thing, object=2), 0.5 * first, atol=1)
  later = things.of_finished('a', 'c', shown.reload(2))
  np.testing.assert_allclose(draw(later, object=1), 0.2 * first, atol=1)
  np.testing.assert_allclose(draw(later, object=2), 0.3 * first, atol=1)
  assert made.traces == 1


def test_photographs_are_in_the_frame_of_the_scene():
  to_world = np.diag([2.0, 2.0, 2.0, 1.0])
  to_world[:3, 3] = [1.0, 2.0, 3.0]
  c2w = np.asarray(cameras.orbit(10.0, 5.0, 2.0, 1.0).c2w, np.float64)
  photograph = things.Photograph('a', c2w, np.eye(3), None)
  _, shown = sky(to_world=to_world)
  found, = things.of_finished('a', 'b', shown, [photograph]).photographs
  np.testing.assert_allclose(
      found.c2w[:3, 3], (c2w[:3, 3] - to_world[:3, 3]) / 2)
  np.testing.assert_allclose(found.c2w[:3, :3], c2w[:3, :3], atol=1e-12)


def test_sliders_of_a_generator_choose_its_object():
  thing = things.of_generator('a', 'b', blob_generator.trained())
  assert {s.name: s.value for s in thing.sliders} == VALUES
  draw = lambda **values: thing.draw(
      window(1.0), 1.0, blob_generator.SIZE, 'color', VALUES | values, never)
  first, second = draw(), draw(seed=1)
  assert np.abs(first.astype(int) - second).max() > 30
  np.testing.assert_array_equal(draw(**{'share of the second': 1.0}), second)
  between = draw(**{'share of the second': 0.5})
  assert not np.array_equal(between, first)
  assert not np.array_equal(between, second)
  mean = draw(truncation=0.0)
  np.testing.assert_array_equal(draw(truncation=0.0, seed=1), mean)


def test_image_of_a_generator_is_a_square_in_the_window():
  thing = things.of_generator('a', 'b', blob_generator.trained())
  size = blob_generator.SIZE
  # The ball is a disk here, which faces the camera.
  for mode, beside, contrast in (('color', 255, 100), ('depth', 0, 100),
                                 ('normal', 255, 20), ('textureless', 255, 20)):
    image = thing.draw(window(2.0), 2.0, size, mode, VALUES, never)
    assert image.shape == (size, 2 * size, 3)
    assert (image[:, :size // 2] == beside).all()
    assert np.ptp(image[:, size // 2:-size // 2]) > contrast


def test_newer_generator_has_its_variables_and_the_compiled_programs():
  programs, trained = {}, blob_generator.trained()
  moved = {'params': {**blob_generator.PARAMS, 'radius': jnp.float32(0.5)}}
  found = [('Step 2.', moved)]
  thing = things.of_generator('a', 'Step 1.', trained, found.pop, programs)
  draw = lambda thing: thing.draw(
      window(1.0), 1.0, blob_generator.SIZE, 'depth', VALUES, never)
  small, newer = draw(thing), thing.newer()
  count = len(programs)
  assert newer.note == 'Step 2.' and draw(newer).mean() > 1.5 * small.mean()
  assert len(programs) == count


def test_mesh_has_a_file_for_each_mode(tmp_path):
  box = trimesh.creation.box((1.0, 2.0, 3.0))
  box.apply_translation((5.0, 0.0, 0.0))
  box.export(tmp_path / 'box.ply')
  thing = things.of_mesh(tmp_path / 'box.ply')
  np.testing.assert_allclose(thing.center, [5, 0, 0])
  assert list(thing.meshes) == list(thing.modes) == [
      'color', 'normal', 'textureless']
  content, = thing.meshes['normal']
  (tmp_path / 'normal.glb').write_bytes(content)
  part, = meshes.load(tmp_path / 'normal.glb')
  np.testing.assert_allclose(
      part.colors, 0.5 + 0.5 * np.asarray(part.normals), atol=0.01)


def test_capture_has_its_cameras_and_pictures(tmp_path):
  c2w = posed_layouts.around()
  posed_layouts.write_blender(
      tmp_path, c2w, posed_layouts.points_in_front(c2w))
  thing = things.of_capture(tmp_path)
  assert len(thing.photographs) == posed_layouts.COUNT
  np.testing.assert_allclose(thing.center, 0, atol=0.05)
  first = thing.photographs[0]
  assert first.picture.shape[:2] == (
      posed_layouts.HEIGHT, posed_layouts.WIDTH)
  assert min(np.abs(first.c2w - x).max() for x in c2w) < 1e-5
  # The home camera sees all of them.
  places, depths = cameras.project(
      cameras.Camera(*map(jnp.asarray, thing.home)),
      jnp.float32([p.c2w[:3, 3] for p in thing.photographs]))
  assert (depths > 0).all() and (np.abs(places - 0.5) < 0.5).all()


def save_run(workdir, step, seed):
  """Saves a checkpoint of an untrained scene."""
  config = dreamfusion.get_config('tiny')
  config.prompt = 'a red <chair>'
  workdir.mkdir(exist_ok=True)
  (workdir / 'config.json').write_text(config.to_json_best_effort())
  scene = text_to_3d.make_scene(config)
  saver = checkpoints.Checkpoints(workdir)
  saver.save(sharding.replicate(states.TrainState(
      jnp.int32(step), {'scene': jax.jit(scene.init)(jax.random.key(seed))},
      ()), sharding.device_mesh()))
  saver.close()
  return config


def test_run_is_shown_and_followed_through_its_checkpoints(tmp_path):
  workdir = tmp_path / 'run'
  config = save_run(workdir, 1, 0)
  opened = opening.open_all([str(tmp_path)])
  assert list(opened) == [str(workdir)]
  thing = opened[str(workdir)]()
  assert thing.title == 'a red <chair>'
  assert thing.note == f'Step 1 of {config.steps}.'
  assert 'depth' in thing.modes and thing.newer() is None
  draw = lambda thing, mode: thing.draw(window(), 1.5, 32, mode, {}, never)
  before = draw(thing, 'depth')
  save_run(workdir, 2, 1)
  newer = thing.newer()
  assert newer.note == f'Step 2 of {config.steps}.' and newer.newer() is None
  assert 0 < np.abs(draw(newer, 'depth').astype(int) - before).max() < 256


def test_run_without_a_checkpoint_can_be_waited_for(tmp_path):
  workdir = tmp_path / 'run'
  opened = opening.open_all([str(workdir)], wait=True)
  with pytest.raises(FileNotFoundError, match='has not begun'):
    opened[str(workdir)]()
  workdir.mkdir()
  (workdir / 'config.json').write_text(
      dreamfusion.get_config('tiny').to_json_best_effort())
  for wait in (True, False):
    with pytest.raises(FileNotFoundError, match='no checkpoint yet'):
      opening.open_all([str(workdir)], wait)[str(workdir)]()


def test_kinds_of_paths(tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text('{"task": "text_to_3d"}')
  c2w = posed_layouts.around()
  (tmp_path / 'capture').mkdir()
  posed_layouts.write_blender(
      tmp_path / 'capture', c2w, posed_layouts.points_in_front(c2w))
  trimesh.creation.box().export(tmp_path / 'box.stl')
  (tmp_path / 'mine.safetensors').write_bytes(b'')
  for path, kind in (('run', 'run'), ('capture', 'capture'),
                     ('box.stl', 'mesh'), ('mine.safetensors', 'network')):
    assert opening.kind_of(tmp_path / path) == kind
  assert opening.kind_of('shapes') == 'network'


@pytest.mark.parametrize('name, sentence', [
    ('empty', 'is neither the workdir of a run nor a capture'),
    ('notes.txt', 'notes.txt cannot be shown; give'),
    ('missing.glb', 'missing.glb is missing'),
    ('missing', 'no network of that name ships')])
def test_other_paths_are_refused(tmp_path, name, sentence):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'notes.txt').write_text('a')
  with pytest.raises(UserError, match=sentence):
    opening.kind_of(tmp_path / name)


def test_capture_is_shown_with_its_reconstruction_or_by_itself(tmp_path):
  capture, run = tmp_path / 'capture', tmp_path / 'run'
  capture.mkdir()
  run.mkdir()
  c2w = posed_layouts.around()
  posed_layouts.write_blender(
      capture, c2w, posed_layouts.points_in_front(c2w))
  (run / 'config.json').write_text(json.dumps({'task': 'text_to_3d'}))
  paths = [str(capture), str(run)]
  assert list(opening.open_all(paths)) == paths
  (run / 'config.json').write_text(json.dumps({'task': 'reconstruction'}))
  assert list(opening.open_all(paths)) == [str(run)]


def test_run_with_nothing_to_turn_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'task': 'clip'}))
  with pytest.raises(UserError, match="of the task 'clip', which has nothing"):
    opening.open_all([str(tmp_path)])[str(tmp_path)]()
