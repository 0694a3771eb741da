"""A budget in milliseconds to the first token and per token gets what keeps it for its prompt and its context."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.decoding import DecodingCurves
from device_profiles.lengths import bucket
from selector import Battery, BatteryPlan, BatteryPolicy, Budget, BudgetError, Selector
from selector.adapt.controller import Controller
from selector.adapt.plan import Planner
from selector.adapt.quiet import pooled
from selector.choose.budget import make_budget
from tests.helpers import lengths
from tests.helpers.decoding import first_token, per_token, profile_of

WEIGHTS = {f"s{i}": 0.2 * 1.3**i for i in range(10)}
QUALITIES = {name: 0.05 + 0.01 * place for place, name in enumerate(WEIGHTS)}
PROFILE = profile_of(WEIGHTS)
SELECTOR = Selector(PROFILE, QUALITIES)


def fitting(prompt: int, context: int, first_ms: float, token_ms: float) -> list[str]:
    at = bucket(prompt), bucket(context)
    return [
        name
        for name, weight in WEIGHTS.items()
        if first_token(weight, at[0]) <= first_ms * (1 + 1e-9) and per_token(weight, at[1]) <= token_ms * (1 + 1e-9)
    ]


@given(st.integers(1, 1024), st.integers(1, 2048), st.floats(1, 3000), st.floats(0.5, 60))
def test_the_best_that_keeps_both_limits_is_chosen(prompt: int, context: int, first_ms: float, token_ms: float) -> None:
    found = SELECTOR.select(Budget(first_token_ms=first_ms, token_ms=token_ms, prompt_tokens=prompt, context=context))
    fit = fitting(prompt, context, first_ms, token_ms)
    assert found.feasible == bool(fit)
    if fit:
        assert found.submodel == fit[-1]
        assert found.token_ms == found.latency_ms
        assert found.token_ms == pytest.approx(per_token(WEIGHTS[found.submodel], bucket(context)), rel=1e-6)
        assert found.first_token_ms == pytest.approx(first_token(WEIGHTS[found.submodel], bucket(prompt)), rel=1e-6)


def test_the_reason_names_the_limits_and_the_tokens() -> None:
    found = SELECTOR.select(Budget(first_token_ms=200, token_ms=6, prompt_tokens=100, context=500))
    assert "first token" in found.reason
    assert "of 200 ms" in found.reason
    assert "latency per token" in found.reason
    assert f"a prompt of up to {bucket(100)} and a context of up to {bucket(500)} tokens" in found.reason
    missed = SELECTOR.select(Budget(first_token_ms=1e-3, token_ms=1e-3))
    assert not missed.feasible
    assert "first token" in missed.reason
    assert "latency per token" in missed.reason
    document = found.document()
    assert document["token_ms"] == document["latency_ms"]
    assert document["first_token_ms"] == found.first_token_ms


def test_without_numbers_of_tokens_the_longest_count() -> None:
    assert SELECTOR.select(Budget(token_ms=per_token(WEIGHTS["s5"], 1024))).submodel == "s5"
    assert SELECTOR.select(Budget(first_token_ms=first_token(WEIGHTS["s4"], 512))).submodel == "s4"
    assert SELECTOR.select(Budget(first_token_ms=first_token(WEIGHTS["s4"], 512), prompt_tokens=16)).submodel == "s9"


@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_both_limits_are_of_the_percentile(percentile: int) -> None:
    factor = {50: 1.0, 90: 1.1, 99: 1.5}[percentile]
    budget = Budget(first_token_ms=factor * first_token(WEIGHTS["s3"], 128), percentile=percentile, prompt_tokens=128)
    assert SELECTOR.select(budget).submodel == "s3"
    token = Budget(token_ms=factor * per_token(WEIGHTS["s6"], 256), percentile=percentile, context=256)
    assert SELECTOR.select(token).submodel == "s6"


def test_a_plain_latency_is_that_of_a_token() -> None:
    limit = per_token(WEIGHTS["s5"], 64)
    by_either = [SELECTOR.select(Budget(**{name: limit, "context": 64})) for name in ("latency_ms", "token_ms")]
    assert by_either[0] == by_either[1]
    assert by_either[0].submodel == "s5"


def test_energy_is_per_token_and_grows_with_the_context() -> None:
    at_64, longest = (SELECTOR.select(Budget(context=n)).energy_mj or 0.0 for n in (64, 1024))
    assert longest == 100 * WEIGHTS["s9"]
    assert at_64 == pytest.approx(longest * per_token(1, 64) / per_token(1, 1024), rel=1e-6)


def test_one_that_is_quicker_to_begin_and_slower_after_is_chosen_where_that_counts() -> None:
    """Neither is better in every respect, so neither may be dropped."""
    quick_start = PROFILE.submodels["s3"]
    assert quick_start.decoding is not None
    slow = PROFILE.submodels["s4"].decoding
    assert slow is not None
    mixed = quick_start.model_copy(
        update={"decoding": slow.model_copy(update={"prefill": quick_start.decoding.prefill}), "latency_ms": slow.token[1024]}
    )
    both = PROFILE.model_copy(update={"submodels": {"mixed": mixed, "even": PROFILE.submodels["s4"]}})
    selector = Selector(both, {"mixed": 0.1, "even": 0.11})
    assert selector.select(Budget()).submodel == "even"
    assert selector.select(Budget(first_token_ms=first_token(WEIGHTS["s3"], 512))).submodel == "mixed"


@pytest.mark.parametrize("field", ["token_ms", "first_token_ms", "prompt_tokens", "context"])
def test_tokens_are_refused_where_no_text_is_generated(field: str) -> None:
    selector = Selector(lengths.profile_of(WEIGHTS), QUALITIES)
    with pytest.raises(BudgetError, match=rf"{field} = 64: .* nothing of generating text"):
        selector.select(Budget(**{field: 64}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"token_ms": 0}, "token_ms = 0"),
        ({"token_ms": float("nan")}, "token_ms = nan"),
        ({"first_token_ms": float("inf")}, "first_token_ms = inf"),
        ({"prompt_tokens": 0}, "prompt_tokens = 0"),
        ({"context": 2**21}, "context = 2097152"),
        ({"token_ms": 5.0, "latency_ms": 5.0}, "latency_ms and token_ms given"),
    ],
)
def test_what_is_no_limit_is_refused(fields: dict[str, float], said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        make_budget(**fields)


def test_a_low_battery_saves_per_token() -> None:
    policy = BatteryPolicy.model_validate({"levels": [{"below_percent": 20, "latency_share": 0.5, "objective": "quality"}]})
    found = SELECTOR.with_policy(policy).select(
        Budget(token_ms=1000, context=64, min_quality=0.0), Battery(percent=10, discharging=True)
    )
    half = 0.5 * per_token(WEIGHTS["s9"], 64)
    assert found.submodel == [name for name, weight in WEIGHTS.items() if per_token(weight, 64) <= half][-1]
    assert "battery at 10 %" in found.reason


def slowed(controller: Controller, factor: float) -> None:
    chosen = controller.choose(Budget(token_ms=100.0, context=64), 0.0)
    for second in range(40):
        controller.observe(chosen, factor * per_token(WEIGHTS[chosen.submodel], 64), float(second), length=64)


def test_feedback_corrects_tokens_and_the_first_one() -> None:
    controller = Controller(Selector(pooled(PROFILE), QUALITIES), [PROFILE])
    token, first = Budget(token_ms=per_token(WEIGHTS["s8"], 64) * 1.05, context=64), Budget(first_token_ms=300.0)
    before = [controller.choose(budget, 0.0) for budget in (token, first)]
    slowed(controller, 2.0)
    assert controller.slow_down("bench") == pytest.approx(2.0, rel=0.1)
    after = [controller.choose(budget, 41.0) for budget in (token, first)]
    for old, new in zip(before, after, strict=True):
        assert new.feasible
        assert (new.quality or 0) < (old.quality or 0)
    assert after[1].first_token_ms == pytest.approx(2 * first_token(WEIGHTS[after[1].submodel], 512), rel=0.1)
    assert (after[1].first_token_ms or 0) <= 300.0


def test_a_battery_plan_counts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token in a short context counts for less than one in the longest, for which energies are given."""
    counted: list[float] = []
    monkeypatch.setattr(Planner, "spent", lambda self, key, inferences, share: counted.append(inferences * share))
    controller = Controller(Selector(pooled(PROFILE), QUALITIES), [PROFILE], clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    plan = BatteryPlan(per_hour=3600, for_hours=1, capacity_wh=1)
    chosen = controller.choose(Budget(plan=plan), 0.0, Battery(percent=50, discharging=True))
    for context in (64, 1024):
        controller.spent(chosen, 500, length=context)
    assert counted == pytest.approx([500 * per_token(1, 64) / per_token(1, 1024), 500.0])
    decoding = PROFILE.submodels["s3"].decoding
    assert decoding is not None
    worth = DecodingCurves(decoding).prompt_worth(128)
    assert worth == pytest.approx(first_token(1, 128) / per_token(1, 1024))
