"""Words for people: why a candidate was chosen, and what it misses."""

from __future__ import annotations

from math import inf

from selector.choose.budget import ACCURACY, BEST, Budget, Selection
from selector.choose.candidates import Candidate
from selector.choose.metrics import metric_name

LIMITS = ("latency_ms", "energy_mj", "memory_mb")
"""That are compared with every bundle's candidates; beside them there is the first token's."""
_HOW = {"energy_mj": " (to be had by: sortednet profile --watts WATTS)"}
"""How a cost becomes known that this device's profile does not have."""
_UNITS = {"latency_ms": "ms", "energy_mj": "mJ", "memory_mb": "MB", "first_token_ms": "ms"}
_NAMES = {"latency_ms": "latency", "energy_mj": "energy", "memory_mb": "memory", "first_token_ms": "first token"}


def best(metric: str) -> str:
    """What the one of the highest quality is."""
    return "most accurate" if metric == ACCURACY else f"highest {metric_name(metric)}"


def reason(candidate: Candidate, budget: Budget, metric: str) -> str:
    """Why it was chosen: what it takes of each limit, and what was wanted within them."""
    parts = []
    if budget.first_token_ms is not None:
        parts.append(f"first token {candidate.first_token_ms:.4g} of {budget.first_token_ms:g} ms")
    if (limit := budget.run_ms) is not None:
        parts.append(f"{_run(candidate)} {candidate.latency_ms:.4g} of {limit:g} ms")
    if budget.energy_mj is not None:
        parts.append(f"energy {candidate.energy_mj:.4g} of {budget.energy_mj:g} mJ")
    if budget.memory_mb is not None:
        parts.append(f"memory {candidate.memory_mb:.4g} of {budget.memory_mb:g} MB")
    floor = budget.min_accuracy if budget.min_quality is None else budget.min_quality
    if floor is not None:
        parts.append(f"{metric_name(metric)} {candidate.quality:.4g}, at least {floor:.4g}")
    wanted = best(metric) if budget.objective in BEST else f"least {budget.objective}"
    if budget.objective == "energy" and candidate.energy_mj == inf:
        wanted = "least latency (energy is not known on this device: sortednet profile --watts WATTS)"
    return f"{wanted} with {', '.join(parts)}" if parts else f"{wanted} of all"


def excess(one: Candidate | Selection, budget: Budget) -> float:
    """By how much it misses the budget, summed over the limits relative to each."""
    over = 0.0
    for name, limit in _limits(budget).items():
        if limit is not None:
            cost = getattr(one, name)
            over += min(max(0.0, (inf if cost is None else cost) / limit - 1), 1e9)
    if budget.floor:
        over += max(0.0, 1 - (one.quality or 0.0) / budget.floor)
    return over


def misses(candidate: Candidate, budget: Budget, metric: str) -> str:
    """Which limits it misses, and by what."""
    missed = []
    for name, limit in _limits(budget).items():
        cost = getattr(candidate, name)
        if limit is not None and cost > limit:
            figure = f"unknown{_HOW.get(name, '')}" if cost == inf else f"{cost:.4g} {_UNITS[name]}"
            said = _run(candidate) if name == "latency_ms" else _NAMES[name]
            missed.append(f"{said} {figure}, limit {limit:g} {_UNITS[name]}")
    if budget.floor is not None and candidate.quality < budget.floor:
        missed.append(f"{metric_name(metric)} {candidate.quality:.4g}, wanted {budget.floor:.4g}")
    return "; ".join(missed)


def _run(candidate: Candidate) -> str:
    """What its latency is of."""
    return "latency" if candidate.first_token_ms == inf else "latency per token"


def _limits(budget: Budget) -> dict[str, float | None]:
    """By the candidate's costs."""
    of_all = {name: budget.run_ms if name == "latency_ms" else getattr(budget, name) for name in LIMITS}
    return {**of_all, "first_token_ms": budget.first_token_ms}
