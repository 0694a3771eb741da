"""A new version for a few devices of each model first: which devices get it, by what they told."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from selector.service.fleet.rings import RingRules, Rings, RuleError, judged, parse_rules
from selector.service.fleet.store import Store
from selector.service.fleet.tables import trials
from selector.ship.state import Figures, Report
from tests.conftest import DATABASES, empty_store

V2 = "0123456789ab"
GOOD = Figures(runs=50, p50_ms=10.0, p50_ms_before=10.0, missed=0.0, missed_before=0.0, quality=0.9, quality_before=0.9)
RULES = RingRules(devices=3, accepted=2, taken_back=2)


@pytest.fixture(params=DATABASES)
def rings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rings]:
    with Store(empty_store(request, tmp_path)) as store:
        yield Rings(store.engine, RULES)


def told(rings: Rings, device: str, state: Any, figures: Figures = GOOD, model: str = "phone") -> None:
    rings.tell("digits", device, Report(model=model, version=V2, state=state, figures=figures))


def placed(rings: Rings, device: str, model: str = "phone") -> bool:
    return rings.place("digits", V2, device, model)[0]


def test_the_first_devices_of_each_model_get_it_and_all_when_enough_have_accepted_it(rings: Rings) -> None:
    assert [placed(rings, f"phone-{n}") for n in range(5)] == [True, True, True, False, False]
    assert placed(rings, "watch-0", "watch")  # another model has first devices of its own
    assert placed(rings, "phone-1")  # a device that asks again keeps its place
    for n in range(2):
        told(rings, f"phone-{n}", "accepted")
    assert placed(rings, "phone-4")
    assert [(one.model, one.ring, one.trying, one.accepted) for one in rings.models("digits", V2)] == [
        ("phone", "all", 1, 2),
        ("watch", "canary", 1, 0),
    ]
    assert rings.models("digits", "ba9876543210") == []  # of another version nothing is known


def test_devices_that_ask_at_once_get_no_more_places_than_there_are(rings: Rings) -> None:
    names = [f"phone-{n}" for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda name: placed(rings, name), names)) == RULES.devices
        list(threads.map(lambda _: told(rings, "tablet", "accepted", model="tablet"), names))
    assert [(one.model, one.trying + one.accepted) for one in rings.models("digits", V2)] == [("phone", 3), ("tablet", 1)]


def test_it_is_stopped_when_devices_take_it_back(rings: Rings) -> None:
    assert all(placed(rings, f"phone-{n}") for n in range(3))
    told(rings, "phone-0", "taken back")
    assert not placed(rings, "phone-0")  # not again
    told(rings, "phone-1", "taken back")
    told(rings, "phone-2", "accepted")
    assert not placed(rings, "phone-3")
    assert placed(rings, "phone-2")  # where it is no worse it stays
    assert rings.models("digits", V2)[0].ring == "stopped"
    assert placed(rings, "watch-0", "watch")
    names = {one.device: one.state for one in rings.devices("digits", V2)}
    assert names == {"phone-0": "taken back", "phone-1": "taken back", "phone-2": "accepted", "watch-0": "trying"}


def test_a_place_of_which_nothing_is_heard_is_anothers(rings: Rings) -> None:
    assert all(placed(rings, f"phone-{n}") for n in range(3))
    assert not placed(rings, "phone-3")
    with rings.engine.begin() as connection:
        lost = trials.update().where(trials.c.device == "phone-0")
        connection.execute(lost.values(told_at=datetime.now(UTC) - timedelta(days=8)))
    assert placed(rings, "phone-3")


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({"p50_ms": 12.0}, "takes 1.20 times as long"),
        ({"missed": 0.1}, "more of the runs miss"),
        ({"quality": 0.87}, "quality is 0.030 less"),
        ({}, "2 devices have accepted it"),
    ],
)
def test_what_many_say_together_is_judged_more_closely(worse: dict[str, float], said: str) -> None:
    """Each of them accepted it by itself."""
    figures = [GOOD.model_copy(update=worse)] * 2
    found = judged(RULES, "phone", 1, 2, 0, figures)
    assert found.ring == ("stopped" if worse else "all")
    assert said in found.why


@pytest.mark.parametrize("item", ["devices", "devices=0", "devices=x", "nope=1", "slower=-1", "slower=nan"])
def test_rules_are_numbers_by_name(item: str) -> None:
    with pytest.raises(RuleError, match="canary_rule = "):
        parse_rules([item])


def test_rules_fit_together() -> None:
    assert parse_rules(["devices=7", "slower=1.2"]) == RingRules(devices=7, slower=1.2)
    with pytest.raises(RuleError, match="each once"):
        parse_rules(["devices=7", "devices=8"])
    with pytest.raises(RuleError, match="accepted=3: allowed are up to devices=2"):
        parse_rules(["devices=2"])
