"""`Runtime` on the device: the graph's own numbers, what was chosen, refused inputs, the battery, missing profiles."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from math import exp, log
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from device_profiles import LatencyMs, default_device_name, write_profile
from exporter.bundle import Bundle, BundleError
from exporter.bundle.manifest import TensorSpec
from selector import Battery, Budget, BudgetError, InputError, Runtime, find_profile, profile_bundle, read_battery
from selector.run.files import read_inputs
from selector.run.inputs import check_inputs
from selector.run.pool import SessionPool
from tests.conftest import DEVICE

INPUT, OUTPUT, SHAPE = "input", "logits", (1, 8, 8)


def images(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((batch, *SHAPE), dtype=np.float32)


def text_bundle(path: Path) -> Bundle:
    from exporter import export
    from tests.helpers.user_families import TextEncoder
    from trainer import NestedModel

    return export(NestedModel(TextEncoder()), path, show_progress=False)


def stock(bundle: Bundle, submodel: str, inputs: NDArray[Any]) -> NDArray[Any]:
    """What ONNX Runtime says by itself, with its defaults."""
    session = ort.InferenceSession(str(bundle.graph_path(submodel)), providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: inputs})[0]


@pytest.fixture
def ranked(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle: from the least to the most accurate, the n-th takes n ms at every percentile."""
    path = tmp_path / "ranked"
    shutil.copytree(bundle_path, path)
    bundle = Bundle(path)
    profile = bundle.profile(DEVICE)
    by_accuracy = sorted(bundle.submodels, key=lambda name: bundle.submodels[name].accuracy)
    measured = {
        name: profile.submodels[name].model_copy(update={"latency_ms": LatencyMs(p50=ms, p90=ms, p99=ms, mean=ms, n=10)})
        for ms, name in enumerate(by_accuracy, start=1)
    }
    write_profile(profile.model_copy(update={"submodels": measured}), path / "profiles" / f"{DEVICE}.json")
    return path


def runtime_of(path: Path, **options: Any) -> Runtime:
    """Every run takes the best of all sub-models by the profile, open or not."""
    quiet = {"battery": lambda: None, "load_ahead": False, "feedback": False, "sensors": False}  # whatever else runs here
    return Runtime(path, **{**quiet, **options})


def unmeasured(bundle_path: Path, tmp_path: Path, devices: tuple[str, ...] = ()) -> Path:
    """A copy of the bundle with profiles of other devices only."""
    path = tmp_path / "unmeasured"
    shutil.copytree(bundle_path, path)
    profile = Bundle(path).profile(DEVICE)
    (path / "profiles" / f"{DEVICE}.json").unlink()
    for name in devices:
        device = profile.device.model_copy(update={"name": name})
        write_profile(profile.model_copy(update={"device": device}), path / "profiles" / f"{name}.json")
    return path


def test_outputs_are_those_of_stock_onnx_runtime_on_the_chosen_graph(ranked: Path) -> None:
    runtime, inputs = runtime_of(ranked), images(3)
    chosen = set()
    for limit in range(1, 7):
        result = runtime.run({INPUT: inputs}, Budget(latency_ms=limit))
        chosen.add(result.selection.submodel)
        assert result.selection.feasible
        assert result.selection.latency_ms <= limit
        assert list(result.outputs) == [OUTPUT]
        expected = stock(runtime.bundle, result.selection.submodel, inputs)
        np.testing.assert_allclose(result.outputs[OUTPUT], expected, rtol=1e-5, atol=1e-5)
    assert len(chosen) > 2


def test_a_result_says_what_was_chosen_and_how_long_it_took(ranked: Path) -> None:
    runtime = runtime_of(ranked)
    best = max(runtime.bundle.manifest.submodels, key=lambda entry: entry.accuracy)
    result = runtime.run(images(1))
    assert result.selection == runtime.select(Budget())
    assert result.selection.accuracy == best.accuracy
    assert result.selection.device == DEVICE
    assert result.latency_ms > 0

    missed = runtime.run(images(1), Budget(latency_ms=0.5))  # the nearest one runs, and the result says so
    assert (missed.selection.feasible, missed.selection.latency_ms) == (False, 1.0)
    assert missed.outputs[OUTPUT].shape == (1, 10)


