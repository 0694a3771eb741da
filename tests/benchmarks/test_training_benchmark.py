"""`benchmarks/training`: methods are comparable, experiments can be gone on with, figures are what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training import experiment as experiments
from benchmarks.training.experiment import Experiment, macs_of, run
from benchmarks.training.methods import CONVERTING, METHODS, TEACHER_COST, VARIANTS, Method
from benchmarks.training.peers import RandomLinear
from benchmarks.training.report import Runs, plot, plot_sweep, sorting_figures
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


@pytest.mark.parametrize("name", CONVERTING)
def test_methods_that_convert_keep_to_their_budget(name: str, digits: DataSet) -> None:
    method = CONVERTING[name]
    FitOptions(update=method.update, samples_per_step=method.samples_per_step, **method.options)
    gradients = 12 * method.budget
    epochs = method.epochs(12)
    passes = min(epochs, method.options.get("teacher_views") or epochs) if method.teacher else 0
    assert abs(epochs * method.per_step + TEACHER_COST * passes - gradients) <= method.per_step / 2
    assert gradients + 12 * method.begins == 36 or name in ("convert-1", "convert-4")


def test_the_peers_draw_as_their_papers_say(digits: DataSet) -> None:
    submodels = SETUPS["resnet"].build(digits).grid()
    alternating = make_rule("ats", submodels, 1)
    assert all(alternating.sample(step, 0) == [submodels[-1]] for step in range(1, 40, 2))
    assert len({sub for step in range(0, 200, 2) for sub in alternating.sample(step, 0)}) > 50
    linear = make_rule("random-linear", submodels, 1)
    RandomLinear.steps = 2000
    full = [linear.sample(step, 0) == [submodels[-1]] for step in range(2000)]
    assert full[0]
    assert 0.8 < sum(full[:500]) / 500 < 0.95  # 1 - 1/8 expected
    assert 0.05 < sum(full[1500:]) / 500 < 0.2


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
    assert again["cost"]["total_gradients"] == steps * method.per_step
    if not method.alone:
        nested = load_run(tmp_path / asked.name).nested
        export(nested, out=tmp_path / "bundle", test_data=digits.test)


def test_converting_begins_with_the_original_and_counts_what_it_cost(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(experiments.SETUPS, "tiny", TINY)
    method = Method("sorted", 1, 1, {"edges": 0.0, "lr": 1e-9}, budget=2, begins=True, sort="magnitude", teacher=True)
    found = run(Experiment("tiny", "m", seed=0, epochs=2, data="digits"), method, tmp_path, {"test": 0})
    steps = len(digits.train) // 128
    assert method.epochs(2) == 3
    assert found["cost"]["teacher_passes"] == found["cost"]["gradient_computations"] == 3 * steps
    assert found["cost"]["total_gradients"] == pytest.approx(3 * steps * 4 / 3 + 2 * steps)
    (original,) = found["original"]["test"].values()
    full = found["accuracy"]["test"][TINY.build(digits).largest.id]
    assert abs(full - original) < 0.01  # at this learning rate it stays what it was


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


def test_figures_of_converting_by_hand(tmp_path: Path) -> None:
    sizes = ("small", "middle", "large")
    values = {"ours": (0.9, 0.9, 0.9), "sandwich": (0.9, 0.9, 0.9), "separate": (0.91, 0.93, 0.95)}
    values |= dict.fromkeys(("sorted-1", "sorted-2", "sorted-4"), (0.9, 0.9, 0.9))
    values |= {"sorted-total": (0.90, 0.92, 0.93), "convert-4": (0.91, 0.93, 0.95)}
    results = [result(method, 0, dict(zip(sizes, found, strict=True))) for method, found in values.items()]
    converted = result("convert", 0, dict(zip(sizes, (0.90, 0.93, 0.945), strict=True)))
    results.append(converted | {"original": {"test": {"size1": 0.95}}})
    runs = Runs(results, "resnet")
    found = runs.figures()
    assert found["convert.gap_separate_mean"] == pytest.approx(-0.5)
    assert found["convert.gap_separate_min"] == pytest.approx(-1)
    assert found["convert.min_retention"] == pytest.approx(0.90 / 0.95)
    assert found["convert.full_change"] == pytest.approx(-0.5)
    assert found["convert.gain_over_sorted_mean"] == pytest.approx(100 * (2.775 - 2.75) / 3)
    assert found["convert.gain_over_sorted_min"] == pytest.approx(0)
    assert found["convert.sweep_4.gap_separate_mean"] == pytest.approx(0)
    assert "convert.gain_over_sandwich_mean" not in found
    plot_sweep(runs, tmp_path / "sweep.png", "title")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    rows = [
        {"setup": "resnet", "order": o, "test": t}
        for o, t in (("none", 20.0), ("taylor", 50.0), ("none", 30.0), ("taylor", 50.0))
    ]
    assert sorting_figures(rows, "taylor") == {"resnet.convert.sorted_gain_half_width": pytest.approx(25)}
