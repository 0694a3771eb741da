"""Which of several devices' best is the best."""

from __future__ import annotations

from collections.abc import Callable

from selector.choose.budget import Budget, Selection
from selector.choose.reasons import excess


def order(budget: Budget) -> Callable[[Selection], tuple[bool, tuple[float, float]]]:
    """By which the best of several devices' is the first; where nothing fits, the nearest."""
    better = _by_quality if budget.wants_the_best else _by_latency if budget.objective == "latency" else _by_energy

    def place(selection: Selection) -> tuple[bool, tuple[float, float]]:
        if selection.feasible:
            return False, better(selection)
        return True, (excess(selection, budget), selection.latency_ms or 0.0)

    return place


def _by_quality(selection: Selection) -> tuple[float, float]:
    return -(selection.quality or 0.0), selection.latency_ms or 0.0


def _by_latency(selection: Selection) -> tuple[float, float]:
    return selection.latency_ms or 0.0, -(selection.quality or 0.0)


def _by_energy(selection: Selection) -> tuple[float, float]:
    energy = selection.energy_mj
    return float("inf") if energy is None else energy, selection.latency_ms or 0.0
