"""Cascades: the floor is kept on fresh examples, batches are answered as one by one, and costs are expected ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import sortednet
from device_profiles import write_profile
from exporter.bundle import Bundle
from exporter.session import open_session
from selector import Budget, BudgetError, Runtime, Selector
from selector.calibrating import calibrate_cascade
from selector.cascade import (
    CASCADES_FILE,
    Cascade,
    CascadeSession,
    find_cascade,
    margin_of,
    margins,
    read_cascades,
    with_cascades,
    write_cascades,
)
from selector.controller import Controller
from tests.conftest import DEVICE

COSTS = {"small": 1.0, "middle": 3.0, "large": 9.0}


def classifier(n: int, accuracy: float, seed: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Logits of three classifiers of ten classes: an example is as hard for all, and the larger see clearer."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, n)
    hardness, luck = random.exponential(1.0, n), random.normal(0, 1, (n, 10))
    found = {}
    for name, clear in (("small", 1.0), ("middle", 1.6), ("large", 2.2)):
        logits = luck + random.normal(0, 0.3, (n, 10))
        logits[np.arange(n), labels] += accuracy * 5 * clear / (0.6 + hardness)
        found[name] = (2 * logits).astype(np.float32)
    return found, labels


def cascaded(cascade: Cascade, logits: dict[str, NDArray[np.float32]]) -> NDArray[np.int64]:
    passed = cascade.passes_on(logits[cascade.first])
    return np.where(passed, logits[cascade.then].argmax(axis=1), logits[cascade.first].argmax(axis=1))


def test_the_floor_is_kept_as_often_as_promised() -> None:
    """Certified on 60 drawn validation sets; the truth is the accuracy on 100,000 other examples."""
    truth, labels = classifier(100_000, 0.9, 1)
    floor, below, made = 0.87, 0, 0
    for seed in range(60):
        logits, known = classifier(3000, 0.9, 100 + seed)
        cascade = find_cascade(logits, known, COSTS, floor, 0.95)
        made += 1
        below += bool((cascaded(cascade, truth) == labels).mean() < floor)
    assert made == 60
    assert below <= 7  # of 60 with 5 % each, more than 7 has a probability of 1 %


def test_it_costs_less_than_the_sub_model_that_is_as_accurate() -> None:
    logits, labels = classifier(6000, 0.9, 5)
    right = {name: (found.argmax(axis=1) == labels).mean() for name, found in logits.items()}
    cascade = find_cascade(logits, labels, COSTS, right["large"] - 0.02, 0.95)
    cost = COSTS[cascade.first] + cascade.escalation * COSTS[cascade.then]
    same = min(COSTS[name] for name in COSTS if right[name] >= cascade.accuracy - 0.005)
    assert cost <= 0.7 * same
    assert cascade.accuracy >= right["large"] - 0.02


def test_a_floor_that_nothing_keeps_is_an_error() -> None:
    logits, labels = classifier(500, 0.9, 2)
    with pytest.raises(BudgetError, match=r"floor = 0.999: no pair keeps it"):
        find_cascade(logits, labels, COSTS, 0.999, 0.95)
    with pytest.raises(BudgetError, match=r"floor = 1\.5"):
        find_cascade(logits, labels, COSTS, 1.5, 0.95)
    with pytest.raises(BudgetError, match=r"logits of small: shape \(500, 1\)"):
        find_cascade({"small": logits["small"][:, :1]}, labels, {"small": 1.0}, 0.5, 0.95)


@pytest.fixture
def ranked(bundle_path: Path, tmp_path: Path) -> tuple[Bundle, Cascade]:
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "bundle"))
    names = sorted(bundle.submodels, key=lambda name: bundle.submodels[name].macs)
    cascade = Cascade(
        id=f"{names[0]}+{names[-1]}",
        first=names[0],
        then=names[-1],
        threshold=0.8,
        escalation=0.25,
        accuracy=0.999,
        floor=0.9,
        confidence=0.95,
        examples=1000,
    )
    write_cascades(bundle, [cascade])
    return Bundle(bundle.path), cascade


def test_a_batch_is_answered_as_its_examples_one_by_one(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    sessions = [open_session(bundle.graph_path(name)) for name in (cascade.first, cascade.then)]
    both = CascadeSession(cascade, *sessions)
    images = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    (together,) = both.run(["logits"], {"input": images})
    passed = cascade.passes_on(sessions[0].run(["logits"], {"input": images})[0])
    assert 0 < passed.sum() < 64
    for place in range(64):
        (alone,) = sessions[int(passed[place])].run(["logits"], {"input": images[place : place + 1]})
        np.testing.assert_allclose(together[place], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 32, 33, 1000])
def test_one_example_is_as_sure_alone_as_in_a_batch(classes: int) -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, classes)).astype(np.float32)
    np.testing.assert_allclose([margin_of(row) for row in logits], margins(logits), rtol=1e-12)


class Fixed:
    """A session that always gives these logits."""

    def __init__(self, *logits: float) -> None:
        self.logits = np.array([logits], np.float32)

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        return [np.repeat(self.logits, len(feed["input"]), axis=0)]


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_no_number_is_asked_again(batch: int, ranked: tuple[Bundle, Cascade]) -> None:
    both = CascadeSession(ranked[1], Fixed(nan, 9.0), Fixed(1.0, 2.0))
    (logits,) = both.run(["logits"], {"input": np.zeros((batch, 1), np.float32)})
    np.testing.assert_array_equal(logits, [[1.0, 2.0]] * batch)


def test_the_same_pair_may_serve_several_floors(bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(bundle_path, tmp_path / "bundle"))
    found = [calibrate_cascade(bundle, "digits", floor=floor, confidence=0.9) for floor in (0.7, 0.8, 0.7)]
    assert {cascade.floor for cascade in read_cascades(bundle)} == {0.7, 0.8}
    assert len(read_cascades(bundle)) == len({cascade.id for cascade in found}) == 2
    runtime = Runtime(bundle, battery=lambda: None, sensors=False)
    assert set(runtime.cascades) == {cascade.id for cascade in found}
    runtime.close()


def test_one_whose_first_sub_model_is_slow_here_is_avoided(ranked: tuple[Bundle, Cascade]) -> None:
    """By the profile it fits the deadline, but its first sub-model takes four times as long, and the single ones do not."""
    bundle, cascade = ranked
    profile = with_cascades(bundle.profile(DEVICE), [cascade])
    second = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "second"})})
    accuracies = {**bundle.accuracies, cascade.id: cascade.accuracy}
    medians = {name: measured.latency_ms.p50 for name, measured in profile.submodels.items()}
    limit = 2 * max(measured.latency_ms.p99 for measured in profile.submodels.values())
    for profiles in ([profile], [profile, second]):
        controller = Controller(Selector(profiles, accuracies), profiles)
        chosen = []
        for step in range(200):
            selection = controller.choose(Budget(latency_ms=limit, percentile=50), 0.01 * step)
            chosen.append(selection.submodel)
            if selection.submodel == cascade.id:
                slow = 4 * limit / medians[cascade.first]
                controller.observe(selection, slow * medians[cascade.first], 0.01 * step, ran=cascade.first)
            else:
                controller.observe(selection, medians[selection.submodel], 0.01 * step)
        assert chosen[0] == cascade.id
        assert chosen[20:].count(cascade.id) < 10


def test_a_runtime_with_two_profiles_runs_it_as_measured_for_either(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    profile = bundle.profile(DEVICE)
    device = profile.device.model_copy(update={"name": "second", "threads": 2})
    write_profile(profile.model_copy(update={"device": device}), bundle.path / "profiles" / "second.json")
    runtime = Runtime(Bundle(bundle.path), device=[DEVICE, "second"], feedback=True, battery=lambda: None, sensors=False)
    image = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    for _ in range(20):
        assert runtime.run(image, Budget(min_accuracy=0.995, latency_ms=1000)).selection.submodel == cascade.id
    sessions = [runtime.session(cascade.id, name) for name in (DEVICE, "second")]
    threads = [session.first.get_session_options().intra_op_num_threads for session in sessions]  # type: ignore[union-attr]
    assert threads == [profile.device.threads, 2]
    np.testing.assert_allclose(*(session.run(["logits"], {"input": image})[0] for session in sessions), rtol=1e-4, atol=1e-5)
    runtime.close()


def test_a_runtime_chooses_and_runs_it(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    runtime = Runtime(bundle, feedback=True, battery=lambda: None)
    image = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    for _ in range(3):
        result = runtime.run(image, Budget(min_accuracy=0.995))
        assert result.selection.submodel == cascade.id
        assert result.outputs["logits"].shape == (3, 10)
    assert runtime.run(image, Budget(memory_mb=runtime._memory[cascade.first, DEVICE] * 1.01)).selection.submodel != cascade.id
    assert [record.submodel for record in runtime.history][:3] == [cascade.id] * 3
    runtime.close()


def test_its_costs_are_the_expected_ones_and_marked(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    profile = bundle.profile(DEVICE)
    measured = with_cascades(profile, [cascade]).submodels[cascade.id]
    first, then = profile.submodels[cascade.first].latency_ms, profile.submodels[cascade.then].latency_ms
    assert measured.latency_ms.p50 == pytest.approx(first.p50 + 0.25 * then.p50)
    assert measured.latency_ms.p90 == pytest.approx(first.p90 + then.p90)  # one in four is passed on
    assert set(measured.source.values()) == {"predicted"}
    write_profile(with_cascades(profile, [cascade]), bundle.path / "copy.json")  # a valid profile


@pytest.mark.parametrize("text", ["[", '[{"id": 1}]', "{}"])
def test_a_damaged_file_is_an_error(text: str, ranked: tuple[Bundle, Cascade]) -> None:
    bundle, _ = ranked
    (bundle.path / CASCADES_FILE).write_text(text)
    with pytest.raises(BudgetError, match=CASCADES_FILE):
        Runtime(bundle)


def test_one_that_names_what_is_not_there_is_an_error(ranked: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = ranked
    write_cascades(bundle, [cascade.model_copy(update={"then": "w9"})])
    with pytest.raises(BudgetError, match="'w9', which is not in this bundle"):
        read_cascades(bundle)


def test_from_the_command_line(bundle_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle_path, tmp_path / "bundle")
    result = CliRunner().invoke(sortednet.app, ["cascade", str(path), "--data", "digits", "--floor", "0.8", "--json"])
    assert result.exit_code == 0, result.stderr
    cascade = Cascade.model_validate_json(result.stdout)
    assert cascade.accuracy >= 0.8
    assert read_cascades(Bundle(path)) == [cascade]
    result = CliRunner().invoke(sortednet.app, ["cascade", str(path), "--data", "digits", "--floor", "0.9999"])
    assert result.exit_code == 2
    assert "no pair keeps it" in result.stderr
