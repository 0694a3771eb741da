"""The comparison of policies: recorded traces give the committed figures again, and the oracle is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.adapt.policies import Ours, Static
from benchmarks.adapt.replay import DEADLINES, Sizes, Trace, compare, read_sizes, read_trace, recoveries, replayed

RESULTS = Path(__file__).parents[2] / "benchmarks" / "adapt" / "results"


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return read_sizes()


@pytest.fixture(scope="module")
def trace(sizes: Sizes) -> Trace:
    return read_trace("load steps", 1, sizes)


def test_a_trace_replayed_gives_the_same_choices_again(sizes: Sizes, trace: Trace) -> None:
    known = dict(zip(sizes.names, sizes.accuracies, strict=True))
    first, second = (replayed(trace, Ours(sizes.profile, known, sizes.names, 5.0)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 2


def test_nobody_is_in_time_more_often_than_the_oracle_or_as_accurate_in_time(sizes: Sizes, trace: Trace) -> None:
    for deadline in DEADLINES:
        outcomes = {outcome.policy: outcome for outcome in compare(trace, sizes, deadline * sizes.tails[-1])}
        oracle = outcomes["oracle"]
        assert oracle.hits == 1.0
        assert max(outcome.on_time for outcome in outcomes.values()) == oracle.on_time


def test_the_committed_table_is_what_the_traces_give(sizes: Sizes, trace: Trace) -> None:
    import csv

    limit = DEADLINES[0] * sizes.tails[-1]
    with (RESULTS / "policies.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["scenario"], row["seed"]) == ("load steps", "1")]
    committed = {row["policy"]: row for row in rows if float(row["limit_ms"]) == pytest.approx(limit, abs=1e-4)}
    for outcome in compare(trace, sizes, limit):
        row = committed[outcome.policy]
        assert outcome.hits == pytest.approx(float(row["hits"]), abs=1e-4)
        assert outcome.accuracy == pytest.approx(float(row["accuracy"]), abs=1e-4)


def test_over_all_scenarios_ours_keeps_more_deadlines_than_what_learns_and_more_accuracy_in_time_than_any() -> None:
    found = json.loads((RESULTS / "summary.json").read_text(encoding="utf-8"))["figures"]
    others = ("static", "profile", "reactive", "kalman")
    assert found["policy_on_time_vs_oracle.ours"] > max(found[f"policy_on_time_vs_oracle.{name}"] for name in others)
    assert found["deadline_hit"] > max(found[f"policy_hit.{name}"] for name in ("profile", "reactive", "kalman"))


def test_recovery_counts_the_runs_until_the_choice_has_settled(sizes: Sizes, trace: Trace) -> None:
    assert set(recoveries(trace, replayed(trace, Static(3)))) == {0}
    late = np.full(len(trace.seconds), 5)
    for number in np.unique(trace.phases):
        late[np.flatnonzero(trace.phases == number)[:7]] = 0
    assert set(recoveries(trace, list(late))) == {7}
