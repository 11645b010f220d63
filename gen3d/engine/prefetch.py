"""Preparation of batches in a thread, ahead of the training step."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from jax.sharding import Mesh

from gen3d.engine.sharding import to_devices


def prefetch(
    batches: Iterable[Any], mesh: Mesh, ahead: int = 2) -> Iterator[Any]:
  """Yields batches on the devices, prepared in a thread.

  Args:
    batches: pytrees of NumPy arrays, as `sharding.to_devices` takes them.
    mesh: from `sharding.device_mesh`.
    ahead: number of batches that may wait on the devices.

  Raises:
    Exception: any error of `batches`, in the consumer's thread.
  """
  ready = queue.Queue(ahead)
  stop = threading.Event()

  def put(item):
    # With a timeout: the consumer may end while the queue is full.
    while not stop.is_set():
      try:
        return ready.put(item, timeout=.1)
      except queue.Full:
        continue

  def fill():
    try:
      for batch in batches:
        put((to_devices(batch, mesh), None))
        if stop.is_set():
          return
      put((None, StopIteration()))
    except Exception as error:
      put((None, error))

  thread = threading.Thread(target=fill, daemon=True)
  thread.start()
  try:
    while True:
      batch, error = ready.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield batch
  finally:
    stop.set()
    thread.join(timeout=60)
