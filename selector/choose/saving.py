"""What a low battery makes of a budget: the one place where a level of the policy becomes limits and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from selector.choose.battery import Battery, PowerLevel
from selector.choose.budget import ACCURACY, Budget, Selection
from selector.choose.candidates import Candidate


def narrowed(budget: Budget, level: PowerLevel, ranked: Sequence[Candidate], best_quality: float) -> list[Budget]:
    """The budgets to try in turn at a level: narrowed by it; without the quality that it would keep; as it is. `ranked`: the
    candidates, the best first; the level's caps are shares of what that takes, of the energy of the best whose energy is known.
    Without known energies latency stands in for them."""
    latency = ranked[0].latency_ms
    energy = next((candidate.energy_mj for candidate in ranked if candidate.energy_mj < inf), None)
    caps = _caps(budget, level, latency, energy)
    floor = budget.floor if budget.floor is not None else level.keep_quality * best_quality
    objective = "latency" if level.objective == "energy" and energy is None else level.objective
    if objective == ACCURACY:
        objective = "quality"
    kept = {"objective": objective, "min_quality": floor, "min_accuracy": None}
    tries = [budget.model_copy(update={**caps, **kept})]
    if caps and budget.floor is None:
        tries.append(budget.model_copy(update=caps))
    if caps or budget.floor is None:
        tries.append(budget)
    return tries


def _caps(budget: Budget, level: PowerLevel, latency_ms: float, energy_mj: float | None) -> dict[str, float]:
    """Of the level, as limits that are at least as tight as the budget's; shares of these costs."""
    caps = {} if level.latency_share is None else {"latency_ms": level.latency_share * latency_ms}
    if level.energy_share is not None and energy_mj is not None:
        caps["energy_mj"] = level.energy_share * energy_mj
    elif level.energy_share is not None:
        caps["latency_ms"] = min(caps.get("latency_ms", inf), level.energy_share * latency_ms)
    return {name: min(cap, getattr(budget, name) or inf) for name, cap in caps.items()}


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
