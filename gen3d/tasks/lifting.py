"""Training of LiftedGAN (2011.13126): four networks that lift a frozen 2-D GAN.

There are no data: images, and their perturbed counterparts, come from the 2-D
generator. What is estimated and rendered is in gan/lifting.py, the losses are
in gan/lifting_losses.py.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen3d import assets
from gen3d.choices import UserError
from gen3d.engine import optim, sharding
from gen3d.engine import state as states
from gen3d.engine.release import save_release
from gen3d.engine.state import TrainState
from gen3d.gan import generator2d, lifting, lifting_losses
from gen3d.io import images as image_io
from gen3d.models import lifted_gan, lresnet, perceptual
from gen3d.ops import depth_mesh
from gen3d.tasks import Costs, Task, check_least, scheduled_rate

# Of VGG16's maps, those after relu2_2, relu3_3 and relu4_3.
_MAPS = slice(1, 4)


class Perturbation(NamedTuple):
  """Random views of the losses on perturbed images.

  Attributes:
    yaw, pitch: largest angles to either side, degrees.
    shift: to the side, times the sine of the yaw, in units of the view:
      a head turns about its neck.
    identity_yaw: largest yaw at which faces are compared, degrees.
  """
  yaw: float = 45.0
  pitch: float = 15.0
  shift: float = 0.2
  identity_yaw: float = 25.0


class Options(NamedTuple):
  """What the losses need beside the networks.

  Attributes:
    weights: lifting_losses.Weights.
    perturbation: Perturbation.
    psi: truncation of the styles.
    pooling: of the albedos' details.
    z_dim: of the latents.
    embed_face: network of the identity loss, or None.
  """
  weights: lifting_losses.Weights
  perturbation: Perturbation
  psi: float
  pooling: int
  z_dim: int
  embed_face: lresnet.LResNet | None = None


class Draws(NamedTuple):
  """Random numbers of a step, for this device's N of B examples."""
  w: Any            # [N, D]
  yaw: Any          # [N], degrees
  pitch: Any        # [N], degrees
  permutations: Any  # [2, N], of the whole batch, for the lights


def make(config: Any) -> Task:
  """The Task of configs/lifted_gan.py's get_config.

  Raises:
    UserError: there is no 2-D generator, its file or one of the losses' cannot
      be read, or a number makes no training possible.
  """
  check(config)
  source = _generator(config)
  config = config.copy_and_resolve_references()
  config.model.generator = source.config
  lifted = lifting.build(config.model)
  frozen, embed_face = _teachers(config)
  options = Options(
      lifting_losses.Weights(**config.weights),
      Perturbation(**config.perturbation), config.psi, config.rank_pooling,
      source.config['z_dim'], embed_face)
  shapes = jax.eval_shape(functools.partial(lifting.init, lifted),
                          source.variables, jax.random.key(0))
  official = config.checkpoint and lifted_gan.load(config.checkpoint, shapes)
  # PyTorch's weight decay is part of the gradient.
  optimizer = optax.chain(
      optax.add_decayed_weights(config.weight_decay),
      optim.make_optimizer(config.optimizer, config.steps))

  # One program, compiled once.
  @jax.jit
  def start(variables, key):
    return lifting.init(lifted, variables, key), generator2d.with_statistics(
        lifted.generator, variables, source.config['z_dim'])

  def init(key):
    params, (variables, mean, precision) = start(source.variables, key)
    return states.create(official or params, optimizer, frozen={
        **frozen, 'generator': variables, 'mean': mean,
        'precision': precision})

  report = _report_fn(config, lifted)

  def finish(state, workdir):
    scalars, _ = report(state, None)
    released = config.copy_and_resolve_references()
    with released.unlocked():
      # As of the other generators of objects: rays a side.
      released.render_size = ((0, source.config['resolution']),)
      released.render_bucket = 1
    return save_release(
        assets.FOLDER / f'{config.networks}_{config.name}.safetensors',
        released, state, workdir,
        weights=lifting.join(state.params, state.frozen['generator']),
        evaluation=scalars, camera=camera_of(config))

  return Task(
      init=init,
      step=functools.partial(train_step, lifted=lifted, optimizer=optimizer,
                             options=options),
      batches=functools.partial(batches, config=config),
      evaluate=report,
      finish=finish,
      costs=lambda: Costs({'image': source.config['resolution'],
                           'batch': config.batch}),
      scheduled=scheduled_rate(config))


