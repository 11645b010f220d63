"""CLIP R-Precision of a folder of finished runs, as the papers report it.

An *examiner* is a column of the table: it looks at one object's views, in
color or textureless (the papers' "geometry"), and says in what share of them
it retrieves the prompt. The published CLIPs retrieve it from a file of
captions by the protocol of metrics.text, before white; the shipped pair, from
captions of the shapes world, as in `evaluation`. A *method* is a row: the
choice of scene, guidance and teacher.

What an examiner said of a run stands beside it, in r_precision.json.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gen3d import assets, files
from gen3d.choices import UserError, pick
from gen3d.data import caption_files
from gen3d.engine import checkpoints
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.metrics import text as text_metrics
from gen3d.models import clip, clip_pair
from gen3d.ops import images as image_ops
from gen3d.tasks import text_to_3d
from gen3d.weights import hub

REPORT = 'r_precision.json'
NAMES = {clip.B32: 'CLIP B/32', clip.B16: 'CLIP B/16', clip.L14: 'CLIP L/14'}
WHITE = 1.0
HEADINGS = {'color': 'color', 'textureless': 'geometry'}


class Examiner(NamedTuple):
  """One who retrieves prompts.

  Attributes:
    name: heading of its columns.
    identity: string that differs where its answers may.
    size: S, pixels a side of what it looks at.
    background: gray level behind the object.
    share: (images [V, S, S, 3] in [0, 1], prompt, textureless) -> float.
  """
  name: str
  identity: str
  size: int
  background: float
  share: Callable


class Score(NamedTuple):
  """What J examiners say of one run.

  Attributes:
    method: of the run.
    prompt: of the run.
    shares: float [J, 2], of its views in color and textureless.
  """
  method: str
  prompt: str
  shares: Any


class _Source(NamedTuple):
  """A published CLIP whose files are there; its weights are not read yet."""
  name: str
  path: pathlib.Path
  size: clip.CLIPConfig
  tokenize: Callable
  identity: str


def evaluate(runs, protocol, clips=(), captions=None, asset=assets.CLIP,
             force=False):
  """Renders and judges what has not been, and makes the papers' table.

  Args:
    runs: folder of workdirs.
    protocol: a key of metrics.text.PROTOCOLS.
    clips: folders or hub ids of published CLIPs; the shipped pair if none.
    captions: file of captions, one a line, for published CLIPs.
    asset: weights of the shipped pair.
    force: whether to judge again what was judged.

  Returns:
    A Markdown table.

  Raises:
    UserError: a folder, a file or a run does not fit; before anything is
      rendered.
  """
  views = pick('protocol', text_metrics.PROTOCOLS, protocol)
  if bool(clips) != bool(captions):
    raise UserError(
        'Published CLIPs retrieve from a file of captions, and the shipped '
        'pair from the shapes world: give both --clip and --captions, or '
        'neither.')
  folders = text_to_3d_evaluation.finished_runs(runs)
  if clips:
    texts = caption_files.read(captions)
    check_prompts(folders, texts, captions)
    examiners = published(clips, texts)
  else:
    examiners = [shipped(asset)]
  scores = judge_runs(examiners, folders, views, force)
  return table(scores, [examiner.name for examiner in examiners])


def check_prompts(folders, captions, where):
  """Raises UserError where a run's prompt is none of the captions.

  Args:
    folders: of the runs.
    captions: normalized, see data.caption_files.
    where: their file, for the message.
  """
  prompts = [(checkpoints.load_config(folder).prompt, folder)
             for folder in folders]
  missing = [(prompt, folder) for prompt, folder in prompts
             if caption_files.normalize(prompt) not in captions]
  if missing:
    prompt, folder = missing[0]
    raise UserError(
        f'{where} has {len(captions)} captions, but the prompts of '
        f'{len(missing)} runs are none of them, such as {prompt!r} of '
        f'{folder}; add them, or give the file from which the runs were made.')


def shipped(asset=assets.CLIP):
  """The Examiner of the shapes world's pair."""
  judge = clip_pair.load(asset)
  identity = hashlib.sha256(pathlib.Path(asset).read_bytes()).hexdigest()
  return Examiner('shapes pair', identity, text_to_3d_evaluation.SIZE,
                  text_to_3d_evaluation.BACKGROUND,
                  functools.partial(text_to_3d_evaluation.found, judge))


def published(names, captions):
  """Examiners that retrieve from all captions by CLIPs of transformers.

  Args:
    names: folders or hub ids.
    captions: list of M normalized captions.

  Raises:
    UserError: one of them is no CLIP with a tokenizer; all are looked at
      before the first one's weights are read.
  """
  sources = [_source(name) for name in names]
  headings = [NAMES.get(source.size, source.name) for source in sources]
  if len(set(headings)) < len(headings):
    headings = [source.name for source in sources]
  return [_examiner(source, heading, captions)
          for source, heading in zip(sources, headings, strict=True)]