def test_one_array_stands_for_the_only_input_and_batches_equal_single_runs(ranked: Path) -> None:
    runtime, inputs = runtime_of(ranked), images(33)
    whole = runtime.run(inputs).outputs[OUTPUT]
    singles = [runtime.run({INPUT: inputs[i : i + 1]}).outputs[OUTPUT][0] for i in range(33)]
    np.testing.assert_allclose(whole, singles, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "same",
    [np.asfortranarray, lambda x: np.repeat(x, 2, axis=3)[..., ::2], lambda x: x.astype(">f4")],
    ids=["fortran order", "strided", "big-endian"],
)
def test_the_layout_of_an_array_in_memory_does_not_change_the_numbers(ranked: Path, same: Any) -> None:
    """Equal arrays give equal outputs, or are refused."""
    runtime, inputs = runtime_of(ranked), images(2)
    assert (same(inputs) == inputs).all()
    try:
        outputs = runtime.run(same(inputs)).outputs[OUTPUT]
    except InputError:
        return
    np.testing.assert_array_equal(outputs, runtime.run(inputs).outputs[OUTPUT])


def with_one(value: float) -> NDArray[np.float32]:
    inputs = images(2)
    inputs[1, 0, 3, 4] = value
    return inputs


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        (images(2)[:, :, :7], ["'input'", "(2, 1, 7, 8)", "(batch, 1, 8, 8)"]),
        (images(2)[0], ["'input'", "(1, 8, 8)", "(batch, 1, 8, 8)"]),
        (images(0), ["'input'", "(0, 1, 8, 8)", "(batch, 1, 8, 8)"]),
        (images(2).astype(np.float64), ["'input'", "float64", "float32"]),
        (images(2).astype(object), ["'input'", "object", "float32"]),
        (with_one(np.nan), ["'input'", "NaN", "finite"]),
        (with_one(-np.inf), ["'input'", "infinite", "finite"]),
        (images(2).tolist(), ["'input'", "list", "float32"]),
        ({INPUT: images(2).tolist()}, ["'input'", "list", "float32"]),
        ({}, ["nothing", "'input'"]),
        ({"image": images(2)}, ["'image'", "'input'"]),
        ({INPUT: images(2), "mask": images(2)}, ["'input', 'mask'", "allowed is 'input'"]),
    ],
    ids=["size", "rank", "no example", "float64", "object", "nan", "inf", "list", "list by name", "none", "name", "extra"],
)
def test_an_input_that_does_not_fit_is_refused_with_what_it_is_and_must_be(
    bundle_path: Path, inputs: Any, named: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        Runtime(bundle_path).run(inputs)
    assert [part for part in named if part not in str(refused.value)] == []


def test_inputs_must_agree_on_their_free_axes(bundle: Bundle) -> None:
    free = TensorSpec(name="mask", dtype="float32", shape=("batch", 3))
    two = SimpleNamespace(manifest=SimpleNamespace(inputs=(*bundle.manifest.inputs, free)))
    mask = np.zeros((2, 3), np.float32)
    assert set(check_inputs(two, {INPUT: images(2), "mask": mask})) == {INPUT, "mask"}  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'mask': shape \(2, 3\); allowed is \(batch = 5, 3\)"):
        check_inputs(two, {INPUT: images(5), "mask": mask})  # type: ignore[arg-type]


def test_what_only_the_graph_can_refuse_is_an_input_error(tmp_path: Path) -> None:
    """A token id that the embedding does not have."""
    bundle = text_bundle(tmp_path / "text")
    runtime = Runtime(bundle)
    tokens = np.full((1, 6), 49, np.int64)
    assert runtime.run(tokens).outputs[OUTPUT].shape == (1, 3)
    with pytest.raises(InputError, match="cannot compute it"):
        runtime.run(tokens + 1000)


def test_without_accuracies_a_measured_bundle_runs_and_a_limit_is_an_error(tmp_path: Path) -> None:
    bundle = text_bundle(tmp_path / "text")
    write_profile(
        profile_bundle(bundle, device=DEVICE, repeats=1, show_progress=False), bundle.path / f"profiles/{DEVICE}.json"
    )
    runtime = Runtime(bundle.path)
    assert runtime.run(np.zeros((1, 6), np.int64)).selection.submodel == "h3-l2"
    with pytest.raises(BudgetError, match="no accuracy is known"):
        runtime.run(np.zeros((1, 6), np.int64), Budget(latency_ms=5))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["npy", "npz"]), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=3), st.floats(0.2, 2)
)
def test_a_damaged_input_file_is_refused_or_read(kind: str, edits: list[tuple[float, bytes]], kept: float) -> None:
    """Whatever happened to the file: arrays, or an error of one line that names it; nothing that only numpy knows."""
    whole = io.BytesIO()
    if kind == "npy":
        np.save(whole, images(2))
    else:
        np.savez_compressed(whole, input=images(2))
    content = bytearray(whole.getvalue())
    for place, new in edits:  # the header is a small part of the file: every other edit hits it
        start = int(place * (150 if len(new) % 2 else len(content)))
        content[start : start + len(new)] = new
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"damaged.{kind}"
        path.write_bytes(content[: int(len(content) * kept)])
        said = f"damaged.{kind}"
        try:
            read_inputs(path)
        except InputError as error:
            said = str(error)
        assert f"damaged.{kind}" in said
        assert "\n" not in said


