"""Captions of the shapes world: a grammar, its sampler and its parser.

A `Spec` describes an object: category, color of its main part and color of its
second part. A caption states some of these, in one of many phrasings, and may
state the view. `caption` samples a caption of a Spec, `parse` extracts the
Spec of a caption; both use the same vocabulary. The package's tokenizer was
trained on sampled captions by `train_tokenizer`.
"""

import functools
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from gen3d.choices import UserError, check_prompt, excerpt

# Albedo in [0, 1]; shaded images are sRGB values without a tone curve.
COLORS = {
    'red': (0.85, 0.10, 0.10), 'orange': (0.98, 0.50, 0.06),
    'yellow': (0.97, 0.86, 0.12), 'green': (0.14, 0.60, 0.18),
    'cyan': (0.15, 0.80, 0.82), 'blue': (0.12, 0.25, 0.85),
    'purple': (0.48, 0.16, 0.66), 'pink': (0.98, 0.52, 0.70),
    'brown': (0.45, 0.26, 0.12), 'black': (0.08, 0.08, 0.09),
    'white': (0.95, 0.95, 0.94), 'gray': (0.50, 0.51, 0.53)}
_COLOR_WORDS = {'grey': 'gray', 'turquoise': 'cyan', 'violet': 'purple'}


class Noun(NamedTuple):
  """Words for a category and its second part."""
  words: tuple[str, ...]  # the usual word first, then synonyms
  part: str               # the part that has the second color
  kind: str               # group of categories


NOUNS = {
    'chair': Noun(('chair', 'seat'), 'legs', 'furniture'),
    'table': Noun(('table', 'desk'), 'legs', 'furniture'),
    'sofa': Noun(('sofa', 'couch'), 'cushions', 'furniture'),
    'lamp': Noun(('lamp',), 'stand', 'furniture'),
    'car': Noun(('car', 'automobile'), 'wheels', 'vehicle'),
    'truck': Noun(('truck', 'lorry'), 'cargo box', 'vehicle'),
    'airplane': Noun(('airplane', 'plane'), 'wings', 'vehicle'),
    'boat': Noun(('boat', 'sailboat'), 'sail', 'vehicle'),
    'rocket': Noun(('rocket', 'spaceship'), 'fins', 'vehicle'),
    'hammer': Noun(('hammer',), 'handle', 'tool'),
    'umbrella': Noun(('umbrella',), 'stick', 'tool'),
    'mug': Noun(('mug', 'cup'), 'stripe', 'tool'),
    'apple': Noun(('apple',), 'leaf', 'food'),
    'ice cream': Noun(('ice cream', 'ice cream cone'), 'cone', 'food'),
    'cake': Noun(('cake', 'birthday cake'), 'icing', 'food'),
    'snowman': Noun(('snowman',), 'hat', 'toy'),
    'robot': Noun(('robot',), 'arms', 'toy'),
    'duck': Noun(('duck', 'rubber duck'), 'beak', 'toy'),
    'tree': Noun(('tree',), 'trunk', 'plant'),
    'cactus': Noun(('cactus',), 'pot', 'plant'),
    'mushroom': Noun(('mushroom', 'toadstool'), 'stem', 'plant'),
    'cat': Noun(('cat', 'kitten'), 'paws', 'animal'),
    'rabbit': Noun(('rabbit', 'bunny'), 'ears', 'animal'),
    'fish': Noun(('fish',), 'fins', 'animal'),
    'house': Noun(('house', 'home'), 'roof', 'building'),
    'castle': Noun(('castle', 'fortress'), 'towers', 'building'),
}
CATEGORIES = tuple(NOUNS)
VIEWS = ('front', 'side', 'back', 'overhead')
# Repeated entries are more likely.
_PREFIXES = ('', '', '', 'a photo of ', 'a picture of ', 'an image of ',
             'a 3d render of ', 'a toy model of ')
_DETERMINERS = ('a', 'a', 'a', 'one', 'the')


class Spec(NamedTuple):
  """Description of an object; None where a caption does not state it."""
  category: str | None
  main: str | None
  second: str | None


class Unknown(UserError):
  """A prompt without a category of the shapes world."""


