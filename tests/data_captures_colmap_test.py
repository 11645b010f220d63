"""COLMAP's sparse models: parameters, and files written by COLMAP."""

import base64
import json
import zlib

import numpy as np
import pytest
from posed_layouts import around, points_in_front, write_colmap_txt

from gen3d.choices import UserError
from gen3d.data.captures import camera_models, colmap, layouts


@pytest.mark.parametrize('model, parameters, distortion', [
    ('SIMPLE_PINHOLE', '44 20 15', (0, 0, 0, 0)),
    ('SIMPLE_RADIAL', '44 20 15 0.1', (0.1, 0, 0, 0)),
    ('RADIAL', '44 20 15 0.1 0.2', (0.1, 0.2, 0, 0)),
    ('OPENCV', '44 44 20 15 0.1 0.2 0.3 0.4', (0.1, 0.2, 0.3, 0.4))])
def test_colmap_models_have_their_parameters_in_order(
    tmp_path, model, parameters, distortion):
  points, _ = points_in_front(around())
  write_colmap_txt(tmp_path, around(), points, f'{model} 40 30 {parameters}')
  found = colmap.read(tmp_path / 'sparse' / '0').images[0].model
  np.testing.assert_allclose(found.focal, (44 / 40, 44 / 30))
  np.testing.assert_allclose(found.center, (0.5, 0.5))
  assert found.distortion == distortion


# A model of two pictures and three points that COLMAP itself wrote (pycolmap
# 4.2.1: synthesize_dataset, OPENCV camera, then write_binary and write_text).
REAL = (
    'eNqFVGlv4kgQ/Sut7JddDWP6PiLtB4OdhCQQcw3HZDQywRwDdiA2V1b737faJoRktdq2bHVXV1'
    'fXe/XKf108hXH0EqbOaJ5cXKILt+m+jcrpU3Orb0bu+u6HUa9W3474tcabdTp+c7urZM3b9TC2'
    'T7goR/v2pvXlSs68sl5Pbtqd3m0zKB9WenzbGMRu+aKELuZxOI3eM5p+zKjP0sEqJD3x+qW2Wa'
    '0XPTNabvf+KtsexmU5L7v/GtXm9nx5TPfKL+IN6FU27N/O6p67g3ffp8PDoEeWx/XuPqlshrtz'
    '2NKrzNdiU6u4d7NutDocWkPslU+Dr3aL17pYsW/uuruJ2Xgox93irgIFHbe0fzVjV+5+2klnra'
    '0aLlzvtP/QjpbRtrvsZ+5gFPbbGzwLF+8VsOWwVBxarWG7eX8XmDv3S1AP8KZZ3pbdazVdrsWr'
    'Pnmf6Avck1Hd7+rHabeZQ6v8spifYn9X4L6aDJPb2ajXPa79zdO1SNwzeczitNzvbvYhrm7Wrm'
    'yvOvvnpls/7Y/jQWtnZvG068nB9bdsYcZNKPVpeIekTTa6PO56N2nLLNpegzZzbMUY3qZ3o33N'
    'RLh68Cbuy+y1sW2elcEqZfU8T7KUeSet7D5qJR/3i+2ttx7Onp7KYqkDUX5tiI5Og+akcpDbOL'
    'Bn7n7hpcgYf/XNZ70VkPO8vI+EVnTSV71a2kkDst7WNqOHqNEsJxF5qTfcBCtLt9d4YCZO1m4c'
    'NGufNJhzVX2P+c5dl3fCyfBpQO/1XAU6ErG33srR6Cpst7xsk2t8HbT7MZv8qnXwmTb8TzHz8a'
    'fl6q3Rs31mqfoNVXMDWs7TDO3m2Qw9JxGs4PM8QeMwC9EqekHFscvH5DeEUNWt+y33Z80rofqD'
    '59+XUK/mdW5K6MavXd90SihwW269/f2HdW9s4hEEgGDHqy8ReUwIegj8RvUbkhwjrjGSGF6CEa'
    'MUUaYQdrDAHwezRmI/xy99TM5+FCdENbs+A5TtnnNA6QdE+akjoFrdvfZzPM0evH14B/AOS6gD'
    '8w7MOzA/g92AaXE0eKg1Om3qff+BwhT9Du7gnRuZB65/fKSgSPUS0RKKozBBz6M0etmG2fw5Sc'
    '+yQswyhB1FDWNYc0WJMlwTib5iR2rKiVRcSCEMDGWNmGtNBcXMaCPAUQuE0VfhCEEIEYQyQoXS'
    'VEVfCXCLhPOJW4PIsT75kvycvMCq2HNWyfQxEQwOGcwJJVpzgqlEMHEEkwqDyInQWkF+BDEuHS'
    '4Il5AOpQpzBSbmSAUpK64EVZAMXEc1djjTBupMIa4xGgIyB9ASbJRQAEUwxBDnxGGSc4CtGeNc'
    'KUSxcbDElEjKqDBaQjT0mFCgDCggBny0IRILIqxopMCSg6ioJIxyBmCBWkak4YAAg7tUggCLiA'
    'FfVBGABHarPwN8CfSVOQRrSTmXwC6GpFlu/8Qiweq/WSQFi5QSR3DMuVFMcVgB8QZAG0EJoVxh'
    'A+kAaCGko4XQHGtCJVRWIamABs0UILZ3UZsysM2MYwxABWK00ArSYkIADYIoBg0F5EoO7HAony'
    'ZQKsyptjxIRLlxpA0E6TBgTVkRFC11+qOemop5KDf+348id7o86428DUqoaAzoolYJXZdQpYT8'
    'VusBFp2WW707ds97H+ZHqT3a/9RCRWrQIscWyl7CpwVaRsk0m0FjFY0DQlKSS9sOgBDUY1WgCY'
    'PqYcWxASVIqxZlm4sQDRamjGG2a+wjHSCRasUZdA4DiVAoOAd6rNBYoTQNrQaqMiApLMFVgw1Y'
    '1IoJrhhW0Bc0b1gKga2YFBUQD+R1vIQ7VntMShsGc5D48RIGlwAQZg8DDqtDCVoXymrdGqEVGN'
    'Xw24QUNewYawQ1AWZKhDSgfhDS8RoQr4INpoiEPQGxjtfAJQhDvf/+B4genlY=')


