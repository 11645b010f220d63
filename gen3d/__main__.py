"""The command gen3d: `gen3d COMMAND --FLAG...` is `python -m gen3d.COMMAND`.

It imports nothing of the commands before it runs one, because JAX takes
seconds.
"""

import ast
import pathlib
import runpy
import signal
import sys

import gen3d
from gen3d import choices, notices

COMMANDS = ('train', 'sample', 'generate', 'export', 'view', 'gallery',
            'invert', 'evaluate', 'compare', 'make_data', 'sweep', 'benchmark',
            'configs')


def main() -> None:
  """Runs the command of the command line, or lists the commands."""
  name, *words = sys.argv[1:] or ['--help']
  if name == 'help' and words:  # gen3d help train
    name, words = words[0], ['--help']
  if name in ('-h', '-help', '--help', '--helpfull', '--helpshort', 'help'):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `gen3d | head`
    print(usage())
  elif name in ('-version', '--version', 'version'):
    print(f'gen3d {gen3d.__version__}')
  elif name not in COMMANDS:
    print(choices.unknown('command', COMMANDS, name), file=sys.stderr)
    sys.exit(2)
  else:
    sys.argv = [f'gen3d {name}', *words]
    notices.loading()  # until engine/cli.py runs the command
    runpy.run_module(f'gen3d.{name}', run_name='__main__', alter_sys=True)


def usage() -> str:
  """Returns the list of the commands with the title of each."""
  width = max(map(len, COMMANDS))
  return '\n'.join([
      'usage: gen3d COMMAND [--FLAG...]', '',
      *(f'  {name:{width}}  {_title(name)}' for name in COMMANDS), '',
      'gen3d COMMAND --help prints examples and flags; gen3d --version prints '
      'the version.', 'For example:',
      "  gen3d train --config=dreamfusion --config.prompt='a red chair' "
      '--workdir=runs/chair'])


def _title(name):
  """The first line of a command's docstring."""
  source = (pathlib.Path(__file__).parent / f'{name}.py').read_text()
  return (ast.get_docstring(ast.parse(source)) or '').splitlines()[0]


if __name__ == '__main__':
  main()
