"""What to time of a network, for gen3d.benchmark."""

import jax
import jax.numpy as jnp

from gen3d.models import eg3d
from gen3d.ops import cameras
from gen3d.scenes import View, radiance
from gen3d.tasks import adversaries, gan


def parts(config):
  """{name: function of nothing} for the parts of EG3D's networks."""
  networks = gan.build(config)
  generator = adversaries.eg3d_generator(config.model)
  rendering, size = generator.rendering, config.render_size[-1][1]
  variables = jax.jit(networks.init)(jax.random.key(0))
  made, judged = variables['generator'], variables['discriminator']
  count = config.batch
  distance = (1.5 * rendering.box if rendering.start == 'auto'
              else (rendering.start + rendering.end) / 2)
  label = jnp.tile(cameras.to_label(
      cameras.orbit(20.0, 10.0, distance, 1.35)), (count, 1))
  latents = adversaries.Latents(
      jax.random.key(1), jnp.arange(count),
      jnp.ones((count, networks.z_width)), label, label)
  draws = eg3d.draw(jax.random.key(2), count, size, rendering)
  planes = jnp.zeros((count, *2 * (config.model.synthesis.resolution,), 3,
                      generator.features))

  def rendered(planes):
    return generator.apply(
        made, planes, label, size, draws, method='features_at')[0]

  fakes = jax.eval_shape(
      lambda: networks.generate(made, latents, size)[0])
  fakes = jax.tree.map(lambda x: jnp.zeros(x.shape), fakes)
  parts = {
      'generator forward': lambda: networks.generate(made, latents, size)[0],
      'rendering forward': lambda: rendered(planes),
      'rendering forward and backward': lambda: jax.grad(
          lambda planes: jnp.sum(rendered(planes) ** 2))(planes),
      'discriminator forward': lambda: networks.judge(judged, fakes, label)}
  return {name: jax.jit(part) for name, part in parts.items()}


def rendering(config, state, batch, chips):
  """A function of nothing that renders a chip's share of a batch of rays."""
  scene = radiance.make(config.scene, state.params['frame'])
  count = config.batch // chips
  camera, pixel = jax.tree.map(
      lambda x: jnp.asarray(x[:count]), (batch['camera'], batch['pixel']))
  rays = cameras.rays_through(camera, pixel, config.data.size)
  view = View(None, rays, None, jnp.ones(3), jnp.float32(1.0))
  render = jax.jit(lambda params: scene.render(params, None, view).image)
  return lambda: render(state.params)
