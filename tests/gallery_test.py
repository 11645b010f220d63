"""gen3d.gallery: the page, its files and what it says."""

import base64
import functools
import html.parser
import json
import pathlib
import re
import types

import commands
import numpy as np
import pytest
import trimesh

from gen3d.choices import UserError
from gen3d.io import images, video
from gen3d.render import gallery, gallery_page

PROMPT = '<script>alert("a & b")</script> \x1b[31mchair'
VOID = {'meta', 'img', 'wbr'}


class Checker(html.parser.HTMLParser):
  """Collects links, texts and tags; fails where tags are not nested."""

  def __init__(self, text):
    super().__init__()
    self.open, self.links, self.texts, self.tags = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [value for name, value in attrs
                   if name in ('src', 'href', 'poster', 'data-mesh')]
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)


def make_run(folder, prompt, seed, finished=True):
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps({
      'task': 'text_to_3d', 'prompt': prompt, 'seed': seed, 'steps': 40,
      'guidance': {'name': 'sds', 'scale': 3.5 + seed}, 'version': 3}))
  (folder / 'checkpoints' / ('40' if finished else '20')).mkdir(parents=True)
  (folder / 'scalars.jsonl').write_text('\n'.join(
      json.dumps({'step': step, 'time': 0.0, 'opacity': step / 40,
                  'bad': float('nan')}) for step in range(1, 41)) + '\n{"ste')
  if not finished:
    (folder / 'previews').mkdir()
    images.save(folder / 'previews/20.png', np.zeros((8, 8, 3), np.uint8))
    return folder
  (folder / 'evaluation.json').write_text(json.dumps(
      {'prompt': prompt, 'iou': 0.83456, 'split': 'seen'}))
  video.save(folder / 'turntable.mp4', np.zeros((4, 16, 48, 3), np.uint8))
  images.save(folder / 'preview.png', np.zeros((8, 8, 3), np.uint8))
  trimesh.creation.box().export(folder / 'mesh.glb')
  return folder


@pytest.fixture
def written(tmp_path):
  """(folder of the page, the page's Checker, folder of the runs)."""
  runs = tmp_path / 'runs'
  make_run(runs / 'a', PROMPT, 0)
  make_run(runs / 'b', 'a blue mug', 1, finished=False)
  index = gallery.write([runs], tmp_path / 'out')
  return tmp_path / 'out', Checker(index.read_text()), runs


def test_page_is_valid_and_links_to_files_beside_it_only(written):
  out, page, _ = written
  assert page.links and not any(':' in link for link in page.links)
  for link in page.links:
    assert link.startswith('#') or (out / link).exists()
  text = (out / 'index.html').read_text()
  assert '//' not in text.replace('</', '')
  assert 'http' not in (out / 'turntable.js').read_text()


def test_texts_of_runs_are_escaped(written):
  out, page, _ = written
  assert page.tags.count('script') == 1  # turntable.js
  title, = [x for x in page.texts if x.startswith('<script>')][:1]
  assert title == '<script>alert("a & b")</script> \\x1b[31mchair'
  assert '\x1b' not in (out / 'index.html').read_text()


def test_mesh_is_embedded_for_pages_from_files(written):
  out, page, runs = written
  folder, = {pathlib.Path(link).parent for link in page.links
             if link.endswith('.glb')}
  assert str(folder) in page.links  # of the canvas
  script = (out / folder / 'mesh.js').read_text()
  name, content = re.fullmatch(
      r'gen3dMesh\("(.*)", "(.*)"\);\n', script).groups()
  assert name == str(folder)
  assert base64.b64decode(content) == (runs / 'a/mesh.glb').read_bytes()


