"""CLIP R-Precision of finished runs: the whole command, and refusals."""

import json
import os
import pathlib
import subprocess
import sys

import clip_folders
import jax
import numpy as np
import pytest

from configs import dreamfusion as configs
from gen3d.data.shapes import world as shapes_world
from gen3d.engine import checkpoints
from gen3d.evaluation import r_precision
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.metrics import text as text_metrics
from gen3d.models import clip_pair
from gen3d.ops import cameras
from gen3d.tasks import text_to_3d

PROMPTS = ('A red chair', 'a blue car')
CAPTIONS = ['a green tree.', 'a red chair.', 'two mugs.', 'a blue car.']
VIEW = text_metrics.DREAM_FIELDS


def make_run(folder, prompt, seed):
  """A finished run of the tiny variant, of no steps: what a scene begins as."""
  config = configs.get_config('tiny')
  config.prompt = prompt
  config.scene.size, config.scene.importance.samples = 8, 0
  state = text_to_3d.make(config).init(jax.random.key(seed))
  saving = checkpoints.Checkpoints(folder)
  saving.save(state)
  saving.close()
  (folder / 'config.json').write_text(config.to_json())
  (folder / 'finished.json').write_text('{"step": 0, "files": []}')


@pytest.fixture(scope='module')
def material(tmp_path_factory):
  """Folder with `runs` (two), and a file of captions."""
  folder = tmp_path_factory.mktemp('r_precision')
  for seed, prompt in enumerate(PROMPTS):
    run = folder / 'runs' / f'{seed}'
    run.mkdir(parents=True)
    make_run(run, prompt, seed)
  (folder / 'captions.txt').write_text('\n'.join(CAPTIONS) + '\n')
  return folder


@pytest.fixture
def folder(material):
  """The material, with nothing judged."""
  for report in material.glob(f'runs/*/{r_precision.REPORT}'):
    report.unlink()
  return material


@pytest.fixture(scope='module')
def clip_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('letters')
  clip_folders.save(path)
  return path


def command(*flags):
  return subprocess.run(
      [sys.executable, '-m', 'gen3d.evaluate', '--what=r_precision', *flags],
      capture_output=True, text=True, timeout=300,
      cwd=pathlib.Path(__file__).parents[1], env=dict(os.environ))


def expected_shares(model, images, captions):
  """[M]: in what share of images [V, S, S, 3] each caption scores highest.

  By transformers alone: its image processor, tokenizer and model.
  """
  import torch
  import transformers
  from PIL import Image
  from transformers.models.clip import image_processing_pil_clip as processing
  side = model.config.vision_config.image_size
  pixels = processing.CLIPImageProcessorPil(
      size={'shortest_edge': side}, crop_size={'height': side, 'width': side}
  )([Image.fromarray(np.uint8(np.round(255 * x))) for x in images],
    return_tensors='pt')['pixel_values']
  tokens = transformers.AutoTokenizer.from_pretrained(model.name_or_path)(
      captions, padding='max_length', max_length=20, truncation=True,
      return_tensors='pt')['input_ids']
  with torch.no_grad():
    best = model(input_ids=tokens, pixel_values=pixels).logits_per_image
  return np.bincount(best.argmax(1), minlength=len(captions)) / len(images)


@pytest.mark.parity
def test_a_published_pair_retrieves_what_transformers_does(clip_path):
  import transformers
  model = transformers.CLIPModel.from_pretrained(clip_path).eval()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 24, 24, 3)) // 64 * 64 / np.float32(255)
  images *= rng.random((40, 1, 1, 3)) > 0.4  # of different colors
  images = np.float32(np.round(255 * images) / 255)
  expected = expected_shares(model, images, CAPTIONS)
  assert np.sum(expected > 0) >= 2  # or the example tells nothing
  examiner, = r_precision.published([str(clip_path)], CAPTIONS)
  assert (examiner.size, examiner.background) == (24, 1.0)
  for caption, share in zip(CAPTIONS, expected, strict=True):
    # As a person writes it, as the file has it.
    prompt = f' {caption.capitalize()[:-1]}'
    assert examiner.share(images, prompt, False) == pytest.approx(share)


