"""A budget for an input of some length gets what fits at that length, sub-models and cascades alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.lengths import bucket
from selector import Battery, BatteryPolicy, Budget, BudgetError, Selector
from selector.choose import selector as selecting
from selector.choose.budget import make_budget
from selector.choose.candidates import Candidates
from selector.choose.cascades import Cascade
from tests.helpers.lengths import LENGTHS, measurement, profile_of, taking

WEIGHTS = {f"s{i}": 1.3**i for i in range(12)}
QUALITIES = {name: 0.7 + 0.02 * place for place, name in enumerate(WEIGHTS)}
PROFILE = profile_of(WEIGHTS)
SELECTOR = Selector(PROFILE, QUALITIES)
CASCADE = Cascade(
    id="s0+s11", first="s0", then="s11", threshold=0.5, escalation=0.2, accuracy=0.91, floor=0.9, confidence=0.95, examples=100
)


def best_at(length: int, limit_ms: float) -> str:
    fitting = [name for name, weight in WEIGHTS.items() if taking(weight, bucket(length)) <= limit_ms * (1 + 1e-9)]
    return fitting[-1] if fitting else "s0"


@given(st.integers(1, 600), st.floats(0.2, 60))
def test_the_best_that_fits_at_the_length_is_chosen(length: int, limit_ms: float) -> None:
    found = SELECTOR.select(Budget(latency_ms=limit_ms, length=length))
    assert found.submodel == best_at(length, limit_ms)
    assert found.feasible == (taking(WEIGHTS["s0"], bucket(length)) <= limit_ms)
    assert found.latency_ms == pytest.approx(taking(WEIGHTS[found.submodel], bucket(length)))
    assert f"for inputs of up to {bucket(length)}" in found.reason


def test_without_a_length_the_longest_counts() -> None:
    limit = taking(WEIGHTS["s5"], 256)
    assert SELECTOR.select(Budget(latency_ms=limit)).submodel == "s5"
    assert SELECTOR.select(Budget(latency_ms=limit, length=16)).submodel == "s11"
    assert SELECTOR.select(Budget(latency_ms=limit, length=256)).latency_ms == pytest.approx(limit)


@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_percentiles_and_energy_are_those_of_the_length(percentile: int) -> None:
    factor = {50: 1.0, 90: 1.1, 99: 1.5}[percentile]
    limit = factor * taking(WEIGHTS["s4"], 64)
    assert SELECTOR.select(Budget(latency_ms=limit, percentile=percentile, length=64)).submodel == "s4"
    energy = 10 * WEIGHTS["s4"] * taking(1.0, 64) / taking(1.0, 256)
    assert SELECTOR.select(Budget(energy_mj=energy * 1.0001, length=64)).submodel == "s4"


def test_a_low_battery_saves_at_the_length() -> None:
    policy = BatteryPolicy.model_validate({"levels": [{"below_percent": 20, "latency_share": 0.5, "objective": "quality"}]})
    low = Battery(percent=10, discharging=True)
    for selector in (Selector(PROFILE, QUALITIES, policy=policy), SELECTOR.with_policy(policy)):
        found = selector.select(Budget(length=16, min_quality=0.0), low)
        assert found.submodel == best_at(16, 0.5 * taking(WEIGHTS["s11"], 16))
        assert "battery at 10 %" in found.reason


def test_a_cascade_costs_what_it_is_expected_to_at_the_length() -> None:
    offered = Candidates.measured([PROFILE], QUALITIES, [CASCADE])
    cascade = next(offer for offer in offered.at_length(100) if offer.stages)
    expected = taking(WEIGHTS["s0"], 100) + 0.2 * taking(WEIGHTS["s11"], 100)
    assert cascade.costs.latency_ms.mean == pytest.approx(1.05 * expected, rel=1e-3)
    found = Selector(offered).select(Budget(latency_ms=1.2 * expected, min_quality=0.9, length=100))
    assert (found.submodel, found.stages) == ("s0+s11", ("s0", "s11"))
    assert not Selector(offered).select(Budget(latency_ms=1.2 * expected, min_quality=0.9)).feasible  # at the longest


def test_one_whose_shorter_runs_are_quicker_than_anothers_is_on_the_frontier_there() -> None:
    """Which sub-models are any good depends on the length."""
    flat = measurement(dict.fromkeys(LENGTHS, 2.0), energy_mj=1.0, memory_mb=1.0)
    steep = measurement({n: n / 32 for n in LENGTHS}, energy_mj=1.0, memory_mb=1.0)
    selector = Selector(PROFILE.model_copy(update={"submodels": {"flat": flat, "steep": steep}}), {"flat": 0.9, "steep": 0.8})
    assert [selector.select(Budget(objective="latency", length=n)).submodel for n in (16, 256)] == ["steep", "flat"]


def test_a_profile_of_inputs_of_one_size_says_that_the_length_changes_nothing() -> None:
    costs = {name: one.model_copy(update={"lengths": {}}) for name, one in PROFILE.submodels.items()}
    selector = Selector(PROFILE.model_copy(update={"submodels": costs, "length": None}), QUALITIES)
    found, plain = (selector.select(Budget(latency_ms=10, length=n)) for n in (16, None))
    assert found._replace(reason="") == plain._replace(reason="")
    assert "whatever the length" in found.reason
    assert "whatever the length" in selector.select(Budget(latency_ms=1e-3, length=16)).reason


def test_the_candidates_of_a_length_are_built_once_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selecting, "LENGTHS", 3)
    selector = Selector(PROFILE, QUALITIES)
    assert selector.at_length(None) is selector
    assert selector.at_length(65) is selector.at_length(72)
    assert selector.at_length(64) is not selector.at_length(65)
    first = selector.at_length(16)
    assert selector.at_length(16) is first
    for n in (20, 24, 28):
        selector.at_length(n)
    assert selector.at_length(16) is not first
    assert selector.at_length(16).at_length(64) is selector.at_length(16)


@pytest.mark.parametrize("length", [0, -1, 2**20 + 1, 1.5, "16", True])
def test_a_length_that_is_none_is_refused(length: object) -> None:
    with pytest.raises(BudgetError, match=r"budget: length = "):
        make_budget(length=length)
