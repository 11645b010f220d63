"""Prefetching: order, errors and the end of the thread."""

import threading

import numpy as np
import pytest

from gen3d.engine import sharding
from gen3d.engine.prefetch import prefetch


def test_prefetch_keeps_the_order_and_raises_errors_in_the_consumer():
  mesh = sharding.device_mesh()

  def batches():
    for i in range(5):
      yield np.full(2, i)
    raise ValueError('out of images')

  received = []
  with pytest.raises(ValueError, match='out of images'):
    for batch in prefetch(batches(), mesh):
      received.append(int(batch[0]))
  assert received == [0, 1, 2, 3, 4]


def test_closing_ends_the_thread():
  before = threading.active_count()
  ready = prefetch((np.full(2, i) for i in range(100)), sharding.device_mesh())
  next(ready)
  assert threading.active_count() == before + 1
  ready.close()
  assert threading.active_count() == before
