"""Quality and its metric: general names everywhere, those of accuracy where the metric is that, refused where it is not."""

from __future__ import annotations

from typing import Any

import pytest

from selector import Battery, BatteryPolicy, Budget, BudgetError, Candidates, Cascade, PowerLevel, Selector
from selector.choose.budget import make_budget
from selector.choose.metrics import shown
from tests.helpers.costs import flat, selector_of

COSTS = {"small": flat(1.0, 0.61, 1.0), "middle": flat(2.0, 0.71, 2.0), "large": flat(4.0, 0.75, 4.0)}


def selector(metric: str, policy: BatteryPolicy | None = None) -> Selector:
    return Selector(Candidates(selector_of(COSTS).offered.offers, metric), policy=policy)


@pytest.mark.parametrize("budget", [{"latency_ms": 3.0}, {"latency_ms": 0.5}, {}, {"energy_mj": 2.0, "memory_mb": 1.0}])
@pytest.mark.parametrize("floor", [None, 0.7, 0.9])
def test_the_names_of_accuracy_mean_the_same_where_the_metric_is_that(budget: dict[str, float], floor: float | None) -> None:
    accurate = selector("accuracy").select(Budget(**budget, min_accuracy=floor, objective="accuracy"))
    assert accurate == selector("accuracy").select(Budget(**budget, min_quality=floor, objective="quality"))
    assert accurate == selector("accuracy").select(Budget(**budget, min_quality=floor))
    assert accurate.accuracy == accurate.quality


@pytest.mark.parametrize(
    ("quality", "text"),
    [(0.71, "0.7100"), (1.0, "1.0000"), (0.01234, "0.0123"), (0.000336123, "0.000336"), (0.0, "0.0000"), (None, "")],
)
def test_what_a_small_quality_is_can_be_read(quality: float | None, text: str) -> None:
    """A language model's are 1 / perplexity."""
    assert shown(quality) == text


def test_reasons_name_the_metric() -> None:
    budget = Budget(latency_ms=3.0, min_quality=0.7)
    assert selector("accuracy").select(budget).reason == "most accurate with latency 2 of 3 ms, accuracy 0.71, at least 0.7"
    found = selector("mean_iou").select(budget)
    assert found.reason == "highest mean IoU with latency 2 of 3 ms, mean IoU 0.71, at least 0.7"
    assert (found.quality, found.metric, found.accuracy) == (0.71, "mean_iou", None)
    missed = selector("mean_iou").select(Budget(latency_ms=3.0, min_quality=0.8))
    assert (missed.feasible, missed.reason.endswith("has mean IoU 0.71, wanted 0.8")) == (False, True)
    assert selector("r2").select(Budget()).reason == "highest R² of all"


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        ({"min_accuracy": 0.7}, "min_accuracy = 0.7: the metric here is mean_iou; allowed is min_quality"),
        (
            {"objective": "accuracy"},
            "objective = 'accuracy': the metric here is mean_iou; allowed are quality, energy and latency",
        ),
    ],
)
def test_the_names_of_accuracy_are_refused_where_the_metric_is_another(budget: dict[str, Any], named: str) -> None:
    for battery in (None, Battery(percent=5, discharging=True)):
        with pytest.raises(BudgetError) as refusal:
            selector("mean_iou").select(Budget(**budget), battery)
        assert str(refusal.value) == named


def test_a_floor_by_both_names_is_refused() -> None:
    with pytest.raises(ValueError, match="min_quality and min_accuracy given; allowed is one of the two"):
        Budget(min_quality=0.5, min_accuracy=0.5)
    with pytest.raises(BudgetError) as typed:
        make_budget(min_quality=0.5, min_accuracy=0.5)
    assert str(typed.value) == "budget: min_quality and min_accuracy given; allowed is one of the two"


@pytest.mark.parametrize("metric", ["accuracy", "mean_iou"])
@pytest.mark.parametrize("kept", ["keep_quality", "keep_accuracy"])
def test_a_low_battery_keeps_a_share_of_the_best_quality(metric: str, kept: str) -> None:
    levels: Any = ({"below_percent": 20, kept: 0.9}, {"below_percent": 10, "objective": "accuracy", "energy_share": 0.3})
    policy = BatteryPolicy(levels=levels)
    assert policy.levels[0] == PowerLevel(below_percent=20, keep_quality=0.9)
    saving = selector(metric, policy)
    assert saving.select(Budget(), Battery(percent=15, discharging=True)).submodel == "middle"  # 0.71 of 0.75
    assert saving.select(Budget(), Battery(percent=5, discharging=True)).submodel == "small"  # 1.2 of 4 mJ
    assert saving.select(Budget(min_quality=0.72), Battery(percent=15, discharging=True)).submodel == "large"


def test_cascades_need_the_metric_that_they_were_certified_for() -> None:
    shares = {"threshold": 0.5, "escalation": 0.2, "accuracy": 0.8, "floor": 0.7, "confidence": 0.9}
    cascade = Cascade(id="both", first="small", then="large", examples=100, **shares)
    with pytest.raises(BudgetError, match="the metric here is mean_iou"):
        Candidates.measured([], {}, [cascade], "mean_iou")
