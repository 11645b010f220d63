"""Weights and schedules of the adversarial step, and its static arguments."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.engine import sharding

# The phases of a step in their order, as they are printed.
PHASES = {'generator': 'generator', 'regularize': 'regularization',
          'discriminator': 'discriminator', 'r1': 'R1',
          'end': 'moving average'}


class Schedule(NamedTuple):
  """Weights and schedules of the losses; images are counted over all devices.

  Attributes:
    r1_gamma: weight gamma of the R1 penalty, of which half is applied.
    d_reg_interval, g_reg_interval: steps from one R1, or regularization of the
      generator, to the next. The losses are multiplied by it. 0: never.
    pose_swap_prob: final probability that the mapping network gets the camera
      of another image (EG3D's generator pose conditioning). It falls linearly
      from 1 over the first `pose_swap_fade_images`.
    blur_init_sigma: initial blur of the discriminator's inputs, in pixels. It
      fades linearly over the first `blur_fade_images`.
    ema_images: half-life of the generator's moving average; at most `ema_ramp`
      times the images seen so far, unless that is 0.
    style_mixing_prob: probability that the later layers get another latent.
    ada_target: mean sign of the discriminator's logits on reals to which the
      augmentation of its inputs is adapted (2006.06676). 0: no augmentation.
    ada_interval, ada_images: steps between two changes of the probability of
      augmentation, and images after which it may have gone from 0 to 1.
    joint_r1: whether the gradient penalty is a term of the discriminator's
      loss, in every step, instead of an update of its own (GIRAFFE, pi-GAN,
      R3GAN); `d_reg_interval` is then 0.
    r2: whether the gradient at the fakes is penalized as that at the reals.
    relativistic: whether the losses compare each fake with a real image, by
      the difference of their logits (R3GAN, 2501.05441, eq. 2).
    r1_gamma_final, r1_gamma_fade_images: value that gamma reaches after so
      many images, by a half period of a cosine (R3GAN, appendix); 0 images:
      gamma stays.
    views_per_latent: fakes of one object, from cameras of their own; for
      EG3D, whose tri-planes they share.
    top_k_interval, top_k_floor: the generator learns from the fraction
      0.99^(step / interval), at least `floor`, of the fakes, those with the
      largest logits (2002.06224, as pi-GAN has it). Interval 0: from all.
  """
  r1_gamma: float
  d_reg_interval: int = 16
  g_reg_interval: int = 4
  pose_swap_prob: float = 0.0
  pose_swap_fade_images: int = 0
  blur_init_sigma: float = 0.0
  blur_fade_images: int = 0
  ema_images: int = 10_000
  ema_ramp: float = 0.0
  style_mixing_prob: float = 0.0
  ada_target: float = 0.0
  ada_interval: int = 4
  ada_images: int = 500_000
  joint_r1: bool = False
  r2: bool = False
  relativistic: bool = False
  r1_gamma_final: float = 0.0
  r1_gamma_fade_images: int = 0
  views_per_latent: int = 1
  top_k_interval: int = 0
  top_k_floor: float = 1.0


class Static(NamedTuple):
  """Static arguments of a compiled program of the step.

  Attributes:
    render_size: resolution of the neural rendering, or of the images where
      that grows in the course of a training (pi-GAN); 0 where there is none.
    phase: key of PHASES, the only one of this program. None: the program
      contains all and chooses by the number of the step.
  """
  render_size: int = 0
  phase: str | None = None

  def __str__(self) -> str:
    size = [f'{self.render_size} x {self.render_size} pixels'
            ] if self.render_size else []
    return ', '.join([*size, PHASES[self.phase] if self.phase
                      else 'all phases'])


def due_phases(step: int, schedule: Schedule) -> list[str]:
  """The keys of PHASES that a step has, in their order."""
  intervals = {'regularize': schedule.g_reg_interval,
               'r1': schedule.d_reg_interval}
  due = lambda interval: interval and step % interval == 0
  return [name for name in PHASES if due(intervals.get(name, 1))]


def static_of(
    step: int, schedule: Schedule, render_size: int
) -> Static | sharding.InTurn:
  """The static argument of a step on the present backend."""
  # Within lax.cond, XLA's convolutions on the CPU are thirty times slower. A
  # program for each phase instead of one for each combination of them is
  # compiled once, beside the others. Elsewhere one program serves all.
  if jax.default_backend() != 'cpu':
    return Static(render_size)
  return in_turn(due_phases(step, schedule), render_size)


def in_turn(phases: Sequence[str], render_size: int) -> sharding.InTurn:
  """The static argument of a step with a program for each of the phases."""
  return sharding.InTurn(tuple(Static(render_size, name) for name in phases))


def gamma(schedule: Schedule, images_seen: Any) -> Any:
  """Weight of the gradient penalty after `images_seen` images."""
  if not schedule.r1_gamma_fade_images:
    return schedule.r1_gamma
  # From 1 to 0 by a half period of a cosine.
  left = 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(
      1.0, images_seen / schedule.r1_gamma_fade_images))
  return schedule.r1_gamma_final + left * (
      schedule.r1_gamma - schedule.r1_gamma_final)


def fade(images_seen: Any, fade_images: int) -> Any:
  """Falls from 1 to 0 over `fade_images`; 0 where that is 0."""
  return jnp.maximum(0, 1 - images_seen / fade_images) if fade_images else 0.0
