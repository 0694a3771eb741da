"""Writes `selection.json` and `feedback.json` from Python's own selection: `python -m tests.vectors.write`.

What is asked is made up from a fixed seed; what is answered is what `Selector` and `Controller` say. `documents()` gives both
without writing them, so that a test sees whether the files are still what Python says.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from device_profiles import Profile
from selector.adapt.controller import Controller
from selector.choose.battery import Battery, BatteryPolicy
from selector.choose.budget import Budget, BudgetError, Selection
from selector.choose.candidates import Candidates
from selector.choose.cascades import Cascade
from selector.choose.selector import Selector
from tests.vectors.sets import SETS, Set

FOLDER = Path(__file__).parent
FORMAT = 1
LIMITS = {"latency_ms": (0.1, 60.0), "energy_mj": (1.0, 700.0), "memory_mb": (1.0, 60.0), "min_quality": (0.3, 1.0)}
OBJECTIVES = ("quality", "accuracy", "energy", "latency")
PERCENTILES = (50, 90, 99, 75.5, 95)
REFUSED: tuple[dict[str, Any], ...] = (
    {"latency_ms": 0},
    {"latency_ms": -1.5},
    {"latency_ms": "5"},
    {"latency_ms": True},
    {"energy_mj": -2},
    {"memory_mb": 0.0},
    {"min_quality": 97},
    {"min_accuracy": -0.1},
    {"percentile": 99.9},
    {"percentile": 0},
    {"objective": "speed"},
    {"length": 0},
    {"length": 1.5},
    {"sustained": 1},
    {"latncy_ms": 5},
)
"""Budgets that are none; the field that is wrong is the last of each."""
REFUSED_POLICIES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"low_percent": 120}, "120"),
    ({"keep_quality": 97}, "keep_quality"),
    ({"keep_accuracy": -0.1}, "keep_accuracy"),
    ({"charging": "Hold"}, "charging"),
    ({"low_power": 1}, "low_power"),
    ({"low_percents": 50}, "low_percents"),
    ({"low_percent": 50, "levels": []}, "low_percent"),
    ({"low_power": True, "levels": []}, "low_power"),
    ({"levels": {"below_percent": 50}}, "levels"),
    ({"levels": [{"percent": 50}]}, "percent"),
    ({"levels": [{"below_percent": "50"}]}, "below_percent"),
    ({"levels": [{"below_percent": 50, "until_percent": 40}]}, "until_percent"),
    ({"levels": [{"below_percent": 50, "latency_share": 50}]}, "latency_share"),
    ({"levels": [{"below_percent": 50, "energy_share": 0}]}, "energy_share"),
    ({"levels": [{"below_percent": 50, "latency_shar": 0.5}]}, "latency_shar"),
    ({"levels": [{"below_percent": 50, "objective": "speed"}]}, "objective"),
    ({"levels": [{"below_percent": 50}, {"below_percent": 50}]}, "below_percent"),
)
"""Battery policies that are none, and what an error has to name."""
BATTERIES = (
    {"percent": 12, "discharging": True},
    {"percent": 12, "discharging": False},
    {"percent": 64.5, "discharging": True},
)


def selector_of(one: Set) -> Selector:
    """For the set's profiles, as a port has to build it."""
    cascades = [Cascade.model_validate(cascade) for cascade in one.cascades]
    profiles = [Profile.model_validate(profile) for profile in one.profiles]
    candidates = Candidates.measured(profiles, one.qualities, cascades, one.metric)
    return Selector(candidates, policy=BatteryPolicy.model_validate(one.policy) if one.policy else None)


def documents() -> dict[str, dict[str, Any]]:
    """Both documents by the name of their file; JSON values."""
    sets = {one.name: one.document() for one in SETS}
    vectors = [vector for one in SETS for vector in _vectors(one)]
    traces = [trace for one in SETS if one.traces for trace in _traces(one)]
    refused = [{"budget": budget, "field": _refused_for(budget)} for budget in REFUSED]
    policies = [{"policy": policy, "named": _names(policy, named)} for policy, named in REFUSED_POLICIES]
    selection = {"format": FORMAT, "sets": sets, "vectors": vectors, "refused": refused, "refused_policies": policies}
    traced = {one.name: one.document() for one in SETS if one.traces}
    return {"selection.json": selection, "feedback.json": {"format": FORMAT, "sets": traced, "traces": traces}}


def _vectors(one: Set) -> Iterator[dict[str, Any]]:
    selector = selector_of(one)
    names = [offer.key for offer in selector.offered]
    for number, asked in enumerate(_asked(one, names)):
        budget = Budget.model_validate(asked["budget"])
        battery = Battery.model_validate(asked["battery"]) if "battery" in asked else None
        among = [(key[0], key[1]) for key in asked["among"]] if "among" in asked else None
        vector: dict[str, Any] = {"name": f"{one.name}-{number}", "set": one.name, **asked}
        try:
            found = selector.select(budget, battery, among=among, slowdown=asked.get("slowdown", 1.0))
            vector["selection"] = shown(found)
        except BudgetError as error:
            vector["error"] = str(error)
        yield vector


