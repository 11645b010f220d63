r"""ProlificDreamer: variational score distillation (Wang et al., 2305.16213).

Variants:
  shapes      The default. An object of the shapes world, by the shipped
              text-to-image model and a student that is that model with LoRA.
  particles   The same, two objects in one run.
  sd          Stage 1 of the paper by Stable Diffusion, with threestudio's
              settings: a field, 25,000 steps, at 64 pixels to step 5000. 15 GB
              at 64 pixels in threestudio. The authors' student is LoRA on
              Stable Diffusion 2.1, which predicts v: give its folder as
              guidance.student.path and guidance.student.loss=v.
  sd_geometry Stage 2: the mesh of a finished run by SDS on images of its
              normals, 15,000 steps. The official code has a tetrahedral grid
              in place of a mesh, and black behind it in place of gray.
  sd_texture  Stage 3: a texture for the mesh of a finished run, 30,000 steps.
  tiny        Seconds; for tests.

  python -m gen3d.train --config=configs/prolific_dreamer.py \
    --config.prompt='a red chair' --workdir=runs/chair
  python -m gen3d.train --config=configs/prolific_dreamer.py:sd \
    --config.teacher.path=checkpoints/stable-diffusion-2-1-base \
    --config.guidance.student.path=checkpoints/stable-diffusion-2-1 \
    --config.guidance.student.loss=v \
    --config.prompt='a pineapple' --workdir=runs/pineapple
  python -m gen3d.train --config=configs/prolific_dreamer.py:sd_geometry \
    --config.teacher.path=checkpoints/stable-diffusion-2-1-base \
    --config.scene.start_from=runs/pineapple \
    --config.prompt='a pineapple' --workdir=runs/pineapple_geometry

The official implementation takes 9 hours on an RTX 4090 for its three stages.
`particles` objects of one prompt share the student and are exported into
folders particle_0, particle_1, ..., which other commands take as a workdir
(export --workdir=runs/chair/particle_1); each view of a step shows
one of them.
"""

import ml_collections

from configs import dreamfusion, refine


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def _vsd(config, scale, learning_rate):
  """VSD in place of SDS, with a student of its own optimizer."""
  config.guidance.name = 'vsd'
  with config.ignore_type():
    config.guidance.scale = scale
  config.guidance.student = ml_collections.ConfigDict({
      # The teacher with LoRA, or a copy of its U-Net ('copy').
      'kind': 'lora', 'rank': 4,
      # Another checkpoint of the same kind that it is made of; '' is the
      # teacher's own.
      'path': '',
      'loss': 'epsilon',     # or v
      'drop_camera': 0.1,    # how often it has no pose
      'noises': 1})          # noises and times for each view
  config.guidance.optimizer = ml_collections.ConfigDict({
      'name': 'adamw', 'learning_rate': learning_rate, 'schedule': 'constant',
      'weight_decay': 0.01})
  config.particles = 1
  config.progress = ('sds/grad_norm', 'student/loss', 'opacity')
  return config


def shapes(steps=300):
  """The shapes world on a CPU."""
  base = dreamfusion.shapes(steps)
  return _vsd(base, base.guidance.scale, 1e-3)


def particles():
  """Two objects in one run."""
  config = shapes()
  config.particles, config.views, config.steps = 2, 4, 300
  return config


def stable_diffusion():
  """Stage 1 in threestudio."""
  config = _vsd(dreamfusion.stable_diffusion(), 7.5, 1e-4)
  config.steps = 25_000
  config.view_prompts.front = 30.0
  with config.ignore_type():
    config.guidance.options.time_max = ((0.2, 0.98), (0.2, 0.5))
  scene = config.scene
  scene.camera.update({
      'distance': (1.0, 1.5), 'jitter_position': 0.0, 'jitter_target': 0.0,
      'jitter_up': 0.0})
  # Albedo only, without normals.
  scene.light.albedo_steps = config.get_ref('steps')
  rays = scene.size**2
  scene.penalties = ml_collections.ConfigDict({
      'sparsity': 10.0 / rays,
      'opacity_entropy': ((9999 / 25_000, 0.0), (0.4, 1000.0 / rays))})
  config.orbit.distance = 1.5
  return config


def sd_geometry():
  """Stage 2: the vertices of a mesh; no VSD."""
  config = refine.stable_diffusion()
  config.steps = 15_000
  config.guidance.scale = 100.0
  config.guidance.options.update({'time_min': 0.02, 'time_max': 0.98})
  scene = config.scene
  scene.light.normals_prob = 1.0
  with config.ignore_type():
    scene.background_mlp = None
  scene.random_background_prob, scene.background_range = 1.0, 0.0
  scene.laplacian.update({'start': 1e4, 'end': 1e4})
  config.optimizer.learning_rate = 5e-3
  # The image has no gradient for the texture.
  config.optimizer.lr_multipliers = {}
  return config


def sd_texture():
  """Stage 3: the texture of a mesh whose vertices stay."""
  config = _vsd(refine.stable_diffusion(), 7.5, 1e-4)
  config.steps = 30_000
  config.guidance.options.update({'time_min': 0.02, 'time_max': 0.5})
  config.scene.light.albedo_steps = config.get_ref('steps')
  config.scene.normal_consistency = 0.0
  config.optimizer.lr_multipliers = {'background': 0.1, 'offsets': 0.0}
  return config


def tiny(steps=4):
  """Seconds: the `shapes` variant at a few pixels, for tests."""
  base = dreamfusion.tiny(steps)
  config = _vsd(base, base.guidance.scale, 1e-3)
  config.guidance.options.num_noises = 1
  return config


VARIANTS = {'shapes': shapes, 'particles': particles, 'sd': stable_diffusion,
            'sd_geometry': sd_geometry, 'sd_texture': sd_texture, 'tiny': tiny}
