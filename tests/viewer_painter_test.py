"""viewer.painter: what is rendered, for which window, and when it is stopped.

The Things are functions that note their calls; the windows are records.
"""

import threading
import time
import types

import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.ops.cameras import Camera
from gen3d.viewer import painter, things

HOME = Camera(np.eye(4), np.eye(3))
PATIENCE = 60.0  # seconds; nothing takes as long


class Window:
  """A window: the images that it got."""

  def __init__(self, number=1):
    self.client_id, self.images = number, []
    self.camera = types.SimpleNamespace(
        wxyz=(1.0, 0.0, 0.0, 0.0), position=(0.0, 0.0, 0.0), fov=1.0,
        image_width=200, image_height=100)
    self.scene = self

  def set_background_image(self, image, **options):
    self.images.append(image)


class Recorder:
  """A Draw: it notes its calls; sizes in `slow` wait until they are stopped."""

  def __init__(self):
    self.calls, self.stopped, self.slow = [], 0, ()

  def __call__(self, camera, aspect, size, mode, values, stopped):
    self.calls.append((camera, aspect, size, mode, dict(values)))
    while size in self.slow:
      if stopped():
        self.stopped += 1
        return None
      time.sleep(0.01)
    return np.full((size, size, 3), len(self.calls), np.uint8)


def thing(draw, **options):
  return things.Thing(
      'a thing', 'A note.', HOME, np.zeros(3), ('color', 'depth'),
      (8, 16, 32), draw, (things.Slider('seed', 0, 9, 1, 4),), **options)


def wait_until(condition):
  end = time.monotonic() + PATIENCE
  while not condition():
    assert time.monotonic() < end, 'It did not happen.'
    time.sleep(0.01)


@pytest.fixture
def studio():
  """(Painter that runs, its reports, the Things that it adopted)."""
  reports, adopted = [], []
  made = painter.Painter(reports.append, adopted.append)
  made.start()
  yield made, reports, adopted
  assert made.stop(PATIENCE)


def sizes(draw):
  return [call[2] for call in draw.calls]


def test_window_gets_a_small_image_at_once_and_larger_ones_at_rest(studio):
  made, _, adopted = studio
  draw, window = Recorder(), Window()
  made.open(lambda: thing(draw))
  made.move(window)
  wait_until(lambda: len(window.images) == 3)
  assert sizes(draw) == [8, 16, 32]
  assert [image.shape[0] for image in window.images] == [8, 16, 32]
  camera, aspect, _, mode, values = draw.calls[0]
  assert (aspect, mode, values) == (2.0, 'color', {'seed': 4})
  assert camera.c2w.shape == (4, 4) and len(adopted) == 1


def test_move_stops_the_refinement_and_renders_the_new_camera(studio):
  made, _, _ = studio
  draw, window = Recorder(), Window()
  draw.slow = (16,)
  made.open(lambda: thing(draw))
  made.move(window)
  wait_until(lambda: 16 in sizes(draw))
  window.camera.position = (0.0, 0.0, 3.0)
  made.move(window)
  wait_until(lambda: draw.stopped == 1 and len(window.images) == 2)
  assert sizes(draw)[:3] == [8, 16, 8]
  np.testing.assert_allclose(draw.calls[2][0].c2w[:3, 3], [0, 0, 3])


def test_mode_and_sliders_render_again(studio):
  made, _, _ = studio
  draw, window = Recorder(), Window()
  made.open(lambda: thing(draw))
  made.move(window)
  wait_until(lambda: len(window.images) == 3)
  made.set('depth', {'seed': 7})
  wait_until(lambda: len(window.images) == 6)
  assert {call[3:] == ('depth', {'seed': 7}) for call in draw.calls[3:]} == {
      True}


def test_each_window_gets_its_own_images_until_it_is_closed(studio):
  made, _, _ = studio
  draw, first, second = Recorder(), Window(1), Window(2)
  made.open(lambda: thing(draw))
  made.move(first)
  made.move(second)
  wait_until(lambda: len(first.images) == len(second.images) == 3)
  made.forget(first)
  made.set('depth', {})
  wait_until(lambda: len(second.images) == 6)
  assert len(first.images) == 3


def test_closed_window_gets_no_image_that_is_on_its_way(studio):
  made, _, _ = studio
  window = Window()

  def draw(camera, aspect, size, mode, values, stopped):
    made.forget(window)
    drawn.set()
    return np.zeros((size, size, 3), np.uint8)

  drawn = threading.Event()
  made.open(lambda: thing(draw))
  made.move(window)
  assert drawn.wait(PATIENCE) and made.stop(PATIENCE)
  assert not window.images


def test_newer_checkpoint_replaces_the_thing(studio, monkeypatch):
  monkeypatch.setattr(painter, '_POLL', 0.05)
  made, _, adopted = studio
  old, new, window = Recorder(), Recorder(), Window()
  arrived = threading.Event()
  made.open(lambda: thing(
      old, newer=lambda: thing(new) if arrived.is_set() else None))
  made.move(window)
  wait_until(lambda: len(window.images) == 3)
  arrived.set()
  wait_until(lambda: len(window.images) == 6)
  assert sizes(new) and len(adopted) == 2


def test_run_without_a_checkpoint_is_opened_when_it_has_one(
    studio, monkeypatch):
  monkeypatch.setattr(painter, '_POLL', 0.05)
  made, reports, adopted = studio
  draw, tries = Recorder(), []

  def opening():
    tries.append(1)
    if len(tries) < 3:
      raise FileNotFoundError('There is no checkpoint yet.')
    return thing(draw)

  made.open(opening)
  wait_until(lambda: adopted)
  assert 'There is no checkpoint yet. The page waits for it.' in reports


def test_error_of_a_thing_is_reported_and_another_can_be_opened(studio):
  made, reports, adopted = studio

  def damaged():
    raise UserError('It is damaged.')

  made.open(damaged)
  wait_until(lambda: 'It is damaged.' in reports)
  made.open(lambda: thing(Recorder()))
  wait_until(lambda: adopted)


def test_clock_of_what_is_compiled_ticks(studio, monkeypatch):
  made, reports, _ = studio
  draw, window = Recorder(), Window()
  draw.slow = (8,)
  made.open(lambda: thing(draw))
  made.move(window)
  wait_until(lambda: draw.calls)
  now = time.monotonic()
  monkeypatch.setattr(painter.time, 'monotonic', lambda: now + 70)
  made.tick()
  assert reports[-1].startswith('Compiling the mode "color" (7')
  monkeypatch.undo()
  draw.slow = ()
  wait_until(lambda: len(window.images) == 3)
  count = len(reports)
  made.tick()
  assert not any(x.startswith('Compiling') for x in reports[count:])


def test_stop_ends_an_image_that_is_rendered(studio):
  made, _, _ = studio
  draw = Recorder()
  draw.slow = (8,)
  made.open(lambda: thing(draw))
  made.move(Window())
  wait_until(lambda: draw.calls)
  assert made.stop(PATIENCE) and draw.stopped == 1 and not made.alive()
