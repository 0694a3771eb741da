"""Prediction of what was not measured: exact where costs add up, near where they nearly do, marked and with its error."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

import sortednet
from device_profiles import LatencyMs, Measurement, ProfileError
from device_profiles.estimate import Estimator, predict
from exporter.bundle import Bundle
from selector import profile_bundle
from trainer.macs import MacCounter


class Shape(NamedTuple):
    kind: str
    macs: int
    weights: int
    activations: int
    channels_in: int
    channels_out: int


WIDTHS, DEPTHS = (16, 24, 32, 40, 48, 56, 64, 72), list(itertools.product((1, 2, 3), repeat=2))


def grid() -> tuple[list[Shape], dict[str, dict[int, int]]]:
    """Networks of two stages: a stem, then d blocks of width w, then d' of twice that on a quarter of the pixels."""
    table: dict[Shape, int] = {}
    counts: dict[str, dict[int, int]] = {}
    for width, depths in itertools.product(WIDTHS, DEPTHS):
        found: dict[int, int] = {}

        def add(inputs: int, outputs: int, pixels: int, times: int, found: dict[int, int] = found) -> None:
            shape = Shape("conv", inputs * outputs * pixels, inputs * outputs, (inputs + outputs) * pixels, inputs, outputs)
            found[table.setdefault(shape, len(table))] = times

        add(3, width, 256, 1)
        add(width, width, 256, depths[0])
        add(width, 2 * width, 64, 1)
        add(2 * width, 2 * width, 64, depths[1])
        counts[f"w{width}-d{depths[0]}x{depths[1]}"] = found
    return list(table), counts


def costs(layers: list[Shape], counts: dict[str, dict[int, int]], *, staircase: float, noise: float) -> dict[str, float]:
    """Milliseconds: macs and a fixed time per layer, more where the last block of 16 channels is not full."""
    random = np.random.default_rng(0)

    def of(shape: Shape) -> float:
        return (0.002 + shape.macs / 1e8) * (1 + staircase * (shape.channels_out % 16 != 0))

    return {
        name: (0.01 + sum(times * of(layers[i]) for i, times in found.items())) * float(1 + noise * random.standard_normal())
        for name, found in counts.items()
    }


def measurement(ms: float) -> Measurement:
    latency = LatencyMs(p50=ms, p90=1.1 * ms, p99=1.3 * ms, mean=1.02 * ms, n=100)
    source = dict.fromkeys(("latency_ms", "load_ms", "memory_mb"), "measured")
    return Measurement(latency_ms=latency, load_ms=5 * ms, memory_mb=10 * ms, source=source)


@pytest.mark.parametrize(
    ("staircase", "noise", "worst"),
    [(0.0, 0.0, 0.005), (0.4, 0.0, 0.06), (0.4, 0.02, 0.10)],
    ids=["linear", "staircase", "noisy"],
)
def test_twelve_of_72_tell_the_others(staircase: float, noise: float, worst: float) -> None:
    layers, counts = grid()
    true = costs(layers, counts, staircase=staircase, noise=noise)
    chosen = Estimator(layers, counts).choose(12)
    assert len(set(chosen)) == 12
    found, errors = predict(layers, counts, {name: measurement(true[name]) for name in chosen})
    assert list(found) == list(counts)
    off = {name: abs(found[name].latency_ms.p50 / true[name] - 1) for name in counts if name not in chosen}
    assert max(off.values()) < worst
    assert np.median(list(off.values())) <= 2 * errors["latency_ms"].median + 0.005
    assert errors["latency_ms"].p95 < 2 * worst + 0.02


def test_what_was_measured_stays_and_every_figure_says_which_it_is() -> None:
    layers, counts = grid()
    true = costs(layers, counts, staircase=0.2, noise=0.01)
    measured = {name: measurement(true[name]) for name in list(counts)[::7]}
    found, _ = predict(layers, counts, measured)
    for name, m in found.items():
        if name in measured:
            assert m == measured[name]
            continue
        assert m.source == {"latency_ms": "predicted", "load_ms": "predicted", "memory_mb": "predicted"}
        assert m.latency_ms.n == 0
        assert m.latency_ms.p99 / m.latency_ms.p50 == pytest.approx(1.3, rel=0.01)
        assert m.memory_mb == pytest.approx(10 * m.latency_ms.p50, rel=0.05)


