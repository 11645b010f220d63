"""One U-Net of Stable Diffusion, here and in diffusers: seconds and memory.

PYTHONPATH=. python tests/checkpoint_folders.py /tmp/sd15   # or a real one
PYTHONPATH=. python tests/race_unet.py /tmp/sd15

Each reads FOLDER/unet and makes one prediction of batch 1 in float32, in a
process of its own, on all cores. Wants what `bash launch/test.sh --parity`
installs.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

REPEATS = 3


def ours(folder, x, t, states):
  """Median seconds and prediction [1, H, W, 4] of gen3d's U-Net."""
  import jax

  from gen3d.models import stable_diffusion
  network, params = stable_diffusion.load_unet(folder)
  apply = jax.jit(network.apply)
  return timed(lambda: np.asarray(apply(params, x, t, states)))


def theirs(folder, x, t, states):
  """The same of diffusers' UNet2DConditionModel."""
  import diffusers
  import torch
  from safetensors import torch as safetensors
  kind = diffusers.UNet2DConditionModel
  with torch.device('meta'):
    model = kind.from_config(kind.load_config(folder))
  state = {name: tensor.float() for file in folder.glob('*.safetensors')
           for name, tensor in safetensors.load_file(file).items()}
  model.load_state_dict(state, assign=True)
  x = torch.tensor(x).permute(0, 3, 1, 2)
  t, states = torch.tensor(t), torch.tensor(states)

  def predict():
    with torch.no_grad():
      return model.eval()(x, t, states).sample.permute(0, 2, 3, 1).numpy()

  return timed(predict)


def timed(function):
  """(median seconds of REPEATS calls after a first one, the last result)."""
  seconds = []
  for _ in range(REPEATS + 1):
    begin = time.perf_counter()
    result = function()
    seconds.append(time.perf_counter() - begin)
  return float(np.median(seconds[1:])), result


def racer(name, folder, out):
  """Runs one of the two and leaves what it predicts in the file `out`."""
  config = json.loads((folder / 'config.json').read_text())
  side, width = config.get('sample_size', 64), config['cross_attention_dim']
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  seconds, image = {'gen3d': ours, 'diffusers': theirs}[name](
      folder, draw(1, side, side, 4), np.array([500], np.float32),
      draw(1, 77, width))
  np.save(out, image)
  # Kilobytes; but bytes on a Mac.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  peak *= 1 if sys.platform == 'darwin' else 1024
  print(f'{name}: {seconds:.1f} s, {peak / 1e9:.2f} GB at the peak of the '
        'process, reading included')


def main(folder):
  predictions = []
  with tempfile.TemporaryDirectory() as place:
    for name in ('gen3d', 'diffusers'):
      out = pathlib.Path(place) / f'{name}.npy'
      subprocess.run([sys.executable, __file__, name, folder / 'unet', out],
                     check=True)
      predictions.append(np.load(out))
  us, them = predictions
  print('largest difference, relative to the largest value: '
        f'{np.abs(us - them).max() / np.abs(them).max():.1e}')


if __name__ == '__main__':
  if len(sys.argv) == 2:
    main(pathlib.Path(sys.argv[1]))
  elif len(sys.argv) == 4:
    racer(sys.argv[1], *map(pathlib.Path, sys.argv[2:]))
  else:
    sys.exit(__doc__)
