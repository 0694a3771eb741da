"""The experiments of `benchmarks/text`: methods are comparable, can be gone on with, and figures are what they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.summary import add_to_summary
from benchmarks.text import data
from benchmarks.text import experiment as experiments
from benchmarks.text.experiment import METHODS, Experiment, Part, Remembering, Setting, drawn_updates, options_of, run
from benchmarks.text.report import Runs, accuracy_rows, plot
from benchmarks.text.scoring import accuracies
from benchmarks.text.sorting import HALVES, family_with_halves
from tests.helpers.hugging_face import TINY
from tests.helpers.text_settings import tiny_setting
from tests.helpers.texts import write_checkpoint
from trainer import NestedModel
from trainer.checkpoint import CHECKPOINT_FILE
from trainer.evaluate import scores_of
from trainer.options import FitOptions
from trainer.training import LOG_FILE


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return tiny_setting(tmp_path_factory.mktemp("texts"))


def shaken(given: Setting) -> NestedModel:
    torch.manual_seed(0)
    nested = NestedModel(given.family).eval()
    with torch.no_grad():
        for parameter in nested.full.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return nested


def test_sizes_that_share_a_pass_have_the_accuracies_of_their_own(given: Setting) -> None:
    nested = shaken(given)
    own = scores_of(nested, nested.submodels, given.data.train)
    found = accuracies(nested, nested.submodels, given.data.train)
    assert list(found) == [sub.id for sub in nested.submodels]
    assert found == {sub.id: pytest.approx(score.quality, abs=1e-6) for sub, score in own.items()}
    assert len(set(found.values())) > 2
    some = nested.submodels[2:5]
    assert accuracies(nested, some, given.data.train) == {sub.id: found[sub.id] for sub in some}


def written(work: Path) -> dict[Path, int]:
    """When each file was, logs apart, which are cut to where a training goes on."""
    return {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file() and path.name != LOG_FILE}


@contextmanager
def small(work: Path) -> Iterator[pytest.MonkeyPatch]:
    """Within: experiments are short and begin with random numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "BATCH", {"bbc": 8})
        patch.setattr(experiments, "EPOCHS", {"bbc": 2})
        patch.setattr(experiments, "PER_STEP", 1)
        patch.setattr(experiments, "NAMED", 2)
        patch.setattr(experiments, "checkpoint", lambda: work)  # which is not at hand everywhere
        patch.setattr(experiments, "read_weights", lambda _: {})
        patch.setattr(experiments, "load_weights", lambda *_: None)
        yield patch


