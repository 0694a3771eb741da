"""What happens to the device while it works: schedules of real load, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random

from benchmarks.load import COPYING, SPINNING, Competitors, Quota

SECONDS = 15.0
COMPETITORS = 4
PERIOD_US = 10_000
"""Of the quotas. With the kernel's default of 100 ms a run that begins at the end of a share waits up to 100 ms."""


@dataclass(frozen=True)
class Phase:
    """So long this many processes that count, this many that copy memory, this share of one core, this pause between runs."""

    seconds: float
    spinning: int = 0
    copying: int = 0
    quota_percent: int | None = None
    pause_seconds: float = 0.0
    step: bool = False  # its beginning is a step of load that lasts: how soon a policy has recovered from it is measured


def steady(random: Random) -> list[Phase]:
    return [Phase(SECONDS)]


def load_steps(random: Random) -> list[Phase]:
    """Two cores, and none, three or four busy processes beside."""
    lengths = _lengths(random, 4)
    return [
        Phase(lengths[0]),
        Phase(lengths[1], spinning=random.choice((3, 4)), step=True),
        Phase(lengths[2], step=True),
        Phase(lengths[3], spinning=random.choice((3, 4)), step=True),
    ]


def quota_steps(random: Random) -> list[Phase]:
    lengths = _lengths(random, 4)
    return [
        Phase(lengths[0]),
        Phase(lengths[1], quota_percent=random.choice((30, 40, 50)), step=True),
        Phase(lengths[2], step=True),
        Phase(lengths[3], quota_percent=random.choice((50, 60)), step=True),
    ]


def heat(random: Random) -> list[Phase]:
    """The quota falls little by little, as a hot processor's clock does, and recovers."""
    least = random.choice((35, 40, 45))
    falling = list(range(100, least, -5))
    shares = [*falling, least, *reversed(falling)]
    return [Phase(SECONDS / len(shares), quota_percent=share) for share in shares]


def memory(random: Random) -> list[Phase]:
    """Processes that copy memory take the caches and the bandwidth: not every size suffers alike."""
    lengths = _lengths(random, 3)
    return [Phase(lengths[0]), Phase(lengths[1], copying=1, step=True), Phase(lengths[2], copying=2, step=True)]


def bursts(random: Random) -> list[Phase]:
    """Busy for some tenths of a second, again and again."""
    phases, left = [], SECONDS
    while left > 0:
        calm, busy = random.uniform(0.5, 2.5), random.uniform(0.2, 1.0)
        phases += [Phase(calm), Phase(busy, spinning=random.choice((2, 3, 4)))]
        left -= calm + busy
    return phases


def pauses(random: Random) -> list[Phase]:
    """A run now and then, on a device that is busy at times: clocks and caches have gone cold in between."""
    lengths = _lengths(random, 3, 3 * SECONDS)  # few runs in a second
    return [
        Phase(lengths[0], pause_seconds=0.03),
        Phase(lengths[1], pause_seconds=0.03, spinning=3, step=True),
        Phase(lengths[2], pause_seconds=0.03, step=True),
    ]


def mixed(random: Random) -> list[Phase]:
    """Every few seconds something else."""
    phases = []
    for length in _lengths(random, 6):
        kind = random.randrange(5)
        phases.append(
            [
                Phase(length),
                Phase(length, spinning=random.choice((2, 3, 4))),
                Phase(length, copying=random.choice((1, 2))),
                Phase(length, quota_percent=random.choice((40, 60, 80))),
                Phase(length, spinning=2, quota_percent=70),
            ][kind]
        )
    return phases


SCENARIOS: dict[str, Callable[[Random], list[Phase]]] = {
    "steady": steady,
    "load steps": load_steps,
    "quota steps": quota_steps,
    "heat": heat,
    "memory": memory,
    "bursts": bursts,
    "pauses": pauses,
    "mixed": mixed,
}


class World:
    """Sets what a phase asks for, for the calling process and those beside it."""

    def __init__(self, spinning: Competitors, copying: Competitors, quota: Quota) -> None:
        self._spinning, self._copying, self._quota = spinning, copying, quota

    def enter(self, phase: Phase) -> None:
        self._spinning.set(phase.spinning)
        self._copying.set(phase.copying)
        self._quota.set(phase.quota_percent)


@contextmanager
def world() -> Iterator[World]:
    """Raises PermissionError where control groups may not be made."""
    with ExitStack() as stack:
        spinning = stack.enter_context(Competitors(SPINNING, COMPETITORS))
        copying = stack.enter_context(Competitors(COPYING, 2))
        quota = stack.enter_context(Quota(PERIOD_US))
        quota.join()
        stack.callback(quota.leave)
        yield World(spinning, copying, quota)


def _lengths(random: Random, count: int, seconds: float = SECONDS) -> list[float]:
    """So many parts of the whole, none much longer than another."""
    parts = [random.uniform(0.8, 1.2) for _ in range(count)]
    return [seconds * part / sum(parts) for part in parts]
