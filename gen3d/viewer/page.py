"""The page in the browser, by viser: controls, cameras, photographs, meshes."""

import contextlib
import errno
import importlib
import io
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np

from gen3d import notices
from gen3d.choices import UserError
from gen3d.viewer import screen
from gen3d.viewer.painter import Painter
from gen3d.viewer.things import Slider, Thing

PORT = 8080
_PORTS = 20  # that are tried from the one asked for on
_FRUSTUM = 0.07  # size of a frustum, in distances of its camera
_ORANGE = (230, 120, 20)


class Page:
  """The page of several Things, of which one is shown.

  Args of the constructor:
    server: viser.ViserServer.
    openings: {title: function that opens the Thing}.
  """

  def __init__(self, server: Any,
               openings: Mapping[str, Callable[[], Thing]]):
    self._server, self._openings = server, dict(openings)
    self.painter = Painter(self._report, self._adopt)
    self._thing: Thing | None = None
    self._controls: list[Any] = []   # of the Thing that is shown
    self._sliders: dict[str, Any] = {}
    self._mode: Any = None
    self._nodes: list[Any] = []      # of its scene
    self._meshes: dict[str, list[Any]] = {}
    server.scene.set_up_direction('+y')
    _light(server.scene)
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    if len(self._openings) > 1:
      choice = server.gui.add_dropdown('object', list(self._openings))
      choice.on_update(lambda event: self.show(event.target.value))
    self._note = server.gui.add_markdown('')
    self._status = server.gui.add_markdown('')
    server.on_client_connect(self._connect)
    server.on_client_disconnect(self.painter.forget)

  def show(self, title: str) -> None:
    """Opens a Thing, in the painter's thread."""
    self.painter.open(self._openings[title])

  def _connect(self, client):
    self._fit(client.camera)
    client.camera.on_update(lambda camera: self.painter.move(camera.client))
    self.painter.move(client)

  def _report(self, sentence):
    if self._status.content != sentence:
      self._status.content = sentence

  def _adopt(self, thing):
    """Shows a Thing, or the newer state of the one that is shown."""
    before, self._thing = self._thing, thing
    self._note.content = f'**{_plain(thing.title)}**\n\n{thing.note}'
    if before is not None and (before.title, before.sliders, before.modes) == (
        thing.title, thing.sliders, thing.modes):
      return
    for handle in (*self._controls, *self._nodes):
      handle.remove()
    self._add_controls(thing)
    self._add_photographs(thing)
    self._meshes = {
        mode: [self._server.scene.add_glb(
            f'/mesh/{mode}/{number}', content, visible=mode == thing.modes[0])
               for number, content in enumerate(parts)]
        for mode, parts in thing.meshes.items()}
    self._nodes += [x for handles in self._meshes.values() for x in handles]
    self._set_cameras(thing)
    self._changed()

  def _add_controls(self, thing):
    gui = self._server.gui
    self._controls, self._sliders, self._mode = [], {}, None
    if len(thing.modes) > 1:
      self._mode = gui.add_dropdown('mode', list(thing.modes))
      self._controls.append(self._mode)
    for slider in thing.sliders:
      self._sliders[slider.name] = _add_slider(gui, slider)
    self._controls += self._sliders.values()
    for control in self._controls:
      control.on_update(lambda event: self._changed())

  def _changed(self):
    """The mode or a slider has changed."""
    thing = self._thing
    if thing is None:
      return
    mode = self._mode.value if self._mode else next(iter(thing.modes), '')
    for name, handles in self._meshes.items():
      for handle in handles:
        handle.visible = name == mode
    self.painter.set(mode, {
        name: handle.value for name, handle in self._sliders.items()})

  def _add_photographs(self, thing):
    """Frustums with their pictures, and a switch for them."""
    self._nodes = []
    distance = np.linalg.norm(
        [p.c2w[:3, 3] - thing.center for p in thing.photographs], axis=-1)
    for number, photograph in enumerate(thing.photographs):
      wxyz, position = screen.to_browser(photograph.c2w)
      fx, fy = photograph.intrinsics[0, 0], photograph.intrinsics[1, 1]
      self._nodes.append(self._server.scene.add_camera_frustum(
          f'/photographs/{number}', screen.field_of_view(fy), fy / fx,
          scale=_FRUSTUM * float(np.median(distance)), thickness=1.5,
          thickness_units='screen', color=_ORANGE, image=photograph.picture,
          wxyz=wxyz, position=position))
    if thing.photographs:
      switch = self._server.gui.add_checkbox('photographs', True)
      frustums = list(self._nodes)
      switch.on_update(lambda event: _set_visible(frustums, switch.value))
      self._controls.append(switch)

  def _set_cameras(self, thing):
    """Moves the windows' cameras to the first view of a Thing."""
    place = self._server.initial_camera
    position = np.asarray(thing.home.c2w, np.float64)[:3, 3]
    place.position, place.look_at = position, thing.center
    place.fov = _field_of_view(thing)
    for client in self._server.get_clients().values():
      camera = client.camera
      camera.position, camera.look_at = position, thing.center
      self._fit(camera)
      camera.up_direction = (0.0, 1.0, 0.0)
      if thing.draw is None:
        client.scene.set_background_image(None)

  def _fit(self, camera):
    """Sets the field of view of a window to that of the Thing."""
    if self._thing is not None:
      camera.fov = screen.fitting(
          _field_of_view(self._thing),
          camera.image_width / max(camera.image_height, 1))


