"""`benchmarks/training`: methods are comparable, experiments can be gone on with, figures are what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training import experiment as experiments
from benchmarks.training.experiment import Experiment, macs_of, run
from benchmarks.training.methods import METHODS, VARIANTS, Method
from benchmarks.training.report import Runs, plot
from benchmarks.training.setups import SETUPS, Setup
from exporter import export
from trainer.data import DataSet
from trainer.options import FitOptions
from trainer.run import load_run
from trainer.updates import make_rule


@pytest.mark.parametrize("setup", SETUPS)
def test_a_grid_has_160_sub_models_and_spans_a_factor_of_16(setup: str, digits: DataSet) -> None:
    macs = macs_of(SETUPS[setup].build(digits))
    assert len(macs) == 160
    family = SETUPS[setup].build(digits)
    assert min(macs, key=lambda sub: macs[sub]) == family.smallest
    assert max(macs.values()) >= 16 * min(macs.values())


@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_every_method_computes_as_many_gradients(name: str, digits: DataSet) -> None:
    method = {**METHODS, **VARIANTS}[name]
    FitOptions(update=method.update, samples_per_step=method.samples_per_step, **method.options)
    submodels = SETUPS["resnet"].build(digits).grid()[: method.sizes or None]
    assert len(make_rule(method.update, submodels, method.samples_per_step).sample(0, 0)) == method.per_step
    if method.alone or name == "ours-4":  # as many epochs, and more gradients
        assert method.epochs(12) == 12
    else:
        assert method.epochs(12) * method.per_step == 12


TINY = Setup("resnet", {"channels": (4, 8), "blocks": (1, 2), "widths": (0.5, 1.0), "multiple": 2})


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        (Method("sandwich", 2, per_step=4), 4),
        (Method("sum", 1, per_step=2, sizes=2), 4),
        (Method("full", 1, per_step=1, sizes=3, alone=True), 3),
    ],
    ids=["together", "few sizes", "alone"],
)
def test_an_experiment_measures_what_it_trained_and_its_model_can_be_exported(
    method: Method, trained: int, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(experiments.SETUPS, "tiny", TINY)
    asked = Experiment("tiny", "m", seed=3, epochs=1, data="digits")
    result = run(asked, method, tmp_path, {"validation": 2, "test": 0})
    assert len(result["accuracy"]["test"]) == trained
    assert len(result["macs"]) == 4
    steps = len(digits.train) // 128 * method.epochs(1) * (trained if method.alone else 1)
    assert result["cost"]["gradient_computations"] == steps * method.per_step
    assert result["options"]["seed"] == 3
    again = run(asked, method, tmp_path, {"validation": 2, "test": 0})  # from the last checkpoint: no step is left
    assert again["accuracy"] == result["accuracy"]
    assert again["cost"] == result["cost"]
    if not method.alone:
        nested = load_run(tmp_path / asked.name).nested
        export(nested, out=tmp_path / "bundle", test_data=digits.test)


def result(method: str, seed: int, accuracy: Mapping[str, float]) -> dict[str, Any]:
    return {
        "setup": "resnet",
        "method": method,
        "seed": seed,
        "options": {"epochs": 1},
        "cost": {"gradient_computations": 1, "seconds": 60.0},
        "macs": {"large": 160, "small": 10, "middle": 50},
        "accuracy": {"test": dict(accuracy)},
    }


def test_figures_by_hand(tmp_path: Path) -> None:
    ours = [{"small": 0.90, "middle": 0.92, "large": 0.94}, {"small": 0.88, "middle": 0.92, "large": 0.96}]
    separate = [{"small": 0.91, "large": 0.95}, {"small": 0.89, "large": 0.95}]
    results = [result("ours", s, a) for s, a in enumerate(ours)] + [result("separate", s, a) for s, a in enumerate(separate)]
    others = {"sandwich": (0.85, 0.93, 0.95), "sorted-1": (0.80, 0.80, 0.80), "sorted-2": (0.89, 0.90, 0.91)}
    for method, values in {**others, "sorted-4": (0.70, 0.95, 0.96)}.items():
        results.append(result(method, 0, dict(zip(("small", "middle", "large"), values, strict=True))))
    runs = Runs(results, "resnet")
    found = runs.figures()
    assert runs.complete
    assert found["mac_span"] == 16
    assert found["min_retention"] == pytest.approx(0.88 / 0.95)
    assert found["mean_retention"] == pytest.approx((2.76 + 2.76) / 0.95 / 6)
    assert found["gap_separate_mean"] == pytest.approx(-0.5)  # small -1, large 0
    assert found["gap_separate_min"] == pytest.approx(-1)
    assert found["gain_over_sandwich_mean"] == pytest.approx(100 * (0.92 - 0.91))
    assert found["gain_over_sandwich_min"] == pytest.approx(5)
    assert found["gain_over_sorted_mean"] == pytest.approx(2)  # sorted-2, the best in the mean
    assert found["gain_over_sorted_min"] == pytest.approx(1)  # sorted-2 again
    plot(runs, tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert not Runs(results[:3], "resnet").complete
