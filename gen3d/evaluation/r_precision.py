"""CLIP R-Precision of a folder of finished runs, as the papers report it.

A *retriever* gives two columns of the table: the fraction of an object's
views, in color and textureless (the papers' "geometry"), that retrieve the
prompt. A CLIP of transformers (a folder or a hub id) retrieves it from a file
of captions by the protocol of metrics.text, on a white background; the bundled
pair retrieves it from captions of the shapes world, as in
evaluation/text_to_3d.py. A *method*, the choice of scene, guidance and
teacher, is a row.

The results of a run are stored in its workdir, in r_precision.json.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets, files, notices
from gen3d.choices import UserError, pick
from gen3d.data import caption_files
from gen3d.engine import checkpoints, loop
from gen3d.evaluation import clip as clip_evaluation
from gen3d.evaluation import text_to_3d as text_to_3d_evaluation
from gen3d.metrics import text as text_metrics
from gen3d.models import clip, clip_pair
from gen3d.ops import images as image_ops
from gen3d.tasks import text_to_3d
from gen3d.weights import hub

REPORT = 'r_precision.json'
# Headings of the shipped pairs; what guides cannot evaluate: in parentheses.
BUNDLED = {assets.CLIP.stem: 'shapes pair',
           assets.CLIP_GUIDE.stem: '(shapes guide)'}
NAMES = {clip.B32: 'CLIP B/32', clip.B16: 'CLIP B/16', clip.L14: 'CLIP L/14'}
COLUMNS = ('color', 'geometry')  # the papers' names of the modes
MODES = tuple(text_to_3d_evaluation.BACKGROUNDS)
WHITE = dict.fromkeys(MODES, 1.0)

# (images [V, S, S, 3] in [0, 1], prompt, textureless) -> fraction of views.
RetrievalRate = Callable[[np.ndarray, str, bool], float]


class ClipRetriever(NamedTuple):
  """A CLIP with the captions from which it retrieves a run's prompt.

  Attributes:
    name: heading of its columns.
    cache_key: string that changes with the weights or the captions; stored
      results of another key are not used.
    size: S, of the views that it takes, in pixels.
    backgrounds: {mode of MODES: gray level behind the object}.
    retrieval_rate: fraction of the views that retrieve the prompt.
  """
  name: str
  cache_key: str
  size: int
  backgrounds: Mapping[str, float]
  retrieval_rate: RetrievalRate


class RunRates(NamedTuple):
  """The retrieval rates of one run.

  Attributes:
    method: of the run.
    prompt: of the run.
    rates: float [J, 2] of J retrievers, in color and textureless.
  """
  method: str
  prompt: str
  rates: Any


class _Checkpoint(NamedTuple):
  """A CLIP of transformers whose files are complete; no weights read yet."""
  name: str
  path: pathlib.Path
  size: clip.CLIPConfig
  tokenize: Callable
  cache_key: str


def report(runs: str | os.PathLike, protocol: str, clips: Sequence[str] = (),
           captions: str | os.PathLike | None = None,
           clip_weights: str | os.PathLike = assets.CLIP,
           force: bool = False) -> str:
  """The papers' table of a folder of runs; results that exist are reused.

  Args:
    runs: folder of workdirs.
    protocol: a key of metrics.text.PROTOCOLS.
    clips: folders or hub ids of CLIPs of transformers; the bundled pair if
      empty.
    captions: file of captions, one a line, from which these retrieve.
    clip_weights: of the bundled pair; several files are separated by commas.
    force: evaluate again where results exist.

  Returns:
    A Markdown table.

  Raises:
    UserError: a folder, a file or a run does not fit; before anything is
      rendered.
  """
  views = pick('protocol', text_metrics.PROTOCOLS, protocol)
  if bool(clips) != bool(captions):
    raise UserError(
        'CLIPs of transformers retrieve from a file of captions, the bundled '
        'pair from captions of the shapes world: give both --clip and '
        '--captions, or neither.')
  # Everything is checked before the first run is rendered, which is slow.
  folders = text_to_3d_evaluation.finished_runs(runs)
  if captions:
    texts = caption_files.read(captions)
    folders = with_captions(folders, texts, captions)
    retrievers = hub_clips(clips, texts)
  else:
    retrievers = [bundled_clip(path) for path in str(clip_weights).split(',')]
  rates = score_runs(retrievers, folders, views, force)
  return table(rates, [retriever.name for retriever in retrievers])


def with_captions(folders: Iterable[pathlib.Path], captions: Sequence[str],
                  where: str | os.PathLike) -> list[pathlib.Path]:
  """The runs whose prompts are among the captions; names the others.

  Args:
    folders: workdirs of the runs.
    captions: normalized, see data.caption_files.
    where: their file, for the messages.

  Raises:
    UserError: there is no such run.
  """
  prompts = [(checkpoints.load_config(folder).prompt, folder)
             for folder in folders]
  missing = [(prompt, folder) for prompt, folder in prompts
             if caption_files.normalize(prompt) not in captions]
  if len(missing) == len(prompts):
    prompt, folder = missing[0]
    raise UserError(
        f'{where} has {len(captions)} captions, but the prompts of '
        f'{len(missing)} runs are none of them, such as {prompt!r} of '
        f'{folder}; add them, or give the file from which the runs were made.')
  for prompt, folder in missing:
    notices.message(f'{folder} is left out: its prompt {prompt!r} is none of '
                    f'the captions in {where}.')
  return [folder for x, folder in prompts if (x, folder) not in missing]


def bundled_clip(path: str | os.PathLike = assets.CLIP) -> ClipRetriever:
  """The ClipRetriever of a CLIP pair of the shapes world."""
  pair = clip_pair.load(path)
  # The backgrounds belong to the key: results before others are not used.
  cache_key = hashlib.sha256(
      pathlib.Path(path).read_bytes()
      + repr(text_to_3d_evaluation.BACKGROUNDS).encode()).hexdigest()
  name = pathlib.Path(path).stem
  return ClipRetriever(
      BUNDLED.get(name, name), cache_key, text_to_3d_evaluation.SIZE,
      text_to_3d_evaluation.BACKGROUNDS,
      functools.partial(clip_evaluation.retrieval_rate, pair))


def hub_clips(names: Sequence[str],
              captions: Sequence[str]) -> list[ClipRetriever]:
  """ClipRetrievers of CLIPs of transformers, from a list of captions.

  Args:
    names: folders or hub ids.
    captions: list of M normalized captions.

  Raises:
    UserError: one of them is no CLIP with a tokenizer. All are checked before
      the weights of the first are read.
  """
  clips = [_checkpoint(name) for name in names]
  headings = [NAMES.get(checkpoint.size, checkpoint.name)
              for checkpoint in clips]
  # Two CLIPs of the same size are distinguished by their folders.
  if len(set(headings)) < len(headings):
    headings = [checkpoint.name for checkpoint in clips]
  return [_retriever(checkpoint, heading, captions)
          for checkpoint, heading in zip(clips, headings, strict=True)]


def score_runs(retrievers: Sequence[ClipRetriever],
               folders: Iterable[pathlib.Path],
               protocol: text_metrics.Protocol,
               force: bool = False) -> list[RunRates]:
  """Retrieval rates of runs; those that are stored are not computed again.

  Args:
    retrievers: J of them.
    folders: workdirs of the runs.
    protocol: the views.
    force: evaluate again where results exist.

  Returns:
    RunRates of each run.
  """
  def score(folder):
    config = checkpoints.load_config(folder)
    step = loop.finished_step(folder)
    # The key includes the training step: a run that was trained further has
    # new parameters under the same path.
    keys = [_digest(retriever.cache_key, protocol, step)
            for retriever in retrievers]
    stored = _read_report(folder)
    missing = {key: retriever for key, retriever in zip(keys, retrievers)
               if force or key not in stored}
    if missing:
      stored |= _score_run(folder, missing, protocol)
      files.write_bytes(folder / REPORT, json.dumps(stored).encode())
    return RunRates(method(config), config.prompt, np.array(
        [[stored[key][mode] for mode in MODES]
         for key in keys]))

  return text_to_3d_evaluation.each(list(folders), score)


def method(config: Any) -> str:
  """The row of a run's config: its scene, guidance and, if any, teacher."""
  return ', '.join(config[part].name for part in (
      'scene', 'guidance', 'teacher') if part in config)


