"""The command gen3d.view, and its page on a server without a browser."""

import contextlib
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request

import blob_generator
import numpy as np
import pytest
import trimesh
import viser

from gen3d.choices import UserError
from gen3d.ops import cameras
from gen3d.viewer import page, screen, things

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 60.0  # seconds; nothing takes as long


# A test run in the background ignores SIGINT, and its children would, too.
PROGRAM = '''
import signal
from gen3d import __main__
signal.signal(signal.SIGINT, signal.default_int_handler)
__main__.main()
'''


def view(*words):
  return subprocess.Popen(
      [sys.executable, '-c', PROGRAM, 'view', *words], text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)


def test_page_of_a_mesh_is_served_until_ctrl_c(tmp_path):
  trimesh.creation.box().export(tmp_path / 'box.glb')
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    process = view(str(tmp_path / 'box.glb'), f'--port={port}')
    try:
      lines = [process.stdout.readline() for _ in range(3)]
      assert lines[0].startswith(f'Port {port} is in use; the next free one is')
      url = re.search(r'http://127\.0\.0\.1:\d+', lines[1])[0]
      assert f'ssh -L {url[17:]}:127.0.0.1:{url[17:]} ' in lines[2]
      with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        assert answer.status == 200 and b'<html' in answer.read()
    finally:
      process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE)
  assert (process.returncode, stdout, stderr) == (0, '', '')


def test_path_that_cannot_be_shown_is_one_sentence():
  process = view('no_such_run')
  stdout, stderr = process.communicate(timeout=PATIENCE)
  assert process.returncode == 2 and not stdout
  assert stderr.startswith('no_such_run is no file or folder')
  assert stderr.count('\n') == 1


def test_run_without_a_checkpoint_names_the_flag_that_waits():

  def early():
    raise FileNotFoundError('The run in a has no checkpoint yet.')

  with pytest.raises(FileNotFoundError, match='yet. With --wait the page'):
    page.serve({'a': early})


class Window:
  """What the page uses of viser's ClientHandle."""

  def __init__(self, home):
    self.client_id, self.images, self.scene = 1, [], self
    wxyz, position = screen.to_browser(home.c2w)
    self.camera = types.SimpleNamespace(
        wxyz=wxyz, position=position,
        fov=screen.field_of_view(home.intrinsics[1, 1]), image_width=60,
        image_height=40, on_update=self.keep)

  def keep(self, callback):
    self.moved = callback

  def set_background_image(self, image, **options):
    del options
    self.images.append(image)


def wait_until(condition):
  end = time.monotonic() + PATIENCE
  while not condition():
    assert time.monotonic() < end, 'It did not happen.'
    time.sleep(0.01)


@contextlib.contextmanager
def served(openings):
  server = viser.ViserServer('127.0.0.1', page.free_port('127.0.0.1', 8931),
                             verbose=False)
  shown = page.Page(server, openings)
  shown.painter.start()
  try:
    yield shown, server
  finally:
    assert shown.painter.stop(PATIENCE)
    server.stop()


def test_window_gets_images_of_its_camera_mode_and_seed():
  opening = lambda: things.of_generator('a', 'b', blob_generator.trained())
  size = blob_generator.SIZE
  with served({'ball': opening}) as (shown, server):
    shown.show('ball')
    window = Window(opening().home)
    shown._connect(window)
    wait_until(lambda: window.images and window.images[-1].shape == (
        size, size + size // 2, 3))
    first = window.images[-1].astype(int)
    # The camera of the browser's first view is the network's own.
    place = server.initial_camera
    np.testing.assert_allclose(
        cameras.angles(np.float32(place.position))[2],
        blob_generator.CAMERA['distance'], rtol=1e-4)
    shown._sliders['seed'].value = 7
    shown._changed()
    wait_until(lambda: window.images[-1].shape == first.shape and np.abs(
        window.images[-1] - first).max() > 30)
    shown._mode.value = 'depth'
    shown._changed()
    wait_until(lambda: window.images[-1][0, 0, 0] == 0)
    count = len(window.images)
    window.moved(types.SimpleNamespace(client=window))
    wait_until(lambda: len(window.images) > count)


def test_controls_and_meshes_are_those_of_the_thing_that_is_shown(tmp_path):
  trimesh.creation.box().export(tmp_path / 'box.glb')
  openings = {
      'ball': lambda: things.of_generator('a', 'b', blob_generator.trained()),
      'box': lambda: things.of_mesh(tmp_path / 'box.glb')}
  with served(openings) as (shown, _):
    shown.show('ball')
    wait_until(lambda: 'seed' in shown._sliders)
    shown.show('box')
    wait_until(lambda: list(shown._meshes) == [
        'color', 'normal', 'textureless'] and shown._mode)
    assert not shown._sliders
    shown._mode.value = 'normal'
    shown._changed()
    visible = {mode: [handle.visible for handle in handles]
               for mode, handles in shown._meshes.items()}
    assert visible == {
        'color': [False], 'normal': [True], 'textureless': [False]}


def test_hosts_and_ports_that_cannot_be_used(monkeypatch):
  with pytest.raises(UserError, match='no address of this machine'):
    page.free_port('203.0.113.9', 8000)
  monkeypatch.setattr(page, '_PORTS', 1)
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match='are in use; give another --port'):
      page.free_port('127.0.0.1', port)


def test_missing_viser_is_one_sentence(monkeypatch):
  monkeypatch.setitem(sys.modules, 'viser', None)
  with pytest.raises(UserError, match='run pip install viser'):
    page.import_viser()


def test_address_for_other_machines_has_no_tunnel():
  assert 'ssh' not in page.address('192.0.2.1', 80, 80)
  assert 'ssh -L 81:127.0.0.1:81 ' in page.address('0.0.0.0', 81, 81)


def test_page_beside_a_training_ends_with_an_error_of_it(
    tmp_path, monkeypatch):
  started, ended = [], []

  class Process:

    def __init__(self, words, env):
      started.append((words[2:], env['JAX_PLATFORMS']))

    def terminate(self):
      ended.append('terminate')

    def wait(self):
      ended.append('wait')

  monkeypatch.setattr(page.subprocess, 'Popen', Process)
  with pytest.raises(KeyError), page.beside(tmp_path / 'run'):
    raise KeyError('a')
  assert started == [
      (['gen3d', 'view', '--wait', str(tmp_path / 'run')], 'cpu')]
  assert ended == ['terminate', 'wait']