def _source(name):
  checkpoint = hub.locate(name)
  path = checkpoint.path
  size = clip.clip_config(hub.Folder(
      path, hub.read_config(path), {}))
  tokenize = hub.load_tokenizer(path, size.text.vocab, size.text.length)
  if size.text.eot not in tokenize(['a'])[0]:
    raise UserError(
        f'The tokenizer in {path} does not end a text with the token '
        f'{size.text.eot}, at which its CLIP reads the text\'s feature.')
  stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns)
           for pattern in ('*.json', '*.safetensors', '*.bin')
           for file in sorted(path.glob(pattern))]
  # A download's folder is called as its revision.
  known_as = pathlib.Path(name) if checkpoint.revision else path.resolve()
  return _Source(known_as.name, path, size, tokenize,
                 checkpoint.revision or repr(stats))


def _examiner(source, heading, captions):
  network, params = clip.load(source.path)
  pair = _pair(network, params, source.tokenize)
  # The same for every run.
  pair = pair._replace(text_features=functools.cache(pair.text_features))
  captions = tuple(captions)

  def share(images, prompt, textureless):
    del textureless  # All the other captions are distractors all the same.
    truth = captions.index(caption_files.normalize(prompt))
    return float(text_metrics.retrieved(
        pair, np.asarray(images)[None], captions, [truth])[0])

  identity = repr((source.name, source.identity, captions))
  return Examiner(heading, identity, source.size.image.resolution, WHITE,
                  share)


def _pair(network, params, tokenize):
  """image_text.Judge of a published CLIP; images of any size are fitted."""
  side = network.config.image.resolution
  encode_images = jax.jit(functools.partial(clip.image_features, network))
  encode_tokens = jax.jit(functools.partial(clip.text_features, network))
  return clip_pair.ClipPair(
      lambda images: np.asarray(encode_images(
          params, image_ops.clip_preprocess(jnp.asarray(images), side))),
      lambda texts: np.asarray(encode_tokens(params, tokenize(texts)[0])))


def judge_runs(examiners, folders, protocol, force=False):
  """Scores of runs; what is known is read, the rest is rendered.

  Args:
    examiners: list of J Examiners.
    folders: of the runs.
    protocol: metrics.text.Protocol.
    force: whether to judge again what was judged.

  Returns:
    list of Score.
  """
  scores = []
  for folder in tqdm.tqdm(folders, 'runs', disable=None):
    config = checkpoints.load_config(folder)
    step = json.loads((folder / 'finished.json').read_text())['step']
    names = [_digest(examiner.identity, protocol, step)
             for examiner in examiners]
    known = _read_report(folder)
    todo = {name: examiner for name, examiner in zip(names, examiners)
            if force or name not in known}
    if todo:
      known |= _judge(folder, todo, protocol)
      with files.atomic_write(folder / REPORT) as temporary:
        pathlib.Path(temporary).write_text(json.dumps(known))
    scores.append(Score(method(config), config.prompt, np.array(
        [[known[name][mode] for mode in text_to_3d_evaluation.MODES]
         for name in names])))
  return scores


def method(config):
  """A run's row: its scene, guidance and teacher."""
  return ', '.join(config[part].name
                   for part in ('scene', 'guidance', 'teacher'))


def table(scores, names):
  """The papers' table: percent +- standard error, in Markdown.

  Args:
    scores: list of Score; the rows are their methods.
    names: of the J examiners, two columns each.
  """
  headings = [f'{name}, {HEADINGS[mode]}'
              for name in names for mode in text_to_3d_evaluation.MODES]
  lines = ['| ' + ' | '.join(['method', *headings, 'n']) + ' |',
           '|---' * (len(headings) + 2) + '|']
  for name in sorted({score.method for score in scores}):
    shares = np.stack([s.shares.ravel() for s in scores if s.method == name])
    rates = [text_metrics.rate(column) for column in shares.T]
    cells = [f'{100 * r.rate:.1f} +- {100 * r.error:.1f}' for r in rates]
    lines.append('| ' + ' | '.join([name, *cells, str(len(shares))]) + ' |')
  return '\n'.join(lines)


def _judge(folder, examiners, protocol):
  """{name: {'examiner', 'views', mode: share}} of {name: Examiner}."""
  _, params, config = text_to_3d.load_run(folder)
  # Examiners that look at the same pictures share them.
  look = functools.cache(functools.partial(
      text_to_3d_evaluation.views, config, params, protocol))
  said = {}
  for name, examiner in examiners.items():
    seen = look(examiner.size, examiner.background)
    said[name] = {
        'examiner': examiner.name, 'views': protocol._asdict(),
        **{mode: examiner.share(images, config.prompt, mode == 'textureless')
           for mode, images in seen.items()}}
  return said


def _digest(*facts):
  return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _read_report(folder):
  report = folder / REPORT
  if not report.exists():
    return {}
  try:
    return json.loads(report.read_text())
  except ValueError as error:
    raise UserError(f'{report} is damaged; delete it.') from error