def table(scores: Sequence[RunRates], names: Sequence[str]) -> str:
  """The papers' table: percent +- standard error, in Markdown.

  Args:
    scores: of the runs; the rows are their methods.
    names: of the J retrievers, two columns each.
  """
  headings = [f'{name}, {column}' for name in names for column in COLUMNS]
  lines = ['| ' + ' | '.join(['method', *headings, 'n']) + ' |',
           '|---' * (len(headings) + 2) + '|']
  for name in sorted({score.method for score in scores}):
    # One case per run, the mean over its views: views of one object are not
    # independent.
    values = np.stack([s.rates.ravel() for s in scores if s.method == name])
    rates = [text_metrics.rate(column) for column in values.T]
    cells = [f'{100 * r.rate:.1f} +- {100 * r.error:.1f}' for r in rates]
    lines.append('| ' + ' | '.join([name, *cells, str(len(values))]) + ' |')
  return '\n'.join(lines)


def _checkpoint(name):
  located = hub.locate(name)
  path = located.path
  size = clip.clip_config(hub.Folder(
      path, hub.read_config(path), {}))
  tokenize = clip.load_tokenizer(path, size.text)
  # A revision identifies the weights of a download; for a folder, sizes and
  # times do, since hashing gigabytes at every start is slow.
  stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns)
           for pattern in ('*.json', '*.safetensors', '*.bin')
           for file in sorted(path.glob(pattern))]
  # The folder of a download is named after its revision, not the model.
  named = pathlib.Path(name) if located.revision else path.resolve()
  return _Checkpoint(named.name, path, size, tokenize,
                     located.revision or repr(stats))