def _asked(one: Set, names: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Each limit alone, around what candidates cost; then several at once, with all else that a query may say."""
    dice = random.Random(one.name)
    yield {"budget": {}}
    for objective in OBJECTIVES:
        yield {"budget": {"objective": objective}}
    for name, (low, high) in LIMITS.items():
        for _ in range(3):
            yield {"budget": {name: _between(dice, low, high)}}
    for cost in one.exact:
        yield {"budget": cost}  # just what a candidate takes
    yield from one.asked
    for number in range(one.mixed):
        limits = dice.sample(sorted(LIMITS), dice.choice((1, 1, 2, 2, 3, 4)))
        budget: dict[str, Any] = {name: _between(dice, *LIMITS[name]) for name in limits}
        if "min_quality" in budget and number % 3 == 0:
            budget["min_accuracy"] = budget.pop("min_quality")
        if dice.random() < 0.6:
            budget["percentile"] = dice.choice(PERCENTILES)
        if dice.random() < 0.5:
            budget["objective"] = dice.choice(OBJECTIVES)
        if dice.random() < (0.8 if one.lengths else 0.1):
            budget["length"] = dice.choice((1, 7, 16, 33, 100, 128, 200, 256, 300, 1024))
        if one.lasting and dice.random() < 0.7:
            budget["sustained"] = True
        asked: dict[str, Any] = {"budget": budget}
        if dice.random() < 0.35:
            asked["battery"] = dice.choice(BATTERIES)
        if dice.random() < 0.2:
            asked["slowdown"] = round(dice.uniform(0.5, 4), 2)
        if dice.random() < 0.2:
            asked["among"] = [list(key) for key in sorted(dice.sample(names, max(1, len(names) // 2)))]
        yield asked


def _traces(one: Set) -> Iterator[dict[str, Any]]:
    """Runs one after the other on a device that gets slower, stalls, rests and recovers, each as `Controller` chose it."""
    for number, asked in enumerate(one.traces):
        dice = random.Random(f"{one.name} {number}")
        profiles = [Profile.model_validate(profile) for profile in one.profiles]
        controller = Controller(selector_of(one), profiles)
        budget, now, pace, steps = Budget.model_validate(asked), 100.0, 1.0, []
        medians = {(name, p.device.name): costs.latency_ms.p50 for p in profiles for name, costs in p.submodels.items()}
        for place in range(60):
            pace = {12: 1.9, 28: 4.5, 40: 0.7}.get(place, pace)
            now = round(now + (0.6 if place % 17 == 16 else 0.02), 4)
            selection = controller.choose(budget, now)
            ran = selection.stages[0] if selection.stages else selection.submodel
            stall = 3.0 if place % 13 == 7 else 1.0
            took = medians[ran, selection.device] * pace * stall * dice.uniform(0.97, 1.08)
            took = round(took, 4)
            controller.observe(selection, took, now, ran=ran)
            steps.append({"now": now, "selection": shown(selection), "ran": ran, "latency_ms": took})
        yield {"name": f"{one.name}-{number}", "set": one.name, "budget": asked, "steps": steps}


def shown(selection: Selection) -> dict[str, Any]:
    """A selection as a vector has it: what `sortednet select --json` says, less what is short for another field."""
    document = selection.document()
    return {name: value for name, value in json.loads(json.dumps(document)).items() if name != "accuracy"}


def _refused_for(budget: dict[str, Any]) -> str:
    try:
        Budget.model_validate(budget)
    except ValidationError as error:
        return str(error.errors()[0]["loc"][0])
    raise AssertionError(f"{budget} is a budget")


def _names(policy: dict[str, Any], named: str) -> str:
    try:
        BatteryPolicy.model_validate(policy)
    except ValidationError as error:
        if named in str(error):
            return named
    raise AssertionError(f"{policy} is a policy, or its error does not name {named}")


def _between(dice: random.Random, low: float, high: float) -> float:
    """Evenly in the logarithm, with three figures."""
    return float(f"{low * (high / low) ** dice.random():.3g}")


def main() -> None:
    for name, document in documents().items():
        rows = {key: value for key, value in document.items() if not isinstance(value, list)}
        lists = {key: value for key, value in document.items() if isinstance(value, list)}
        text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)[:-1]
        for key, value in lists.items():  # a line each, so that a difference can be read
            lines = ",\n".join(json.dumps(one, separators=(",", ":"), ensure_ascii=False) for one in value)
            text += f',\n"{key}":[\n{lines}\n]'
        (FOLDER / name).write_text(text + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
