"""Latency over the length of an input: what is between the measured lengths, and what a profile keeps of it."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from math import log2
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles import ProfileError, measure_lengths, profile_document, read_profile, write_profile
from device_profiles.estimate import predict
from device_profiles.lengths import Curve, at_length, bucket, series
from device_profiles.merge import check_merge, merged
from exporter.bundle.manifest import LayerEntry
from selector.adapt.quiet import Quiet, pooled
from selector.service.fleet.device_models import aggregate
from tests.helpers.lengths import LENGTHS, latency, measurement, profile_of, taking

PROFILE = profile_of({"small": 1.0, "large": 4.0})
milliseconds = st.floats(min_value=1e-3, max_value=1e5)
measured = st.dictionaries(st.integers(1, 2**20), milliseconds, min_size=1, max_size=8)


@pytest.mark.parametrize("form", [(1, 0, 0), (0, 1, 0), (0.3, 0.02, 0), (0, 0.02, 1e-4), (0.3, 0.02, 1e-4)])
def test_a_quadratic_cost_is_met_at_every_length(form: tuple[float, float, float]) -> None:
    a, b, c = form
    curve = Curve({n: latency(a + b * n + c * n * n) for n in LENGTHS})
    for n in (1, 8, 17, 24, 50, 100, 200, 300, 512):
        assert curve.at(n) == pytest.approx(a + b * n + c * n * n, rel=1e-6)


def test_steps_of_the_hardware_are_kept_where_they_were_seen() -> None:
    """Every second length takes a fifth longer than the square says: what is between is at most half of that off."""
    curve = Curve({n: latency(taking(1.2 if place % 2 else 1.0, n)) for place, n in enumerate(LENGTHS)})
    for place, n in enumerate(LENGTHS):
        assert curve.at(n) == pytest.approx(taking(1.2 if place % 2 else 1.0, n))
    assert all(taking(1.0, n) <= curve.at(n) <= taking(1.2, n) for n in (24, 48, 96, 192))


@given(measured, st.lists(st.integers(1, 2**20), min_size=2, max_size=20))
def test_a_longer_input_never_takes_less(found: dict[int, float], lengths: list[int]) -> None:
    curve = Curve({n: latency(ms) for n, ms in found.items()})
    values = [curve.at(n) for n in sorted(lengths)]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(values))
    assert all(value > 0 for value in values)
    for n in lengths:
        one = curve.latency(n)  # its percentiles ascend, or it could not be made
        assert one.n == (20 if n in found else 0)


def test_of_one_length_what_is_longer_takes_more_in_proportion_and_what_is_shorter_as_much() -> None:
    curve = Curve({64: latency(2.0)})
    assert [curve.at(n) for n in (1, 64, 128)] == pytest.approx([2.0, 2.0, 4.0])


def test_energy_goes_with_the_latency_and_memory_stays() -> None:
    costs = PROFILE.submodels["large"]
    at = at_length(costs, 100)
    assert at.latency_ms.p50 == pytest.approx(taking(4.0, 100))
    assert at.energy_mj == pytest.approx(40 * taking(4.0, 100) / taking(4.0, 256))
    assert at.memory_mb == costs.memory_mb
    assert at.source == {"latency_ms": "predicted", "energy_mj": "predicted", "memory_mb": "measured"}
    assert at_length(costs, 32).source["latency_ms"] == "measured"
    assert at_length(costs, 256).source == costs.source
    one_size = costs.model_copy(update={"lengths": {}})
    assert at_length(one_size, 100) is one_size


@given(st.integers(1, 2**20))
def test_a_length_is_rounded_up_by_an_eighth_at_most(n: int) -> None:
    end = bucket(n)
    assert n <= end <= n * 1.125
    assert bucket(end) == end
    assert bucket(2 ** int(log2(n))) == 2 ** int(log2(n))


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [(512, [16, 32, 64, 128, 256, 512]), (12, [3, 6, 12]), (1, [1]), (8192, [256, 512, 1024, 2048, 4096, 8192])],
)
def test_the_lengths_of_nobodys_choice(longest: int, lengths: list[int]) -> None:
    assert series(longest) == lengths


def test_lengths_are_written_and_read_again_and_nothing_of_them_where_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_profile(PROFILE, path)
    assert read_profile(path) == PROFILE
    assert list(json.loads(path.read_text())["submodels"]["small"]["lengths"]) == [str(n) for n in LENGTHS]
    costs = {name: one.model_copy(update={"lengths": {}}) for name, one in PROFILE.submodels.items()}
    without = profile_document(PROFILE.model_copy(update={"submodels": costs, "length": None}))
    assert "length" not in json.dumps(without)


@pytest.mark.parametrize("lengths", [{"0": 1.0}, {"x": 1.0}, {str(2**20 + 1): 1.0}, {str(n): 1.0 for n in range(1, 70)}])
def test_lengths_that_are_none_are_refused(tmp_path: Path, lengths: dict[str, float]) -> None:
    document = {key: value for key, value in profile_document(PROFILE).items() if key != "sha256"}
    document["submodels"]["small"]["lengths"] = {n: latency(ms).model_dump() for n, ms in lengths.items()}
    (tmp_path / "bench.json").write_text(json.dumps(document))
    with pytest.raises(ProfileError, match=r"bench\.json: submodels\.small\.lengths"):
        read_profile(tmp_path / "bench.json")


def test_the_harness_runs_every_length_and_memory_is_that_of_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs, held = SimpleNamespace(now=0.0), Counter[int](), [0.0]

    def load(name: str) -> Callable[[int], object]:
        before = held[0]  # what other rounds have left behind

        def run(length: int) -> None:
            runs[length] += 1
            held[0] = max(held[0], before + length)
            clock.now += length / 1e3

        return run

    harness = importlib.import_module("device_profiles.harness")
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(harness, "private_memory_mb", lambda: 100.0 + held[0])
    (found,) = measure_lengths(load, ["a"], [4, 1, 2], repeats=10, show_progress=False).values()
    assert {n: one.p50 for n, one in found.lengths.items()} == pytest.approx({1: 1.0, 2: 2.0, 4: 4.0}, abs=1e-4)
    assert (found.latency_ms, found.memory_mb) == (found.lengths[4], 4.0)
    assert {one.n for one in found.lengths.values()} == {10}
    assert set(runs) == {1, 2, 4}


def test_a_profile_of_another_reference_length_is_not_put_together() -> None:
    """Its figures would be compared with those of shorter inputs."""
    other = PROFILE.model_copy(update={"length": 64, "submodels": {"small": PROFILE.submodels["small"]}})
    with pytest.raises(ProfileError, match=r"1 measurements are of length = 256 tokens, these of 64 tokens"):
        merged(PROFILE, other)
    with pytest.raises(ProfileError, match="these of inputs of one size"):
        check_merge(PROFILE, PROFILE.device, ["small"])
    assert set(merged(PROFILE, other.model_copy(update={"length": 256})).submodels) == {"small", "large"}
    assert merged(PROFILE, PROFILE.model_copy(update={"length": 64})).length == 64  # all of it is measured again


@pytest.mark.parametrize("changed", [{"length": 64}, {"onnxruntime": "99"}])
def test_predictions_of_other_conditions_do_not_stay_beside_new_measurements(changed: dict[str, object]) -> None:
    """All that was measured is measured again, so that nothing measured is lost."""
    predicted = PROFILE.submodels["large"].model_copy(update={"source": {"latency_ms": "predicted"}})
    old = PROFILE.model_copy(update={"submodels": PROFILE.submodels | {"large": predicted}})
    few = PROFILE.model_copy(update={"submodels": {"small": PROFILE.submodels["small"]}})
    assert set(merged(old, few).submodels) == {"small", "large"}
    length = changed.get("length", few.length)
    device = few.device.model_copy(update={name: value for name, value in changed.items() if name != "length"})
    assert set(merged(old, few.model_copy(update={"length": length, "device": device})).submodels) == {"small"}


def test_what_is_predicted_is_predicted_at_every_length() -> None:
    shape = {"kind": "matmul", "channels_in": 64, "channels_out": 64}
    layers = [LayerEntry(macs=100 * n, weights=64, activations=n, **shape) for n in (1, 2, 4, 8, 16)]
    counts: dict[str, dict[int, int]] = {f"s{i}": {i: 2} for i in range(5)}
    known = {f"s{i}": measurement({n: taking(2.0**i, n) for n in LENGTHS}) for i in (0, 1, 3, 4)}
    found, _ = predict(layers, counts, known)
    assert {n: one.p50 for n, one in found["s2"].lengths.items()} == pytest.approx(
        {n: taking(4.0, n) for n in LENGTHS}, rel=0.1
    )
    assert found["s2"].latency_ms == found["s2"].lengths[256]


def test_a_device_model_has_the_lengths_of_its_devices() -> None:
    three = [profile_of({"small": weight}, device=f"d{weight:g}") for weight in (1.0, 2.0, 3.0)]
    short = three[0].model_copy(update={"length": 64})
    found = aggregate("model", [*three, short])
    assert found.length == 256
    assert {n: one.p50 for n, one in found.submodels["small"].lengths.items()} == {n: taking(2.0, n) for n in LENGTHS}
    assert found.device.label == "aggregated: the median of 3 devices"


def test_tails_are_taken_together_at_every_length() -> None:
    found = pooled(PROFILE).submodels["small"].lengths
    quiet = Quiet.of(PROFILE)
    for n, one in found.items():
        assert one.p99 == pytest.approx(quiet.latency(99, taking(1.0, n)))
