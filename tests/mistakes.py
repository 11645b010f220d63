"""Mistakes of users, and what a command says to them.

`python tests/mistakes.py` makes each and prints a table in Markdown: the
mistake, what is said, the exit status. mistakes_test.py checks it.
"""

import pathlib
import subprocess
import tempfile

import commands

ROOT = pathlib.Path(__file__).parents[1]
_TRAIN = ['train', '--config=dreamfusion', '--workdir=NEW']
_INVERT = ['invert', '--network=shapes', '--out=NEW']
_GUIDANCES = ['compare', '--what=guidances', '--workdir=NEW']

# (arguments of gen3d, a part of the sentence). Words of `prepare` stand for
# files and folders; NEW is a folder that must not be made.
OF_TRAINING = [
    (['train'], 'The flag --config is missing'),
    (['train', '--config=dreamfusion'], 'The flag --workdir is missing'),
    (['train', '--config=dreamfuson', '--workdir=NEW'],
     "Did you mean 'dreamfusion'"),
    (['train', '--config=dreamfusion:shape', '--workdir=NEW'],
     "Did you mean 'shapes'"),
    (['train', '--config=MISSING.py', '--workdir=NEW'], 'MISSING'),
    (['train', '--config=', '--workdir=NEW'], "choose from ['clip'"),
    (['train', '--config=TEXT', '--workdir=NEW'], 'is no Python file'),
    (['train', '--config=NONE', '--workdir=NEW'], 'returns None; return a'),
    (['train', '--config=BROKEN', '--workdir=NEW'],
     'fails in line 2 (ZeroDivisionError: division by zero)'),
    (['train', '--config=dreamfusion', '--workdir=TEXT'], 'TEXT'),
    (['train', '--config=dreamfusion', '--workdir=TEXT/run'],
     'is not a directory that you can write to'),
    ([*_TRAIN, 'a red chair'], 'write it as the value of a flag, in quotes'),
    ([*_TRAIN, '--prompt=x'], 'write --config.prompt for that key'),
    ([*_TRAIN, '--setps=3'], 'did you mean --config.steps'),
    ([*_TRAIN, '--work_dir=a'], 'did you mean --workdir'),
    ([*_TRAIN, '--noview=1'], 'The flag --noview takes no value'),
    ([*_TRAIN, '--help=yes'], 'The flag --help takes no value'),
    ([*_TRAIN, '--config.promt=x'], "Did you mean 'prompt'?"),
    ([*_TRAIN, '--config.prompt= '], 'The prompt is empty'),
    ([*_TRAIN, '--config.steps=-1'], 'give a number from 0 on'),
    ([*_TRAIN, '--config.steps=1e3'], "steps is '1e3'; give a whole number"),
    ([*_TRAIN, '--config.seed=one'], "seed is 'one'; give a whole number"),
    ([*_TRAIN, '--config.guidance=3'], 'is a section of the config'),
    ([*_TRAIN, '--config.guidance.name=sdss'], 'guidance'),
    ([*_TRAIN, '--config.guidance.scale=large'],
     'is no schedule; write a number'),
    ([*_TRAIN, '--config.guidance.options.time_min=0.9',
      '--config.guidance.options.time_max=0.1'], 'time_min is above'),
    ([*_TRAIN, '--config.guidance.options.time_max=1.5'], 'from 0 (none) to 1'),
    ([*_TRAIN, '--config.optimizer.learning_rate=much'],
     "is 'much'; give a number"),
    ([*_TRAIN, '--config.optimizer.learning_rate=-0.1'], 'is -0.1; give a'),
    ([*_TRAIN, '--config.views=0'], '--config.views is 0; it must be at least'),
    (['train', '--config=prolific_dreamer', '--config.particles=0',
      '--workdir=NEW'], '--config.particles is 0; it must be'),
    ([*_TRAIN, '--config.scene.size=-64'], '--config.scene.size is -64'),
    ([*_TRAIN, '--config.export.resolution=1'], '--config.export.resolution'),
    ([*_TRAIN, '--config.export.fps=0'], '--config.export.fps is 0'),
    ([*_TRAIN, '--config.log_every=0'], '--config.log_every is 0'),
    ([*_TRAIN, '--config.keep_checkpoints=0'], 'keep_checkpoints is 0; it'),
    ([*_TRAIN, '--config.checkpoint_every=-1'], 'checkpoint_every is -1; it'),
    (['train', '--config=pigan:tiny', '--config.stages=3', '--workdir=NEW'],
     '--config.stages is (3,); give tuples'),
    (['train', '--config=nerf', '--config.data.path=EMPTY', '--workdir=NEW'],
     'EMPTY'),
    (['train', '--config=nerf', '--config.data.path=MISSING',
      '--workdir=NEW'], 'MISSING'),
    (['train', '--config=nerf', '--config.data.path=shapes:a car',
      '--config.batch=0', '--workdir=NEW'], '--config.batch is 0'),
    (['train', '--config=nerf', '--config.data.path=shapes:a zebra',
      '--workdir=NEW'], 'zebra'),
    (['train', '--config=clip', '--config.batch=0', '--workdir=NEW'],
     '--config.batch is 0'),
    (['train', '--config=stylegan2', '--config.resolution=48',
      '--workdir=NEW'], '--config.data.size is 64 and --config.resolution'),
    (['train', '--config=refine', '--config.scene.start_from=EMPTY',
      '--workdir=NEW'], 'There is no run in'),
    (['train', '--config=refine:tiny', '--config.scene.start_from=EMPTY',
      '--config.scene.texture.size=8', '--workdir=NEW'],
     '8 texels per side (--config.scene.texture.size)'),
    (['train', '--config=scene_tex', '--config.scene.meshes=MISSING.obj',
      '--workdir=NEW'], 'MISSING'),
]
OF_OTHERS = [
    (['trian'], "Did you mean 'train'?"),
    (['--verison'], '--verison'),
    (['configs', 'dreamfuson'], "Did you mean 'dreamfusion'"),
    (['configs', 'dreamfusion:shape'], "Did you mean 'shapes'"),
    (['sweep', '--config=dreamfusion', '--prompts=MISSING', '--workdir=NEW'],
     'MISSING cannot be read (No such file'),
    (['sweep', '--config=eg3d', '--prompts=TEXT', '--workdir=NEW'],
     'eg3d.py has no prompt'),
    (['sweep', '--config=clip', '--workdir=NEW'], 'has no sweep()'),
    (['sweep', '--prompts=TEXT', '--workdir=NEW'], '--config is missing'),
    (['export'], 'The flag --workdir is missing'),
    (['export', '--workdir=EMPTY'], 'There is no run in'),
    (['export', '--workdir=MISSING'], 'There is no run in'),
    (['export', '--workdir=EMPTY', '--resolution=4'], '--resolution'),
    (['export', '--workdir=EMPTY', '--texture=100000'], '--texture'),
    (['view'], 'There is nothing to show'),
    (['view', 'MISSING'], 'MISSING is no file or folder'),
    (['view', 'MISSING.glb'], 'MISSING.glb is missing'),
    (['view', 'TEXT'], 'cannot be shown; give a workdir'),
    (['view', 'EMPTY'], 'is neither the workdir of a run nor a capture'),
    (['view', 'shapes', '--port=80800'], '--port'),
    (['gallery'], 'There is nothing to show'),
    (['gallery', 'EMPTY'], 'The flag --out is missing'),
    (['gallery', 'EMPTY', '--out=NEW'], 'There is no run in'),
    (['generate'], 'The flag --network is missing'),
    (['generate', '--network=shapes'], 'The flag --out is missing'),
    (['generate', '--network=TEXT', '--out=NEW'], 'TEXT'),
    (['generate', '--network=shape', '--out=NEW'],
     "No network 'shape' ships with gen3d"),
    (['generate', '--network=MISSING.pkl', '--out=NEW'], 'MISSING.pkl'),
    (['generate', '--network=shapes', '--seeds=7-0', '--out=NEW'], '7-0'),
    (['generate', '--network=shapes', '--seeds=some', '--out=NEW'], 'some'),
    (['generate', '--network=shapes', '--truncation=nan', '--out=NEW'],
     '--truncation is nan; give a number'),
    (['generate', '--network=shapes', '--frames=2', '--out=NEW'], '--frames'),
    ([*_INVERT, '--azimuth=0'], 'The flag --image is missing'),
    ([*_INVERT, '--image=TEXT'], 'The camera is missing; give --camera'),
    ([*_INVERT, '--image=TEXT', '--azimuth=0'], 'TEXT'),
    ([*_INVERT, '--image=MISSING.png', '--azimuth=0'], 'MISSING.png'),
    ([*_INVERT, '--image=TEXT', '--azimuth=left'], '--azimuth'),
    ([*_INVERT, '--image=TEXT', '--azimuth=0', '--views=left'],
     '--views=left are no angles'),
    ([*_INVERT, '--image=TEXT', '--azimuth=0', '--camera=TEXT'],
     'Give --camera or --azimuth, but not both'),
    ([*_INVERT, '--image=TEXT', '--azimuth=0', '--space=z'], '--space'),
    (['sample'], 'The flag --out is missing'),
    (['sample', '--prompts= ; ', '--out=NEW'], 'No prompt'),
    (['sample', '--sampler=euler', '--out=NEW'], '--sampler'),
    (['sample', '--steps=0', '--out=NEW'], '--steps'),
    (['sample', '--path=MISSING.safetensors', '--out=NEW'], 'MISSING'),
    (['sample', '--teacher=deepfloyd', '--sides=4', '--out=NEW'],
     'The flag --sides has no effect with --teacher=deepfloyd'),
    (['evaluate', '--runs=EMPTY'], 'EMPTY'),
    (['evaluate', '--what=colors'], '--what'),
    (['evaluate', '--what=gan', '--runs=EMPTY'],
     'The flag --runs has no effect with --what=gan'),
    (['evaluate', '--what=gan', '--network=MISSING'], 'MISSING'),
    (['evaluate', '--what=fid'], '--inception'),
    (['compare'], 'The flag --workdir is missing'),
    (['compare', '--workdir=NEW'], 'The flag --data is missing'),
    (['compare', '--what=gans', '--workdir=NEW'], '--networks is missing'),
    ([*_GUIDANCES], 'The flag --prompts is missing'),
    ([*_GUIDANCES, '--prompts=a red chair', '--guidances=sdss'],
     "Did you mean 'sds'"),
    ([*_GUIDANCES, '--prompts=a red chair', '--networks=cats'],
     'The flag --networks has no effect with --what=guidances'),
    (['make_data', '--shapes'], 'The flag --out is missing'),
    (['make_data', '--out=NEW'], 'Give one of --mesh, --caption'),
    (['make_data', '--shapes', '--sheet', '--out=NEW'], 'Give one of --mesh'),
    (['make_data', '--mesh=TEXT', '--out=NEW'], 'TEXT'),
    (['make_data', '--mesh=MISSING.obj', '--out=NEW'], 'MISSING.obj'),
    (['make_data', '--caption=a zebra', '--out=NEW'], 'zebra'),
    (['make_data', '--capture=EMPTY', '--out=NEW'], 'EMPTY'),
    (['make_data', '--images=EMPTY', '--out=NEW'], 'EMPTY'),
    (['make_data', '--shapes', '--views=3', '--out=NEW'],
     'The flag --views has no effect with --shapes'),
    (['benchmark'], 'The flag --config is missing'),
    (['benchmark', '--config=nerf:rce'], "Did you mean 'race'"),
]
# (arguments of launch/quickstart.sh, a part of the sentence).
OF_QUICKSTART = [
    ([' '], 'the prompt is empty'),
    (['-x', 'a red chair'], 'the option "-x" is unknown'),
    (['--config.seed', '1'], 'has no value; write --config.seed=VALUE'),
    (['--workdir=NEW'], 'the folder is named after the prompt'),
]


