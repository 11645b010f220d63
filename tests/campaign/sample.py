"""gen3d.sample, with the shipped files of the folder $CAMPAIGN_ASSETS."""

import os
import pathlib

from gen3d import assets, sample
from gen3d.engine import cli

if __name__ == '__main__':
  assets.FOLDER = pathlib.Path(os.environ['CAMPAIGN_ASSETS'])
  cli.run(sample.main)