def unseen(category: str, main: str) -> bool:
  """True if (category, main color) is held out of training: one in ten."""
  # A hash, so that the split of a pair is independent of the other pairs.
  digest = hashlib.sha256(f'{category}/{main}'.encode()).digest()
  return digest[0] % 10 == 0


@functools.cache
def pairs(split: str) -> tuple[tuple[str, str], ...]:
  """The (category, main color) pairs of 'train', 'seen' or 'unseen'."""
  return tuple((c, m) for c in CATEGORIES for m in COLORS
               if unseen(c, m) == (split == 'unseen'))


def sample_spec(rng: np.random.Generator, split: str,
                categories: Collection[str] = CATEGORIES) -> Spec:
  """Samples a description with two different colors.

  Args:
    rng: generator.
    split: 'train', 'seen' or 'unseen', which decides the pairs.
    categories: to sample from.
  """
  choices = [pair for pair in pairs(split) if pair[0] in categories]
  category, main = choices[rng.integers(len(choices))]
  others = [c for c in COLORS if c != main]
  return Spec(category, main, others[rng.integers(len(others))])


def view_word(azimuth: float, elevation: float) -> str:
  """The word of VIEWS for a direction in degrees (DreamFusion, 3.2)."""
  if elevation > 60:
    return 'overhead'
  turn = abs((azimuth + 180) % 360 - 180)
  return 'front' if turn < 45 else 'back' if turn > 135 else 'side'


def _with_article(phrase, determiner):
  # By the first letter, which is right for all words of the vocabulary.
  if determiner == 'a' and phrase[0] in 'aeiou':
    determiner = 'an'
  return f'{determiner} {phrase}'


def plain(spec: Spec) -> str:
  """The shortest caption that states all: 'a red car with blue wheels'."""
  noun = NOUNS[spec.category]
  phrase = f'{spec.main} {noun.words[0]}' if spec.main else noun.words[0]
  text = _with_article(phrase, 'a')
  return f'{text} with {spec.second} {noun.part}' if spec.second else text


def caption(rng: np.random.Generator, spec: Spec, view: str | None = None,
            colors: bool = True) -> str:
  """Samples a caption; each fact is left out with some probability.

  Args:
    rng: generator.
    spec: Spec.
    view: one of VIEWS, stated with probability 0.7, or None.
    colors: False to leave out all colors.
  """
  noun = NOUNS[spec.category]
  word = noun.words[0] if rng.random() < 0.7 else (
      noun.words[rng.integers(len(noun.words))])
  main = spec.main if colors and rng.random() < 0.93 else ''
  text = _with_article(f'{main} {word}'.strip(),
                       _DETERMINERS[rng.integers(len(_DETERMINERS))])
  if colors and rng.random() < 0.55:
    text += f' with {spec.second} {noun.part}'
  text = _PREFIXES[rng.integers(len(_PREFIXES))] + text
  if view and rng.random() < 0.7:
    text += f', {view} view'
  return text


def _alternatives(table: Iterable[str]) -> str:
  """Regular expression of any of the words, longer ones first."""
  # 'ice cream cone' before 'ice cream'.
  words = sorted(table, key=len, reverse=True)
  return '|'.join(re.escape(w) for w in words)


@functools.cache
def _patterns():
  """(noun -> category, word -> color, head pattern, second part's pattern)."""
  nouns = {w: c for c, n in NOUNS.items() for w in n.words}
  colors = {**{c: c for c in COLORS}, **_COLOR_WORDS}
  return nouns, colors, re.compile(
      rf'(?:({_alternatives(colors)}) )?({_alternatives(nouns)})\b'), (
          re.compile(rf'with (?:an? )?({_alternatives(colors)}) '))


def parse(text: str) -> Spec:
  """The Spec that a caption states, None for what it does not state.

  Raises:
    Unknown: the caption has no category of the shapes world.
  """
  check_prompt(text)
  nouns, colors, head, tail = _patterns()
  text = text.lower()
  match = head.search(text)
  if not match:
    raise Unknown(f'No object of the shapes world is named in {excerpt(text)}; '
                  f'choose from {", ".join(CATEGORIES)}.')
  # Only after the noun: 'ice cream with a pink cone'.
  second = tail.search(text, match.end())
  return Spec(nouns[match[2]], colors[match[1]] if match[1] else None,
              colors[second[1]] if second else None)


