"""Candidates for the weights that ship with the package."""

import os
import pathlib
from typing import Any

import ml_collections

from gen3d import assets
from gen3d.engine import report
from gen3d.engine.state import TrainState


def save_release(
    asset: pathlib.Path, config: ml_collections.ConfigDict, state: TrainState,
    workdir: str | os.PathLike, *, weights: Any = None, **more: Any
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes the averaged weights into the workdir, named as the asset.

  Args:
    asset: path in gen3d/assets for which this is a candidate.
    config: ConfigDict of the run, with `batch`.
    state: TrainState.
    workdir: the run's directory.
    weights: pytree to save; None for the averaged weights, state.ema.
    **more: further entries of the record beside the weights.

  Returns:
    The paths of the weights and of their record.
  """
  steps = int(state.step)
  record = {'model': asset.stem, 'config': config.to_dict(), 'steps': steps,
            'images_seen': steps * config.batch,
            **report.provenance(workdir), **more}
  if config.get('start_from'):
    record = _merge_history(record, config.start_from)
  return assets.save(
      pathlib.Path(workdir) / asset.name,
      state.ema if weights is None else weights, record, 'float16')


def _merge_history(record, start_from):
  """Returns the record of a training that began with another one's weights.

  Images and hours are those of all trainings together; the records of the
  earlier ones are listed under 'earlier', oldest first. A record that was made
  otherwise may lack images and hours, which then count as 0.
  """
  _, before = assets.load(start_from)
  earlier = before.pop('earlier', [])
  config = {**record['config'], 'start_from': before['sha256']}
  total = {name: record[name] + before.get(name, 0)
           for name in ('images_seen', 'hours')}
  return {**record, 'config': config, 'images_seen': total['images_seen'],
          'hours': round(total['hours'], 2), 'earlier': [*earlier, before]}
