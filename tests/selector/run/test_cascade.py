"""Cascades: the floor is kept on fresh examples, batches are answered as one by one, and costs are expected ones."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from device_profiles import write_profile
from exporter.bundle import Bundle
from exporter.bundle.session import open_session
from selector import Budget, BudgetError, Runtime, Selector
from selector.adapt.controller import Controller
from selector.choose.candidates import Candidates
from selector.choose.cascades import CASCADES_FILE, Cascade, read_cascades, write_cascades
from selector.run.program import margin_of, margins, passed_on
from tests.conftest import DEVICE
from tests.helpers.cascades import CHEAP, Fixed, costs_of, program_of


def test_a_batch_is_answered_as_its_examples_one_by_one(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    sessions = [open_session(bundle.graph_path(name)) for name in (cascade.first, cascade.then)]
    images = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    small = sessions[0].run(["logits"], {"input": images})[0]
    ascending = sorted(margins(small))
    gap, above = max(zip(np.diff(ascending[8:56]), ascending[9:56], strict=True))
    cascade = cascade.model_copy(update={"threshold": float(above - gap / 2)})  # no margin is so near that rounding decides
    together = program_of(cascade, *sessions).run({"input": images}).outputs["logits"]
    passed = passed_on(cascade, small)
    assert 0 < passed.sum() < 64
    for place in range(64):
        (alone,) = sessions[int(passed[place])].run(["logits"], {"input": images[place : place + 1]})
        np.testing.assert_allclose(together[place], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 32, 33, 1000])
def test_one_example_is_as_sure_alone_as_in_a_batch(classes: int) -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, classes)).astype(np.float32)
    np.testing.assert_allclose([margin_of(row) for row in logits], margins(logits), rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_no_number_is_asked_again(batch: int, with_cascade: tuple[Bundle, Cascade]) -> None:
    both = program_of(with_cascade[1], Fixed(nan, 9.0), Fixed(1.0, 2.0))
    logits = both.run({"input": np.zeros((batch, 1), np.float32)}).outputs["logits"]
    np.testing.assert_array_equal(logits, [[1.0, 2.0]] * batch)
    assert np.isnan(margin_of(np.full(40, np.inf, np.float32)))


def test_one_whose_first_sub_model_is_slow_here_is_avoided(with_cascade: tuple[Bundle, Cascade]) -> None:
    """By the profile it fits the deadline, but its first sub-model takes four times as long, and the single ones do not."""
    bundle, cascade = with_cascade
    profile = bundle.profile(DEVICE)
    second = profile.model_copy(update={"device": profile.device.model_copy(update={"name": "second"})})
    medians = {name: measured.latency_ms.p50 for name, measured in profile.submodels.items()}
    limit = 2 * max(offer.costs.latency_ms.p99 for offer in Candidates.of(bundle, [profile], [cascade]))
    for profiles in ([profile], [profile, second]):
        controller = Controller(Selector(Candidates.of(bundle, profiles, [cascade])), profiles)
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


def test_a_runtime_with_two_profiles_runs_it_as_measured_for_either(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    profile = bundle.profile(DEVICE)
    device = profile.device.model_copy(update={"name": "second", "threads": 2})
    write_profile(profile.model_copy(update={"device": device}), bundle.path / "profiles" / "second.json")
    runtime = Runtime(Bundle(bundle.path), device=[DEVICE, "second"], feedback=True, battery=lambda: None, sensors=False)
    image = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    for _ in range(20):
        assert runtime.run(image, Budget(min_accuracy=0.995, latency_ms=1000)).selection.submodel == cascade.id
    programs: list[Any] = [runtime.program(cascade.id, name) for name in (DEVICE, "second")]
    threads = [program.first.session.get_session_options().intra_op_num_threads for program in programs]
    assert threads == [profile.device.threads, 2]
    logits = [program.run({"input": image}).outputs["logits"] for program in programs]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)
    runtime.close()


def test_a_runtime_chooses_and_runs_it(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    runtime = Runtime(bundle, feedback=True, battery=lambda: None)
    image = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    for _ in range(3):
        result = runtime.run(image, Budget(min_accuracy=0.995))
        assert result.selection.submodel == cascade.id
        assert result.outputs["logits"].shape == (3, 10)
    assert runtime.run(image, Budget(memory_mb=runtime._memory[cascade.first, DEVICE] * 1.01)).selection.submodel != cascade.id
    assert [record.submodel for record in runtime.history][:3] == [cascade.id] * 3
    runtime.close()


@pytest.mark.parametrize("others", [["w0.50-d1"], ["a", "a"]])
def test_names_that_are_not_its_own_are_refused(others: list[str], with_cascade: tuple[Bundle, Cascade]) -> None:
    """A query could not tell them apart, and a sub-model's own figures would be hidden."""
    bundle, cascade = with_cascade
    write_cascades(bundle, [cascade.model_copy(update={"id": name}) for name in others])
    with pytest.raises(BudgetError, match=rf"cascades.json: id = '{others[-1]}': .* allowed is each once"):
        read_cascades(bundle)


