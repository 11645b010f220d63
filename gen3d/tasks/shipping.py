"""The end of a training whose weights ship with the package."""

import pathlib

from gen3d.engine import checkpoints, report


def ship(asset, config, state, workdir, **more):
  """Writes the averaged weights into the workdir, named as the asset.

  Args:
    asset: path in gen3d/assets for which this is a candidate.
    config: ConfigDict of the run, with `batch`.
    state: TrainState.
    workdir: the run's directory.
    **more: what else the record beside the weights tells.

  Returns:
    The two paths written.
  """
  record = {'model': asset.stem, 'config': config.to_dict(),
            'steps': int(state.step),
            'images_seen': int(state.step) * config.batch,
            **report.provenance(workdir), **more}
  return checkpoints.save_asset(
      pathlib.Path(workdir) / asset.name, state.ema, record, 'float16')
