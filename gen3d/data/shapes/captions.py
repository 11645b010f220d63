"""The language of the shapes world: what can be said of an object.

A `Spec` is what an object is (category, color of its main part, color of
its second part); a caption says some of that, in one of many ways, and
perhaps from where it is seen. `caption` speaks, `parse` listens; both know
the same words. The tokenizer that ships with the package was trained on
captions drawn here.
"""

import functools
import hashlib
import re
from typing import NamedTuple

import numpy as np
import tokenizers

from gen3d.choices import UserError

COLORS = {  # linear use of sRGB values: the world has no tone curve
    'red': (0.85, 0.10, 0.10), 'orange': (0.98, 0.50, 0.06),
    'yellow': (0.97, 0.86, 0.12), 'green': (0.14, 0.60, 0.18),
    'cyan': (0.15, 0.80, 0.82), 'blue': (0.12, 0.25, 0.85),
    'purple': (0.48, 0.16, 0.66), 'pink': (0.98, 0.52, 0.70),
    'brown': (0.45, 0.26, 0.12), 'black': (0.08, 0.08, 0.09),
    'white': (0.95, 0.95, 0.94), 'gray': (0.50, 0.51, 0.53)}
_COLOR_WORDS = {'grey': 'gray', 'turquoise': 'cyan', 'violet': 'purple'}


class Noun(NamedTuple):
  """How a category and its second part are called."""
  words: tuple   # the usual word first, then synonyms
  part: str      # name of the part that wears the second color
  kind: str


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
_PREFIXES = ('', '', '', 'a photo of ', 'a picture of ', 'an image of ',
             'a 3d render of ', 'a toy model of ')
_DETERMINERS = ('a', 'a', 'a', 'one', 'the')
LENGTH = 24  # tokens of a caption, with the end token


class Spec(NamedTuple):
  """What an object is; None where a caption does not say."""
  category: str | None
  main: str | None
  second: str | None


class Unknown(UserError):
  """A prompt from which the shapes world can make nothing."""


def unseen(category, main):
  """Whether (category, main color) is kept out of training: one in ten."""
  digest = hashlib.sha256(f'{category}/{main}'.encode()).digest()
  return digest[0] % 10 == 0


@functools.cache
def pairs(split):
  """The (category, main color) pairs of 'train', 'seen' or 'unseen'."""
  return tuple((c, m) for c in CATEGORIES for m in COLORS
               if unseen(c, m) == (split == 'unseen'))


def sample_spec(rng, split, categories=CATEGORIES):
  """Draws what to show, of some categories; the two colors differ."""
  choices = [pair for pair in pairs(split) if pair[0] in categories]
  category, main = choices[rng.integers(len(choices))]
  others = [c for c in COLORS if c != main]
  return Spec(category, main, others[rng.integers(len(others))])


def view_word(azimuth, elevation):
  """'front', 'side', 'back' or 'overhead', from degrees (DreamFusion)."""
  if elevation > 60:
    return 'overhead'
  turn = abs((azimuth + 180) % 360 - 180)
  return 'front' if turn < 45 else 'back' if turn > 135 else 'side'


def _with_article(phrase, determiner):
  if determiner == 'a' and phrase[0] in 'aeiou':
    determiner = 'an'
  return f'{determiner} {phrase}'


def plain(spec):
  """The plainest full caption: 'a red car with blue wheels'."""
  noun = NOUNS[spec.category]
  phrase = f'{spec.main} {noun.words[0]}' if spec.main else noun.words[0]
  text = _with_article(phrase, 'a')
  return f'{text} with {spec.second} {noun.part}' if spec.second else text