@pytest.mark.parametrize('end', ['.bin', '.txt'])
def test_files_that_colmap_wrote_project_points_as_colmap_does(tmp_path, end):
  files = json.loads(zlib.decompress(base64.b64decode(REAL)))
  for name, content in files.items():
    if name.endswith(end):
      (tmp_path / name).write_bytes(
          base64.b64decode(content) if end == '.bin' else content.encode())
  model = colmap.read(tmp_path)
  places = {int(w[0]): np.array(w[1:4], float) for w in map(
      str.split, files['points3D.txt'].splitlines()) if w[0] != '#'}
  np.testing.assert_allclose(
      np.sort(model.points, 0), np.sort(list(places.values()), 0), rtol=1e-12)
  lines = [x for x in files['images.txt'].splitlines() if x[0] != '#']
  count = 0
  for image in model.images:
    observed, = (b.split() for a, b in zip(lines[::2], lines[1::2])
                 if a.endswith(f' {image.name}'))
    for x, y, number in zip(observed[::3], observed[1::3], observed[2::3]):
      if number != '-1':
        a, b, depth = image.w2c[:3] @ [*places[int(number)], 1]
        seen = image.model.center + image.model.focal * camera_models.distort(
            np.array([a, b]) / depth, image.model.distortion)
        np.testing.assert_allclose(
            seen * image.size, [float(x), float(y)], atol=1e-6)
        count += 1
  assert count == 6


@pytest.mark.parametrize('file, column, number, words', [
    ('cameras.txt', 2, '1' * 400, 'a side beyond 10,000,000'),
    ('images.txt', 6, '1e300', 'not finite or beyond 1e\\+30')])
def test_absurd_numbers_are_one_sentence(tmp_path, file, column, number, words):
  poses = around()
  write_colmap_txt(tmp_path, poses, points_in_front(poses)[0])
  path = tmp_path / 'sparse' / '0' / file
  lines = path.read_text().splitlines()
  first = next(i for i, line in enumerate(lines) if line[0] != '#')
  numbers = lines[first].split()
  numbers[column] = number
  lines[first] = ' '.join(numbers)
  path.write_text('\n'.join(lines) + '\n')
  with pytest.raises(UserError, match=words):
    layouts.read(tmp_path)