@pytest.mark.parametrize("shape", [(10**15,), (10**30,), (-5,), (2**62, 4)])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_file_that_claims_to_be_larger_than_memory_is_refused(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    path = tmp_path / f"large.{kind}"
    if kind == "npy":
        path.write_bytes(header.getvalue() + bytes(64))
    else:
        with ZipFile(path, "w") as archive:
            archive.writestr("input.npy", header.getvalue() + bytes(64))
    with pytest.raises(InputError, match="large"):
        read_inputs(path)


@pytest.mark.parametrize(
    ("battery", "saves"),
    [(None, False), (Battery(percent=10, discharging=True), True), (Battery(percent=10, discharging=False), False)],
)
def test_a_low_battery_changes_the_choice(ranked: Path, battery: Battery | None, saves: bool) -> None:
    selection = Runtime(ranked, feedback=False, battery=lambda: battery).run(images(1), Budget(min_accuracy=0.0)).selection
    best = max(entry.accuracy for entry in Bundle(ranked).submodels.values())
    assert (selection.latency_ms == 1.0) == saves
    assert (selection.accuracy == best) == (not saves)
    assert ("battery at 10 %" in selection.reason) == saves


def test_what_was_run_is_kept_without_feedback_and_without_a_profile_too(ranked: Path) -> None:
    runtime = runtime_of(ranked, feedback=False)
    runtime.run(images(1), Budget(latency_ms=3))
    runtime.run(images(4))
    assert [(record.device, record.limit_ms, record.slow_down) for record in runtime.history] == [
        (DEVICE, 3, 1.0),
        (DEVICE, None, 1.0),
    ]
    shutil.rmtree(ranked / "profiles")
    runtime = runtime_of(ranked, feedback=True)
    result = runtime.run(images(4))
    (record,) = runtime.history
    assert (record.submodel, record.slow_down, record.met) == (result.selection.submodel, 1.0, True)
    assert record.latency_ms == pytest.approx(result.latency_ms / 4)


def test_large_numbers_are_no_infinite_ones(ranked: Path) -> None:
    """Their sum is, and numpy would warn of it."""
    runtime, inputs = runtime_of(ranked), np.full((2, *SHAPE), 3e38, np.float32)
    for _ in range(3):  # the second time the inputs are known
        assert runtime.run({INPUT: inputs}).outputs[OUTPUT].shape == (2, 10)
    inputs[0, 0, 0, :2] = np.inf, -np.inf
    with pytest.raises(InputError, match="infinite"):
        runtime.run({INPUT: inputs})


def test_a_graph_that_has_gone_is_named(ranked: Path) -> None:
    runtime = runtime_of(ranked, cache=False)
    chosen = runtime.select(Budget()).submodel
    (ranked / "models" / f"{chosen}.onnx").unlink()
    with pytest.raises(BundleError, match=rf"sub-model '{chosen}': cannot be opened"):
        runtime.run(images(1))
    assert runtime.run(images(1), Budget(latency_ms=1)).selection.feasible


def test_a_session_of_what_there_is_none_of_is_an_error_naming_it(ranked: Path) -> None:
    runtime = runtime_of(ranked)
    name = next(iter(runtime.bundle.submodels))
    with pytest.raises(BundleError, match="'w9'"):
        runtime.program("w9")
    with pytest.raises(BudgetError, match=rf"device = 'phone': allowed is {DEVICE}"):
        runtime.program(name, "phone")


def test_a_battery_whose_driver_hangs_stops_no_run(ranked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selector.adapt.battery_reader.WAIT_SECONDS", 0.05)
    asked, released = threading.Semaphore(0), threading.Event()

    def hang() -> Battery:
        asked.release()
        assert released.wait(30)
        return Battery(percent=10, discharging=True)

    runtime = runtime_of(ranked, battery=hang, cache=False)
    for _ in range(50):
        assert "battery" not in runtime.run(images(1)).selection.reason
    assert asked.acquire(timeout=30)
    assert not asked.acquire(blocking=False)  # it is asked once, not by every run
    released.set()
    for _ in range(1000):
        if runtime.battery() is not None:
            break
        time.sleep(0.01)
    assert "battery at 10 %" in runtime.run(images(1)).selection.reason


def test_a_reading_of_the_battery_grows_old(ranked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, charge = [0.0], [Battery(percent=50)]
    monkeypatch.setattr("selector.adapt.battery_reader.seconds", lambda: now[0])
    runtime = runtime_of(ranked, battery=lambda: charge[0], cache=False)
    assert runtime.battery() == Battery(percent=50)
    charge[0], now[0] = Battery(percent=40), 9.0
    assert runtime.battery() == Battery(percent=50)
    now[0] = 11.0
    assert runtime.battery() == Battery(percent=50)  # and is read again meanwhile
    for _ in range(1000):
        if runtime.battery() == Battery(percent=40):
            break
        time.sleep(0.01)
    charge[0] = Battery(percent=35)
    assert runtime.battery() == Battery(percent=40)
    now[0] = 3600.0  # the next run, an hour later
    assert runtime.battery() == Battery(percent=35)
    charge[0], now[0] = 30.0, 7200.0  # type: ignore[assignment]  # a reader of one's own that gives something else
    assert runtime.battery() is None


def test_a_choice_stays_possible_while_every_session_is_being_closed(ranked: Path) -> None:
    """Two profiles, and memory that gets short between two looks at the pool."""
    profile = Bundle(ranked).profile(DEVICE)
    device = profile.device.model_copy(update={"name": "second"})
    write_profile(profile.model_copy(update={"device": device}), ranked / "profiles" / "second.json")
    runtime = Runtime(Bundle(ranked), device=[DEVICE, "second"], battery=lambda: None, sensors=False, cache=False)
    runtime.run(images(1), Budget(latency_ms=1))
    runtime.pool.settle()

    class Emptied(SessionPool[Any]):
        @property
        def loaded(self) -> Any:
            found = super().loaded
            self.limit(0.0)
            return found

    runtime.pool.__class__ = Emptied
    for _ in range(3):
        assert runtime.run(images(1), Budget(latency_ms=6)).selection.feasible


def test_a_runtime_that_was_closed_still_answers(ranked: Path) -> None:
    runtime = Runtime(ranked, battery=lambda: None, sensors=False, cache=False)
    runtime.close()
    runtime.close()
    assert runtime.run(images(1), Budget(latency_ms=3)).selection.feasible
    runtime.pool.limit(0.0)


def test_without_a_profile_the_most_accurate_runs_and_a_limit_is_an_error(bundle_path: Path, tmp_path: Path) -> None:
    runtime = Runtime(unmeasured(bundle_path, tmp_path))
    best = max(entry.accuracy for entry in runtime.bundle.submodels.values())
    result = runtime.run(images(2))
    assert (result.selection.accuracy, result.selection.feasible) == (best, True)
    assert result.selection.latency_ms is None
    np.testing.assert_allclose(
        result.outputs[OUTPUT], stock(runtime.bundle, result.selection.submodel, images(2)), rtol=1e-5, atol=1e-5
    )
    for budget in (Budget(latency_ms=1e6), Budget(objective="latency"), Budget(min_accuracy=0.1)):
        with pytest.raises(BudgetError, match="sortednet profile"):
            runtime.run(images(2), budget)


def test_with_profiles_of_other_devices_only_the_error_lists_them(bundle_path: Path, tmp_path: Path) -> None:
    path = unmeasured(bundle_path, tmp_path, devices=("phone", "watch"))
    with pytest.raises(BudgetError, match="phone, watch"):
        Runtime(path)
    assert Runtime(path, device="watch").run(images(1)).selection.device == "watch"
    with pytest.raises(BundleError, match=r"'tablet'.*phone, watch"):
        Runtime(path, device="tablet")


def test_a_profile_of_this_machine_is_preferred_to_others(bundle_path: Path, tmp_path: Path) -> None:
    """However many threads it was measured with: `profile --threads 1` names it so."""
    mine = default_device_name(1)
    path = unmeasured(bundle_path, tmp_path, devices=("phone", mine, "watch"))
    assert Runtime(path).run(images(1)).selection.device == mine


def test_a_machine_of_many_cores_finds_its_profile_without_counting_them_over_and_over(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 128 if logical else 2)
    path = unmeasured(bundle_path, tmp_path, devices=("phone", default_device_name(1), default_device_name(96), "watch"))
    monkeypatch.setattr(
        "selector.choose.profiles.default_device_name", lambda *given: asked.append(given) or default_device_name(*given)
    )
    assert find_profile(Bundle(path)).device.name == default_device_name(96)
    assert len(asked) == 1


def state(percent: Any, power_plugged: bool | None) -> SimpleNamespace:
    return SimpleNamespace(percent=percent, secsleft=-2, power_plugged=power_plugged)


@pytest.mark.parametrize(
    ("sensor", "expected"),
    [
        (None, None),
        (RuntimeError("no driver"), None),
        (state(float("nan"), False), None),
        (state(-5, False), None),
        (state(None, False), None),
        (state(130, False), Battery(percent=100, discharging=True)),
        (state(42, None), Battery(percent=42, discharging=False)),
        (state(42.5, True), Battery(percent=42.5, discharging=False)),
        (state(7, False), Battery(percent=7, discharging=True)),
    ],
)
def test_a_battery_that_talks_nonsense_is_no_battery(
    monkeypatch: pytest.MonkeyPatch, sensor: Any, expected: Battery | None
) -> None:
    def sensors_battery() -> Any:
        if isinstance(sensor, Exception):
            raise sensor
        return sensor

    monkeypatch.setattr(psutil, "sensors_battery", sensors_battery, raising=False)
    assert read_battery() == expected


def test_a_device_without_battery_sensors_runs(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil leaves the function out on systems that it knows no battery of."""
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    outputs: Mapping[str, NDArray[Any]] = Runtime(bundle_path).run(images(1)).outputs
    assert np.isfinite(outputs[OUTPUT]).all()


def test_with_feedback_a_percentile_is_the_median_times_what_is_typical_of_the_device(bundle_path: Path) -> None:
    """The 99th percentile of one sub-model's some hundred runs is little more than the slowest of them."""
    bundle, budget = Bundle(bundle_path), Budget(percentile=99)
    measured = bundle.profile(DEVICE).submodels
    ratio = exp(median(log(one.latency_ms.p99 / one.latency_ms.p50) for one in measured.values()))
    for feedback in (True, False):
        with closing(Runtime(bundle, device=DEVICE, feedback=feedback)) as runtime:
            chosen = runtime.select(budget)
        latency = measured[chosen.submodel].latency_ms
        assert chosen.latency_ms == pytest.approx(ratio * latency.p50 if feedback else latency.p99)
