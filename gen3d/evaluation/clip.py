"""R-precision with the bundled CLIP pair, on images of the shapes world.

On real images of held-out objects it measures the pair itself; on samples of
the text-to-image model, the agreement of samples with their captions.
"""

import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from gen3d import assets
from gen3d.data.shapes import attributes, captions
from gen3d.data.shapes import world as shapes_world
from gen3d.diffusion import pixel_model, sampling
from gen3d.io import images as image_io
from gen3d.metrics import text as text_metrics
from gen3d.models import clip_pair

SPLITS = ('seen', 'unseen')
POOL = 256  # captions of each split among which `retrieval_rate` retrieves


def report_real_images(
    clip_weights: str | os.PathLike = assets.CLIP, count: int = 512) -> str:
  """Lines with the R-precision of real images, one per split.

  Args:
    clip_weights: of the CLIP pair.
    count: of held-out objects per split.

  Raises:
    UserError: the weights are missing or damaged.
  """
  return _lines('clip', real_r_precision(clip_pair.load(clip_weights), count))


def report_samples(
    clip_weights: str | os.PathLike = assets.CLIP,
    weights: str | os.PathLike = assets.TEXT_TO_IMAGE, count: int = 512,
    scale: float = 3.0, out: str | os.PathLike | None = None) -> str:
  """Lines with the R-precision of samples for held-out captions.

  Args:
    clip_weights: of the CLIP pair.
    weights: of the text-to-image model.
    count: of captions per split.
    scale: of classifier-free guidance.
    out: folder for sheets of samples; None for no sheets.

  Raises:
    UserError: one of the weights is missing or damaged.
  """
  rates, samples = sample_r_precision(
      clip_pair.load(clip_weights), weights, count, scale)
  if out:
    for split, (images, texts) in samples.items():
      image_io.save(pathlib.Path(out) / f'{split}.png', image_io.tile(
          images[:64], 8, texts[:64]))
  return _lines('text_to_image', rates)


def real_r_precision(
    pair: clip_pair.ClipPair, count: int = 512, size: int = 64,
    seed: int = 0) -> dict[str, text_metrics.Rate]:
  """R-precision of real images of held-out objects.

  Args:
    pair: the retrieval model.
    count: of objects per split.
    size: of the images, in pixels.
    seed: of the shapes world.

  Returns:
    {split: Rate among 64 distractors}.
  """
  rates = {}
  for split in SPLITS:
    examples = list(shapes_world.captioned_images(seed, split, 0, count, size))
    images = np.stack([image for _, image, _, _, _ in examples])
    rates[split] = _r_precision(
        pair, images, held_out_captions(split, count, seed))
  return rates


def sample_r_precision(
    pair: clip_pair.ClipPair,
    weights: str | os.PathLike = assets.TEXT_TO_IMAGE, count: int = 512,
    scale: float = 3.0, steps: int = 40, seed: int = 0
) -> tuple[dict[str, text_metrics.Rate],
           dict[str, tuple[np.ndarray, list[str]]]]:
  """R-precision of the text-to-image model's samples for held-out captions.

  Args:
    pair: the retrieval model.
    weights: of the text-to-image model.
    count: of captions per split.
    scale: of classifier-free guidance.
    steps: of the sampler.
    seed: of the captions and of the sampler.

  Returns:
    ({split: Rate among 64 distractors}, {split: (images uint8 [N, H, W, 3],
    N captions)}).
  """
  teacher = pixel_model.teacher(weights)
  rates, samples = {}, {}
  for split in SPLITS:
    texts = held_out_captions(split, count, seed)
    images = sampling.sample(
        jax.random.key(seed), teacher, texts, scale=scale, steps=steps)
    rates[split] = _r_precision(pair, images / 255.0, texts)
    samples[split] = images, texts
  return rates, samples


def held_out_captions(split: str, count: int, seed: int = 0) -> list[str]:
  """The plain captions of the first `count` objects of a split."""
  return [captions.plain(shapes_world.example(seed, split, i).object.spec)
          for i in range(count)]


def retrieval_rate(pair: clip_pair.ClipPair, images: np.ndarray, prompt: str,
                   textureless: bool) -> float:
  """Fraction of an object's views that retrieve its prompt.

  Each view has 64 distractors of its own, drawn from those of 512 held-out
  captions that are inconsistent with the prompt.

  Args:
    pair: the retrieval model.
    images: [V, S, S, 3] in [0, 1].
    prompt: of the object; a caption of the shapes world.
    textureless: the views show no color, so that captions that differ from
      the prompt in colors only are no distractors.

  Raises:
    captions.Unknown: the prompt has no category of the shapes world.
  """
  texts, stated = _pool()
  # One copy of the prompt per view: each view is a case of its own.
  own = attributes.parse_all([prompt] * len(images))
  return text_metrics.attribute_r_precision(
      pair, images, [prompt] * len(images) + texts,
      np.concatenate([own, stated]),
      attributes.visible(own, np.full(len(own), textureless)))['64'].rate


# The same for all runs: generated and parsed once.
@functools.cache
def _pool():
  texts = [text for split in SPLITS for text in held_out_captions(split, POOL)]
  return texts, attributes.parse_all(texts)


def _r_precision(pair: clip_pair.ClipPair, images: np.ndarray,
                 texts: Sequence[str]) -> text_metrics.Rate:
  return text_metrics.attribute_r_precision(
      pair, images, texts, attributes.parse_all(texts))['64']


def _lines(name, rates):
  return '\n'.join(
      f'{name}, {split} pairs: {100 * rate.rate:.1f} % '
      f'+- {100 * rate.error:.1f} % of {rate.n} among 64 distractors'
      for split, rate in rates.items())