def caption(rng, spec, view=None, colors=True):
  """One of the many ways to say it.

  Args:
    rng: numpy Generator.
    spec: Spec.
    view: one of VIEWS to be mentioned (most of the time), or None.
    colors: whether color words may be used at all.

  Returns:
    A string; parts of the truth are left out at random, nothing false is
    said.
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


def _alternatives(table):
  words = sorted(table, key=len, reverse=True)
  return '|'.join(re.escape(w) for w in words)


@functools.cache
def _patterns():
  nouns = {w: c for c, n in NOUNS.items() for w in n.words}
  colors = {**{c: c for c in COLORS}, **_COLOR_WORDS}
  return nouns, colors, re.compile(
      rf'(?:({_alternatives(colors)}) )?({_alternatives(nouns)})\b'), (
          re.compile(rf'with (?:an? )?({_alternatives(colors)}) '))


def parse(text):
  """What a caption says, as a Spec with None for what it does not.

  Raises:
    Unknown: when no category of the shapes world is mentioned.
  """
  nouns, colors, head, tail = _patterns()
  text = text.lower()
  found = head.search(text)
  if not found:
    raise Unknown(f'No object of the shapes world is named in {text!r}; '
                  f'it knows: {", ".join(CATEGORIES)}.')
  second = tail.search(text, found.end())
  return Spec(nouns[found[2]], colors[found[1]] if found[1] else None,
              colors[second[1]] if second else None)


def meaning(texts):
  """What captions say, as numbers that a classifier can be asked for.

  Args:
    texts: list of N captions; an empty one says nothing.

  Returns:
    int32 [N, 3]: category, main color and second color, each counted from
    1 in the order of CATEGORIES and COLORS; 0 where it is not said.
  """
  nothing = Spec(None, None, None)
  return 1 + np.array([indices(parse(text) if text else nothing)
                       for text in texts], np.int32)


def indices(spec):
  """Where a Spec's entries stand in CATEGORIES and COLORS; -1 for None."""
  return [-1 if name is None else list(names).index(name)
          for names, name in zip((CATEGORIES, COLORS, COLORS), spec)]


def is_true(said, spec):
  """Whether everything that `said` says holds of the object `spec`."""
  return all(s is None or s == truth for s, truth in zip(said, spec))


@functools.cache
def words():
  """Every word that a caption can hold, sorted."""
  texts = [w for n in NOUNS.values() for w in (*n.words, n.part)]
  texts += [*COLORS, *VIEWS, *_PREFIXES, *_DETERMINERS, 'an', 'with', 'view']
  return tuple(sorted({w for t in texts for w in t.split()}))


def unknown_words(prompt):
  """Words of a prompt that no caption in training ever held."""
  known = set(words())
  return [w for w in re.findall(r"[^\W_]+", prompt.lower()) if w not in known]


def advice(prompts):
  """A warning about words that the shapes world lacks, or None.

  Args:
    prompts: list of strings.
  """
  strange = sorted({w for p in prompts for w in unknown_words(p)})
  if not strange:
    return None
  return (
      f'The shapes model has never seen {", ".join(map(repr, strange))} and '
      f'will guess. It knows these objects: {", ".join(CATEGORIES)}; in these '
      f'colors: {", ".join(COLORS)}. For open vocabulary a teacher trained '
      f'on the world\'s pictures is needed: config.teacher.name chooses it, '
      f'once one is there (see README).')


def train_tokenizer(path, seed=0, captions=20_000, vocab_size=512):
  """Learns the subwords (byte-pair encoding) from captions; writes `path`."""
  rng = np.random.default_rng(seed)
  draw = lambda: caption(rng, sample_spec(rng, 'train'), VIEWS[rng.integers(4)])
  model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>'))
  model.normalizer = tokenizers.normalizers.Lowercase()
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model.train_from_iterator(
      (draw() for _ in range(captions)), tokenizers.trainers.BpeTrainer(
          vocab_size=vocab_size, special_tokens=['<pad>', '<end>', '<unk>'],
          initial_alphabet=list('abcdefghijklmnopqrstuvwxyz0123456789,.-\''),
          show_progress=False))
  model.save(str(path))
