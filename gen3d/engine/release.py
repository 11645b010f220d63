"""The end of a training whose weights ship with the package."""

import pathlib

from gen3d import assets
from gen3d.engine import report


def save_release(asset, config, state, workdir, *, weights=None, **more):
  """Writes the averaged weights into the workdir, named as the asset.

  Args:
    asset: path in gen3d/assets for which this is a candidate.
    config: ConfigDict of the run, with `batch`.
    state: TrainState.
    workdir: the run's directory.
    weights: pytree to save; None for the averaged weights, state.ema.
    **more: what else the record beside the weights tells.

  Returns:
    The two paths written.
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
  """The record of a training that began with another one's weights.

  Pictures and hours are counted together; how the earlier ones were trained
  is kept under 'earlier', oldest first.
  """
  _, before = assets.load(start_from)
  earlier = before.pop('earlier', [])
  config = {**record['config'], 'start_from': before['sha256']}
  return {**record, 'config': config,
          'images_seen': record['images_seen'] + before['images_seen'],
          'hours': round(record['hours'] + before['hours'], 2),
          'earlier': [*earlier, before]}
