"""CLIP R-Precision of finished runs: command, stored results, errors."""

import json

import clip_folders
import commands
import jax
import numpy as np
import pytest

from configs import dream_fields
from configs import dreamfusion as configs
from gen3d import assets
from gen3d.data import caption_files
from gen3d.engine import checkpoints
from gen3d.evaluation import r_precision
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.io import meshes
from gen3d.metrics import text as text_metrics
from gen3d.models import clip_pair
from gen3d.ops import cameras
from gen3d.ops import mesh as mesh_ops
from gen3d.tasks import text_to_3d

PROMPTS = ('A red chair', 'a blue car')
CAPTIONS = ['a green tree.', 'a red chair.', 'two mugs.', 'a blue car.']
VIEW = text_metrics.DREAM_FIELDS


def make_run(folder, prompt, seed):
  """A finished run of the tiny variant after 0 steps."""
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
def shared_folder(tmp_path_factory):
  """Folder with `runs` (two), and a file of captions."""
  folder = tmp_path_factory.mktemp('r_precision')
  for seed, prompt in enumerate(PROMPTS):
    run = folder / 'runs' / f'{seed}'
    run.mkdir(parents=True)
    make_run(run, prompt, seed)
  (folder / 'captions.txt').write_text('\n'.join(CAPTIONS) + '\n')
  return folder


@pytest.fixture
def folder(shared_folder):
  """The shared folder without stored results."""
  for report in shared_folder.glob(f'runs/*/{r_precision.REPORT}'):
    report.unlink()
  return shared_folder


@pytest.fixture(scope='module')
def clip_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('letters')
  clip_folders.save(path)
  return path


def command(*flags):
  return commands.run('gen3d.evaluate', '--what=r_precision', *flags)