def check(config: Any) -> None:
  """Raises UserError where a config makes no training possible."""
  check_least(config, {'batch': 1, 'rank_pooling': 1, 'sheet': 1})
  settings = config.model.settings
  if not 0 < settings.min_depth < settings.border_depth <= settings.max_depth:
    raise UserError(
        f'--config.model.settings has the depths {settings.min_depth} (min), '
        f'{settings.border_depth} (border) and {settings.max_depth} (max), '
        'which must be positive and rise.')
  for name, file in (('perceptual', 'vgg16'), ('identity', 'lresnet')):
    if config.weights[name] and not config[file]:
      raise UserError(
          f'The {name} loss needs weights that are not part of gen3d; give '
          f'their path by --config.{file}, or set --config.weights.{name}=0.')


def _report_fn(config, lifted):
  """The Task's `evaluate`: an error and a sheet of `preview`."""
  show = jax.jit(functools.partial(
      preview, lifted=lifted, psi=config.psi, yaw=config.camera.yaw_range))
  # Every evaluation has the same latents.
  shape = config.sheet, config.model.generator.z_dim

  def report(state, key):
    del key
    error, pictures = show(state.params, state.frozen['generator'],
                           jax.random.normal(jax.random.key(0), shape))
    pixels = np.asarray(255 * (pictures / 2 + 0.5)).round().astype(np.uint8)
    return {'l1/own_view': float(error)}, {'samples': image_io.tile(
        np.concatenate(pixels), columns=pixels.shape[1])}

  return report


def camera_of(config: Any) -> dict[str, Any]:
  """The typical camera of the generator, see gan/inference.py."""
  return {**config.camera.to_dict(),
          'focal': depth_mesh.focal_of(config.model.settings.fov)}


def _generator(config) -> generator2d.Generator2D:
  """The frozen generator of a config."""
  if config.generator:
    return generator2d.load(config.generator)
  if not config.model.generator:
    raise UserError(
        'There is no 2-D generator to lift: give --config.generator, weights '
        'of configs/stylegan2.py (.safetensors), an official .pkl of NVIDIA, '
        'or a .pt of stylegan2-pytorch.')
  return generator2d.untrained(config.model.generator, jax.random.key(0))


def _teachers(config):
  """(frozen weights of the losses, network of the identity loss or None)."""
  frozen, embed_face = {}, None
  if config.weights.perceptual:
    loaded = perceptual.load(config.vgg16, learned=False)
    frozen['vgg16'] = loaded.params['features']
  if config.weights.identity:
    embed_face, frozen['face'] = lresnet.load(config.lresnet)
  return frozen, embed_face


def batches(seed: int, first_step: int, *,
            config: Any) -> Iterator[dict[str, np.ndarray]]:
  """Batches {'index' [B]}: an example is drawn from its index in the step."""
  del seed
  for _ in itertools.count(first_step):
    yield {'index': np.arange(config.batch, dtype=np.int32)}


