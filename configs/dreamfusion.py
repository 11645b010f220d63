r"""DreamFusion: text to 3-D by score distillation (Poole et al., 2209.14988).

Variants:
  shapes  The default. An object of the shapes world in minutes on two CPU
          cores, by the shipped 64 x 64 text-to-image model, which is camera
          conditioned: a tri-plane field, shading deferred to one point per ray,
          a small guidance scale, at first large noise levels only.
  csd     The shapes variant with classifier score distillation (2310.19415):
          the gradient is scale (eps_c - eps_u), without eps.
  sd      An object of any prompt by Stable Diffusion 1.5 or 2.1, from a folder
          or the hub, with threestudio's settings. One accelerator.
  if      The same by DeepFloyd IF, whose objects are better.
  paper   Every number of the paper's section 3 and appendix, except that Adam
          replaces Distributed Shampoo. For an accelerator and a large teacher:
          15,000 steps of 4 views, 1.5 hours on 4 TPUv4 chips in the paper.
  tiny    Seconds; for tests.

  python -m gen3d.train --config=configs/dreamfusion.py \
    --config.prompt='a red chair' --workdir=runs/chair
  python -m gen3d.train --config=configs/dreamfusion.py:sd \
    --config.teacher.path=checkpoints/stable-diffusion-2-1-base \
    --config.prompt='a squirrel on a skateboard' --workdir=runs/squirrel

A schedule is ((time, value), ...), linear in between, or a single number. A
time with a decimal point is a fraction of `steps`, an integer is a step; of two
equal fractions, the second holds from the next step on.
"""

import ml_collections

# The settings of each teacher; '' is its default. A path is a file of weights
# (default: the shipped ones), of published models a folder or a hub id. The
# same holds for `control`, a ControlNet for depth conditioning; '' is none.
_SHAPES_TEACHER = {'name': 'shapes', 'path': '', 'control': ''}
_DEEPFLOYD_TEACHER = {
    'name': 'deepfloyd', 'path': '', 'revision': '',
    'variant': '',     # of the weights: 'fp16'
    'dtype': '',       # float32 on a CPU, bfloat16 elsewhere
    'prediction': '',  # of the U-Net; the checkpoint's
    'flash': False}    # cuDNN's attention: faster; NVIDIA and bfloat16 only
_STABLE_DIFFUSION_TEACHER = {
    **_DEEPFLOYD_TEACHER, 'name': 'stable_diffusion', 'control': '',
    'lora': '',        # PATH or PATH:SCALE
    'remat': False}    # recompute the encoder: less memory, more time


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


# Of the shapes world; the last 8 with an unseen pair of category and color.
PROMPTS = (
    'a red chair', 'a blue table with white legs',
    'a purple sofa with yellow cushions', 'a blue car',
    'a white airplane with red wings', 'a brown boat with white sail',
    'a red rocket with blue fins', 'a green umbrella', 'a cyan mug',
    'a red apple with green leaf', 'a pink cake with white icing',
    'a white snowman with black hat', 'an orange cat', 'an orange fish',
    'a gray castle with red towers', 'a red mushroom with white stem',
    'a green tree with brown trunk', 'a yellow duck',
    'a green cactus with brown pot', 'a red truck',
    'a white house with red roof', 'a black lamp', 'a yellow robot',
    'a brown rabbit')
# The prompts of the other configs' tables, by their index above.
EIGHT = {index: PROMPTS[index] for index in (0, 1, 3, 12, 15, 16, 17, 20)}


def sweep():
  """Every prompt of PROMPTS."""
  return [{'prompt': prompt} for prompt in PROMPTS]