def _field_of_view(thing):
  """Of a Thing's first view, in radians."""
  return screen.field_of_view(float(thing.home.intrinsics[1, 1]))


def _light(scene):
  """Lights for meshes. viser's own are so bright that colors become pale."""
  scene.configure_default_lights(enabled=False)
  scene.configure_environment_map(None)
  scene.add_light_hemisphere(
      '/lights/sky', ground_color=(110, 110, 110), intensity=2.4,
      position=(0.0, 1.0, 0.0))
  scene.add_light_directional(
      '/lights/sun', intensity=1.2, position=(2.0, 3.0, 4.0))


def _add_slider(gui, slider: Slider):
  return gui.add_slider(
      slider.name, slider.low, slider.high, slider.step, slider.value)


def _set_visible(handles, visible):
  for handle in handles:
    handle.visible = visible


def _plain(text):
  """A text without the characters of Markdown and HTML."""
  return ''.join(c if c.isalnum() or c in " .,'/-" else ' ' for c in text)


def serve(openings: Mapping[str, Callable[[], Thing]], *,
          host: str = '127.0.0.1', port: int = PORT,
          wait: bool = False) -> None:
  """Shows Things on a page until Ctrl-C.

  Args:
    openings: {title: function that opens the Thing}, the first is shown first.
    host: address to listen to.
    port: the next free one is taken where it is in use.
    wait: whether to wait for the first Thing, a run without a checkpoint.

  Raises:
    UserError: viser is not installed, there is no free port or the first
      Thing cannot be opened.
    FileNotFoundError: the first Thing is a run without a checkpoint.
  """
  viser = import_viser()
  first = next(iter(openings))
  opening = openings[first]
  try:
    with notices.slow('Opening what is shown'):
      opened = opening()
    opening = lambda: opened
  except FileNotFoundError as error:
    if not wait:
      raise FileNotFoundError(
          f'{error} With --wait the page waits for it.') from error
  free = free_port(host, port)
  with contextlib.redirect_stdout(io.StringIO()):  # It prints a table.
    server = viser.ViserServer(host, free, label='gen3d', verbose=False)
  page = Page(server, openings)
  page.painter.start()
  page.painter.open(opening)
  notices.attended()
  print(address(host, free, port), flush=True)
  try:
    while page.painter.alive():
      page.painter.tick()
      time.sleep(0.5)
    raise RuntimeError('The thread that renders has ended.')
  except KeyboardInterrupt:
    pass
  ended = page.painter.stop(4.0)  # before Ctrl-C counts as unanswered
  with contextlib.redirect_stdout(io.StringIO()):
    server.stop()
  if not ended:  # A compilation cannot be interrupted, nor Python end in it.
    os._exit(0)


def import_viser() -> Any:
  """The module viser.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module('viser')
  except ImportError as error:
    raise UserError('gen3d view needs the package viser, which is not '
                    'installed; run pip install viser.') from error


def free_port(host: str, port: int) -> int:
  """The first free port from `port` on.

  Raises:
    UserError: the host is none of this machine, or no port is free.
  """
  for candidate in range(port, min(port + _PORTS, 2 ** 16)):
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        probe.bind((host, candidate))
        return candidate
      except socket.gaierror as error:
        raise UserError(f'The host {host!r} is not known; give an address of '
                        'this machine, such as 127.0.0.1.') from error
      except PermissionError as error:
        raise UserError(f'The port {candidate} needs more rights; give '
                        '--port=8080.') from error
      except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
          raise UserError(f'{host} is no address of this machine; give '
                          '--host=127.0.0.1.') from error
  raise UserError(f'The ports {port} to {port + _PORTS - 1} are in use; give '
                  'another --port.')


def address(host: str, port: int, wanted: int) -> str:
  """The lines to print: URL, and how to reach it from another machine."""
  name = '127.0.0.1' if host in ('0.0.0.0', '::') else host
  lines = [f'Port {wanted} is in use; the next free one is {port}.'
           ] if port != wanted else []
  lines.append(f'Open http://{name}:{port} in a browser; Ctrl-C ends.')
  if name == '127.0.0.1':
    lines.append(
        'If this machine is a remote one, first run on yours: '
        f'ssh -L {port}:127.0.0.1:{port} USER@{socket.gethostname()}')
  return '\n'.join(lines)


@contextlib.contextmanager
def beside(workdir: str | os.PathLike) -> Generator[None]:
  """Shows a run that trains in the block, and afterwards until Ctrl-C.

  The page is a process of its own, on the CPU: the training keeps the
  accelerator, and an error of one does not end the other.
  """
  import_viser()
  workdir = pathlib.Path(workdir).absolute()
  page = subprocess.Popen(
      [sys.executable, '-m', 'gen3d', 'view', '--wait', str(workdir)],
      env={**os.environ, 'JAX_PLATFORMS': 'cpu',
           'PYTHONPATH': os.pathsep.join(filter(None, sys.path))})
  try:
    yield
    if page.poll() is None:
      notices.message('The training is done; the page stays open until '
                      'Ctrl-C.')
      page.wait()
  finally:
    page.terminate()
    with contextlib.suppress(KeyboardInterrupt):
      page.wait()
