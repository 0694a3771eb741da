"""Which of several devices' best is the best."""

from __future__ import annotations

from collections.abc import Callable

from selector.choose.budget import Budget, Selection


def order(budget: Budget) -> Callable[[Selection], tuple[bool, tuple[float, float]]]:
    """By which the best of several devices' is the first."""
    better = _by_quality if budget.wants_the_best else _by_latency if budget.objective == "latency" else _by_energy
    return lambda selection: (not selection.feasible, better(selection))


def _by_quality(selection: Selection) -> tuple[float, float]:
    return -(selection.quality or 0.0), selection.latency_ms or 0.0


def _by_latency(selection: Selection) -> tuple[float, float]:
    return selection.latency_ms or 0.0, -(selection.quality or 0.0)


def _by_energy(selection: Selection) -> tuple[float, float]:
    energy = selection.energy_mj
    return float("inf") if energy is None else energy, selection.latency_ms or 0.0