def prepare(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Makes the files and folders that words of the mistakes stand for."""
  names = {'NEW': folder / 'new', 'MISSING': folder / 'missing',
           'TEXT': folder / 'notes.txt', 'EMPTY': folder / 'empty',
           'NONE': folder / 'a.py', 'BROKEN': folder / 'b.py'}
  names['TEXT'].write_text('some notes')
  for name, value in (('NONE', None), ('BROKEN', '1 / 0')):
    names[name].write_text(f'def get_config():\n  return {value}\n')
  names['EMPTY'].mkdir()
  return names


def made(words: list[str], names: dict[str, pathlib.Path]
         ) -> subprocess.CompletedProcess:
  """The process of a mistake with the command gen3d."""
  return commands.run('gen3d', *(expanded(word, names) for word in words))


def made_with_quickstart(words: list[str]) -> subprocess.CompletedProcess:
  """The process of a mistake with launch/quickstart.sh."""
  return subprocess.run(['bash', ROOT / 'launch/quickstart.sh', *words],
                        capture_output=True, text=True, timeout=60)


def expanded(text: str, names: dict[str, pathlib.Path]) -> str:
  """A text with the paths that its words stand for."""
  for name, path in names.items():
    text = text.replace(name, str(path))
  return text


def _print_table():
  print('| mistake | what is said | exit status |\n|---|---|---|')
  with tempfile.TemporaryDirectory() as folder:
    names = prepare(pathlib.Path(folder))

    def row(start, words, done):
      quoted = (f"'{word}'" if ' ' in word else word for word in words)
      said = (done.stdout + done.stderr).strip().replace(
          f'{folder}/', '').replace('\n', '<br>').replace('|', '\\|')
      print(f'| `{" ".join([start, *quoted])}` | {said} | {done.returncode} |',
            flush=True)

    for words, _ in OF_TRAINING + OF_OTHERS:
      row('gen3d', words, made(words, names))
    for words, _ in OF_QUICKSTART:
      row('quickstart.sh', words, made_with_quickstart(words))


if __name__ == '__main__':
  _print_table()