def complete(text: str, seed: int) -> str:
  """The caption with the colors that it leaves open drawn at random.

  'a red chair' becomes 'a red chair with white legs', for example. A text
  without a category of the shapes world stays as it is.

  Args:
    text: caption.
    seed: of the draw, together with the text.
  """
  try:
    category, main, second = parse(text)
  except Unknown:
    return text
  digest = hashlib.sha256(f'{seed}/{text.lower()}'.encode()).digest()
  rng = np.random.default_rng(list(digest[:8]))
  start, end = next(_patterns()[2].finditer(text.lower())).span()
  if second is None:
    others = [c for c in COLORS if c != main]
    second = others[rng.integers(len(others))]
    text = f'{text[:end]} with {second} {NOUNS[category].part}{text[end:]}'
  if main is None:
    known = [m for c, m in pairs('seen') if c == category and m != second]
    before = re.sub(r'\ban? $', '', text[:start])
    phrase = f'{known[rng.integers(len(known))]} {text[start:]}'
    text = before + (_with_article(phrase, 'a') if before != text[:start]
                     else phrase)
  return text


def meaning(texts: Sequence[str]) -> np.ndarray:
  """Class indices of N captions, as targets of a classifier.

  Args:
    texts: N captions; an empty one states nothing.

  Returns:
    int32 [N, 3]: category, main color and second color, counted from 1 in the
    order of CATEGORIES and COLORS; 0 where the caption does not state it.

  Raises:
    Unknown: as parse.
  """
  nothing = Spec(None, None, None)
  return 1 + np.array([indices(parse(text) if text else nothing)
                       for text in texts], np.int32)


def indices(spec: Spec) -> list[int]:
  """Indices of a Spec's fields in CATEGORIES and COLORS; -1 for None."""
  return [-1 if name is None else list(names).index(name)
          for names, name in zip((CATEGORIES, COLORS, COLORS), spec)]


@functools.cache
def words() -> tuple[str, ...]:
  """The vocabulary of captions, sorted."""
  texts = [w for n in NOUNS.values() for w in (*n.words, n.part)]
  texts += [*COLORS, *VIEWS, *_PREFIXES, *_DETERMINERS, 'an', 'with', 'view']
  return tuple(sorted({w for t in texts for w in t.split()}))


def unknown_words(prompt: str) -> list[str]:
  """Words of a prompt that are not in the vocabulary."""
  vocabulary = set(words())
  return [w for w in re.findall(r"[^\W_]+", prompt.lower())
          if w not in vocabulary]


def advice(prompts: Iterable[str]) -> str | None:
  """A warning about words outside the vocabulary, or None."""
  unknown = sorted({w for p in prompts for w in unknown_words(p)})
  if not unknown:
    return None
  return (
      f'The shapes model was not trained on {", ".join(map(repr, unknown))} '
      'and ignores or misreads these words. It was trained on these objects: '
      f'{", ".join(CATEGORIES)}; in these colors: {", ".join(COLORS)}. For '
      'other words choose a teacher trained on photographs, Stable Diffusion '
      'or DeepFloyd IF (gen3d/diffusion/README.md).')


def train_tokenizer(path: str | os.PathLike, seed: int = 0,
                    count: int = 20_000, vocab_size: int = 512) -> None:
  """Trains the byte-pair encoding of the package and writes it.

  Args:
    path: of the JSON file of the library tokenizers.
    seed: of the captions.
    count: captions to train on.
    vocab_size: tokens, with <pad>, <end> and <unk>.
  """
  rng = np.random.default_rng(seed)
  sample = lambda: caption(
      rng, sample_spec(rng, 'train'), VIEWS[rng.integers(4)])
  model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>'))
  model.normalizer = tokenizers.normalizers.Lowercase()
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  # All characters are tokens, so that unknown words are spelled out instead of
  # becoming <unk>.
  model.train_from_iterator(
      (sample() for _ in range(count)), tokenizers.trainers.BpeTrainer(
          vocab_size=vocab_size, special_tokens=['<pad>', '<end>', '<unk>'],
          initial_alphabet=list('abcdefghijklmnopqrstuvwxyz0123456789,.-\''),
          show_progress=False))
  model.save(str(path))
