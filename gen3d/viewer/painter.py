"""The thread that renders for the page: the only one that runs JAX.

Callbacks of viser only leave notes; so no callback waits for a compilation,
and nothing is rendered for a camera that has moved on.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from gen3d.choices import UserError
from gen3d.viewer import screen
from gen3d.viewer.things import Thing

_REST = 0.25  # seconds after which a camera that does not move is at rest
_POLL = 2.0  # seconds between two checks for a newer checkpoint
_RATE = 0.3  # weight of the newest time among the measured ones


class _Window:
  """A browser's window: what it needs next."""

  def __init__(self, client):
    self.client = client
    self.moved = 0.0  # when, by the monotonic clock
    self.size: int | None = 0  # last rendered; None where nothing is left


class Painter:
  """Renders a Thing for the windows that show it.

  Args of the constructor:
    report: (sentence) -> None, for the status of the page.
    adopt: (Thing) -> None, called where a newer checkpoint has replaced it.
  """

  def __init__(self, report: Callable[[str], None],
               adopt: Callable[[Thing], None]):
    self._report, self._adopt = report, adopt
    self._condition = threading.Condition()
    self._windows: dict[int, _Window] = {}
    self._thing: Thing | None = None
    self._opening: Callable[[], Thing] | None = None
    self._mode, self._values = '', {}
    self._seconds: dict[tuple[str, int], float] = {}
    self._drawn: set[tuple[str, int]] = set()  # modes and sizes
    self._ended, self._version, self._looked = False, 0, 0.0
    # What takes long, and since when.
    self._busy: tuple[str, float] | None = None
    self._thread = threading.Thread(target=self._work, daemon=True)

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def stop(self, seconds: float = 20.0) -> bool:
    """Ends the thread; returns whether it ended within a time."""
    with self._condition:
      self._ended = True
      self._condition.notify()
    self._thread.join(seconds)
    return not self._thread.is_alive()

  def alive(self) -> bool:
    """Whether the thread runs: an error that is a bug ends it."""
    return self._thread.is_alive()

  def tick(self) -> None:
    """Reports for how long the thread has been at what takes long."""
    busy = self._busy
    if busy:
      text, since = busy
      self._report(f'{text} ({time.monotonic() - since:.0f} s) ...')

  def open(self, opening: Callable[[], Thing]) -> None:
    """Opens another Thing, in the thread; `adopt` is called with it."""
    with self._condition:
      self._opening, self._thing = opening, None
      self._version += 1
      self._condition.notify()

  def set(self, mode: str, values: Mapping[str, float]) -> None:
    """Sets the mode and the numbers of the sliders."""
    with self._condition:
      self._mode, self._values = mode, dict(values)
      self._all_again()

  def move(self, client: Any) -> None:
    """The camera of a window has moved, or the window is new."""
    with self._condition:
      window = self._windows.setdefault(client.client_id, _Window(client))
      window.client, window.moved, window.size = client, time.monotonic(), 0
      self._condition.notify()

  def forget(self, client: Any) -> None:
    """A window is closed."""
    with self._condition:
      self._windows.pop(client.client_id, None)

  def _all_again(self):
    self._version += 1
    for window in self._windows.values():
      window.size = 0
    self._condition.notify()

  def _work(self):
    while True:
      with self._condition:
        if self._ended:
          return
        opening, self._opening = self._opening, None
        job = None if opening else self._next_job()
        if not opening and not job:
          self._condition.wait(self._patience())
      if opening:
        self._open(opening)
      elif job:
        self._paint(*job)
      self._look_for_newer()

  def _next_job(self):
    """Arguments of `_paint` for the image that is most urgent, or None."""
    if not (self._thing and self._thing.draw and self._mode):
      return None
    now = time.monotonic()
    waiting = [w for w in self._windows.values() if w.size is not None and (
        w.size == 0 or now - w.moved >= _REST)]
    if not waiting:
      return None
    window = min(waiting, key=lambda w: (w.size, w.moved))
    larger = [x for x in self._thing.sizes if x > (window.size or 0)]
    size = larger[0] if window.size else screen.choose_size(
        self._thing.sizes, {size: seconds for (mode, size), seconds
                            in self._seconds.items() if mode == self._mode})
    return self._thing, window, size, self._version

  def _patience(self):
    """Seconds until there may be something to do without a notice."""
    resting = any(w.size is not None for w in self._windows.values())
    return _REST if resting else _POLL

  def _paint(self, thing, window, size, version):
    """Renders an image of a window, and sends it."""
    mode, values = self._mode, self._values
    moved, client = window.moved, window.client
    first = window.size == 0

    def outdated():
      return self._ended or version != self._version or window.moved != moved

    camera = client.camera
    aspect = camera.image_width / max(camera.image_height, 1)
    # The time of the first image may include a compilation: it is not counted.
    new = (mode, size) not in self._drawn
    self._drawn.add((mode, size))
    begin = time.monotonic()
    if new and first:
      self._busy = f'Compiling the mode "{mode}"', begin
      self.tick()
    # The first image after a move is finished in any case: a camera that
    # moves all the time would else never have one.
    stopped = (lambda: self._ended) if first else outdated
    image = thing.draw(
        screen.from_browser(camera.wxyz, camera.position, camera.fov, aspect),
        aspect, size, mode, values, stopped)
    self._busy = None
    if image is None or self._windows.get(client.client_id) is not window:
      return  # Stopped, or the window was closed meanwhile.
    seconds = time.monotonic() - begin
    client.scene.set_background_image(image, format='jpeg', jpeg_quality=90)
    if not new:
      before = self._seconds.get((mode, size), seconds)
      self._seconds[mode, size] = (1 - _RATE) * before + _RATE * seconds
    with self._condition:
      if version == self._version and window.moved == moved:
        window.size = size if size < thing.sizes[-1] else None
    rate = f', {1 / max(seconds, 1e-3):.1f} images a second'
    self._report(f'{size} pixels a side{rate if first and not new else ""}.')

  def _open(self, opening):
    """Opens a Thing; until it can be opened, its error is the status."""
    self._busy = 'Opening', time.monotonic()
    self.tick()
    try:
      thing = opening()
      self._busy = None
    except (UserError, OSError) as error:
      self._busy = None
      # A run without a checkpoint.
      early = isinstance(error, FileNotFoundError)
      self._report(f'{error} The page waits for it.' if early else str(error))
      with self._condition:
        if self._opening is None and early:
          self._condition.wait(_POLL)
          if self._opening is None:
            self._opening = opening
      return
    self._seconds, self._drawn = {}, set()
    self._replace(thing)
    self._report('')

  def _replace(self, thing):
    with self._condition:
      if self._opening is not None:
        return  # Another one was asked for.
      self._thing = thing
      if self._mode not in thing.modes:
        self._mode = thing.modes[0] if thing.modes else ''
      self._values = {
          s.name: self._values.get(s.name, s.value) for s in thing.sliders}
      self._all_again()
    self._adopt(thing)

  def _look_for_newer(self):
    """Replaces a run's Thing where a newer checkpoint has arrived."""
    now = time.monotonic()
    if self._thing is None or now - self._looked < _POLL:
      return
    self._looked = now
    try:
      newer = self._thing.newer()
    except (UserError, OSError):
      return  # It is being written, or was deleted meanwhile.
    if newer is not None:
      self._replace(newer)
