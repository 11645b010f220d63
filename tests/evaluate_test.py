"""gen3d.evaluate: the arguments of each report, and errors."""

import json
import pathlib
import subprocess
import sys

import commands
import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Replaces each report by one that prints its arguments by name, and calls
# evaluate.report for each value of --what.
RECORD = r"""
import inspect, json, sys
from absl import flags
from gen3d import evaluate
from gen3d.evaluation import (
  clip, faces, fid, gan, mean_prediction, r_precision, text_to_3d,
  texture_truth, textures)

def record(module, name):
  signature = inspect.signature(getattr(module, name))
  setattr(module, name, lambda *given, **named: json.dumps(
      signature.bind(*given, **named).arguments))

record(clip, 'report_real_images')
record(clip, 'report_samples')
for module in (faces, fid, gan, mean_prediction, r_precision, text_to_3d,
               texture_truth, textures):
  record(module, 'report')
flags.FLAGS(sys.argv)
for what in evaluate._REPORTS:
  print(what, end=' ')
  print(evaluate.report(what))
"""


def test_reports_get_the_flags_that_they_are_documented_with():
  done = subprocess.run(
      [sys.executable, '-c', RECORD, '--runs=RUNS', '--count=9',
       '--guidance_scale=2.5', '--weights=WEIGHTS', '--clip_weights=PAIR',
       '--clip=A,B', '--captions=CAPTIONS', '--protocol=dream_fields',
       '--network=NETWORK', '--force', '--out=OUT', '--data=DATA',
       '--inception=INCEPTION', '--resize=pytorch_fid', '--divisor=n-1',
       '--independent_cameras', '--kid_subset=50', '--seed=3',
       '--arcface=ARCFACE', '--deep3d=DEEP3D', '--face_model=BFM'],
      cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  lines = (line.split(' ', 1) for line in done.stdout.splitlines())
  assert {what: json.loads(arguments) for what, arguments in lines} == {
      'clip': {'clip_weights': 'PAIR', 'count': 9},
      'text_to_image': {'clip_weights': 'PAIR', 'weights': 'WEIGHTS',
                        'count': 9, 'scale': 2.5, 'out': 'OUT'},
      'mean_prediction': {'weights': 'WEIGHTS', 'out': 'OUT'},
      'text_to_3d': {'runs': 'RUNS', 'clip_weights': 'PAIR', 'force': True,
                     'out': 'OUT'},
      'r_precision': {
          'runs': 'RUNS', 'protocol': 'dream_fields', 'clips': ['A', 'B'],
          'captions': 'CAPTIONS', 'clip_weights': 'PAIR', 'force': True},
      'textures': {'runs': 'RUNS', 'out': 'OUT'},
      'texture_truth': {'runs': 'RUNS', 'clip_weights': 'PAIR', 'out': 'OUT'},
      'gan': {'path': 'NETWORK'},
      'fid': {'network': 'NETWORK', 'data': 'DATA', 'weights': 'INCEPTION',
              'resize': 'pytorch_fid',
              'protocol': [50_000, 'n-1', True, 50, 3]},
      'faces': {'network': 'NETWORK', 'data': 'DATA',
                'arcface_path': 'ARCFACE', 'deep3d_path': 'DEEP3D',
                'model_path': 'BFM', 'samples': 1024, 'seed': 3}}


@pytest.mark.parametrize('flag, words', [
    ('--what=judge', 'choose from clip, text_to_image, mean_prediction, '),
    ('--clip_weights=none.safetensors', 'none.safetensors')])
def test_errors_are_one_line(flag, words):
  done = commands.run('gen3d.evaluate', '--what=clip', flag)
  assert done.returncode == 2 and done.stdout == ''
  assert words in done.stderr and len(done.stderr.splitlines()) == 1