def paper():
  """Section 3 and the appendix of the paper."""
  config = _config({
      'task': 'text_to_3d',
      'prompt': 'a red chair',
      'negative_prompt': '',
      # Whether colors that the prompt leaves open are drawn by the seed.
      'complete_prompt': False,
      'seed': 0,
      'steps': 15_000,
      'views': 4,  # per step, one on each device
      'teacher': dict(_SHAPES_TEACHER),
      'guidance': {
          # The paper's omega of 100, written as eps_u + s (eps_c - eps_u).
          'name': 'sds', 'scale': 101.0,
          'options': {'weighting': 'sigma_squared',
                      'time_min': 0.02, 'time_max': 0.98,
                      'color_guidance_ratio': 1.0, 'num_noises': 1}},
      # Degrees: |azimuth| of the front view, elevation of the overhead view.
      'view_prompts': {'front': 45.0, 'overhead': 60.0},
      'scene': {
          'name': 'dreamfusion',
          'size': 64,
          'samples': 192,
          'importance': {'samples': 0, 'stride': 1},
          'chunk': 256,  # rays at once; bounds the memory
          'boundary': 'sphere', 'bound': 1.4, 'near': 0.05,
          'inset': 0.0,  # of the exported mesh, inwards
          'field': {'name': 'mip_mlp', 'degree': 8, 'width': 128, 'blocks': 5},
          'density_bias': {
              'name': 'dreamfusion', 'strength': 5.0, 'width': 0.2},
          'normals': 'analytic', 'epsilon': 0.01,
          'background_mlp': {'degree': 4, 'width': 64, 'layers': 3},
          # How often it is not the learned one, and how far from gray then.
          'random_background_prob': 0.0, 'background_range': 1.0,
          'camera': {
              'azimuth': (-180.0, 180.0), 'elevation': (-10.0, 90.0),
              'distance': (1.0, 1.5), 'focal': (0.7, 1.35),
              'jitter_position': 0.1, 'jitter_target': 0.2,
              'jitter_up': 0.02},
          'light': {'distance_range': (0.8, 1.5), 'albedo_steps': 0,
                    'shaded_prob': 0.75, 'textureless_prob': 0.5,
                    'ambient': 0.1, 'diffuse': 0.9},
          'penalties': {'orientation': ((0.0, 1e-4), (1 / 3, 1e-2)),
                        'sparsity': 1e-3},
      },
      'optimizer': {'name': 'adam', 'learning_rate': 1e-4,
                    'schedule': 'cosine', 'warmup': 0,
                    'b1': 0.9, 'b2': 0.9, 'eps': 1e-15, 'lr_multipliers': {}},
      'orbit': {'elevation': 15.0, 'distance': 1.5, 'focal': 0.9},
      # Of the mesh's pieces the largest alone is kept.
      'export': {'resolution': 192, 'size': 256, 'frames': 96, 'fps': 20,
                 'keep_share': 1.0,
                 'texture': 1024},  # texels per side; 0: vertex colors
      'log_every': 50, 'eval_every': 500, 'checkpoint_every': 1000,
      'keep_checkpoints': 2, 'progress': ('sds/grad_norm', 'opacity'),
  })
  config.scene.light.albedo_steps = config.get_ref('steps') // 15
  config.optimizer.warmup = config.get_ref('steps') // 5
  return config


def shapes(steps=300):
  """The shapes world on a CPU, in `steps`."""
  # Until `formed` (the first quarter): t in [0.95, 0.99], no guidance, gray
  # background. At this noise level the teacher's prediction is the mean image
  # of (prompt, camera); it colors the initial low-density volume. With guidance
  # or random backgrounds here, density collapses to zero first.
  formed, clear, solid, late = 0.25, 0.35, 0.6, 0.7
  config = paper()
  config.steps = steps
  config.views = 2
  # The teacher's prediction for an open color is the mean of all colors.
  config.complete_prompt = True
  with config.ignore_type():  # numbers in the paper
    # Largest while thin parts become opaque.
    config.guidance.scale = ((formed, 1.0), (formed, 6.0), (solid, 6.0),
                             (late, 3.0))
    config.scene.background_range = ((formed, 0.0), (clear, 1.0))
  config.guidance.options = ml_collections.ConfigDict({
      # In sigma_squared the weight of the clean image's error, alpha sigma, is
      # small at large noise levels, which decide the shape.
      **config.guidance.options, 'weighting': 'image',
      'time_min': ((formed, 0.95), (clear, 0.7), (1.0, 0.02)),
      # Large noise levels until the end: at small ones the prediction keeps the
      # image's brightness, so that a small bias accumulates to a drift.
      'time_max': ((formed, 0.99), (clear, 0.93), (solid, 0.9), (1.0, 0.97)),
      # Guidance makes thin parts opaque, but darkens colors.
      'color_guidance_ratio': 0.25,
      'num_noises': 4})
  scene = config.scene
  scene.samples, scene.chunk = 48, 4096
  # The coarse pass renders every other pixel of every other row.
  scene.importance.samples, scene.importance.stride = 24, 2
  scene.bound = 0.7
  # In the teacher's training images a ray that touches the object is opaque and
  # one that misses it by a pixel is empty (data/shapes/render.py), so that they
  # show objects half a pixel too large on all sides. So is the field. Half a
  # pixel at the mean distance and focal length:
  scene.inset = 0.5 * 1.6 / (1.3 * scene.size)
  scene.field = ml_collections.ConfigDict({
      'name': 'triplane', 'resolution': 64, 'features': 16, 'width': 64,
      'bound': scene.get_ref('bound'), 'density_scale': 5.0})
  scene.density_bias = ml_collections.ConfigDict({
      'name': 'magic3d', 'strength': 1.0, 'radius': 0.35})
  scene.normals, scene.epsilon = 'surface', 0.02
  scene.background_mlp.layers = 2
  # With a learned background, low density of the background's color would have
  # no gradient.
  scene.random_background_prob = 1.0
  # The cameras of the teacher's training images.
  scene.camera.distance, scene.camera.focal = (1.4, 1.8), (1.1, 1.5)
  scene.camera.jitter_target = 0.04
  scene.light.albedo_steps = 2 * config.get_ref('steps') // 5
  scene.light.textureless_prob = 0.0
  # Most of the teacher's training images are lit: its prediction for an unlit
  # image is too bright.
  scene.light.shaded_prob = 1.0
  scene.light.ambient, scene.light.diffuse = 0.4, 0.6
  scene.penalties = ml_collections.ConfigDict({
      'orientation': 1e-2, 'sparsity': ((formed, 0.0), (clear, 2e-3)),
      # Depth variance concentrates density into a surface, which shading needs.
      'depth_variance': ((clear, 0.0), (0.5, 30.0)),
      # Opacity entropy only late: earlier it removes parts that are still
      # semi-transparent.
      'opacity_entropy': ((solid, 0.0), (1.0, 0.5)),
      'normal_smoothness': 1e-2})
  config.optimizer = ml_collections.ConfigDict({
      'name': 'adam', 'learning_rate': 3e-2, 'schedule': 'cosine',
      'b1': 0.9, 'b2': 0.99, 'eps': 1e-15})
  # A lower learning rate for the shared MLP than for the planes; with equal
  # rates the whole volume takes the color of the largest part. Late, an equal
  # one: it gets the gradients of all pixels, whose mean corrects the colors
  # that were too dark, while noise prevails in those of single places.
  config.optimizer.lr_multipliers = {
      'hidden': 0.1, 'out': ((solid, 0.1), (late, 1.0)), 'background': 0.03}
  config.orbit.distance, config.orbit.focal = 1.85, 1.3
  config.export.update({'resolution': 128, 'frames': 48, 'fps': 10})
  config.export.keep_share = 0.005  # a lamp's foot, an antenna's ball
  config.log_every, config.eval_every, config.checkpoint_every = 10, 100, 200
  return config


