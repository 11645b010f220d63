"""Where things are kept that can be made again."""

import os
import pathlib


def directory():
  """$GEN3D_CACHE, else ~/.cache/gen3d."""
  return pathlib.Path(os.environ.get('GEN3D_CACHE') or
                      pathlib.Path.home() / '.cache' / 'gen3d')
