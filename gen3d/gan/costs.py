"""The cost of a GAN's training step by phases, for gen3d.benchmark."""

from collections.abc import Callable, Iterator

from gen3d.gan.networks import GANNetworks
from gen3d.gan.schedule import PHASES, Schedule, Static


def phases(
    seconds_of: Callable[[Static], float], *, networks: GANNetworks,
    schedule: Schedule, render_size: int
) -> Iterator[tuple[str, float]]:
  """Yields (name, seconds) of the phases and of an average step.

  Args:
    seconds_of: static -> seconds of a program that is compiled for it.
    networks: GANNetworks.
    schedule: Schedule.
    render_size: at which the step is timed.
  """
  intervals = {'regularize': schedule.g_reg_interval if networks.regularize
               else 0, 'r1': schedule.d_reg_interval}
  average = 0.0
  for phase, name in PHASES.items():
    interval = intervals.get(phase, 1)
    if not interval:
      continue
    seconds = seconds_of(Static(render_size, phase))
    average += seconds / interval
    yield (f'{name}, every {ordinal(interval)}' if phase in intervals
           else name), seconds
  yield 'training step on average', average


def ordinal(steps: int) -> str:
  """Which steps, after 'every': 'step', '2nd step', '16th step'."""
  if steps == 1:
    return 'step'
  ends = {1: 'st', 2: 'nd', 3: 'rd'} if steps // 10 % 10 != 1 else {}
  return f'{steps}{ends.get(steps % 10, "th")} step'
