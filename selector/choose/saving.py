"""What a low battery makes of a budget: the one place where a level of the policy becomes limits and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from selector.choose.battery import Battery, PowerLevel
from selector.choose.budget import ACCURACY, Budget, Selection
from selector.choose.candidates import Candidate


def narrowed(budget: Budget, level: PowerLevel, best: Candidate, best_quality: float, energy_known: bool) -> list[Budget]:
    """The budgets to try in turn at a level: narrowed by it; without the quality that it would keep; as it is. `best`: the one
    whose costs the level's caps are shares of. Without known energies latency stands in for them."""
    caps = _caps(budget, level, best, energy_known)
    floor = budget.floor if budget.floor is not None else level.keep_quality * best_quality
    objective = "latency" if level.objective == "energy" and not energy_known else level.objective
    if objective == ACCURACY:
        objective = "quality"
    kept = {"objective": objective, "min_quality": floor, "min_accuracy": None}
    tries = [budget.model_copy(update={**caps, **kept})]
    if caps and budget.floor is None:
        tries.append(budget.model_copy(update=caps))
    if caps or budget.floor is None:
        tries.append(budget)
    return tries


def _caps(budget: Budget, level: PowerLevel, best: Candidate, energy_known: bool) -> dict[str, float]:
    """Of the level, as limits that are at least as tight as the budget's."""
    shares: dict[str, float | None] = {"latency_ms": level.latency_share}
    name = "energy_mj" if energy_known else "latency_ms"
    shares[name] = min((s for s in (shares.get(name), level.energy_share) if s is not None), default=None)
    caps = {name: share * getattr(best, name) for name, share in shares.items() if share is not None}
    return {name: min(cap, getattr(budget, name) or inf) for name, cap in caps.items() if cap < inf}


def first_feasible(
    tries: Sequence[Budget], budget: Budget, level: PowerLevel, battery: Battery | None, choose: Callable[[Budget], Selection]
) -> Selection:
    """What `choose` finds for the first of the tries that can be kept, or for the last; and why anything was saved."""
    for one in tries:
        selection = choose(one)
        if selection.feasible:
            break
    if one is budget:
        return selection
    if battery is None or battery.percent >= level.ends_at:
        return selection._replace(reason=f"low-power mode: {selection.reason}")
    discharging = " and discharging" if battery.discharging else ""
    return selection._replace(reason=f"battery at {battery.percent:g} %{discharging}: {selection.reason}")