def csd(steps=300):
  """Classifier score distillation (2310.19415) of the shapes variant.

  The gradient is scale (eps_c - eps_u), with the scale of the shapes variant.
  """
  config = shapes(steps)
  config.guidance.name = 'csd'
  return config


def stable_diffusion():
  """threestudio's dreamfusion-sd, on a tri-plane field.

  Its recipe has a hash grid in a cube of half-width 2. Three planes would spend
  most of their resolution on that cube's corners, so the cube has half-width
  1. Normals are 'finite' because the gradient of a bilinear lookup is
  discontinuous.
  """
  config = paper()
  config.steps = 10_000
  config.views = 1
  config.teacher = ml_collections.ConfigDict(_STABLE_DIFFUSION_TEACHER)
  # eps_c + 100 (eps_c - eps_u), the paper's form.
  config.guidance.scale = 101.0
  scene = config.scene
  scene.samples, scene.chunk = 64, 4096
  scene.importance.samples, scene.importance.stride = 32, 1
  scene.boundary, scene.bound = 'box', 1.0
  scene.field = ml_collections.ConfigDict({
      'name': 'triplane', 'resolution': 128, 'features': 32, 'width': 64,
      'bound': scene.get_ref('bound')})
  scene.density_bias = ml_collections.ConfigDict({
      'name': 'magic3d', 'strength': 10.0, 'radius': 0.5})
  scene.normals, scene.epsilon = 'finite', 0.01
  scene.background_mlp.update({'width': 16, 'layers': 2})
  scene.random_background_prob = 0.5
  # Fields of view from 70 to 40 degrees.
  scene.camera.update({'elevation': (-10.0, 45.0), 'distance': (1.5, 2.0),
                       'focal': (0.714, 1.374)})
  scene.light.albedo_steps = config.get_ref('steps') // 5
  # threestudio's penalties are means over the 64 x 64 rays, ours are sums.
  rays = scene.size**2
  scene.penalties = ml_collections.ConfigDict({
      'orientation': ((0.0, 10.0 / rays), (0.5, 1000.0 / rays)),
      'sparsity': 1.0 / rays})
  config.optimizer = ml_collections.ConfigDict({
      'name': 'adam', 'learning_rate': 1e-2, 'schedule': 'constant',
      'b1': 0.9, 'b2': 0.99, 'eps': 1e-15,
      'lr_multipliers': {'background': 0.1}})
  config.orbit.update({'elevation': 15.0, 'distance': 2.0, 'focal': 0.714})
  config.export.update({'resolution': 256, 'size': 512, 'frames': 120,
                        'fps': 24})
  return config


def deepfloyd():
  """threestudio's dreamfusion-if; else as `stable_diffusion`."""
  config = stable_diffusion()
  config.teacher = ml_collections.ConfigDict(_DEEPFLOYD_TEACHER)
  config.guidance.scale = 21.0
  config.scene.camera.elevation = (-10.0, 90.0)
  return config


def tiny(steps=4):
  """Seconds: the `shapes` variant at a few pixels, for tests."""
  config = shapes(steps)
  scene = config.scene
  scene.size, scene.samples, scene.importance.samples = 16, 8, 4
  scene.field.resolution, scene.field.features, scene.field.width = 8, 4, 8
  scene.background_mlp.width = 8
  scene.density_bias.strength = 8.0  # opaque from the first step on
  config.export.update(
      {'resolution': 16, 'size': 16, 'frames': 8, 'texture': 64})
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


def _config(fields):
  return ml_collections.ConfigDict(fields, convert_dict=True)


VARIANTS = {
    'shapes': shapes, 'csd': csd, 'sd': stable_diffusion, 'if': deepfloyd,
    'paper': paper, 'tiny': tiny,
}