def test_a_figure_that_is_not_known_of_all_measured_ones_is_not_predicted() -> None:
    layers, counts = grid()
    true = costs(layers, counts, staircase=0.0, noise=0.0)
    measured = {name: measurement(true[name]) for name in Estimator(layers, counts).choose(6)}
    first = next(iter(measured))
    document = measured[first].model_dump() | {"memory_mb": None, "source": {"latency_ms": "measured", "load_ms": "measured"}}
    measured[first] = Measurement.model_validate(document)
    found, errors = predict(layers, counts, measured)
    assert errors.keys() == {"latency_ms", "load_ms"}
    assert {m.memory_mb for name, m in found.items() if name not in measured} == {None}


@pytest.mark.parametrize("count", [2, 3, 500])
def test_few_or_all_can_be_measured(count: int) -> None:
    layers, counts = grid()
    true = costs(layers, counts, staircase=0.4, noise=0.05)
    chosen = Estimator(layers, counts).choose(count)
    assert len(chosen) == min(count, 72)
    found, _ = predict(layers, counts, {name: measurement(true[name]) for name in chosen})
    assert all(0 < m.latency_ms.p50 < 10 * max(true.values()) for m in found.values())


def test_nothing_is_predicted_from_nothing() -> None:
    layers, counts = grid()
    with pytest.raises(ValueError, match="no sub-model was measured"):
        predict(layers, counts, {})
    with pytest.raises(ValueError, match="no layers are known"):
        Estimator([], {"a": {}})


def test_a_bundle_lists_the_layers_of_every_sub_model(bundle: Bundle) -> None:
    layers = bundle.manifest.layers
    for entry in bundle.manifest.submodels:
        assert sum(layers[index].macs * count for index, count in entry.layers) == entry.macs
        assert sum(layers[index].weights * count for index, count in entry.layers) <= entry.params
    assert {layer.kind for layer in layers} == {"convolution", "addmm"}


def test_the_kinds_of_layers() -> None:
    import torch
    from torch import nn

    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(6 * 25, 7))
    with torch.no_grad(), MacCounter() as counter:
        network(torch.rand(2, 4, 5, 5))
    assert {(shape.kind, shape.macs, shape.weights, shape.activations, shape.channels_out) for shape in counter.layers} == {
        ("depthwise", 2 * 25 * 36, 36, 2 * 2 * 100, 4),
        ("convolution", 2 * 25 * 24, 24, 2 * (100 + 150), 6),
        ("addmm", 2 * 150 * 7, 150 * 7, 2 * (150 + 7), 7),
    }
    assert counter.macs == sum(shape.macs for shape in counter.layers)


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(sortednet.app, [str(a) for a in arguments])


def test_profile_measures_some_and_marks_the_others(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundle_path, path)
    result = call("profile", path, "--device", "few", "--measure", 3, "--repeats", 5, "--threads", 1)
    assert result.exit_code == 0
    assert "Measured 3 sub-models on few" in result.stdout
    assert "latency_ms of the other 3 is predicted" in result.stdout
    profile = Bundle(path).profile("few")
    assert sorted(m.source["latency_ms"] for m in profile.submodels.values()) == ["measured"] * 3 + ["predicted"] * 3
    assert profile.prediction.keys() == {"latency_ms", "load_ms", "memory_mb"}
    table = call("inspect", path, "--device", "few").stdout
    predicted = [m.latency_ms.p50 for m in profile.submodels.values() if m.source["latency_ms"] == "predicted"]
    assert all(f"~{ms:.3f}" in table for ms in predicted)
    assert "~: predicted" in table
    whole = profile_bundle(Bundle(path), predict_from=6, repeats=1, show_progress=False)
    assert whole.prediction == {}


def test_a_bundle_from_before_prediction_says_what_to_do(bundle: Bundle) -> None:
    bundle.submodels = {name: entry.model_copy(update={"layers": ()}) for name, entry in bundle.submodels.items()}
    with pytest.raises(ProfileError, match="measure = 2: no layers are known of some sub-model; export the model again"):
        profile_bundle(bundle, predict_from=2, show_progress=False)
    with pytest.raises(ProfileError, match="measure = 1: allowed are whole numbers from 2"):
        profile_bundle(bundle, predict_from=1, show_progress=False)