def test_page_shows_all_objects_of_a_run(tmp_path):
  run = make_run(tmp_path / 'run', 'a mug', 0, finished=False)
  names = ['particle_1', 'particle_2', 'particle_10']
  for name in names:
    make_run(run / name, 'a mug', 0)
    (run / name / 'evaluation.json').write_text(json.dumps({'iou': 0.25}))
  index = gallery.write([run], tmp_path / 'out')
  page = Checker(index.read_text())
  assert page.tags.count('video') == page.tags.count('canvas') == 3
  assert [x for x in page.texts if x in names] == names
  assert page.texts.count('particle_10: iou') == 1
  folders = [link for link in page.links if '/' in link and '.' not in link]
  assert [folder.rpartition('/')[2] for folder in folders] == names
  for folder in folders:
    script = (tmp_path / 'out' / folder / 'mesh.js').read_text()
    assert script.startswith(f'gen3dMesh("{folder}", ')
  # Its own preview stands for a run without objects only.
  assert all('particle' in link for link in page.links
             if link.endswith('preview.png'))


def test_page_has_numbers_curves_and_what_differs(written):
  _, page, _ = written
  text = ' '.join(page.texts)
  assert '0.8346' in text and 'opacity: 1' in text and 'bad' not in text
  assert '40 steps' in text and 'step 20 of 40' in text
  assert 'configs: 3 keys' in text
  begin, end = text.index('What differs'), text.index('40 steps')
  table = text[begin:end]
  assert 'guidance.scale 3.5 4.5' in ' '.join(table.split())
  assert 'guidance.name' not in table and 'version' not in table
  assert page.tags.count('video') == page.tags.count('canvas') == 1
  assert page.tags.count('polyline') == 2


def test_second_page_replaces_the_first(written):
  out, _, runs = written
  gallery.write([runs / 'b'], out)
  assert '1 run' in (out / 'index.html').read_text()
  assert Checker((out / 'index.html').read_text()).tags.count('video') == 0


def test_curves_are_thinned_out_and_keep_the_last_point(tmp_path):
  path = tmp_path / 'scalars.jsonl'
  path.write_text('\n'.join(
      json.dumps({'step': step, 'time': 0.0, 'loss': step})
      for step in range(1, 1002)))
  points = gallery.read_curves(path)['loss']
  assert 100 < len(points) <= 200 and points[-1] == (1001, 1001)
  assert points == sorted(points)
  assert gallery.read_curves(tmp_path / 'none') == {}


def test_plot_spans_its_box_and_constants_are_in_the_middle():
  line = lambda points: np.array([
      [float(x) for x in pair.split(',')] for pair in re.search(
          'points="(.*?)"', gallery_page.plot(points))[1].split()])
  rising = line([(1, 0.0), (2, 1.0), (3, 4.0)])
  np.testing.assert_allclose(rising[:, 0], [0, 90, 180])
  assert rising[0, 1] == rising[:, 1].max() and rising[2, 1] == 2
  np.testing.assert_allclose(line([(5, 3.0), (9, 3.0)])[:, 1], 28)


def test_one_run_differs_from_none():
  run = types.SimpleNamespace(config={'a': 1}, folder='x')
  other = types.SimpleNamespace(config={'a': 1, 'b': (2,)}, folder='y')
  assert gallery_page.differences([run]) == ''
  assert '(2,)' in gallery_page.differences([run, other])


def test_command_prints_the_page_and_refuses_mistakes(tmp_path):
  run = make_run(tmp_path / 'run', 'a mug', 0)
  command = functools.partial(commands.run, 'gen3d', 'gallery')
  done = command(str(run), f'--out={tmp_path}/out')
  assert (done.returncode, done.stdout) == (0, f'{tmp_path}/out/index.html\n')
  done = command(str(run))
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert 'The flag --out is missing' in done.stderr


def test_other_folders_are_refused(tmp_path):
  run = make_run(tmp_path / 'run', 'a mug', 0)
  with pytest.raises(UserError, match='There is no run in'):
    gallery.write([run, tmp_path / 'no'], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  with pytest.raises(UserError, match='is the workdir of a run'):
    gallery.write([run], run)
