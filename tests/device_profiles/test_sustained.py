"""What a device holds that is kept busy: measured by a scripted clock, kept in the profile, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles import LatencyMs, Profile, ProfileError, profile_document, read_profile, write_profile
from device_profiles.merge import merged
from device_profiles.schema import Sustained
from device_profiles.sustain import sustain
from device_profiles.sustained import Lasting
from selector import Battery, BatteryPlan, Budget, Selector
from selector.adapt.controller import Controller
from selector.service.fleet.device_models import aggregate
from tests.helpers.costs import flat, profile_of, selector_of, sustained
from tests.helpers.plans import NOON

MINUTE = 60.0
MEDIANS = {"small": 1.0, "middle": 4.0, "large": 10.0}
QUALITIES = {"small": 0.8, "middle": 0.88, "large": 0.92}


class Device:
    """Its runs take `first_ms`, and from a moment on `times` as long; its clock stands still between them."""

    def __init__(self, first_ms: float, times: float, begins: float, ends: float) -> None:
        self.now, self.joules_used = 0.0, 0.0
        self._first, self._times, self._begins, self._ends = first_ms, times, begins, ends
        self.name, self.source, self.window_s = "a scripted meter", "measured", 0.0

    def clock(self) -> float:
        return self.now

    def run(self) -> None:
        share = min(max((self.now - self._begins) / max(self._ends - self._begins, 1e-9), 0.0), 1.0)
        took = self._first * (1 + share * (self._times - 1)) / 1e3
        self.now += took
        self.joules_used += 2.0 * took  # at 2 W

    def joules(self) -> float:
        return self.joules_used


def lasting_profile(times: float = 1.5) -> Profile:
    return profile_of(MEDIANS).model_copy(update={"sustained": sustained(times)})


def test_a_drift_is_told_from_the_first_minute_to_what_holds_in_the_end() -> None:
    device = Device(first_ms=200.0, times=1.6, begins=90.0, ends=240.0)
    heard: list[float] = []
    found = sustain(
        device.run, 10, submodel="large", meter=device, clock=device.clock, told=lambda seconds, p50: heard.append(seconds)
    )
    assert (found.first.p50, found.after.p50) == pytest.approx((200.0, 320.0), rel=0.03)
    assert (found.first_energy_mj, found.after_energy_mj) == pytest.approx((400.0, 640.0), rel=0.03)
    assert found.settled_minutes == pytest.approx(4.0, abs=0.6)
    assert found.first.n == pytest.approx(300, abs=60)
    assert [one.p50 for one in found.drift] == sorted(one.p50 for one in found.drift)
    assert heard[-1] == 600.0
    assert 55 <= len(found.drift) <= 61


@pytest.mark.parametrize(
    ("device", "minutes", "times", "settled"),
    [
        (Device(100.0, 1.0, 0, 0), 3, 1.0, 1.0),  # nothing drifts
        (Device(100.0, 2.0, 60.0, 180.0), 3, 1.79, None),  # it has not come to an end: the last minute
        (Device(90_000.0, 1.0, 0, 0), 2, 1.0, 1.5),  # a run takes longer than a minute
    ],
)
def test_what_holds_after(device: Device, minutes: float, times: float, settled: float | None) -> None:
    found = sustain(device.run, minutes, submodel="s", clock=device.clock)
    assert found.after.p50 / found.first.p50 == pytest.approx(times, rel=0.05)
    assert found.settled_minutes == (settled if settled is None else pytest.approx(settled, abs=0.2))
    assert found.first_energy_mj is None


def test_four_hours_fit_into_a_profile() -> None:
    device = Device(500.0, 1.2, 60, 600)
    assert len(sustain(device.run, 240, submodel="s", clock=device.clock).drift) <= 256


@pytest.mark.parametrize("minutes", [1.9, 0, -3, 241, float("nan"), "10"])
def test_minutes_that_say_nothing_are_refused(minutes: float) -> None:
    with pytest.raises(ProfileError, match=r"sustain = .*allowed are 2 to 240 minutes"):
        sustain(lambda: None, minutes, submodel="s")


def test_a_profile_keeps_it_and_one_without_is_the_document_that_it_was(tmp_path: Path) -> None:
    plain, path = profile_of(MEDIANS), tmp_path / "bench.json"
    assert "sustained" not in profile_document(plain)
    lasting = plain.model_copy(update={"sustained": sustained()})
    for profile in (plain, lasting):
        write_profile(profile, path)
        assert read_profile(path).sustained == profile.sustained


def test_measuring_again_keeps_it_where_the_conditions_are_the_same() -> None:
    old, new = lasting_profile(), profile_of(MEDIANS)
    assert merged(old, new).sustained == old.sustained
    assert merged(new, old).sustained == old.sustained
    updated = new.model_copy(update={"device": new.device.model_copy(update={"onnxruntime": "2"})})
    assert merged(old, updated).sustained is None


def test_of_a_fleet_the_device_in_the_middle_counts() -> None:
    drifts = [1.1, 1.9, 1.3, 1.4]
    fleet = [profile_of(MEDIANS, f"d{place}").model_copy(update={"sustained": sustained(x)}) for place, x in enumerate(drifts)]
    found = aggregate("model", [*fleet, profile_of(MEDIANS, "quiet")])
    assert found.sustained == sustained(1.4)
    assert aggregate("model", [profile_of(MEDIANS)]).sustained is None


@given(*[st.lists(st.floats(0.01, 1e4), min_size=3, max_size=3)] * 3)
def test_percentiles_stay_in_order(first: list[float], after: list[float], other: list[float]) -> None:
    def latency(ms: list[float]) -> LatencyMs:
        p50, p90, p99 = sorted(ms)
        return LatencyMs(p50=p50, p90=p90, p99=p99, mean=p90, n=5)

    busy = Sustained(submodel="s", minutes=5, first=latency(first), after=latency(after))
    costs = profile_of({"o": 1.0}).submodels["o"].model_copy(update={"latency_ms": latency(other)})
    found = Lasting.of(busy).costs(costs)  # or it could not be made
    assert found.latency_ms.p50 == pytest.approx(costs.latency_ms.p50 * max(1, busy.after.p50 / busy.first.p50))
    assert found.latency_ms.p99 >= costs.latency_ms.p99  # a noisy first minute promises nothing
    assert found.source["latency_ms"] == "predicted"


def test_long_work_is_chosen_by_what_holds_after_the_first_minute() -> None:
    selector = Selector(lasting_profile(), QUALITIES)
    short, long = (selector.select(Budget(latency_ms=12, sustained=lasts)) for lasts in (False, True))
    assert (short.submodel, long.submodel) == ("large", "middle")
    assert long.latency_ms == pytest.approx(6.0)
    assert "in steady work" in long.reason
    assert "steady" not in short.reason
    assert selector.select(Budget(latency_ms=15, sustained=True, percentile=50)).submodel == "large"
    assert selector.select(Budget(latency_ms=15, sustained=True, percentile=99)).submodel == "middle"
    unknown = Selector(profile_of(MEDIANS), QUALITIES).select(Budget(latency_ms=12, sustained=True))
    assert unknown.submodel == "large"
    assert "nothing longer was measured" in unknown.reason


def test_a_warm_device_does_not_count_twice() -> None:
    """The feedback sees the same drift as the profile tells of: 15 ms for `large`."""
    budget = Budget(latency_ms=16, sustained=True)
    for pace in (1.0, 1.5):
        profile = lasting_profile()
        controller = Controller(Selector(profile, QUALITIES), [profile])
        for step in range(40):
            chosen = controller.choose(budget, float(step))
            controller.observe(chosen, MEDIANS[chosen.submodel] * pace, float(step))
        assert controller.choose(budget, 41.0).submodel == "large"
        assert controller.choose(budget, 41.0).latency_ms == pytest.approx(15.0, rel=0.08)
    cold = Budget(latency_ms=14, sustained=True)  # cold it takes 10 ms, but it will not stay so
    controller = Controller(Selector(profile, QUALITIES), [profile])
    assert controller.choose(cold, 0.0).submodel == "middle"
    assert controller.choose(Budget(latency_ms=14), 0.0).submodel == "large"


def test_a_battery_plan_pays_what_steady_work_takes() -> None:
    """An hour, an inference a second: what the battery gives each is 30 mJ, which in steady work is the middle one's 20 and
    half of the way to the large one's 40."""
    costs = {"small": flat(1, 0.8, 5), "middle": flat(4, 0.88, 10), "large": flat(10, 0.92, 20)}
    plain = selector_of(costs)
    offers = [one.costs for one in plain.offered]
    profile = profile_of(MEDIANS)
    submodels = {name: profile.submodels[name].model_copy(update=dict(one)) for name, one in zip(costs, offers, strict=True)}
    plan = BatteryPlan(per_second=1, for_hours=1, capacity_wh=0.03)
    reasons = []
    for lasting in (None, sustained(energy=2.0)):
        known = profile.model_copy(update={"submodels": submodels, "sustained": lasting})
        controller = Controller(Selector(known, QUALITIES), [known], clock=lambda: NOON)
        chosen = [controller.choose(Budget(plan=plan), 0.0, Battery(percent=100, discharging=True)) for _ in range(2)]
        reasons.append(chosen[0].reason)
    assert "100% large" in reasons[0]
    assert "50% middle and 50% large" in reasons[1]
