"""Prints the keys, defaults and comments of a config; what variants change.

python -m gen3d.configs
python -m gen3d.configs dreamfusion
python -m gen3d.configs dreamfusion:sd

The first lists gen3d's configs; the second prints the default variant and what
each of the others changes; the third all keys of one variant. A config is a
name of the list or the path of a file.
"""

import signal

from gen3d.engine import cli, config_files, config_text


def main(*configs: str) -> None:
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `gen3d configs | head`
  if not configs:
    print(config_text.overview())
  for config in configs:
    path, _, variant = config_files.resolve(config).partition(':')
    print(config_text.describe(path, variant))


if __name__ == '__main__':
  cli.run(main, positional=True)
