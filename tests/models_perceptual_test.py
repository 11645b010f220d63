"""LPIPS against PyTorch and against loops; the files that it is loaded from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.signal

from gen3d.models import perceptual
from gen3d.weights import port

# What torchvision builds, in its own notation: 'M' is a maximum over pixels.
VGG16 = (64, 64, 'M', 128, 128, 'M', 256, 256, 256, 'M', 512, 512, 512, 'M',
         512, 512, 512, 'M')
TOY = perceptual.Backbone('toy', (
    perceptual.Stage(0, (perceptual.Conv(0, 4), perceptual.Conv(2, 3))),
    perceptual.Stage(2, (perceptual.Conv(5, 5),))))
# A backbone with other strides and poolings (Krizhevsky, 1404.5997).
ALEXNET = perceptual.Backbone('alexnet', (
    perceptual.Stage(0, (perceptual.Conv(0, 64, 11, 4, 2),)),
    perceptual.Stage(3, (perceptual.Conv(3, 192, 5, 1, 2),)),
    perceptual.Stage(3, (perceptual.Conv(6, 384),)),
    perceptual.Stage(0, (perceptual.Conv(8, 256),)),
    perceptual.Stage(0, (perceptual.Conv(10, 256),))))
LOOKED_AT = {'vgg16': (3, 8, 15, 22, 29), 'alexnet': (1, 4, 7, 9, 11)}


def pictures(*shape, seed=0):
  a = np.random.default_rng(seed).random((2, *shape, 3), np.float32)
  return a[0], np.clip(a[0] + 0.3 * (a[1] - 0.5), 0, 1)


def toy_tensors(seed=0):
  rng = np.random.default_rng(seed)
  shapes = {'features.0': (4, 3, 3, 3), 'features.2': (3, 4, 3, 3),
            'features.5': (5, 3, 3, 3)}
  tensors = {f'{name}.weight': 0.5 * rng.normal(size=shape)
             for name, shape in shapes.items()}
  tensors |= {f'{name}.bias': 0.3 * rng.normal(size=shape[0])
              for name, shape in shapes.items()}
  tensors |= {f'lin{i}.model.1.weight': rng.random((1, n, 1, 1))
              for i, n in enumerate((3, 5))}
  return {name: x.astype(np.float32) for name, x in tensors.items()}


def slow_distance(tensors, a, b, learned=True):
  """LPIPS of the toy, pictures [H, W, 3], by SciPy and loops."""
  def convolved(x, index):
    weight = tensors[f'features.{index}.weight']
    return np.stack([np.maximum(tensors[f'features.{index}.bias'][i] + sum(
        scipy.signal.correlate2d(x[c], weight[i, c], 'same')
        for c in range(len(x))), 0) for i in range(len(weight))])

  def maps(image):
    scaled = 2 * image.astype(np.float64) - 1
    x = ((scaled - [-.030, -.088, -.188]) / [.458, .448, .450]
         ).transpose(2, 0, 1)
    one = convolved(convolved(x, 0), 2)
    pooled = np.zeros((len(one), one.shape[1] // 2, one.shape[2] // 2))
    for i in range(pooled.shape[1]):
      for j in range(pooled.shape[2]):
        pooled[:, i, j] = one[:, 2 * i:2 * i + 2, 2 * j:2 * j + 2].max((1, 2))
    return one, convolved(pooled, 5)

  total = 0
  for k, (x, y) in enumerate(zip(maps(a), maps(b))):
    weight = tensors[f'lin{k}.model.1.weight'][0, :, 0, 0] if learned else 1
    for i in range(x.shape[1]):
      for j in range(x.shape[2]):
        u, v = (z[:, i, j] / (np.linalg.norm(z[:, i, j]) + 1e-10)
                for z in (x, y))
        total += np.sum(weight * (u - v) ** 2) / (x.shape[1] * x.shape[2])
  return total


@jax.jit
def distance(network, a, b):
  return perceptual.distance(perceptual.embed(network, a),
                             perceptual.embed(network, b))


@pytest.mark.parametrize('learned', [True, False])
def test_lpips_equals_loops(learned):
  tensors = toy_tensors()
  network = perceptual.Perceptual(
      perceptual.from_torch(tensors, TOY, learned), TOY)
  a, b = pictures(2, 9, 12)
  result = distance(network, a, b)
  np.testing.assert_allclose(
      result, [slow_distance(tensors, *pair, learned) for pair in zip(a, b)],
      rtol=1e-4)
  # The same weights, said by ones where they are not to be learned.
  assert learned or not np.allclose(result, distance(perceptual.Perceptual(
      perceptual.from_torch(tensors, TOY), TOY), a, b), rtol=1e-2)


class Peer:
  """LPIPS in PyTorch, after its paper and torchvision's listings."""

  def __init__(self, torch, name, seed=0):
    nn, layers, width = torch.nn, [], 3
    if name == 'vgg16':
      for size in VGG16:
        layers += [nn.MaxPool2d(2, 2)] if size == 'M' else [
            nn.Conv2d(width, size, 3, padding=1), nn.ReLU()]
        width = width if size == 'M' else size
    else:
      layers = [
          nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
          nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
          nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
          nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
          nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)]
    torch.manual_seed(seed)
    widths = []
    with torch.no_grad():
      for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
          nn.init.kaiming_normal_(layer.weight)
          layer.bias.normal_(0, 0.2)
          width = layer.out_channels
        if i in LOOKED_AT[name]:
          widths.append(width)
    self.torch, self.looked_at = torch, LOOKED_AT[name]
    self.features = nn.Sequential(*layers)
    # As trained: no weight is negative, many are zero.
    self.linear = [torch.randn(1, width, 1, 1).clamp(min=0)
                   for width in widths]
    self.tensors = {f'features.{k}': v for k, v in
                    self.features.state_dict().items()}
    self.linear_tensors = {f'lin{i}.model.1.weight': w
                           for i, w in enumerate(self.linear)}

  def maps(self, x):
    shift = self.torch.tensor([-.030, -.088, -.188]).view(1, 3, 1, 1)
    scale = self.torch.tensor([.458, .448, .450]).view(1, 3, 1, 1)
    x, result = (2 * x - 1 - shift) / scale, []
    for i, layer in enumerate(self.features[:self.looked_at[-1] + 1]):
      x = layer(x)
      if i in self.looked_at:
        result.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
    return result

  def __call__(self, a, b, learned=True):
    total = 0
    for x, y, weight in zip(self.maps(a), self.maps(b), self.linear):
      difference = (x - y).square()
      if learned:
        difference = self.torch.nn.functional.conv2d(difference, weight)
      total = total + difference.sum(1).mean((1, 2))
    return total

  def torched(self, image):
    return self.torch.tensor(image).permute(0, 3, 1, 2)


