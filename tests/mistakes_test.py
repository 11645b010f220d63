"""Typical mistakes: one sentence with a remedy, status 2, before the work."""


import commands

TRAIN = ['train', '--config=dreamfusion', '--workdir=NEW']
# (arguments, a part of the sentence); NEW is a folder that must not be made,
# TEXT a text file, EMPTY an empty folder.
MISTAKES = [
    (['trian'], "Did you mean 'train'?"),
    (['train', '--config=dreamfuson', '--workdir=NEW'],
     "Did you mean 'dreamfusion'"),
    ([*TRAIN, '--config.promt=x'], "Did you mean 'prompt'?"),
    ([*TRAIN, '--prompt=x'], 'write --config.prompt for that key'),
    (['train', '--config=TEXT', '--workdir=NEW'], 'is no Python file'),
    ([*TRAIN, '--config.steps=-1'], 'give a number from 0 on'),
    ([*TRAIN, '--config.steps=1e3'], "steps is '1e3'; give a whole number"),
    ([*TRAIN, '--config.optimizer.learning_rate=much'],
     "is 'much'; give a number"),
    ([*TRAIN, '--noview=1'], 'The flag --noview takes no value'),
    ([*TRAIN, '--help=yes'], 'The flag --help takes no value'),
    ([*TRAIN, '--config.keep_checkpoints=0'], 'keep_checkpoints is 0; it must'),
    ([*TRAIN, '--config.checkpoint_every=-1'], 'checkpoint_every is -1; it'),
    ([*TRAIN, '--config.guidance.options.time_min=0.9',
      '--config.guidance.options.time_max=0.1'], 'time_min is above'),
    (['train', '--config=NONE', '--workdir=NEW'], 'returns None; return a'),
    (['train', '--config=BROKEN', '--workdir=NEW'],
     'fails in line 2 (ZeroDivisionError: division by zero)'),
    (['train', '--config=pigan:tiny', '--config.stages=3', '--workdir=NEW'],
     '--config.stages is (3,); give tuples'),
    ([*TRAIN, '--config.guidance=3'], 'is a section of the config'),
    ([*TRAIN, '--config.optimizer.learning_rate=-0.1'], 'is -0.1; give a'),
    (['train', '--config=', '--workdir=NEW'], "choose from ['clip'"),
    ([*TRAIN, '--config.views=0'], '--config.views is 0; it must be at least'),
    ([*TRAIN, '--config.scene.size=-64'], '--config.scene.size is -64'),
    ([*TRAIN, '--config.export.resolution=1'], '--config.export.resolution'),
    ([*TRAIN, '--config.log_every=0'], '--config.log_every is 0'),
    ([*TRAIN, '--config.guidance.scale=large'],
     'is no schedule; write a number'),
    ([*TRAIN, '--config.guidance.options.time_max=1.5'], 'from 0 (none) to 1'),
    ([*TRAIN, '--config.prompt= '], 'The prompt is empty'),
    (['train', '--config=nerf', '--config.data.path=EMPTY', '--workdir=NEW'],
     'EMPTY'),
    (['train', '--config=nerf', '--config.data.path=shapes:a car',
      '--config.batch=0', '--workdir=NEW'], '--config.batch is 0'),
    (['train', '--config=clip', '--config.batch=0', '--workdir=NEW'],
     '--config.batch is 0'),
    (['train', '--config=stylegan2', '--config.resolution=48',
      '--workdir=NEW'], '--config.data.size is 64 and --config.resolution'),
    (['train', '--config=refine:tiny', '--config.scene.start_from=EMPTY',
      '--config.scene.texture.size=8', '--workdir=NEW'],
     '8 texels per side (--config.scene.texture.size)'),
    ([*TRAIN, 'a red chair'], 'write it as the value of a flag, in quotes'),
    (['sweep', '--config=dreamfusion', '--prompts=MISSING', '--workdir=NEW'],
     'MISSING cannot be read (No such file'),
    (['sweep', '--config=eg3d', '--prompts=TEXT', '--workdir=NEW'],
     'eg3d.py has no prompt'),
    (['export', '--workdir=EMPTY'], 'There is no run in'),
    (['generate', '--network=TEXT', '--out=NEW'], 'TEXT'),
    (['generate', '--network=shapes', '--seeds=7-0', '--out=NEW'], '7-0'),
    (['evaluate', '--runs=EMPTY'], 'EMPTY'),
    (['make_data', '--mesh=TEXT', '--out=NEW'], 'TEXT')]


def test_mistakes_get_one_sentence_and_make_nothing(tmp_path):
  names = {'NEW': tmp_path / 'new', 'TEXT': tmp_path / 'notes.txt',
           'EMPTY': tmp_path / 'empty', 'NONE': tmp_path / 'a.py',
           'BROKEN': tmp_path / 'b.py'}
  names['TEXT'].write_text('some notes')
  for name, value in (('NONE', None), ('BROKEN', '1 / 0')):
    names[name].write_text(f'def get_config():\n  return {value}\n')
  names['EMPTY'].mkdir()

  def expanded(text):
    for name, path in names.items():
      text = text.replace(name, str(path))
    return text

  for words, part in MISTAKES:
    words = [expanded(word) for word in words]
    done = commands.run('gen3d', *words)
    text = done.stdout + done.stderr
    assert done.returncode == 2 and expanded(part) in text, (words, text)
    assert 'Traceback' not in text and text.count('\n') == 1, (words, text)
  assert not names['NEW'].exists() and not any(names['EMPTY'].iterdir())