@pytest.fixture(scope="module")
def results(given: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("runs")
    with small(work):
        found = {method: run(Experiment("bbc", method, 0), given, work) for method in METHODS}
        files = written(work)
        again = {method: run(Experiment("bbc", method, 0), given, work) for method in METHODS}
    return {"found": found, "again": again, "work": work, "files": files, "macs": given.macs}


def test_sizes_alone_learn_from_what_the_teacher_has_between_its_layers(given: Setting, tmp_path: Path) -> None:
    """The second is given the same batches as the first was."""
    with small(tmp_path) as patch:
        patch.setattr(experiments, "LEARNING", {"bbc": {"teacher_hidden": 1.0}})
        found = run(Experiment("bbc", "alone", 0), given, tmp_path)
    assert len(found["accuracy"]) == 2
    assert found["options"]["teacher_hidden"] == 1.0


def test_every_method_gives_the_sizes_that_it_is_compared_at(results: dict[str, Any]) -> None:
    found, macs = results["found"], sorted(results["macs"].values())
    everything = {sub.id for sub in results["macs"]}
    steps = found["ours"]["updates"]
    assert steps == found["full"]["updates"]
    assert (
        set(found["ours"]["accuracy"])
        == set(found["truncated"]["accuracy"])
        == set(found["truncated"]["unsorted"])
        == everything
    )
    assert list(found["full"]["accuracy"]) == [max(results["macs"], key=lambda sub: results["macs"][sub]).id]
    assert found["truncated"]["accuracy"]["l2-f16-h2"] == found["truncated"]["unsorted"]["l2-f16-h2"]
    assert found["truncated"]["accuracy"]["l2-f16-h2"] == found["full"]["accuracy"]["l2-f16-h2"]
    assert found["early-exit"]["accuracy"].keys() == {"l1-f16-h2", "l2-f16-h2"}
    named = found["alone"]["accuracy"]
    assert len(named) == 2
    assert found["alone"]["macs"][next(iter(named))] == macs[0]
    assert set(found["alone"]["updates"].values()) == {steps}
    assert all(0 < updates < steps for updates in found["alone-share"]["updates"].values())
    assert all(0 <= value <= 1 for result in found.values() for value in result["accuracy"].values())


def test_an_experiment_that_is_run_again_trains_nothing_again(results: dict[str, Any]) -> None:
    assert written(results["work"]) == results["files"]
    for method in METHODS:
        first, again = ({**of[method], "processor_seconds": 0} for of in (results["found"], results["again"]))
        assert first == again
    assert (results["work"] / "bbc-ours-s0" / CHECKPOINT_FILE).exists()
    assert not list((results["work"] / "bbc-alone-s0").rglob(CHECKPOINT_FILE))  # of gigabytes


def test_sizes_get_alone_what_they_get_together(given: Setting) -> None:
    nested = NestedModel(given.family)
    options = {**options_of(Experiment("bbc", "ours", 3), "ours"), "batch_size": 4, "epochs": 60}
    FitOptions(**options)
    drawn = drawn_updates(nested, given, options)
    assert sum(drawn.values()) == len(given.data.train) // 4 * options["epochs"] * experiments.PER_STEP
    smallest, *between, largest = (drawn[sub] for sub in nested.submodels)
    assert min(smallest, largest) > sum(between) / len(between)
    part = Part(given.data.train, 12, 4, seed=3)
    assert len(part) == len(set(part.places.tolist())) == 12
    assert torch.equal(
        part.batch(torch.tensor([5])).inputs["input_ids"], given.data.train.batch(part.places[[5]]).inputs["input_ids"]
    )
    assert part.lengths.tolist() == given.data.train.lengths[part.places].tolist()


def test_a_teacher_is_asked_once(given: Setting) -> None:
    nested, calls = shaken(given), []
    teacher = nested.extract(given.family.largest)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    remembering = Remembering(teacher)
    inputs = [dict(given.data.train.batch(torch.tensor(places)).inputs) for places in ([0, 1], [2, 3], [0, 1])]
    with torch.no_grad():
        answers = [remembering(**one) for one in inputs]
        assert torch.equal(answers[1], teacher(**inputs[1]).logits)
    assert torch.equal(answers[0], answers[2])
    assert len(calls) == 3
    assert isinstance(remembering, nn.Module)


def test_half_of_each_kind_of_units_is_cut_by_itself(given: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.text.sorting.checkpoint", lambda: write_checkpoint(tmp_path, **TINY["bert"]))
    monkeypatch.setattr(
        "benchmarks.text.sorting.HALVES", {axis: (one // 2, one) for axis, one in zip(HALVES, (16, 2, 32), strict=True)}
    )
    family = family_with_halves(given)
    assert family.largest.id == "l2-f16-h2-d32"
    assert len(family.grid()) == 8


MACS = {"l1-f8-h1": 10, "l1-f16-h2": 20, "l2-f8-h1": 30, "l2-f16-h2": 40}


def made_up(method: str, seed: int, values: dict[str, float], **more: Any) -> dict[str, Any]:
    return {"task": "bbc", "method": method, "seed": seed, "macs": MACS, "accuracy": values, **more}


def all_of(*values: float) -> dict[str, float]:
    return dict(zip(MACS, values, strict=True))


def test_figures_are_what_they_are_called(tmp_path: Path) -> None:
    wide = {"l1-f16-h2": 0.75, "l2-f16-h2": 0.89}
    found = [
        made_up("full", 0, {"l2-f16-h2": 0.9}),
        made_up("full", 1, {"l2-f16-h2": 0.8}),
        made_up("ours", 0, all_of(0.81, 0.85, 0.88, 0.9)),
        made_up("ours", 1, all_of(0.76, 0.78, 0.79, 0.81)),
        made_up("truncated", 0, all_of(0.5, 0.6, 0.85, 0.9), unsorted=all_of(0.4, 0.6, 0.8, 0.9)),
        made_up("early-exit", 0, wide),
        made_up("alone", 0, {"l1-f8-h1": 0.82, "l2-f8-h1": 0.88}),
        made_up("alone", 1, {"l1-f8-h1": 0.76, "l2-f8-h1": 0.8}),
        {**made_up("full", 0, {"l2-f16-h2": 0.1}), "task": "gloss"},
    ]
    runs = Runs(found, "bbc")
    figures = runs.figures()
    assert figures["min_retention"] == pytest.approx(0.9)
    assert figures["smallest_retention"] == pytest.approx((0.9 + 0.95) / 2)
    assert (figures["mac_span"], figures["seeds"], figures["submodels"]) == (4, 2, 4)
    assert figures["gain_over_truncated_mean"] == pytest.approx((31 + 25 + 3 + 0) / 4)
    assert figures["gain_over_truncated_depth_min"] == pytest.approx(1.5)
    assert figures["gain_over_unsorted_mean"] == pytest.approx((41 + 25 + 8 + 0) / 4)
    assert figures["gain_over_early_exit_mean"] == pytest.approx((6 + 10 - 1 + 1) / 4)
    assert figures["gain_over_early_exit_depth_min"] == pytest.approx(0)
    assert figures["gain_over_early_exit_full_width_mean"] == pytest.approx(10)
    assert figures["gap_separate_mean"] == pytest.approx((-1 + 0 + 0 - 1) / 4)
    assert figures["gap_separate_min"] == pytest.approx(-0.5)
    assert "gap_share_mean" not in figures
    assert Runs([], "bbc").figures() == {}
    assert {row["method"] for row in accuracy_rows(found)} == {"full", "ours", "truncated", "unsorted", "early-exit", "alone"}
    plot({"bbc": runs, "gloss": Runs(found, "gloss")}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_what_others_have_measured_stays_in_the_summary(tmp_path: Path) -> None:
    add_to_summary(tmp_path, "one", {"a": 1.0, "b": 2.0}, {"a": "first", "b": "second"})
    add_to_summary(tmp_path, "two", {"b": 3.0, "c": 4.0}, {"b": "anew"})
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["figures"] == {"a": 1.0, "b": 3.0, "c": 4.0}
    assert document["notes"] == {"a": "first", "b": "anew"}
    assert document["command"] == "two"


def test_data_that_another_machine_has_prepared_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORTEDNET_TEXT_DATA", str(tmp_path))
    monkeypatch.setattr(data, "_folder_of", lambda package: pytest.fail(f"looked for {package}"))
    for name in ("checkpoint", "bbc", "gloss"):
        (tmp_path / name).mkdir()
    assert data.checkpoint() == tmp_path / "checkpoint"
    assert {task: of() for task, of in data.TASKS.items()} == {task: tmp_path / task for task in ("bbc", "gloss")}
    (tmp_path / "gloss").rmdir()
    with pytest.raises(SystemExit, match=r"SORTEDNET_TEXT_DATA = .*: has no folder gloss"):
        data.glosses()
