r"""SceneTex: textures for given meshes (Chen et al., 2311.17261).

Variants:
  shapes  The default. Objects by the shipped 64 x 64 text-to-image model, in
          minutes on two CPU cores: views around each object, lit.
  paper   A scene by Stable Diffusion 1.5 and its ControlNet of depth, with
          every number of the paper's code: VSD with a student by LoRA that
          knows no camera. 30,000 steps, about 20 hours on one GPU of 48 GB in
          the paper.
  tiny    Seconds; for tests.

  python -m gen3d.train --config=configs/scene_tex.py \
    --config.scene.meshes=chair.obj --config.prompt='a red chair' \
    --workdir=runs/chair
  python -m gen3d.train --config=configs/scene_tex.py \
    --config.scene.meshes=chair.glb,table.glb --config.scene.each=True \
    --config.prompt='a red chair; a blue table with white legs' \
    --workdir=runs/room
  python -m gen3d.train --config=configs/scene_tex.py:paper \
    --config.scene.meshes=room.glb --config.scene.camera.target=0,1,0 \
    --config.teacher.path=checkpoints/stable-diffusion-v1-5 \
    --config.teacher.control=checkpoints/control_v11f1p_sd15_depth \
    --config.prompt='a bohemian style living room' --workdir=runs/room

A mesh is a file, or 'shapes:' and a category of the shapes world. Its front is
to +z, unless scene.turn says by how many degrees it is turned towards +x.
"""

import ml_collections

from configs import dreamfusion

_SUFFIX = (', best quality, high quality, extremely detailed, good geometry, '
           'high-res photo')


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def sweep():
  """Eight of the prompts of configs/dreamfusion.py on shapes-world meshes."""
  return [{'prompt': prompt, 'scene.meshes': f'shapes:{prompt.split()[2]}'}
          for prompt in dreamfusion.EIGHT.values()]


def _base():
  """The paper's code, with SDS."""
  steps, late = 30_000, 5_000
  span = lambda low, high, count: tuple(
      low + (high - low) * i / (count - 1) for i in range(count))
  config = ml_collections.ConfigDict({
      'task': 'text_to_3d',
      'prompt': 'a bohemian style living room' + _SUFFIX,
      'negative_prompt': (
          'deformed, extra digit, fewer digits, cropped, worst quality, low '
          'quality, smoke, shading, lighting, lumination, shadow, text in '
          'image, watermarks'),
      'seed': 0,
      'steps': steps,
      'views': 1,
      'teacher': {'name': 'stable_diffusion', 'path': '', 'revision': '',
                  'variant': '', 'dtype': '', 'prediction': '',
                  'flash': False, 'remat': False, 'lora': '',
                  'control': ''},  # folder of the ControlNet of depth
      'guidance': {
          'name': 'sds', 'scale': 100.0,
          'options': {'weighting': 'sigma_squared', 'time_min': 0.02,
                      'time_max': (((late - 1) / steps, 0.98),
                                   (late / steps, 0.5)),
                      'color_guidance_ratio': 1.0, 'num_noises': 1}},
      'view_prompts': {'front': 45.0, 'overhead': 60.0},
      'scene': {
          'name': 'texture',
          'meshes': '', 'up': 'y', 'turn': (0.0,),
          'each': False,  # whether each mesh has a prompt of its own
          'shapes_resolution': 80,  # of meshes of the shapes world
          'size': 768, 'supersampling': 1, 'near': 0.01, 'far': 100.0,
          'bound': 1.0,
          # The finest level has 3,105 points along a side: the code divides
          # the octaves by the number of levels, not by one less.
          'grid': {'count': 20, 'base': 16, 'growth': 256 ** (1 / 20),
                   'log2_entries': 24, 'features': 4, 'init_scale': 1e-4},
          'attention': {'hidden': 128, 'heads': 4, 'block': 4096},
          'anchors': 4096,
          'mlp': {'width': 256, 'layers': 4},
          'activation': 'clip',
          # 5,000 cameras that face one point of the room.
          'view_distribution': 'sphere', 'keyframes': '',
          'camera': {
              'distance': (0.5,), 'elevation': span(-30.0, 30.0, 10),
              'azimuth': span(-180.0, 180.0, 100),
              'field_of_view': span(45.0, 75.0, 5),
              'target': (0.0, 0.0, 0.0)}},
      # The code's loss is a mean over 96 x 96 x 4 latents, ours a sum: eps is
      # larger by their number.
      'optimizer': {'name': 'adamw', 'learning_rate': 1e-3,
                    'schedule': 'constant', 'weight_decay': 0.01,
                    'b1': 0.9, 'b2': 0.999, 'eps': 1e-8 * 96 * 96 * 4,
                    'lr_multipliers': {}},
      'orbit': {'elevation': 15.0, 'distance': 0.5, 'focal': 0.87},
      'export': {'resolution': 192, 'size': 512, 'frames': 120, 'fps': 24,
                 'keep_share': 1.0, 'texture': 4096},
      'log_every': 50, 'eval_every': 500, 'checkpoint_every': 1000,
      'keep_checkpoints': 2, 'progress': ('sds/grad_norm', 'opacity'),
  }, convert_dict=True)
  config.scene.texture_size = config.export.get_ref('texture')
  return config