def expected_rates(model, images, captions):
  """[M]: fraction of images [V, S, S, 3] for which each caption scores highest.

  With the image processor, tokenizer and model of transformers.
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
def test_hub_clip_retrieves_the_same_captions_as_transformers(clip_path):
  import transformers
  model = transformers.CLIPModel.from_pretrained(clip_path).eval()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 24, 24, 3)) // 64 * 64 / np.float32(255)
  images *= rng.random((40, 1, 1, 3)) > 0.4  # of different colors
  images = np.float32(np.round(255 * images) / 255)
  expected = expected_rates(model, images, CAPTIONS)
  assert np.sum(expected > 0) >= 2  # or one rate is compared
  retriever, = r_precision.hub_clips([str(clip_path)], CAPTIONS)
  assert retriever.size == 24
  assert retriever.backgrounds == {'color': 1.0, 'textureless': 1.0}
  for caption, rate in zip(CAPTIONS, expected, strict=True):
    # Prompts are normalized as the captions of the file are.
    prompt = f' {caption.capitalize()[:-1]}'
    assert retriever.retrieval_rate(images, prompt, False) == (
        pytest.approx(rate))


@pytest.mark.parity
def test_command_prints_the_table_and_reuses_stored_results(
    folder, clip_path, monkeypatch):
  import transformers
  flags = (f'--runs={folder / "runs"}', f'--clip={clip_path}',
           f'--captions={folder / "captions.txt"}')
  done = command(*flags, '--protocol=dream_fields')
  assert done.returncode == 0, done.stderr
  heading, _, row = done.stdout.splitlines()
  name = clip_path.name
  assert heading == f'| method | {name}, color | {name}, geometry | n |'

  # The same images, retrieved by transformers.
  model = transformers.CLIPModel.from_pretrained(clip_path).eval()
  hits = []
  for seed, prompt in enumerate(PROMPTS):
    _, params, config = text_to_3d.load_run(folder / 'runs' / str(seed))
    views = text_to_3d_evaluation.render_views(
        config, params, VIEW, 24, {'color': 1.0, 'textureless': 1.0})
    assert (views['color'][0, 0, 0] == 1).all()  # white
    index = CAPTIONS.index(f'{prompt.lower()}.')
    hits.append([expected_rates(model, views[mode], CAPTIONS)[index]
                 for mode in ('color', 'textureless')])
  rates = [text_metrics.rate(column) for column in np.transpose(hits)]
  cells = [f'{100 * r.rate:.1f} +- {100 * r.error:.1f}' for r in rates]
  assert row == f'| dreamfusion, sds, shapes | {" | ".join(cells)} | 2 |'

  def refuse(*args):
    raise AssertionError('rendered again')
  again = lambda protocol, **options: r_precision.report(
      folder / 'runs', protocol, [str(clip_path)], folder / 'captions.txt',
      **options)
  monkeypatch.setattr(text_to_3d, 'load_run', refuse)
  assert again('dream_fields') == done.stdout.strip()
  for protocol, force in (('dream_fields', True), ('dreamfusion', False)):
    with pytest.raises(AssertionError, match='rendered again'):
      again(protocol, force=force)
  # Further training makes stored results invalid.
  run = folder / 'runs/0/finished.json'
  before = run.read_text()
  run.write_text('{"step": 9, "files": []}')
  with pytest.raises(AssertionError, match='rendered again'):
    again('dream_fields')
  run.write_text(before)


def encode_arguments(images, prompt, textureless):
  """A ClipRetriever.retrieval_rate that depends on all its arguments."""
  return float(np.mean(images)) + len(prompt) + 100 * textureless


def test_retrievers_get_both_modes_from_the_views_of_the_protocol(
    folder, monkeypatch):
  run = folder / 'runs/0'
  scene, params, config = text_to_3d.load_run(run)
  loads = []
  monkeypatch.setattr(text_to_3d, 'load_run', lambda path: loads.append(path)
                      or (scene, params, config))
  protocol = text_metrics.Protocol((30.0, 120.0), 45.0)
  small = r_precision.ClipRetriever(
      'small', 'a', 8,
      {'color': 1.0, 'textureless': 1.0}, encode_arguments)
  dark = r_precision.ClipRetriever(
      'dark', 'b', 12,
      {'color': 0.3, 'textureless': 0.6}, encode_arguments)
  r_precision.score_runs([small], [run], protocol)
  score, = r_precision.score_runs([dark, small], [run], protocol)
  assert (score.method, score.prompt) == ('dreamfusion, sds, shapes',
                                          'A red chair')
  show = jax.jit(scene.show, static_argnums=(2, 3))
  for retriever, rates in zip((dark, small), score.rates, strict=True):
    expected = []
    for mode, gray in retriever.backgrounds.items():
      views = [show(params, cameras.orbit(
          azimuth, 45.0, config.orbit.distance, config.orbit.focal),
          retriever.size, (mode,), np.full(3, gray))[mode]
               for azimuth in (30.0, 120.0)]
      expected.append(
          encode_arguments(views, 'A red chair', mode == 'textureless'))
    np.testing.assert_allclose(rates, expected, atol=2e-3)
  assert abs(score.rates[0, 1] - 100 - score.rates[0, 0]) > 4e-3
  assert len(loads) == 2  # once for each retriever without stored results
  r_precision.score_runs([small, dark], [run], protocol)
  assert len(loads) == 2


def brightness_pair(threshold, prompts):
  """A ClipPair that retrieves the prompts for bright images only."""
  unit = lambda yes: np.where(np.asarray(yes)[:, None], (1.0, 0.0), (0.0, 1.0))
  return clip_pair.ClipPair(
      lambda images: unit(np.mean(images, axis=(1, 2, 3)) > threshold),
      lambda texts: unit([text in prompts for text in texts]))


def test_bundled_clip_gives_the_rates_of_the_text_to_3d_table(
    folder, monkeypatch):
  runs = folder / 'runs'
  images = []  # [run][mode][view, S, S, 3]
  for run in sorted(runs.iterdir()):
    _, params, config = text_to_3d.load_run(run)
    views = text_to_3d_evaluation.render_views(
        config, params, text_metrics.DREAMFUSION, 64,
        {'color': 0.8, 'textureless': 0.2})
    # A corner shows the background.
    np.testing.assert_allclose(
        [views[mode][0, 0, 0, 0] for mode in views], [0.8, 0.2], atol=2e-3)
    images.append([views['color'], views['textureless']])
    meshes.save(run / 'mesh.ply', small_box())
  brightness = np.mean(images, axis=(3, 4, 5))
  pair = brightness_pair(np.median(brightness), PROMPTS)
  expected = np.mean(brightness > np.median(brightness), axis=2)  # [run, mode]
  assert len(np.unique(expected)) > 1  # or one rate is compared

  monkeypatch.setattr(clip_pair, 'load', lambda path: pair)
  cells = [f'{100 * np.mean(c):.1f} +- {100 * np.std(c) / 2**.5:.1f}'
           for c in expected.T]
  assert r_precision.report(runs, 'dreamfusion').splitlines() == [
      '| method | shapes pair, color | shapes pair, geometry | n |',
      '|---|---|---|---|',
      f'| dreamfusion, sds, shapes | {" | ".join(cells)} | 2 |']
  scores = text_to_3d_evaluation.score_runs(pair, runs, force=True)
  for run in runs.iterdir():
    (run / text_to_3d_evaluation.REPORT).unlink()
    (run / text_to_3d_evaluation.MESH).unlink()
  rates = {score.prompt: (score.color, score.textureless) for score in scores}
  np.testing.assert_allclose([rates[p] for p in PROMPTS], expected)
  assert all(0 < s.iou < 1 and 0 <= s.f_score < 1 for s in scores)


def test_the_pair_that_guides_is_in_parentheses(
    folder, tmp_path, monkeypatch):
  guide = tmp_path / 'clip_shapes_guide.safetensors'
  guide.write_bytes(b'other weights')
  pairs = {str(assets.CLIP): brightness_pair(2.0, PROMPTS),  # retrieves none
           str(guide): brightness_pair(-1.0, PROMPTS)}
  monkeypatch.setattr(clip_pair, 'load', lambda path: pairs[str(path)])
  lines = r_precision.report(folder / 'runs', 'dreamfusion',
                             clip_weights=f'{assets.CLIP},{guide}').splitlines()
  assert '| (shapes guide), color |' in lines[0]
  cells = [cell.split()[0] for cell in lines[2].strip('| ').split(' | ')[1:]]
  assert cells == ['0.0', '0.0', '100.0', '100.0', '2']


def test_a_method_without_a_teacher():
  config = dream_fields.get_config('tiny')
  assert r_precision.method(config) == 'dream_fields, clip'


def small_box():
  """A closed box of 12 triangles, counter-clockwise from outside."""
  corners = np.array([(x, y, z) for x in (-.2, .2) for y in (-.1, .1)
                      for z in (-.3, .3)], np.float32)
  quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6),
           (0, 2, 6, 4), (1, 5, 7, 3)]
  faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
  return mesh_ops.Mesh(
      corners, np.array(faces, np.int32), colors=np.ones_like(corners))


def test_table_has_a_row_for_each_method():
  rates = lambda *pairs: np.array(pairs)
  scores = [
      r_precision.RunRates('csd', 'a', rates((1.0, 0.0), (1.0, 1.0))),
      r_precision.RunRates('sds', 'a', rates((0.5, 0.5), (0.0, 1.0))),
      r_precision.RunRates('sds', 'b', rates((1.0, 0.5), (0.0, 0.0)))]
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
    (truncate, 'not a complete safetensors file'),
    (other_network, 'SiglipModel'),
    (lambda path: (path / 'config.json').unlink(), 'has no config.json'),
    (lambda path: (path / 'model.safetensors').unlink(), 'has no weights'),
    (lambda path: (path / 'vocab.json').unlink(), 'no tokenizer'),
    (lambda path: clip_folders.save_tokenizer(path, 'z</w>'),
     'does not end a text with the token'),
])
def test_broken_clip_is_refused_before_anything_is_rendered(
    tmp_path, folder, monkeypatch, damage, words):
  clip_folders.save(tmp_path)
  damage(tmp_path)
  monkeypatch.setattr(r_precision, 'score_runs', None)
  with pytest.raises(ValueError, match=words) as error:
    r_precision.report(folder / 'runs', 'dreamfusion', [str(tmp_path)],
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
def test_arguments_that_do_not_fit_are_refused(folder, changes, words):
  (folder / 'other.txt').write_text('two mugs\n')
  (folder / 'blank.txt').write_text('A red chair\n\na blue car\n')
  given = {'runs': 'runs', 'protocol': 'dreamfusion', 'clips': ('a/b/c',),
           'captions': 'captions.txt'} | changes
  for key in ('runs', 'captions'):
    given[key] = given[key] and folder / given[key]
  with pytest.raises(ValueError, match=words):
    r_precision.report(**given)


def test_run_without_its_caption_is_named_and_left_out(folder, capsys):
  runs = sorted((folder / 'runs').iterdir())
  stored = [json.loads((run / 'config.json').read_text()) for run in runs]
  known = caption_files.normalize(stored[0]['prompt'])
  left = [run for run, config in zip(runs, stored)
          if caption_files.normalize(config['prompt']) == known]
  assert 0 < len(left) < len(runs)
  assert r_precision.with_captions(runs, [known], 'a.txt') == left
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == len(runs) - len(left)
  assert 'is none of the captions in a.txt' in lines[0]


def test_hub_id_without_a_network_is_refused(folder, monkeypatch):
  huggingface_hub = pytest.importorskip('huggingface_hub')
  from huggingface_hub import errors

  def unreachable(*args, **kwargs):
    raise errors.LocalEntryNotFoundError('no network')
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
  with pytest.raises(ValueError, match='openai/clip.*cannot be reached'):
    r_precision.report(
        folder / 'runs', 'dreamfusion', ['openai/clip-vit-base-patch32'],
        folder / 'captions.txt')


def test_command_prints_its_error_on_one_line(tmp_path):
  done = command(f'--runs={tmp_path}', '--clip=a/b')
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr.strip().startswith('CLIPs of transformers retrieve')
  assert len(done.stderr.splitlines()) == 1