def _retriever(checkpoint, heading, captions):
  network, params = clip.load(checkpoint.path)
  pair = _hub_pair(network, params, checkpoint.tokenize)
  # The captions are the same for every run: encode them once.
  pair = pair._replace(text_features=functools.cache(pair.text_features))
  captions = tuple(captions)

  def retrieval_rate(images, prompt, textureless):
    del textureless  # All other captions are distractors in both modes.
    truth = captions.index(caption_files.normalize(prompt))
    return float(text_metrics.retrieval_rates(
        pair, np.asarray(images)[None], captions, [truth])[0])

  cache_key = repr((checkpoint.name, checkpoint.cache_key, captions))
  return ClipRetriever(heading, cache_key, checkpoint.size.image.resolution,
                       WHITE, retrieval_rate)


def _hub_pair(network, params, tokenize):
  """ClipPair of a CLIP of transformers; takes images of any size."""
  resolution = network.config.image.resolution
  encode_images = jax.jit(functools.partial(clip.image_features, network))
  encode_tokens = jax.jit(functools.partial(clip.text_features, network))
  return clip_pair.ClipPair(
      lambda images: np.asarray(encode_images(
          params, image_ops.clip_preprocess(
              jnp.asarray(images), resolution))),
      lambda texts: np.asarray(encode_tokens(params, tokenize(texts)[0])))


def _score_run(folder, retrievers, protocol):
  """{key: {'retriever', 'views', mode: rate}} of {key: ClipRetriever}."""
  _, params, config = text_to_3d.load_run(folder)
  # Retrievers of one size and backgrounds take the same images.
  render = functools.cache(lambda size, backgrounds: (
      text_to_3d_evaluation.render_views(
          config, params, protocol, size, dict(backgrounds))))
  results = {}
  for key, retriever in retrievers.items():
    views = render(retriever.size, tuple(retriever.backgrounds.items()))
    results[key] = {
        'retriever': retriever.name, 'views': protocol._asdict(),
        **{mode: retriever.retrieval_rate(
            images, config.prompt, mode == 'textureless')
           for mode, images in views.items()}}
  return results


def _digest(*values):
  return hashlib.sha256(repr(values).encode()).hexdigest()[:24]


def _read_report(folder):
  """{key: {mode: [ranks]}} of the evaluations of a run that are stored."""
  stored = files.read_result(folder / REPORT) or {}
  modes = set(MODES)
  return {key: x for key, x in stored.items()
          if isinstance(x, dict) and modes <= set(x)}