@pytest.mark.parity
def test_the_command_renders_judges_and_skips_what_is_done(
    folder, clip_path, monkeypatch):
  import transformers
  flags = (f'--runs={folder / "runs"}', f'--clip={clip_path}',
           f'--captions={folder / "captions.txt"}')
  done = command(*flags, '--protocol=dream_fields')
  assert done.returncode == 0, done.stderr
  heading, _, row = done.stdout.splitlines()
  name = clip_path.name
  assert heading == f'| method | {name}, color | {name}, geometry | n |'

  # The same by transformers alone, of the same pictures.
  model = transformers.CLIPModel.from_pretrained(clip_path).eval()
  hits = []
  for seed, prompt in enumerate(PROMPTS):
    _, params, config = text_to_3d.load_run(folder / 'runs' / str(seed))
    seen = text_to_3d_evaluation.views(config, params, VIEW, 24, 1.0)
    assert (seen['color'][0, 0, 0] == 1).all()  # white
    index = CAPTIONS.index(f'{prompt.lower()}.')
    hits.append([expected_shares(model, seen[mode], CAPTIONS)[index]
                 for mode in ('color', 'textureless')])
  rates = [text_metrics.rate(column) for column in np.transpose(hits)]
  cells = [f'{100 * r.rate:.1f} +- {100 * r.error:.1f}' for r in rates]
  assert row == f'| dreamfusion, sds, shapes | {" | ".join(cells)} | 2 |'

  def refuse(*args):
    raise AssertionError('it is rendered again')
  again = lambda protocol, **more: r_precision.evaluate(
      folder / 'runs', protocol, [str(clip_path)], folder / 'captions.txt',
      **more)
  monkeypatch.setattr(text_to_3d, 'load_run', refuse)
  assert again('dream_fields') == done.stdout.strip()
  for protocol, force in (('dream_fields', True), ('dreamfusion', False)):
    with pytest.raises(AssertionError, match='rendered again'):
      again(protocol, force=force)
  # What was trained on is not what was judged.
  run = folder / 'runs/0/finished.json'
  before = run.read_text()
  run.write_text('{"step": 9, "files": []}')
  with pytest.raises(AssertionError, match='rendered again'):
    again('dream_fields')
  run.write_text(before)


def look(images, prompt, textureless):
  """An Examiner's share that tells what it was shown."""
  return float(np.mean(images)) + len(prompt) + 100 * textureless


def test_examiners_see_both_looks_from_the_protocols_views(
    folder, monkeypatch):
  run = folder / 'runs/0'
  scene, params, config = text_to_3d.load_run(run)
  loads = []
  monkeypatch.setattr(text_to_3d, 'load_run', lambda path: loads.append(path)
                      or (scene, params, config))
  protocol = text_metrics.Protocol((30.0, 120.0), 45.0)
  small = r_precision.Examiner('small', 'a', 8, 1.0, look)
  dark = r_precision.Examiner('dark', 'b', 12, 0.3, look)
  score, = r_precision.judge_runs([small], [run], protocol)
  score, = r_precision.judge_runs([dark, small], [run], protocol)
  assert (score.method, score.prompt) == ('dreamfusion, sds, shapes',
                                          'A red chair')
  shows = jax.jit(scene.show, static_argnums=(2, 3))
  for examiner, seen in zip((dark, small), score.shares, strict=True):
    views = [shows(params, cameras.orbit(
        azimuth, 45.0, config.orbit.distance, config.orbit.focal),
        examiner.size, ('color', 'textureless'),
        np.full(3, examiner.background)) for azimuth in (30.0, 120.0)]
    expected = [
        look([view[mode] for view in views], 'A red chair', bool(i))
        for i, mode in enumerate(('color', 'textureless'))]
    np.testing.assert_allclose(seen, expected, atol=2e-3)
  assert abs(score.shares[0, 1] - 100 - score.shares[0, 0]) > 4e-3
  assert len(loads) == 2  # once for each examiner that was new
  r_precision.judge_runs([small, dark], [run], protocol)
  assert len(loads) == 2


def test_the_shipped_pair_gives_the_numbers_of_the_table_of_objects(
    folder, monkeypatch):
  monkeypatch.setattr(text_to_3d_evaluation, 'found', lambda judge, *seen: look(*seen))
  text = r_precision.evaluate(folder / 'runs', 'dreamfusion')
  monkeypatch.setattr(text_to_3d_evaluation.meshes, 'load', lambda path: (None,))
  monkeypatch.setattr(text_to_3d_evaluation, 'geometry', lambda mesh, said: (0, 0))
  verdicts = text_to_3d_evaluation.judge_runs(None, folder / 'runs', force=True)
  for report in folder.glob(f'runs/*/{text_to_3d_evaluation.REPORT}'):
    report.unlink()
  columns = np.array([v[2:4] for v in verdicts]).T
  cells = [f'{100 * np.mean(c):.1f} +- {100 * np.std(c) / 2**.5:.1f}'
           for c in columns]
  assert text.splitlines() == [
      '| method | shapes pair, color | shapes pair, geometry | n |',
      '|---|---|---|---|',
      f'| dreamfusion, sds, shapes | {" | ".join(cells)} | 2 |']