def paper():
  """The paper's code."""
  config = _base()
  config.guidance.name, config.guidance.scale = 'vsd', 7.5
  config.guidance.student = ml_collections.ConfigDict({
      'kind': 'lora', 'rank': 4, 'path': '', 'loss': 'epsilon',
      'drop_camera': 1.0, 'noises': 1})
  config.guidance.optimizer = ml_collections.ConfigDict({
      'name': 'adamw', 'learning_rate': 1e-4, 'schedule': 'constant',
      'weight_decay': 0.01})
  return config


def shapes(steps=120):
  """Objects of the shapes world on a CPU."""
  config = _base()
  config.prompt, config.negative_prompt = 'a red chair', ''
  config.steps, config.views = steps, 2
  config.teacher = ml_collections.ConfigDict(
      {'name': 'shapes', 'path': '', 'control': 'depth'})
  # At large noise levels: the texture becomes the mean of the images of
  # (prompt, camera), whose colors are the prompt's, somewhat desaturated. A
  # little guidance makes up for that; more over-saturates. At small levels the
  # prediction keeps the image's brightness.
  config.guidance.scale = 1.5
  config.guidance.options = ml_collections.ConfigDict({
      'weighting': 'image', 'time_min': 0.6, 'time_max': 0.98,
      'color_guidance_ratio': 1.0, 'num_noises': 4})
  scene = config.scene
  scene.size, scene.supersampling = 64, 2
  scene.near, scene.far = 0.1, 10.0
  # A cell of the finest level is about as large as a pixel of a view.
  scene.grid = ml_collections.ConfigDict({
      'count': 4, 'base': 8, 'growth': 2.0, 'log2_entries': 24, 'features': 4,
      'init_scale': 1e-2})
  scene.attention = ml_collections.ConfigDict(
      {'hidden': 16, 'heads': 2, 'block': 4096})
  scene.anchors = 64
  scene.mlp.width, scene.mlp.layers = 32, 2
  scene.activation = 'sigmoid'
  # The teacher's training images; see configs/dreamfusion.py.
  scene.view_distribution = 'dreamfusion'
  scene.camera = ml_collections.ConfigDict({
      'azimuth': (-180.0, 180.0), 'elevation': (-10.0, 90.0),
      'distance': (1.4, 1.8), 'focal': (1.1, 1.5), 'jitter_position': 0.1,
      'jitter_target': 0.04, 'jitter_up': 0.02})
  scene.light = ml_collections.ConfigDict({
      'distance_range': (0.8, 1.5), 'albedo_steps': 0, 'shaded_prob': 1.0,
      'textureless_prob': 0.0, 'ambient': 0.4, 'diffuse': 0.6})
  scene.random_background_prob, scene.background_range = 1.0, 1.0
  config.optimizer = ml_collections.ConfigDict({
      # Five times as much saturates the sigmoid, whose gradient is then zero.
      'name': 'adam', 'learning_rate': 1e-2, 'schedule': 'cosine',
      'b1': 0.9, 'b2': 0.99, 'eps': 1e-15, 'lr_multipliers': {}})
  config.orbit.distance, config.orbit.focal = 1.85, 1.3
  config.export.update(
      {'size': 256, 'frames': 48, 'fps': 10, 'texture': 1024})
  config.log_every, config.eval_every, config.checkpoint_every = 10, 60, 60
  return config


def tiny(steps=4):
  """Seconds: the `shapes` variant at a few pixels, for tests."""
  config = shapes(steps)
  scene = config.scene
  scene.meshes, scene.shapes_resolution = 'shapes:chair', 16
  scene.size, scene.supersampling = 16, 1
  scene.grid.count, scene.grid.features = 2, 2
  scene.attention.hidden, scene.anchors, scene.mlp.width = 4, 4, 8
  config.guidance.options.num_noises = 1
  config.teacher.control = ''  # compiles faster
  config.export.update({'size': 16, 'frames': 8, 'texture': 64})
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {'shapes': shapes, 'paper': paper, 'tiny': tiny}
