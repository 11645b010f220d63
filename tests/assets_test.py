"""Weights that ship: round trips, damage, and the tokenizer."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d import assets
from gen3d.choices import UserError


def make_asset(tmp_path, dtype='float16'):
  tree = {'net': {'w': np.linspace(-1, 1, 300, dtype=np.float32),
                  'ids': np.arange(5)}, 'b': jnp.float32(2.)}
  path, beside = assets.save(
      tmp_path / 'sub' / 'net.safetensors', tree, {'hours': 2.5}, dtype)
  return tree, path, beside


def test_asset_is_loaded_as_float32(tmp_path):
  for dtype, rtol in (('float32', 0.), ('float16', 1e-3)):
    tree, path, beside = make_asset(tmp_path, dtype)
    loaded, record = assets.load(path)
    assert loaded['net']['w'].dtype == np.float32
    np.testing.assert_allclose(loaded['net']['w'], tree['net']['w'], rtol)
    np.testing.assert_array_equal(loaded['net']['ids'], np.arange(5))
    assert loaded['b'] == 2 and loaded['b'].shape == ()
    assert record['hours'] == 2.5 and record['parameters'] == 306
    assert sorted(path.parent.iterdir()) == sorted([path, beside])


@pytest.mark.parametrize('harm', ['truncate', 'flip', 'json', 'remove'])
def test_damaged_asset_is_one_sentence(tmp_path, harm):
  _, path, beside = make_asset(tmp_path)
  content = bytearray(path.read_bytes())
  if harm == 'truncate':
    path.write_bytes(content[:-7])
  elif harm == 'flip':
    content[-7] ^= 1
    path.write_bytes(content)
  elif harm == 'json':
    beside.write_text(beside.read_text()[:20])
  else:
    path.unlink()
  with pytest.raises(ValueError, match='get it again') as error:
    assets.load(path)
  assert str(beside if harm == 'json' else path) in str(error.value)
  assert '\n' not in str(error.value)


def test_config_of_version_1_has_present_names(tmp_path):
  path, beside = assets.save(
      tmp_path / 'a.safetensors', {'w': np.ones(2)},
      {'config': {'task': 'image_text', 'sizes': [1, 2],
                  'optimizer': {'rates': {'encode': 2.0}}}})
  written = json.loads(beside.read_text())
  del written['version'], written['digest']  # as version 1 wrote it
  beside.write_text(json.dumps(written))
  _, record = assets.load(path)
  assert record['config'] == {
      'task': 'clip', 'sizes': (1, 2),
      'optimizer': {'lr_multipliers': {'encode': 2.0}}}
  assert json.loads(beside.read_text())['sha256'] == record['sha256']


def test_config_of_this_version_keeps_its_names(tmp_path):
  config = {'task': 'gan', 'model': {'rendering': {'samples': 16}}}
  path, _ = assets.save(
      tmp_path / 'a.safetensors', {'w': np.ones(2)}, {'config': config})
  assert assets.load(path)[1]['config'] == config


def test_weights_of_another_task_or_size_are_refused():
  tree, _ = assets.load(assets.CLIP, 'clip')
  with pytest.raises(UserError, match="clip_shapes.* the task 'clip'; .*'gan'"):
    assets.load(assets.CLIP, 'gan')
  assets.check_fits('w', tree, tree)
  for other in ({'image': 0}, jax.tree.map(lambda x: x[None], tree)):
    with pytest.raises(UserError, match='^w is of another pair than'):
      assets.check_fits('w', tree, other, 'pair')


def test_slash_in_a_name_is_refused(tmp_path):
  with pytest.raises(UserError, match="'a/b' contains"):
    assets.save(tmp_path / 'a.safetensors', {'a/b': np.ones(2)}, {})


@pytest.mark.parametrize('path', sorted(
    assets.FOLDER.glob('*.safetensors')), ids=lambda p: p.stem)
def test_shipped_weights_match_their_records(path):
  tree, record = assets.load(path)
  assert tree and record['parameters'] > 0


def test_tokenizer_truncates_before_the_end_token():
  tokens, mask = assets.tokenizer().encode(
      ['a red car', 'a red car ' * 20], length=8)
  assert tokens.shape == mask.shape == (2, 8)
  lengths = mask.sum(1).astype(int)
  assert lengths[0] < lengths[1] == 8
  for row, length in zip(tokens, lengths):
    assert row[length - 1] == 1 and not row[length:].any()


def test_shipped_weights_are_read_by_name_from_any_folder(
    tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _, record = assets.load('text_to_image_shapes', 'text_to_image')
  assert record == assets.load(assets.TEXT_TO_IMAGE)[1]
  with pytest.raises(UserError, match='text_to_image_shape is missing'):
    assets.load('text_to_image_shape')


@pytest.mark.parametrize('content', [
    b'', b'{', b'[]', b'\xff', b'version https://git-lfs.github.com/spec/v1'])
def test_damaged_tokenizer_is_one_sentence(tmp_path, content):
  path = tmp_path / 'tokenizer.json'
  for make in (path.touch, lambda: path.write_bytes(content)):
    make()
    with pytest.raises(UserError, match=r'tokenizer\.json is missing or damag'):
      assets.Tokenizer(path)
  path.unlink()
  with pytest.raises(UserError, match=r'tokenizer\.json is missing or damaged'):
    assets.Tokenizer(path)


@pytest.mark.parametrize('change', [
    {'config': []}, {'config': 5}, {'sha256': 5}, {'version': 'x'},
    {'version': 10 ** 9}])
def test_record_of_another_type_is_one_sentence(tmp_path, change):
  _, path, beside = make_asset(tmp_path)
  beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
  with pytest.raises(UserError, match=r"\.json: '.*' is .*, but must be"):
    assets.load(path)


def test_file_that_is_no_safetensors_is_one_sentence(tmp_path):
  """Its SHA-256 fits, so that it was not damaged on the way."""
  _, path, beside = make_asset(tmp_path)
  path.write_bytes(b'something else')
  beside.write_text(json.dumps(json.loads(beside.read_text()) | {
      'sha256': hashlib.sha256(b'something else').hexdigest(),
      'digest': None}))
  with pytest.raises(UserError, match='is not a safetensors file of gen3d'):
    assets.load(path)


def test_an_edited_record_is_refused_and_one_of_an_earlier_version_is_not(
    tmp_path):
  path, beside = assets.save(
      tmp_path / 'a.safetensors', {'w': np.ones(2)},
      {'config': {'rate': np.float32(0.1), 'sizes': (1, 2)}, 'steps': 5})
  assert assets.load(path)[1]['steps'] == 5
  written = json.loads(beside.read_text())
  # Spaces and the order of keys do not matter.
  beside.write_text(json.dumps(dict(reversed(written.items()))))
  assets.load(path)
  beside.write_text(json.dumps(written | {'steps': 6}))
  with pytest.raises(ValueError, match='a.json is damaged or was edited'):
    assets.load(path)
  del written['digest']
  beside.write_text(json.dumps(written | {'steps': 6}))
  assert assets.load(path)[1]['steps'] == 6
