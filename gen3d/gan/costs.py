"""The cost of a GAN's training step by phases, for gen3d.benchmark."""

from collections.abc import Callable, Iterator

from gen3d.gan.networks import GANNetworks
from gen3d.gan.schedule import PHASES, Schedule, Static


def lazy_phases(networks: GANNetworks, schedule: Schedule) -> dict[str, int]:
  """{name, as in Static.phases: steps from one to the next}.

  Without the phases that this training does not have.
  """
  intervals = {'r1': schedule.d_reg_interval}
  if networks.regularize:
    intervals = {'regularize': schedule.g_reg_interval, **intervals}
  return {name: interval for name, interval in intervals.items() if interval}


def phases(
    seconds_of: Callable[[Static], float], *, networks: GANNetworks,
    schedule: Schedule, render_size: int
) -> Iterator[tuple[str, float]]:
  """Yields (name, seconds) of the phases and of an average step.

  The time of a phase that not every step has is the difference between steps
  with and without it.

  Args:
    seconds_of: static -> seconds of a step that is compiled for it.
    networks: GANNetworks.
    schedule: Schedule.
    render_size: at which the step is timed.
  """
  due: frozenset[str] = frozenset()
  last = average = seconds_of(Static(render_size, due))
  yield 'generator and discriminator phase', last
  for name, interval in lazy_phases(networks, schedule).items():
    due |= {name}
    seconds = seconds_of(Static(render_size, due))
    yield f'{PHASES[name]}, every {ordinal(interval)}', seconds - last
    average += (seconds - last) / interval
    last = seconds
  yield 'training step on average', average


def ordinal(steps: int) -> str:
  """Which steps, after 'every': 'step', '2nd step', '16th step'."""
  if steps == 1:
    return 'step'
  ends = {1: 'st', 2: 'nd', 3: 'rd'} if steps // 10 % 10 != 1 else {}
  return f'{steps}{ends.get(steps % 10, "th")} step'
