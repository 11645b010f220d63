"""The code and the files that the documents name."""

import pathlib
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from gen3d.scenes import Render

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / 'README.md', ROOT / 'configs/README.md',
             *sorted((ROOT / 'gen3d').rglob('README.md'))]


def code_of(path):
  """The Python blocks of a document, as one string each."""
  return re.findall(r'```python\n(.*?)```', path.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    'path', DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_files_exist(path):
  text = path.read_text()
  targets = re.findall(r'\]\(([^)#]+)\)', text)
  assert all((path.parent / target).exists() for target in targets
             if '://' not in target)
  # Files in a document's own tables: in its folder, in gen3d/ or at the top.
  folders = (path.parent, ROOT / 'gen3d', ROOT / 'launch', ROOT)
  for name in re.findall(r'`((?:[a-z_0-9]+/)*[a-z_0-9]+\.(?:py|sh))`', text):
    assert any((folder / name).exists() for folder in folders), name


def test_readme_is_short():
  lines = (ROOT / 'README.md').read_text().splitlines()
  assert len(lines) <= 150 and max(map(len, lines)) <= 100


def test_code_of_readme_renders_views_and_a_mesh():
  code, = code_of(ROOT / 'README.md')
  names = {}
  exec(code.replace('128)', '24)'), names)
  views, mesh = names['views'], names['mesh']
  assert views.dtype == np.uint8 and views.shape == (
      3, views.shape[1], 2 * views.shape[1], 3)
  assert len({view.tobytes() for view in views}) == 3
  assert len(mesh.faces) and mesh.colors.shape == mesh.vertices.shape


def test_worked_example_is_a_guidance_that_raises_the_cosine():
  code, = code_of(ROOT / 'gen3d/README.md')
  names = {}
  exec(code, names)
  config = ml_collections.ConfigDict({'guidance': {'path': ''}})
  guidance = names['from_config'](config)
  frozen = guidance.load('a red chair', '')
  text = guidance.condition(frozen, None)

  @jax.jit
  def ascend(image):
    def loss(image):
      render = Render(image, *(None,) * 5)
      return guidance.loss({}, frozen, None, render, text, 0)
    gradient, metrics = jax.grad(loss, has_aux=True)(image)
    return image - 0.02 * jnp.sign(gradient), metrics['clip/cosine']

  image, cosines = jnp.full((48, 48, 3), 0.5), []
  for _ in range(8):
    image, cosine = ascend(image)
    cosines.append(float(cosine))
  assert cosines[-1] > cosines[0] + 0.1
