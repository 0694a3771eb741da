"""What a run gives, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from exporter.bundle.manifest import TaskEntry
from selector.choose.budget import Selection
from selector.run.answers import Answer, answers


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave, what was chosen for it and why, and how long it took (without the choice)."""

    outputs: dict[str, NDArray[Any]]
    selection: Selection
    latency_ms: float
    task: TaskEntry | None = None

    @property
    def labels(self) -> list[str]:
        """Of each example the name of the class that it most probably is; empty for another task than classification."""
        return [best[0].label for best in self.answers(1)]

    def answers(self, count: int = 3) -> list[list[Answer]]:
        """Of each example so many most probable classes with their probabilities; empty for another task."""
        return [] if self.task is None else answers(self.task, self.outputs, count)


class RunRecord(NamedTuple):
    """One run in a runtime's history."""

    at: float  # seconds since 1970
    submodel: str
    device: str  # the profile
    latency_ms: float  # per example of its batch
    limit_ms: float | None
    slow_down: float  # of the device, relative to its profile, after this run
    battery_percent: float | None
    reason: str  # of the choice; where there is a battery plan it says how that stands

    @property
    def met(self) -> bool:
        return self.limit_ms is None or self.latency_ms <= self.limit_ms