def test_the_shipped_pair_finds_prompts_in_real_pictures():
  judge = clip_pair.load()
  images = [image for _, image, _, _, _ in shapes_world.pictures(
      0, 'seen', 0, 4, 64)]
  prompts = text_to_3d_evaluation.held_out_captions('seen', 4)
  share = lambda turn: np.mean([
      text_to_3d_evaluation.found(judge, image[None], prompt, False)
      for image, prompt in zip(images, prompts[turn:] + prompts[:turn])])
  assert share(0) > 0.7 and share(1) < 0.3


def test_the_table_has_a_row_for_each_method():
  shares = lambda *pairs: np.array(pairs)
  scores = [
      r_precision.Score('csd', 'a', shares((1.0, 0.0), (1.0, 1.0))),
      r_precision.Score('sds', 'a', shares((0.5, 0.5), (0.0, 1.0))),
      r_precision.Score('sds', 'b', shares((1.0, 0.5), (0.0, 0.0)))]
  assert r_precision.table(scores, ['CLIP B/32', 'CLIP L/14']).splitlines() == [
      '| method | CLIP B/32, color | CLIP B/32, geometry | '
      'CLIP L/14, color | CLIP L/14, geometry | n |',
      '|---|---|---|---|---|---|',
      '| csd | 100.0 +- 0.0 | 0.0 +- 0.0 | 100.0 +- 0.0 | 100.0 +- 0.0 | 1 |',
      '| sds | 75.0 +- 17.7 | 50.0 +- 0.0 | 0.0 +- 0.0 | 50.0 +- 35.4 | 2 |']


def truncate(path):
  weights = path / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-100])


def other_network(path):
  config = json.loads((path / 'config.json').read_text())
  config['architectures'] = ['SiglipModel']
  (path / 'config.json').write_text(json.dumps(config))


@pytest.mark.parity
@pytest.mark.parametrize('damage, words', [
    (truncate, 'not a whole safetensors file'),
    (other_network, 'SiglipModel'),
    (lambda path: (path / 'config.json').unlink(), 'has no config.json'),
    (lambda path: (path / 'model.safetensors').unlink(), 'has no weights'),
    (lambda path: (path / 'vocab.json').unlink(), 'no tokenizer'),
    (lambda path: clip_folders.save_tokenizer(path, 'z</w>'),
     'does not end a text with the token'),
])
def test_a_broken_clip_gets_a_sentence_before_anything_is_rendered(
    tmp_path, folder, monkeypatch, damage, words):
  clip_folders.save(tmp_path)
  damage(tmp_path)
  monkeypatch.setattr(r_precision, 'judge_runs', None)
  with pytest.raises(ValueError, match=words) as error:
    r_precision.evaluate(folder / 'runs', 'dreamfusion', [str(tmp_path)],
                         folder / 'captions.txt')
  assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize('changes, words', [
    ({'captions': 'other.txt'}, "other.txt has 1 captions, but the "
     "prompts of 2 runs are none of them, such as 'A red chair' of .*0;"),
    ({'captions': 'nowhere.txt'}, 'no caption file'),
    ({'captions': 'blank.txt'}, 'no caption in line 2'),
    ({'captions': None}, 'both --clip and --captions'),
    ({'clips': ()}, 'both --clip and --captions'),
    ({'clips': ('nowhere/at/all',)}, 'no folder nowhere/at/all'),
    ({'runs': 'empty'}, 'no finished text-to-3D run'),
    ({'protocol': 'dreamfields'}, "Did you mean 'dream_fields'"),
])
def test_what_does_not_fit_gets_a_sentence(folder, changes, words):
  (folder / 'other.txt').write_text('two mugs\n')
  (folder / 'blank.txt').write_text('A red chair\n\na blue car\n')
  given = {'runs': 'runs', 'protocol': 'dreamfusion', 'clips': ('a/b/c',),
           'captions': 'captions.txt'} | changes
  for key in ('runs', 'captions'):
    given[key] = given[key] and folder / given[key]
  with pytest.raises(ValueError, match=words):
    r_precision.evaluate(**given)


def test_without_a_network_a_hub_id_gets_a_sentence(folder, monkeypatch):
  huggingface_hub = pytest.importorskip('huggingface_hub')
  from huggingface_hub import errors

  def unreachable(*args, **kwargs):
    raise errors.LocalEntryNotFoundError('no network')
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
  with pytest.raises(ValueError, match='openai/clip.*cannot be reached'):
    r_precision.evaluate(
        folder / 'runs', 'dreamfusion', ['openai/clip-vit-base-patch32'],
        folder / 'captions.txt')


def test_the_command_fails_in_one_sentence(tmp_path):
  done = command(f'--runs={tmp_path}', '--clip=a/b')
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr.strip().startswith('Published CLIPs retrieve from')
  assert len(done.stderr.splitlines()) == 1
