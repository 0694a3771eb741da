"""A bundle of texts of any length: measured at several, and run by what its inputs' own length costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from device_profiles import ProfileError, write_profile
from device_profiles.lengths import bucket
from exporter.bundle import Bundle
from selector import Budget, Runtime, profile_bundle
from selector.adapt.controller import Controller
from selector.choose.lengths import LengthAxis, Lengths
from selector.run import profiling
from selector.run.calibrating import calibrate_cascade, candidates, logits_of
from tests.conftest import DEVICE
from tests.helpers.commands import call, document, refused
from tests.helpers.figures import ranks
from tests.helpers.lengths import LENGTHS, TOKENS, VOCABULARY, profile_of, taking
from tests.helpers.runtimes import quiet_runtime


def tokens(length: int, examples: int = 1) -> dict[str, NDArray[np.int64]]:
    return {"tokens": np.random.default_rng(0).integers(0, VOCABULARY, (examples, length))}


@pytest.fixture
def words(words_path: Path, tmp_path: Path) -> Bundle:
    """A copy; its profile `bench` has the n-th smallest n times as heavy as the smallest."""
    return Bundle(shutil.copytree(words_path, tmp_path / "words"))


@pytest.fixture
def runtime(words: Bundle) -> Iterator[Runtime]:
    with quiet_runtime(words.path, device="bench") as opened:
        yield opened


def by_weight(bundle: Bundle) -> list[str]:
    places = ranks(bundle)
    return sorted(places, key=lambda name: places[name])


def test_every_submodel_is_measured_at_every_length(words: Bundle) -> None:
    found = document("profile", words.path, "--device", "mine", "--repeats", "2", "--lengths", "8,4,16,8")
    assert found["length"] == 16
    assert {tuple(one["lengths"]) for one in found["submodels"].values()} == {("4", "8", "16")}
    for one in found["submodels"].values():
        assert one["latency_ms"] == one["lengths"]["16"]
    assert words.profile("mine").length == 16
    shown = call("profile", words.path, "--device", "yours", "--repeats", "1").stdout  # the self-test's, and down by halves
    assert f"for inputs of {TOKENS}" in shown
    assert "ms for 3" in shown
    assert set(words.profile("yours").submodels[by_weight(words)[0]].lengths) == {3, 6, 12}


def test_the_longest_is_what_the_bundle_cuts_texts_to(words: Bundle) -> None:
    text = {"tokens": {"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 40}}
    words.manifest = words.manifest.model_copy(update={"preprocessing": text})
    assert profile_bundle(words, device="mine", repeats=1, show_progress=False).length == 40
    with pytest.raises(ProfileError, match=r"lengths = 41: allowed are whole numbers from 1 to 40"):
        profile_bundle(words, device="mine", repeats=1, show_progress=False, lengths=[16, 41])


@pytest.mark.parametrize("lengths", ["0", "x", "8,", "-1", "2097152", "1.5"])
def test_lengths_that_are_none_are_refused(words: Bundle, lengths: str) -> None:
    assert "lengths = " in refused("profile", words.path, "--device", "mine", "--lengths", lengths)
    assert "mine" not in words.devices()


def test_a_length_that_the_graphs_cannot_compute_is_named(words: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    resized = profiling.resized

    def beyond(axis: LengthAxis, inputs: Any, length: int) -> dict[str, NDArray[Any]]:
        found = resized(axis, inputs, length)
        return {name: array + (VOCABULARY if length == 8 else 0) for name, array in found.items()}

    monkeypatch.setattr(profiling, "resized", beyond)
    with pytest.raises(ProfileError, match=r"lengths = 8: .* cannot compute an input that long"):
        profile_bundle(words, device="mine", repeats=1, show_progress=False, lengths=[4, 8])


def test_inputs_of_one_size_have_no_lengths(bundle: Bundle) -> None:
    assert LengthAxis.of(bundle) is None
    with pytest.raises(ProfileError, match="lengths = 16: allowed is none"):
        profile_bundle(bundle, device="mine", repeats=1, show_progress=False, lengths=[16])


def test_a_profile_of_fewer_tokens_is_not_put_to_one_of_more(words: Bundle) -> None:
    call("profile", words.path, "--device", "mine", "--repeats", "1", "--lengths", "8,16")
    one = by_weight(words)[0]
    again = ["profile", words.path, "--device", "mine", "--repeats", "1", "--submodels", one]
    assert "length = 16 tokens, these of 8 tokens" in refused(*again, "--lengths", "8")
    assert call(*again, "--lengths", "4,16").exit_code == 0
    assert set(words.profile("mine").submodels) == set(words.submodels)


def test_select_goes_by_the_length(words: Bundle) -> None:
    limit = taking(2.0, 256)
    ask = ["select", words.path, "--device", "bench", "--latency-ms", f"{limit:g}"]
    smaller, largest = by_weight(words)[1], by_weight(words)[-1]
    assert document(*ask)["submodel"] == document(*ask, "--length", "256")["submodel"] == smaller
    assert "for inputs of 256, the longest measured" in call(*ask).stdout
    short = document(*ask, "--length", "20")
    assert short["submodel"] == largest
    assert short["latency_ms"] == pytest.approx(taking(ranks(words)[largest], 20))
    assert "length = 0" in refused(*ask, "--length", "0")


@pytest.mark.parametrize("length", [5, 16, 100, 300])
def test_a_run_takes_the_length_of_its_inputs(runtime: Runtime, words: Bundle, length: int) -> None:
    """Whatever the budget says of it."""
    limit = taking(2.5, bucket(length))
    for asked in (None, 1, 1000):
        found = runtime.run(tokens(length), Budget(latency_ms=limit, length=asked)).selection
        assert found.submodel == by_weight(words)[1]
        assert found.latency_ms == pytest.approx(taking(2.0, bucket(length)))
    batch = runtime.run(tokens(length, examples=3), Budget(latency_ms=limit))
    assert (batch.selection.submodel, len(batch.outputs["logits"])) == (by_weight(words)[1], 3)


def test_a_run_is_compared_with_what_is_predicted_at_its_length(words: Bundle) -> None:
    """Short and long texts in turn: each exactly as fast as the profile says, then each twice as slow. The device is slowed
    down so many times, whatever the length."""
    for factor in (1.0, 2.0):
        controller = Controller(Runtime(words.path, device="bench", sensors=False).selector, [words.profile("bench")])  # type: ignore[arg-type]
        name, now = by_weight(words)[0], 0.0
        for length in (16, 256, 5, 100, 40, 300) * 10:
            now += 0.01
            selection = controller.choose(Budget(latency_ms=1e3, length=bucket(length)), now)._replace(submodel=name)
            controller.observe(selection, factor * taking(1.0, length), now, length=length)
        assert controller.slow_down("bench") == pytest.approx(factor, rel=0.01)
        limit = 1.3 * factor * taking(1.0, 72)
        fitting = controller.choose(Budget(latency_ms=limit, length=72), now)
        assert (fitting.submodel, fitting.feasible) == (name, True)


def test_a_runtime_learns_by_length(words: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []
    with Runtime(words.path, device="bench", sensors=False, battery=lambda: None, load_ahead=False) as runtime:
        controller = runtime.controller
        assert controller is not None
        monkeypatch.setattr(controller, "observe", lambda *given, length, **more: seen.append(length))
        for length in (7, 7, 70):
            runtime.run(tokens(length), Budget(latency_ms=1e3))
    assert seen == [7, 70]  # the first run of a session says nothing of the device


def test_without_a_profile_by_length_runs_are_chosen_as_before(words: Bundle) -> None:
    profile = words.profile(DEVICE)  # of one length
    write_profile(profile, words.path / "profiles" / f"{DEVICE}.json")
    with quiet_runtime(words.path, device=DEVICE) as runtime:
        found = runtime.run(tokens(100), Budget(latency_ms=1.5)).selection
    assert found.submodel == by_weight(words)[0]
    assert "length" not in found.reason


def test_without_a_profile_the_best_runs_whatever_the_length(words: Bundle) -> None:
    shutil.rmtree(words.path / "profiles")
    with quiet_runtime(words.path) as runtime:
        assert runtime.select(Budget(length=16)).submodel == by_weight(words)[-1]
        assert runtime.run(tokens(16)).selection.submodel == by_weight(words)[-1]


def test_the_same_budget_and_length_are_the_same_object() -> None:
    """By which a choice that was made is recognised."""
    axis = LengthAxis("sequence", {"tokens": 1})
    lengths, budget, other = Lengths(axis), Budget(latency_ms=5), Budget(latency_ms=6)
    assert lengths.budget(budget, 65) is lengths.budget(budget, 70)
    assert lengths.budget(budget, 65).length == 72
    assert lengths.budget(other, 65).latency_ms == 6
    assert lengths.budget(budget, 65).latency_ms == 5
    assert lengths.budget(budget, None) is budget


def test_the_written_profile_is_the_one_of_these_tests(words: Bundle) -> None:
    assert words.profile("bench") == profile_of(ranks(words), words.fingerprint)
    assert max(LENGTHS) == words.profile("bench").length


def test_a_cascade_is_looked_for_by_what_inputs_of_the_data_cost(words: Bundle) -> None:
    labels = np.arange(30) % 3
    for length in (20, 100):
        _, costs = candidates(words, words.profile("bench"), tokens(length, examples=30), labels)
        assert costs == {name: pytest.approx(1.05 * taking(ranks(words)[name], length)) for name in costs}
        assert costs


def test_a_cascade_may_be_looked_for_on_batches_of_other_lengths(words: Bundle) -> None:
    """What one padded array would cost is not what its texts cost, one after the other."""
    short, long = tokens(20, examples=20), tokens(100, examples=10)
    profile, labels = words.profile("bench"), np.arange(30) % 3
    logits, costs = candidates(words, profile, [short, long], labels)
    weights = ranks(words)
    mean = {name: weights[name] * (2 * taking(1, 20) + taking(1, 100)) / 3 for name in costs}
    assert costs == {name: pytest.approx(1.05 * mean[name]) for name in costs}
    for name, found in logits.items():
        np.testing.assert_allclose(found[:20], logits_of(words, name, short), rtol=1e-5)
        np.testing.assert_allclose(found[20:], logits_of(words, name, long), rtol=1e-5)
    largest = by_weight(words)[-1]
    right = logits_of(words, largest, [short, long]).argmax(axis=1)
    found = calibrate_cascade(words, [short, long], right, floor=0.5, confidence=0.9, device="bench", keep=False)
    assert found.examples == 20
    some = np.array([25, 3, 29, 0])
    np.testing.assert_allclose(logits_of(words, largest, [short, long], some).argmax(axis=1), right[some])
