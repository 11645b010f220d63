"""Small collections of pictures with cameras, as a folder or a zip."""

import io
import json
import zipfile

import jax.numpy as jnp
import numpy as np
from PIL import Image

from gen3d.ops import cameras

COUNT = 6


def camera_labels(count=COUNT):
  return np.asarray(cameras.to_label(cameras.orbit(
      jnp.linspace(-40., 40., count), jnp.linspace(0., 20., count), 2.7, 4.2)))


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()




def content(labels=None, size=8):
  """{file name: bytes} of a small collection; image i is of color i."""
  labels = camera_labels() if labels is None else labels
  names = [f'00000/img{i:08d}.png' for i in range(COUNT)]
  files = {name: png(np.full((size, size, 3), 10 * i, np.uint8))
           for i, name in enumerate(names)}
  listing = [[n, np.asarray(label, float).tolist()
              if isinstance(label, np.ndarray) else label]
             for n, label in zip(names, labels)]
  files['dataset.json'] = json.dumps({'labels': listing[::-1]}).encode()
  return files


def folder(tmp_path, files):
  for name, data in files.items():
    path = tmp_path / 'set' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return tmp_path / 'set'


def archive(tmp_path, files):
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as out:
    for name, data in files.items():
      out.writestr(name, data)
  return tmp_path / 'set.zip'