def train_step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array,
               *, lifted: lifting.Lifting,
               optimizer: optax.GradientTransformation, options: Options
               ) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the four networks, on this device's examples.

  The losses over the whole batch (masks, the shuffled lights, the nuclear
  norm) are over all devices, so that the result does not depend on how the
  batch is divided.

  Args:
    state: TrainState.
    batch: as from `batches`.
    key: of the step.
    lifted: lifting.Lifting.
    optimizer: of the four networks.
    options: Options.

  Returns:
    (state, metrics).
  """
  draws = draw(key, batch['index'], lifted, options, state.frozen['generator'])

  def loss_fn(params):
    terms = losses(params, state.frozen, draws, lifted, options,
                   total=lambda x: jax.lax.psum(jnp.sum(x), sharding.AXIS),
                   gather=lambda x: jax.lax.all_gather(
                       x, sharding.AXIS, tiled=True))
    return sum(weight * x for weight, x in terms.values()), {
        f'loss/{name}': x for name, (_, x) in terms.items()}

  (loss, metrics), grads = jax.value_and_grad(
      loss_fn, has_aux=True)(state.params)
  grads = jax.lax.pmean(grads, sharding.AXIS)
  state = optim.apply_gradients(state, grads, optimizer)
  return state, {'loss/total': loss, **metrics}


def draw(key: jax.Array, index: jax.Array, lifted: lifting.Lifting,
         options: Options, generator: Any) -> Draws:
  """The Draws of examples `index` [N] of a batch."""
  key_latent, key_angles, *key_lights = jax.random.split(key, 4)
  each = jax.vmap(jax.random.fold_in, (None, 0))
  z = jax.vmap(lambda key: jax.random.normal(key, (options.z_dim,)))(
      each(key_latent, index))
  angles = jax.vmap(lambda key: jax.random.uniform(key, (2,), minval=-1.0))(
      each(key_angles, index))
  count = len(index) * jax.lax.axis_size(sharding.AXIS)
  w = generator2d.map_latents(lifted.generator, generator, z, options.psi)
  return Draws(
      w[:, 0], options.perturbation.yaw * angles[:, 0],
      options.perturbation.pitch * angles[:, 1],
      jnp.stack([jax.random.permutation(key, count)[index]
                 for key in key_lights]))


def losses(params: Any, frozen: Any, draws: Draws, lifted: lifting.Lifting,
           options: Options, total: lifting_losses.Total = jnp.sum,
           gather: Callable[[jax.Array], jax.Array] = lambda x: x
           ) -> dict[str, tuple[float, jax.Array]]:
  """{name: (weight, loss)} of one step (section 3.4).

  Args:
    params: of the four networks.
    frozen: weights of the 2-D generator and of the losses' networks.
    draws: Draws.
    lifted: lifting.Lifting.
    options: Options.
    total: sums an array over the examples of all devices.
    gather: collects rows of all devices.
  """
  settings, weights = lifted.settings, options.weights
  stop, mirror = jax.lax.stop_gradient, lambda x: jnp.flip(x, 2)
  generator = frozen['generator']
  made = lifting.estimate(lifted, params, generator, draws.w)
  light, view = perturb(made.light, draws, settings, options, gather)
  style = lifting.apply(lifted, params, 'compose', draws.w, light, view)
  _, light_read, view_read = lifting.apply(lifted, params, 'decompose', style)
  images, _ = lifting.synthesize(
      lifted, generator, jnp.concatenate([draws.w, style]))
  target, regenerated = jnp.split(images, 2)

  # All four renderings as one batch: in the image's own view, mirrored (but
  # not the blend, light and view), and in the perturbed view, as it is read
  # back from the style and, without gradient, as it was drawn.
  stack = lambda *x: jnp.concatenate(x)
  four = lambda x: stack(x, mirror(x), x, stop(x))
  seen = lifting.render(
      settings, four(made.depth),
      lifting.lit(settings, four(made.albedo), four(made.relief),
                  stack(made.light, made.light, light_read, light),
                  four(made.cover)),
      stack(made.view, made.view, view_read, view),
      stack(*[made.blend] * 3, stop(made.blend)))
  own, flipped, read, drawn = jnp.split(seen.image, 4)
  mask = jnp.prod(jnp.stack(jnp.split(seen.mask, 4)[:2]), axis=0)

  compare = functools.partial(image_loss, frozen, options, total=total)
  target = stop(jnp.clip(target, -1.0, 1.0))
  terms = {
      'reconstruction': (
          weights.reconstruction, compare(own, target, mask)
          + weights.flip * compare(flipped, target, mask)),
      'perturbed_image': (
          weights.perturbed_image, compare(read, stop(regenerated))),
      'regenerated_image': (
          weights.perturbed_image, compare(regenerated, stop(drawn))),
      'perturbed_parameters': (
          weights.perturbed_parameters, lifting_losses.parameters(
              light_read, view_read, light, view)),
      'style': (weights.style, lifting_losses.style_prior(
          style, frozen['mean'], frozen['precision'])),
      'albedo_rank': (weights.albedo_rank, lifting_losses.albedo_rank(
          made.albedo, lifting.foreground(settings, made.depth)[..., None],
          functools.partial(lifting.blur, settings), options.pooling, gather))}
  if options.embed_face is not None:
    embed: Any = functools.partial(options.embed_face.apply, frozen['face'])
    terms['identity'] = weights.identity, lifting_losses.identity(
        embed(made.image), embed(read),
        jnp.abs(draws.yaw) < options.perturbation.identity_yaw, total)
  return terms


def perturb(light: jax.Array, draws: Draws, settings: lifting.Settings,
            options: Options,
            gather: Callable[[jax.Array], jax.Array] = lambda x: x
            ) -> tuple[jax.Array, jax.Array]:
  """Light [N, 4] and view [N, 6] of the perturbed images, without gradients.

  Intensities and directions of the light are those of other examples.

  Args:
    light: [N, 4].
    draws: Draws.
    settings: of the units of the view.
    options: Options.
    gather: collects rows of all devices.
  """
  lights = gather(jax.lax.stop_gradient(light))
  first, second = draws.permutations
  zero = jnp.zeros_like(draws.yaw)
  view = jnp.stack([
      draws.pitch / settings.rotation_range,
      draws.yaw / settings.rotation_range, zero,
      options.perturbation.shift * jnp.sin(jnp.deg2rad(draws.yaw)), zero,
      zero], axis=1)
  return jnp.concatenate([lights[first, :2], lights[second, 2:]], 1), view


def image_loss(frozen: Any, options: Options, image: jax.Array,
               target: jax.Array, mask: jax.Array | None = None, *,
               total: lifting_losses.Total = jnp.sum) -> jax.Array:
  """Photometric loss, and perceptual loss where it has a weight."""
  loss = lifting_losses.photometric(image, target, mask, total)
  if not options.weights.perceptual:
    return loss
  vgg = perceptual.Features(perceptual.VGG16)

  def features(x):
    maps: Any = vgg.apply({'params': frozen['vgg16']}, x / 2 + 0.5)
    return maps[_MAPS]

  return loss + options.weights.perceptual * lifting_losses.perceptual(
      features, image, target, mask, total)


def preview(params: Any, generator: Any, z: jax.Array, *,
            lifted: lifting.Lifting, psi: float, yaw: float
            ) -> tuple[jax.Array, jax.Array]:
  """Pictures of objects, and the error of those in the image's own view.

  Args:
    params: of the four networks.
    generator: variables of the 2-D generator.
    z: [N, Z].
    lifted: lifting.Lifting.
    psi: truncation.
    yaw: degrees to either side of the front.

  Returns:
    (mean absolute error [], pictures [N, 9, R, R, 3] in [-1, 1]: the 2-D
    generator's image, the object in that view, from five sides, lit from the
    side, and its depth, near is bright).
  """
  settings = lifted.settings
  w = generator2d.map_latents(lifted.generator, generator, z, psi)[:, 0]
  made = lifting.estimate(lifted, params, generator, w)
  image, _ = lifting.synthesize(lifted, generator, w)
  image = jnp.clip(image, -1, 1)

  # Own view, five sides, lit from the side: one batch of renderings.
  front = jnp.zeros_like(made.view)
  yaws = np.linspace(-yaw, yaw, 5) / settings.rotation_range
  views = [made.view, *[front.at[:, 1].set(angle) for angle in yaws], front]
  side = jnp.tile(lifting.light_of(0.3, 0.7, 1.0), (len(z), 1))
  again = lambda x: jnp.concatenate([x] * len(views))
  lights = jnp.concatenate([made.light] * (len(views) - 1) + [side])
  seen = lifting.render(
      settings, again(made.depth),
      lifting.lit(settings, again(made.albedo), again(made.relief), lights,
                  again(made.cover)),
      jnp.concatenate(views), again(made.blend)).image
  seen = jnp.split(jnp.clip(seen, -1, 1), len(views))
  span = settings.max_depth - settings.min_depth
  near = 2 * (settings.max_depth - made.depth) / span - 1
  pictures = [image, *seen, jnp.broadcast_to(near[..., None], image.shape)]
  return jnp.mean(jnp.abs(seen[0] - image)), jnp.stack(pictures, axis=1)

