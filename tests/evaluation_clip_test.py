"""R-precision of the bundled CLIP pair on the shapes world."""

import numpy as np

from gen3d import assets
from gen3d.data.shapes import attributes, captions
from gen3d.data.shapes import world as shapes_world
from gen3d.diffusion import pixel_model, sampling
from gen3d.evaluation import clip as clip_evaluation
from gen3d.metrics import text as text_metrics
from gen3d.models import clip_pair


def test_held_out_captions_belong_to_their_split():
  for split in ('seen', 'unseen'):
    for text in clip_evaluation.held_out_captions(split, 20):
      spec = captions.parse(text)
      assert captions.unseen(spec.category, spec.main) == (split == 'unseen')


def test_bundled_pair_retrieves_captions_of_real_images():
  pair = clip_pair.load()
  images = [image for _, image, _, _, _ in shapes_world.captioned_images(
      0, 'seen', 0, 4, 64)]
  prompts = clip_evaluation.held_out_captions('seen', 4)
  mean_rate = lambda shift: np.mean([
      clip_evaluation.retrieval_rate(pair, image[None], prompt, False)
      for image, prompt in zip(images, prompts[shift:] + prompts[:shift])])
  assert mean_rate(0) > 0.7 and mean_rate(1) < 0.3


class CategoryPair:
  """Encodes a caption as its category; images are all of category `shown`."""

  def __init__(self, shown):
    self._shown = captions.CATEGORIES.index(shown)

  def image_features(self, images):
    return np.tile(np.eye(26)[self._shown], (len(images), 1))

  def text_features(self, texts):
    return np.eye(26)[attributes.parse_all(texts)[:, 0]]


def test_captions_that_differ_in_color_only_count_where_colors_are_visible():
  images = np.zeros((8, 4, 4, 3))
  rate = lambda shown, textureless: clip_evaluation.retrieval_rate(
      CategoryPair(shown), images, 'a red car', textureless)
  # All captions of the pool that have another category score lower.
  assert rate('car', True) == 1.0
  # Cars of other colors among the 64 distractors tie, and a tie is a miss.
  assert rate('car', False) < 0.5
  assert rate('duck', True) == 0.0


def test_report_of_samples_has_a_line_and_a_sheet_for_each_split(
    tmp_path, monkeypatch):
  used = {}

  def sample(key, teacher, texts, *, scale, steps):
    used.update(scale=scale, steps=steps)
    return np.full((len(texts), 8, 8, 3), 255, np.uint8)

  def image_features(images):
    np.testing.assert_array_equal(images, 1.0)  # uint8 becomes [0, 1]
    return np.tile([[1.0, 0.0]], (len(images), 1))

  own = clip_evaluation.held_out_captions('seen', 96)
  # Retrieves the first caption of the split 'seen' for every image.
  pair = clip_pair.ClipPair(image_features, lambda texts: np.array([
      (1.0, 0.0) if text == own[0] else (0.0, 1.0) for text in texts]))
  monkeypatch.setattr(clip_pair, 'load', lambda path: pair)
  monkeypatch.setattr(pixel_model, 'teacher', lambda path: None)
  monkeypatch.setattr(sampling, 'sample', sample)
  text = clip_evaluation.report_samples(count=96, scale=2.0, out=tmp_path)
  assert used == {'scale': 2.0, 'steps': 40}
  rate = text_metrics.rate([caption == own[0] for caption in own])
  assert text.splitlines() == [
      f'text_to_image, seen pairs: {100 * rate.rate:.1f} % +- '
      f'{100 * rate.error:.1f} % of 96 among 64 distractors',
      'text_to_image, unseen pairs: 0.0 % +- 0.0 % of 96 among 64 distractors']
  assert (tmp_path / 'seen.png').exists() and (tmp_path / 'unseen.png').exists()


def test_bundled_pair_reaches_its_r_precision_on_real_images():
  rates = clip_evaluation.real_r_precision(
      clip_pair.load(assets.CLIP), count=96)
  assert rates['seen'].rate > 0.9 and rates['unseen'].rate > 0.7
