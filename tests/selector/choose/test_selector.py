"""Budget to sub-model: compared with a brute-force search over random profiles, then the battery and refused budgets."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_profiles import LatencyMs, Measurement, Profile
from selector import Battery, BatteryPolicy, Budget, BudgetError, Selector
from selector.choose.battery import make_battery
from selector.choose.budget import make_budget
from tests.helpers.commands import SELECTION
from tests.helpers.costs import DEVICE, Cost, flat, selector_of

# Few distinct values, shared by costs and limits: ties, and limits that are met exactly, are what goes wrong.
figure = st.integers(1, 12).map(lambda n: n / 4)
accuracy = st.integers(0, 8).map(lambda n: n / 8)
cost = st.builds(
    lambda latencies, *rest: Cost(*sorted(latencies), *rest),
    st.tuples(figure, figure, figure),
    accuracy,
    st.none() | figure,
    st.none() | figure,
)
profiles = (st.lists(cost, min_size=1, max_size=6) | st.lists(cost, min_size=4, max_size=6)).map(
    lambda cs: {f"s{i}": c for i, c in enumerate(cs)}
)
budgets = st.builds(
    Budget,
    latency_ms=st.none() | figure,
    energy_mj=st.none() | figure,
    memory_mb=st.none() | figure,
    min_accuracy=st.none() | accuracy,
    percentile=st.sampled_from([1.0, 50.0, 50.1, 90.0, 90.5, 99.0]),
    objective=st.sampled_from(["accuracy", "energy", "latency"]),
)


def latency_at(cost: Cost, percentile: float) -> float:
    return cost.p50 if percentile <= 50 else cost.p90 if percentile <= 90 else cost.p99


def fits(cost: Cost, budget: Budget) -> bool:
    limits = (
        (latency_at(cost, budget.percentile), budget.latency_ms),
        (cost.energy_mj, budget.energy_mj),
        (cost.memory_mb, budget.memory_mb),
    )
    kept = all(limit is None or (value is not None and value <= limit) for value, limit in limits)
    return kept and (budget.min_accuracy is None or cost.accuracy >= budget.min_accuracy)


@settings(max_examples=600, deadline=None)
@given(profiles, budgets)
def test_a_selection_is_the_brute_force_optimum_within_every_limit(costs: dict[str, Cost], budget: Budget) -> None:
    selection = selector_of(costs).select(budget)
    chosen = costs[selection.submodel]
    fitting = [c for c in costs.values() if fits(c, budget)]

    assert selection.feasible == bool(fitting)
    assert fits(chosen, budget) == selection.feasible
    assert selection.latency_ms == latency_at(chosen, budget.percentile)
    assert (selection.accuracy, selection.energy_mj, selection.memory_mb) == (
        chosen.accuracy,
        chosen.energy_mj,
        chosen.memory_mb,
    )
    if fitting and budget.objective == "accuracy":
        assert chosen.accuracy == max(c.accuracy for c in fitting)
    elif fitting and budget.objective == "energy" and any(c.energy_mj is not None for c in fitting):
        assert chosen.energy_mj == min(c.energy_mj for c in fitting if c.energy_mj is not None)
    elif fitting:  # least latency, which stands in for energy where none that fits has one
        assert selection.latency_ms == min(latency_at(c, budget.percentile) for c in fitting)
        assert budget.objective == "latency" or "energy is not known" in selection.reason


@given(profiles, budgets)
def test_a_dominated_submodel_is_never_selected(costs: dict[str, Cost], budget: Budget) -> None:
    def figures(cost: Cost) -> list[float]:
        known = [latency_at(cost, budget.percentile), cost.energy_mj, cost.memory_mb]
        return [inf if value is None else value for value in known] + [-cost.accuracy]

    chosen = figures(costs[selector_of(costs).select(budget).submodel])
    for other in map(figures, costs.values()):
        assert other == chosen or any(theirs > ours for theirs, ours in zip(other, chosen, strict=True))


@given(profiles, budgets, figure)
def test_more_latency_never_costs_accuracy(costs: dict[str, Cost], budget: Budget, more: float) -> None:
    tight = budget.model_copy(update={"objective": "accuracy", "latency_ms": budget.latency_ms or 1.0})
    loose = tight.model_copy(update={"latency_ms": tight.latency_ms + more})
    selector = selector_of(costs)
    before, after = selector.select(tight), selector.select(loose)
    if before.feasible:
        assert after.feasible
        assert after.accuracy >= before.accuracy


@pytest.mark.parametrize(
    ("percentile", "expected"), [(1, 2.0), (50, 2.0), (50.5, 3.0), (90, 3.0), (90.1, 5.0), (95, 5.0), (99, 5.0)]
)
def test_a_percentile_is_rounded_up_to_one_that_was_measured(percentile: float, expected: float) -> None:
    costs = {"s": Cost(2.0, 3.0, 5.0, accuracy=0.9)}
    selector = selector_of(costs)
    assert selector.select(Budget(percentile=percentile)).latency_ms == expected
    assert selector.select(Budget(latency_ms=expected, percentile=percentile)).feasible
    assert not selector.select(Budget(latency_ms=expected - 0.1, percentile=percentile)).feasible


def test_nothing_fits_gives_the_nearest_and_says_with_figures_what_it_misses() -> None:
    selector = selector_of({"small": flat(10.0, 0.5, memory_mb=4.0), "large": flat(20.0, 0.9, memory_mb=8.0)})

    too_fast = selector.select(Budget(latency_ms=8.0))
    assert (too_fast.submodel, too_fast.feasible) == ("small", False)
    assert "latency 10 ms, limit 8 ms" in too_fast.reason

    too_good = selector.select(Budget(latency_ms=19.0, min_accuracy=0.8))  # 5 % too slow is nearer than 37 % too wrong
    assert (too_good.submodel, too_good.feasible) == ("large", False)
    assert "latency 20 ms, limit 19 ms" in too_good.reason
    assert "accuracy" not in too_good.reason

    both = selector.select(Budget(memory_mb=1.0, min_accuracy=0.95, objective="latency"))
    assert "memory 4 MB, limit 1 MB" in both.reason
    assert "accuracy 0.5, wanted 0.95" in both.reason


def test_equals_are_told_apart_by_what_is_better_besides() -> None:
    """Each keeps a place on the frontier by its memory alone."""
    selector = selector_of({"a": flat(2.0, 0.8, 2.0, 3.0), "b": flat(2.0, 0.7, 2.0, 2.0), "c": flat(3.0, 0.8, 3.0, 1.0)})
    assert [selector.select(Budget(objective=o)).submodel for o in ("accuracy", "latency", "energy")] == ["a", "a", "a"]
    assert selector.select(Budget(objective="accuracy", memory_mb=3.0, latency_ms=9.0)).submodel == "a"


def test_a_feasible_reason_names_what_is_spent_of_what_may_be() -> None:
    selection = selector_of({"s": flat(4.0, 0.9, 3.0, 2.0)}).select(Budget(latency_ms=5.0, energy_mj=6.0, memory_mb=7.0))
    for part in ("4 of 5 ms", "3 of 6 mJ", "2 of 7 MB", "most accurate"):
        assert part in selection.reason


@given(st.lists(st.tuples(figure, accuracy), min_size=1, max_size=5), st.floats(min_value=1e-6, max_value=1e30))
def test_an_energy_limit_is_never_met_on_a_guess(points: list[tuple[float, float]], limit: float) -> None:
    selection = selector_of({f"s{i}": flat(*point) for i, point in enumerate(points)}).select(Budget(energy_mj=limit))
    assert not selection.feasible
    assert selection.energy_mj is None
    assert "energy unknown" in selection.reason


def test_without_known_energy_the_least_latency_stands_in_and_the_reason_says_so() -> None:
    selection = selector_of({"a": flat(5.0, 0.9), "b": flat(2.0, 0.7)}).select(Budget(objective="energy"))
    assert selection.submodel == "b"
    assert "energy is not known" in selection.reason


def test_energy_that_is_known_of_some_only_is_not_guessed_for_the_rest() -> None:
    costs = {"known": flat(1.0, 0.5, energy_mj=3.0), "slow": flat(9.0, 0.9), "fast": flat(2.0, 0.8)}
    selector = selector_of(costs)
    assert selector.select(Budget(objective="energy")).submodel == "known"
    assert selector.select(Budget(objective="energy", min_accuracy=0.7)).submodel == "fast"


# "frugal" keeps 97 % of the best accuracy, "tiny" does not.
TRADE_OFFS = {"tiny": flat(1.0, 0.50, 1.0), "frugal": flat(4.0, 0.89, 4.0), "best": flat(8.0, 0.90, 8.0)}


@pytest.mark.parametrize(
    ("battery", "expected"),
    [
        (Battery(percent=19, discharging=True), "frugal"),
        (Battery(percent=21, discharging=True), "best"),
        (Battery(percent=20, discharging=True), "best"),
        (Battery(percent=19, discharging=False), "best"),
        (Battery(percent=0, discharging=True), "frugal"),
        (None, "best"),
    ],
)
def test_a_low_and_discharging_battery_saves_energy(battery: Battery | None, expected: str) -> None:
    selection = selector_of(TRADE_OFFS).select(Budget(), battery)
    assert (selection.submodel, selection.feasible) == (expected, True)
    assert (expected == "frugal") == (f"battery at {battery.percent:g} %" in selection.reason if battery else False)


def test_a_low_battery_keeps_the_budgets_accuracy_and_its_limits() -> None:
    low, selector = Battery(percent=5, discharging=True), selector_of(TRADE_OFFS)
    assert selector.select(Budget(min_accuracy=0.4), low).submodel == "tiny"
    assert selector.select(Budget(min_accuracy=0.9), low).submodel == "best"
    assert not selector.select(Budget(min_accuracy=0.9, latency_ms=5.0), low).feasible
    assert selector.select(Budget(latency_ms=1.0), low)._replace(reason="") == selector.select(Budget(latency_ms=1.0))._replace(
        reason=""
    )  # saving is not possible within the limit: the budget alone decides


def test_a_low_battery_without_known_energy_saves_latency_and_the_policy_can_be_set() -> None:
    costs = {name: cost._replace(energy_mj=None) for name, cost in TRADE_OFFS.items()}
    low = Battery(percent=49, discharging=True)
    generous = BatteryPolicy(low_percent=50, keep_accuracy=0.5)
    assert selector_of(costs).select(Budget(), low).submodel == "best"
    assert selector_of(costs, generous).select(Budget(), low).submodel == "tiny"


@pytest.mark.parametrize("field", ["latency_ms", "energy_mj", "memory_mb"])
@pytest.mark.parametrize("value", [-1.5, 0.0, nan, inf, -inf, "5", True, [1]])
def test_a_limit_that_is_no_positive_number_is_refused(field: str, value: Any) -> None:
    _refused(field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("percentile", 99.5),
        ("percentile", 0.0),
        ("percentile", nan),
        ("min_accuracy", 96.0),
        ("min_accuracy", -0.1),
        ("min_accuracy", nan),
        ("objective", "speed"),
        ("latencyms", 5.0),
    ],
)
def test_what_is_no_budget_is_refused(field: str, value: Any) -> None:
    _refused(field, value)


def _refused(field: str, value: Any) -> None:
    """In Python and where users type it, naming the field and the value."""
    with pytest.raises(ValueError, match=field) as in_python:
        Budget(**{field: value})
    assert repr(value) in str(in_python.value)
    with pytest.raises(BudgetError, match=field) as typed:
        make_budget(**{field: value})
    assert repr(value) in str(typed.value)
    assert "\n" not in str(typed.value)


@pytest.mark.parametrize("percent", [-1.0, 100.5, nan, inf])
def test_a_battery_outside_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(BudgetError, match=rf"battery = {percent!r}.*0 to 100"):
        make_battery(percent, discharging=True)


def test_the_selection_is_the_document_of_the_contract() -> None:
    selection = selector_of({"s": flat(1.0, 0.9)}).select(Budget())
    document = selection.document()
    assert tuple(document) == (*SELECTION, "stages", "threshold")
    assert (document["submodel"], document["quality"], document["accuracy"], document["device"]) == ("s", 0.9, 0.9, "bench")
    other = selection._replace(metric="mean_iou")
    assert (other.accuracy, other.document()) == (
        None,
        {k: v for k, v in document.items() if k != "accuracy"} | {"metric": "mean_iou"},
    )


def test_without_any_known_accuracy_there_is_no_selector() -> None:
    profile_of_one = Profile(
        device=DEVICE,
        bundle="0" * 64,
        measured_at=datetime.now(UTC),
        submodels={"s": Measurement(latency_ms=LatencyMs(p50=1, p90=1, p99=1, mean=1, n=1), source={"latency_ms": "measured"})},
    )
    with pytest.raises(BudgetError, match="accuracy"):
        Selector(profile_of_one, {"s": None})