def test_a_bundle_that_cannot_be_written_to_is_an_error(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    (bundle.path / CASCADES_FILE).unlink()
    (bundle.path / CASCADES_FILE).mkdir()
    with pytest.raises(BudgetError, match=r"cascades.json: cannot be written to .*: Is a directory"):
        write_cascades(bundle, [cascade])
    assert [path.name for path in bundle.path.iterdir() if "partial" in path.name] == []
    with pytest.raises(BudgetError, match=r"cascades.json: cannot be read: Is a directory"):
        read_cascades(bundle)


def test_where_more_than_half_is_passed_on_the_median_is_both(with_cascade: tuple[Bundle, Cascade]) -> None:
    """A deadline at the median must not be met on paper alone: most of the runs ask both."""
    bundle, cascade = with_cascade
    profile = bundle.profile(DEVICE)
    often = cascade.model_copy(update={"escalation": 0.6})
    latency = costs_of(profile, bundle, often).latency_ms
    first, then = (profile.submodels[name].latency_ms for name in (cascade.first, cascade.then))
    assert latency.p50 == pytest.approx(first.p50 + then.p50)
    assert latency.mean == pytest.approx(first.mean + 0.6 * then.mean)


def test_runs_on_several_threads_are_told_apart(with_cascade: tuple[Bundle, Cascade], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sub-model takes a second for a batch of 64 and 2 ms for a single example; while the batch is with the second
    sub-model, the example is run from beginning to end."""
    bundle, cascade = with_cascade
    clock = threading.local()
    monkeypatch.setattr("time.perf_counter", lambda: getattr(clock, "now", 0.0))
    with_the_second, go_on = threading.Event(), threading.Event()

    class First(Fixed):
        def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
            clock.now = getattr(clock, "now", 0.0) + (1.0 if len(feed["input"]) == 64 else 0.002)
            return super().run(names, feed)

    class Then(Fixed):
        def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
            if len(feed["input"]) == 64:
                with_the_second.set()
                assert go_on.wait(30)
            return super().run(names, feed)

    runtime = Runtime(bundle, battery=lambda: None, sensors=False, load_ahead=False, cache=False)
    program = program_of(cascade, First(*[0.0] * 10), Then(*[1.0] * 10))
    runtime.pool._sessions = {(cascade.id, DEVICE): program}
    runtime.pool._last_used[cascade.id, DEVICE] = 0
    runtime._ran.add(program)
    assert runtime.controller is not None
    observed: dict[str, float] = {}
    monkeypatch.setattr(
        runtime.controller,
        "observe",
        lambda selection, latency_ms, now, *, ran, length: observed.__setitem__(threading.current_thread().name, latency_ms),
    )
    images = np.zeros((64, 1, 8, 8), np.float32)
    batch = threading.Thread(target=runtime.run, args=(images, CHEAP), name="batch")
    single = threading.Thread(target=runtime.run, args=(images[:1], CHEAP), name="single")
    batch.start()
    assert with_the_second.wait(30)
    single.start()
    single.join()
    go_on.set()
    batch.join()
    assert observed["single"] == pytest.approx(2.0)
    assert observed["batch"] == pytest.approx(1000.0 / 64)
    runtime.close()


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_that_are_infinite_are_asked_again_without_a_warning(batch: int, with_cascade: tuple[Bundle, Cascade]) -> None:
    both = program_of(with_cascade[1], Fixed(np.inf, np.inf), Fixed(1.0, 2.0))
    logits = both.run({"input": np.zeros((batch, 1), np.float32)}).outputs["logits"]
    np.testing.assert_array_equal(logits, [[1.0, 2.0]] * batch)


def test_its_costs_are_the_expected_ones_and_marked(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    profile = bundle.profile(DEVICE)
    measured = costs_of(profile, bundle, cascade)
    first, then = profile.submodels[cascade.first].latency_ms, profile.submodels[cascade.then].latency_ms
    assert measured.latency_ms.p50 == pytest.approx(first.p50 + 0.25 * then.p50)
    assert measured.latency_ms.p90 == pytest.approx(first.p90 + then.p90)  # one in four is passed on
    assert set(measured.source.values()) == {"predicted"}


@pytest.mark.parametrize("text", ["[", '[{"id": 1}]', "{}"])
def test_a_damaged_file_is_an_error(text: str, with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, _ = with_cascade
    (bundle.path / CASCADES_FILE).write_text(text)
    with pytest.raises(BudgetError, match=CASCADES_FILE):
        Runtime(bundle)


def test_one_that_names_what_is_not_there_is_an_error(with_cascade: tuple[Bundle, Cascade]) -> None:
    bundle, cascade = with_cascade
    write_cascades(bundle, [cascade.model_copy(update={"then": "w9"})])
    with pytest.raises(BudgetError, match="'w9', which is not in this bundle"):
        read_cascades(bundle)
