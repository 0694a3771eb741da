"""Battery policies: levels with hysteresis, low-power mode, charging, their file; and what a faulty battery may not break."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from selector import Battery, BatteryPlan, BatteryPolicy, Budget, BudgetError, PowerLevel, Runtime, read_battery, read_policy
from selector.adapt.battery_reader import BatteryReader
from selector.adapt.controller import Controller
from tests.helpers.commands import call, document, refused
from tests.helpers.costs import flat, profile_of, selector_of
from tests.helpers.plans import ACCURACIES, ENERGIES, NOON

TWO_LEVELS = BatteryPolicy(
    levels=(
        PowerLevel(below_percent=50, until_percent=60, objective="accuracy", energy_share=0.5),
        PowerLevel(below_percent=20, until_percent=30, keep_accuracy=0.5),
    )
)


def controller_of(policy: BatteryPolicy | None = None, *, feedback: bool = True, energies: bool = True) -> Controller:
    costs = {
        f"s{i}": flat(1.0 + i, a, e if energies else None) for i, (e, a) in enumerate(zip(ENERGIES, ACCURACIES, strict=True))
    }
    profile = profile_of({name: cost.p50 for name, cost in costs.items()})
    return Controller(selector_of(costs, policy), [profile], feedback=feedback, clock=lambda: NOON)


def chosen(controller: Controller, percents: list[float], *, discharging: bool = True) -> list[str]:
    batteries = [Battery(percent=percent, discharging=discharging) for percent in percents]
    return [controller.choose(Budget(), float(i), battery).submodel for i, battery in enumerate(batteries)]


@pytest.mark.parametrize(
    ("policy", "percents", "expected"),
    [
        # s5 is the best; s3 is what half of its energy affords, s0 keeps half of its accuracy.
        (TWO_LEVELS, [80, 50, 49, 55, 59, 60, 55], ["s5", "s5", "s3", "s3", "s3", "s5", "s5"]),
        (TWO_LEVELS, [21, 19, 25, 29, 30, 59, 60], ["s3", "s0", "s0", "s0", "s3", "s3", "s5"]),
        (TWO_LEVELS, [10, 100], ["s0", "s5"]),
        (BatteryPolicy(), [21, 19.5, 21, 24, 25, 21], ["s5", "s3", "s3", "s3", "s5", "s5"]),
        (BatteryPolicy(low_percent=20), [19, 20, 19], ["s3", "s5", "s3"]),
        (BatteryPolicy(levels=()), [1], ["s5"]),
    ],
)
def test_a_level_ends_only_where_the_charge_is_well_back(
    policy: BatteryPolicy, percents: list[float], expected: list[str]
) -> None:
    assert chosen(controller_of(policy), percents) == expected


def test_a_level_holds_over_a_reading_that_is_missing() -> None:
    controller, found = controller_of(BatteryPolicy()), []
    for percent in (19, 22, None, 22, 25):
        battery = None if percent is None else Battery(percent=percent, discharging=True)
        found.append(controller.choose(Budget(), 0.0, battery).submodel)
    assert found == ["s3", "s3", "s5", "s3", "s5"]


def test_whoever_asks_while_the_battery_is_read_for_the_first_time_waits_for_it_too() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def read() -> Battery:
        begun.set()
        go_on.wait(5)
        return Battery(percent=50, discharging=True)

    reader = BatteryReader(read)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(reader.latest)
        begun.wait(5)
        second = pool.submit(reader.latest)
        go_on.set()
        assert first.result() == second.result() == Battery(percent=50, discharging=True)


def test_a_selector_alone_takes_levels_as_thresholds() -> None:
    selector = controller_of(TWO_LEVELS).selector
    for percent, expected in [(19, "s0"), (25, "s3"), (55, "s5"), (19, "s0")]:
        assert selector.select(Budget(), Battery(percent=percent, discharging=True)).submodel == expected


def test_charging_ends_a_level_or_holds_it() -> None:
    held = TWO_LEVELS.model_copy(update={"charging": "hold"})
    for policy, expected in ((TWO_LEVELS, ["s5", "s5", "s5"]), (held, ["s0", "s3", "s5"])):
        controller = controller_of(policy)
        assert chosen(controller, [15]) == ["s0"]
        assert chosen(controller, [29, 59, 61], discharging=False) == expected


@pytest.mark.parametrize("battery", [None, Battery(percent=100), Battery(percent=90, discharging=True)])
def test_low_power_mode_saves_whatever_the_charge_and_can_be_switched(battery: Battery | None) -> None:
    controller = controller_of(BatteryPolicy(low_power=True))
    selection = controller.choose(Budget(), 0.0, battery)
    assert selection.submodel == "s3"
    assert selection.reason.startswith("low-power mode: least energy")
    controller.low_power = False
    assert controller.choose(Budget(), 1.0, battery).submodel == "s5"
    controller.low_power = True
    assert controller.choose(Budget(), 2.0, battery).submodel == "s3"
    assert controller.selector.with_policy(BatteryPolicy(low_power=True)).select(Budget(), battery).submodel == "s3"


def test_low_power_mode_begins_no_level_that_goes_on_after_it() -> None:
    controller, found = controller_of(), []
    for percent, on in ((24, False), (24, True), (24, False), (19, True), (24, False), (24, True), (26, True), (24, False)):
        controller.low_power = on
        found += chosen(controller, [percent])
    assert found == ["s5", "s3", "s5", "s3", "s3", "s3", "s3", "s5"]


def test_low_power_mode_comes_before_a_plan() -> None:
    budget = Budget(plan=BatteryPlan(per_second=1, for_hours=1, capacity_wh=1.0))
    controller, battery = controller_of(), Battery(percent=90, discharging=True)
    assert controller.choose(budget, 0.0, battery).submodel == "s5"
    controller.low_power = True
    assert controller.choose(budget, 1.0, battery).submodel == "s3"


@pytest.mark.parametrize(
    ("level", "budget", "expected"),
    [
        ({"energy_share": 0.2}, Budget(), "s2"),  # 7 of 35 mJ; 97 % of the best accuracy is out of reach: the cap counts
        ({"energy_share": 0.2}, Budget(min_accuracy=0.91), "s5"),  # nothing is within both: the budget alone
        ({"energy_share": 0.2}, Budget(energy_mj=5.0), "s1"),  # the tighter of both
        ({"latency_share": 0.5, "objective": "accuracy"}, Budget(), "s2"),  # 3 of 6 ms
        ({"latency_share": 0.5, "objective": "accuracy"}, Budget(latency_ms=2.0), "s1"),
        ({"objective": "latency", "keep_accuracy": 0.9}, Budget(), "s1"),
    ],
)
def test_caps_are_shares_of_the_most_accurate_one(level: dict[str, Any], budget: Budget, expected: str) -> None:
    policy = BatteryPolicy(levels=(PowerLevel(below_percent=20, **level),))
    battery = Battery(percent=10, discharging=True)
    selection = controller_of(policy, feedback=False).choose(budget, 0.0, battery)
    assert (selection.submodel, selection.feasible) == (expected, True)
    assert controller_of(policy).selector.select(budget, battery).submodel == selection.submodel


def test_without_known_energy_a_cap_on_it_is_one_on_latency() -> None:
    policy = BatteryPolicy(levels=(PowerLevel(below_percent=20, objective="accuracy", energy_share=0.5),))
    controller = controller_of(policy, feedback=False, energies=False)
    battery = Battery(percent=10, discharging=True)
    assert controller.choose(Budget(), 0.0, battery).submodel == "s2"
    known, best = flat(3.0, 0.8, 10.0), flat(4.0, 0.9)
    selector = selector_of({"s": flat(1.0, 0.7, 4.0), "m": known, "l": best}, policy)
    assert selector.select(Budget(), battery).submodel == "s"  # half of the best one's whose energy is known


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ({"levels": [{"below_percent": 120}]}, ["levels.0.below_percent", "120", "less than or equal to 100"]),
        ({"levels": [{"below_percent": 50, "until_percent": 40}]}, ["levels.0", "until_percent = 40", "50 or more"]),
        ({"levels": [{"below_percent": 50}, {"below_percent": 50}]}, ["below_percent = 50, 50", "once"]),
        ({"levels": [{"below_percent": 50, "objective": "speed"}]}, ["levels.0.objective", "'speed'", "'energy'"]),
        ({"levels": [{"below_percent": 50, "energy_share": 0}]}, ["levels.0.energy_share", "0", "greater than 0"]),
        ({"levels": [{"percent": 50}]}, ["levels.0", "below_percent", "required"]),
        ({"levels": [], "low_power": True}, ["low_power", "at least one level"]),
        ({"levels": [], "low_percent": 10}, ["low_percent", "levels"]),
        ({"charging": "slow"}, ["charging", "'slow'", "'hold'"]),
        ({"low_percents": 3}, ["low_percents", "3"]),
        ({"keep_accuracy": 97}, ["keep_accuracy", "97"]),
        ([], ["document"]),
        ("{", ["document", "json"]),
    ],
)
def test_a_wrong_policy_file_is_refused_naming_field_and_value(tmp_path: Path, written: Any, named: list[str]) -> None:
    path = tmp_path / "saving.json"
    path.write_text(written if isinstance(written, str) else json.dumps(written))
    with pytest.raises(BudgetError) as refusal:
        read_policy(path)
    line = str(refusal.value)
    assert [part for part in ["saving.json", *named] if part not in line] == []
    assert "\n" not in line


def test_a_policy_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "saving.json"
    path.write_text(TWO_LEVELS.model_dump_json())
    assert read_policy(path) == TWO_LEVELS
    with pytest.raises(ValidationError):
        TWO_LEVELS.low_power = True


def test_select_and_run_take_a_policy_file(bundle_path: Path, tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((1, 1, 8, 8), np.float32))
    path = tmp_path / "saving.json"
    path.write_text('{"low_power": true, "keep_accuracy": 0.0}')
    saving = ["--policy", path]
    assert document("select", bundle_path, *saving)["reason"].startswith("low-power mode")
    assert document("run", bundle_path, "--input", images, *saving)["reason"].startswith("low-power mode")
    path.write_text('{"charging": "slow"}')
    assert "charging = 'slow'" in refused("select", bundle_path, *saving)
    assert call("run", bundle_path, "--input", images, *saving).exit_code == 2
    assert "no.json" in refused("select", bundle_path, "--policy", tmp_path / "no.json")


# A stream of runs in which the battery, the clock or the budget is at fault.

PLAN = BatteryPlan(per_second=1, for_hours=0.5, capacity_wh=12.0 * 1800 / 3600 / 1e3, idle_watts=0.001)


def falling(i: int) -> float:
    return 100 - i / 20


def odd(i: int) -> Battery:
    return Battery.model_construct(percent=[nan, -3.0, 250.0][i % 3], discharging=True)


FAULTS: dict[str, Callable[[int], tuple[Battery | None, float]]] = {
    "disappears": lambda i: (None if 200 < i < 900 else Battery(percent=falling(i), discharging=True), float(i)),
    "comes and goes": lambda i: (None if i % 2 else Battery(percent=falling(i), discharging=True), float(i)),
    "up and down": lambda i: (Battery(percent=float((i * 37) % 101), discharging=True), float(i)),
    "plugged now and then": lambda i: (Battery(percent=falling(i), discharging=i % 3 > 0), float(i)),
    "clock jumps back": lambda i: (Battery(percent=falling(i), discharging=True), float(i if i < 500 else i - 400)),
    "clock stands": lambda i: (Battery(percent=falling(i), discharging=True), 0.0),
    "clock jumps ahead": lambda i: (Battery(percent=falling(i), discharging=True), float(i if i < 500 else i + 10**6)),
    "empty": lambda i: (Battery(percent=0.0, discharging=True), float(i)),
    "nonsense": lambda i: (odd(i) if i > 3 else Battery(percent=100, discharging=True), float(i)),
    "nonsense from the start": lambda i: (odd(i), float(i)),
}
BUDGETS = {
    "plan": Budget(plan=PLAN),
    "plan and deadline": Budget(plan=PLAN, latency_ms=3.5, percentile=99),
    "plan whose end has passed": Budget(plan=BatteryPlan(per_second=1, until=NOON - timedelta(hours=1))),
    "contradictory": Budget(plan=PLAN, latency_ms=0.001, min_accuracy=0.999, memory_mb=0.001),
    "contradictory without a plan": Budget(latency_ms=0.001, min_accuracy=0.999),
    "no plan": Budget(),
}


@pytest.mark.parametrize("energies", [True, False], ids=["", "no-energies"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_stream_of_runs_goes_on(fault: str, budget: str, energies: bool) -> None:
    controller = controller_of(energies=energies)
    for i in range(1000):
        battery, now = FAULTS[fault](i)
        selection = controller.choose(BUDGETS[budget], now, battery)
        controller.spent(selection)
        controller.observe(selection, selection.latency_ms or 1.0, now)
        assert selection.feasible == ("contradictory" not in budget)
        assert selection.reason


def planned(fault: Callable[[int], tuple[Battery | None, float]], at: int) -> tuple[Controller, float]:
    """The energy that is left per inference after so many runs."""
    controller = controller_of()
    for i in range(at):
        battery, now = fault(i)
        selection = controller.choose(BUDGETS["plan"], now, battery)
        controller.spent(selection)
        controller.observe(selection, selection.latency_ms or 1.0, now)
    assert controller.plans.latest is not None
    return controller, controller.plans.latest.energy_left_mj(now)


def usual(i: int) -> tuple[Battery | None, float]:
    return Battery(percent=round(100 - i / 18), discharging=True), float(i)


def test_a_plan_goes_on_by_its_account_without_a_battery_and_after_a_clock_that_jumped_back() -> None:
    _, expected = planned(usual, 900)
    controller, gone = planned(lambda i: (None, float(i)) if i > 400 else usual(i), 900)
    assert gone == pytest.approx(expected, rel=0.15)
    assert "battery plan for 0.2 h" in controller.choose(BUDGETS["plan"], 900.0, None).reason
    _, back = planned(lambda i: (usual(i)[0], float(i if i < 500 else i - 450)), 900)
    assert back == pytest.approx(expected, rel=0.05)


def test_single_wrong_readings_do_not_move_a_plan() -> None:
    _, expected = planned(usual, 900)
    _, jumped = planned(lambda i: (Battery(percent=20, discharging=True), float(i)) if 850 < i < 890 else usual(i), 900)
    assert jumped == pytest.approx(expected, rel=0.05)


def test_after_an_hour_on_the_mains_the_plan_starts_from_the_new_charge() -> None:
    def charged(i: int) -> tuple[Battery | None, float]:
        if 400 < i < 600:
            return Battery(percent=90, discharging=False), float(i)
        battery, now = usual(i)
        assert battery is not None
        return (battery if i <= 400 else Battery(percent=min(100.0, battery.percent + 25), discharging=True)), now

    _, expected = planned(usual, 700)
    _, more = planned(charged, 700)
    assert more > 1.2 * expected


def test_after_its_end_a_plan_says_so_and_the_policy_counts_again() -> None:
    controller = controller_of()
    controller.choose(BUDGETS["plan"], 0.0, Battery(percent=90, discharging=True))
    rich = controller.choose(BUDGETS["plan"], 1801.0, Battery(percent=80, discharging=True))
    assert rich.reason.startswith("the battery plan's end has passed")
    assert (rich.submodel, rich.feasible) == ("s5", True)
    assert controller.choose(BUDGETS["plan"], 1802.0, Battery(percent=10, discharging=True)).submodel == "s3"


def test_a_reader_of_the_battery_that_fails_stops_no_run(bundle_path: Path) -> None:
    def broken() -> Battery | None:
        raise OSError("no such device")

    runtime = Runtime(bundle_path, battery=broken)
    assert runtime.run(np.zeros((1, 1, 8, 8), np.float32), Budget(plan=PLAN)).selection.feasible
    runtime.close()


@pytest.mark.parametrize("percent", [130.0, nan, -1.0])
def test_a_percentage_that_is_none_reaches_no_plan(monkeypatch: pytest.MonkeyPatch, percent: float) -> None:
    state = SimpleNamespace(percent=percent, power_plugged=False)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: state, raising=False)
    battery = read_battery()
    assert battery is None or battery.percent == 100
    assert controller_of().choose(BUDGETS["plan"], 0.0, battery).feasible


def test_a_policy_file_that_is_no_json_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_bytes(bytes(range(256)) * 1000)
    with pytest.raises(BudgetError, match="document") as error:
        read_policy(tmp_path / "policy.json")
    assert len(str(error.value)) < 200