@pytest.fixture(scope='module', params=['vgg16', 'alexnet'])
def peer(request):
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  return request.param, Peer(torch, request.param)


@pytest.mark.parity
def test_lpips_and_its_gradient_equal_pytorch(peer, tmp_path):
  name, model = peer
  # The classifier stands in the file as well.
  head = {'classifier.6.bias': model.torch.zeros(10)}
  model.torch.save(model.tensors | head, tmp_path / 'net.pth')
  model.torch.save(model.linear_tensors, tmp_path / 'lin.pth')
  backbone = {'vgg16': perceptual.VGG16, 'alexnet': ALEXNET}[name]
  network = perceptual.load(tmp_path / 'net.pth', tmp_path / 'lin.pth',
                            backbone=backbone)
  a, b = pictures(2, 32, 46)
  x = model.torched(a).requires_grad_()
  theirs = model(x, model.torched(b))
  theirs.sum().backward()
  slope = jax.jit(jax.grad(
      lambda a: jnp.sum(distance(network, a, b))))(jnp.array(a))
  expected = x.grad.permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(slope, expected,
                             atol=1e-4 * np.abs(expected).max())
  np.testing.assert_allclose(distance(network, a, b),
                             theirs.detach().numpy(), rtol=1e-4)

  plain = perceptual.load(tmp_path / 'net.pth', backbone=backbone,
                          learned=False)
  theirs = model(model.torched(a), model.torched(b), learned=False)
  np.testing.assert_allclose(distance(plain, a, b),
                             theirs.detach().numpy(), rtol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize('size, most', [
    ((20, 12), 8), ((7, 21), 8), ((9, 9), 9), ((16, 16), 8)])
def test_shrinking_equals_area_interpolation_of_pytorch(size, most):
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  a, _ = pictures(2, *size)
  expected = torch.nn.functional.interpolate(
      torch.tensor(a).permute(0, 3, 1, 2), [min(s, most) for s in size],
      mode='area').permute(0, 2, 3, 1)
  np.testing.assert_allclose(perceptual.shrink(jnp.array(a), most), expected,
                             atol=1e-6)


def test_shrinking_averages_pixels():
  a = np.arange(2 * 6 * 3, dtype=np.float32).reshape(2, 6, 3)
  result = perceptual.shrink(jnp.array(a), 3)
  np.testing.assert_allclose(result, a.reshape(2, 3, 2, 3).mean(2), rtol=1e-6)
  a = np.arange(5, dtype=np.float32)[:, None, None]  # 0..2 and 2..4
  np.testing.assert_allclose(perceptual.shrink(jnp.array(a), 2)[:, 0, 0],
                             [1, 3], rtol=1e-6)


def test_embedding_shrinks_images_to_max_side():
  network = perceptual.Perceptual(
      perceptual.from_torch(toy_tensors(), TOY), TOY)
  a, _ = pictures(2, 16, 8)
  small = a.reshape(2, 8, 2, 8, 3).mean(2)
  embed = jax.jit(perceptual.embed, static_argnames='max_side')
  for result, expected in zip(embed(network, a, max_side=8),
                             embed(network, small), strict=True):
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize('weight, bias', [(1, -100), (0, 1e-25)])
def test_the_gradient_is_finite_at_features_near_zero(weight, bias):
  tensors = toy_tensors()
  tensors['features.2.weight'] *= weight
  tensors['features.2.bias'][:] = bias
  network = perceptual.Perceptual(perceptual.from_torch(tensors, TOY), TOY)
  a, b = pictures(8, 8)
  value, slope = jax.jit(jax.value_and_grad(
      lambda x: distance(network, x, b)))(jnp.array(a))
  np.testing.assert_allclose(value, 0, atol=1e-12)
  np.testing.assert_array_equal(slope, 0)


def test_weights_in_one_file_or_two_under_either_name(tmp_path):
  tensors = toy_tensors()
  lin = {k: v for k, v in tensors.items() if k.startswith('lin')}
  net = {k: v for k, v in tensors.items() if k not in lin}
  whole = {k.replace('features.', f'net.slice{1 + (k > "features.4")}.'): v
           for k, v in net.items()} | lin
  assert 'net.slice1.2.bias' in whole and 'net.slice2.5.bias' in whole
  whole |= {'scaling_layer.shift': np.zeros((1, 3, 1, 1), np.float32),
            'lins.0.model.1.weight': lin['lin0.model.1.weight']}
  extra = {'head.fc.bias': np.zeros(3, np.float32),
           'pre_logits.fc1.bias': np.zeros(3, np.float32)}
  np.savez(tmp_path / 'lin.npz', **lin)
  safetensors.numpy.save_file(net | extra, tmp_path / 'net.safetensors')
  np.savez(tmp_path / 'whole.npz', **whole)
  np.savez(tmp_path / 'one.npz', **tensors)
  expected = perceptual.from_torch(tensors, TOY)
  assert expected['lin1'].shape == (1, 1, 5, 1)
  for files in (('lin.npz', 'net.safetensors'), ('whole.npz',), ('one.npz',)):
    result = perceptual.load(*(tmp_path / f for f in files), backbone=TOY)
    assert result.backbone == TOY
    jax.tree.map(np.testing.assert_array_equal, result.params, expected)


def test_missing_unused_and_misshaped_tensors_are_listed(tmp_path):
  tensors = toy_tensors()
  del tensors['features.2.bias'], tensors['lin0.model.1.weight']
  tensors['features.7.weight'] = np.zeros(3, np.float32)
  tensors['lin1.model.1.weight'] = np.zeros((5, 1, 1, 1), np.float32)
  np.savez(tmp_path / 'bad.npz', **tensors)
  with pytest.raises(port.PortingError) as error:
    perceptual.load(tmp_path / 'bad.npz', backbone=TOY)
  for words in (f'For toy from {tmp_path}/bad.npz: ',
                '2 missing: features.2.bias, lin0.model.1.weight',
                '1 unused: features.7.weight',
                '1 mis-shaped: lin1.model.1.weight [5, 1, 1, 1]'):
    assert words in str(error.value)
  with pytest.raises(port.PortingError, match='toy from no file'):
    perceptual.load(backbone=TOY)


def test_duplicate_and_negative_weights_are_refused(tmp_path):
  tensors = toy_tensors()
  np.savez(tmp_path / 'a.npz', **tensors)
  np.savez(tmp_path / 'b.npz', **{'features.0.bias': tensors[
      'features.0.bias']})
  with pytest.raises(ValueError, match=r'b\.npz contains features.0.bias, '):
    perceptual.load(tmp_path / 'a.npz', tmp_path / 'b.npz', backbone=TOY)
  tensors['lin1.model.1.weight'][0, 2] = -0.1
  with pytest.raises(port.PortingError, match='lin1.* negative'):
    perceptual.from_torch(tensors, TOY)
  perceptual.from_torch(tensors, TOY, learned=False)


@pytest.mark.parametrize('backbone, least', [
    (perceptual.VGG16, 16), (ALEXNET, 31)])
def test_too_small_images_are_a_user_error(backbone, least):
  shapes = lambda side: jax.eval_shape(
      perceptual.LPIPS(backbone).init, jax.random.key(0),
      jnp.zeros((1, side, 40, 3)))
  assert len(shapes(least)['params']) == 6
  for side in (2, least - 1):
    with pytest.raises(ValueError, match=f'{side} x 40 pixels are too small '
                                         f'for {backbone.name}'):
      shapes(side)
