"""Texts without targets: what the original model answers is learnt, measured by, and still known when the run is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.run import export_run
from tests.helpers.embedders import Embedder
from tests.helpers.runs import equal, train, weights
from tests.helpers.texts import write_texts
from trainer import NestedModel, Samples, TrainerError
from trainer.checkpoint import load_tensors
from trainer.data import load_data
from trainer.importance import sort_by_importance
from trainer.options import with_usual
from trainer.run import load_run
from trainer.start import Start
from trainer.targets import Targeted, teacher_targets

FAMILY = "tests.helpers.embedders:Embedder"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder / "data")
    data = load_data(f"text-folder:{folder / 'data'}", {"max_tokens": 12})
    torch.manual_seed(3)
    family = Embedder.for_data(data.spec)
    torch.save(family.build(family.largest).state_dict(), folder / "original.pth")
    return folder


def of(texts: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    options = {"update": "sorted", "epochs": 2, "batch_size": 8, "teacher_hidden": 0.5, **changes.pop("options", {})}
    given = {"data": f"text-folder:{texts / 'data'}", "data_options": {"max_tokens": 12}, "settings": {}, "options": options}
    return train(folder, family=FAMILY, start=Start(texts / "original.pth"), **{**given, **changes})


def test_what_the_original_answers_is_learnt_and_still_known_at_export(texts: Path, tmp_path: Path) -> None:
    said: list[str] = []
    results = of(texts, tmp_path / "run", say=said.append)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert said[0].startswith("21 of 60 texts are longer than max_tokens = 12")
    assert said[1] == f"Targets are what {texts / 'original.pth'} answers."
    assert record["start"]["quality"] == pytest.approx(1, abs=1e-6)
    assert (record["labels"], results["metric"]) == ([], "cosine")
    assert 0 < record["start"]["sorted"] == 2  # within the blocks; the vector's numbers stay where they are
    kept, _ = load_tensors(tmp_path / "run" / "targets.safetensors")
    assert {part: tuple(t.shape) for part, t in kept.items()} == {
        part: (record["data"]["sizes"][part], 8) for part in ("validation", "test")
    }
    bundle = export_run(tmp_path / "run", tmp_path / "bundle", ["h8-i16-b2", "h4-i8-b1"])
    assert bundle.manifest.outputs[0].shape == ("batch", "dimensions")  # another number of them in every size
    for name, quality in bundle.qualities.items():
        assert quality == pytest.approx(results["test"][name]["quality"], abs=1e-5)
    (tmp_path / "run" / "targets.safetensors").unlink()
    with pytest.raises(TrainerError, match=r"targets\.safetensors: is missing"):
        load_run(tmp_path / "run")


def test_a_resumed_run_learns_from_a_teacher_in_the_same_order(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import training

    of(texts, tmp_path / "whole")
    save = training._Training._save

    def saved(self: Any) -> None:
        save(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "_save", saved)
    with pytest.raises(KeyboardInterrupt):
        of(texts, tmp_path / "run")
    monkeypatch.undo()
    of(texts, tmp_path / "run", resume=True)
    assert equal(weights(load_run(tmp_path / "whole").nested), weights(load_run(tmp_path / "run").nested))


def test_without_an_original_there_are_no_targets(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"targets: the data have no real numbers; allowed are such, or weights \(--from\)"):
        train(tmp_path / "run", family=FAMILY, settings={}, data=f"text-folder:{texts / 'data'}")
    assert not (tmp_path / "run" / "run.json").exists()


def test_answers_are_each_examples_own_whatever_they_are_read_with() -> None:
    """Examples of unlike lengths are read the shortest first."""
    family = Embedder()
    torch.manual_seed(0)
    module = family.build(family.largest)
    inputs = torch.randint(0, 40, (150, 12))
    examples = Samples(inputs, torch.zeros(150))
    examples.lengths = torch.arange(150).flip(0)  # type: ignore[attr-defined]
    found = teacher_targets(module, examples)
    with torch.no_grad():
        torch.testing.assert_close(found, module(inputs))
    assert Targeted(examples, found).repeats  # so that a teacher's answers are remembered
    chosen = torch.tensor([7, 100])
    assert torch.equal(Targeted(examples, found).batch(chosen).targets, found[chosen])  # type: ignore[arg-type]
    with pytest.raises(TrainerError, match="targets: 3 for 150 examples; allowed is one for each"):
        Targeted(examples, found[:3])


def test_units_are_sorted_by_what_they_matter_though_nothing_is_to_be_learnt_yet() -> None:
    """The loss against a model's own answers has no slope, so that it says nothing of its units."""
    torch.manual_seed(0)
    nested = NestedModel(Embedder())
    shares = torch.tensor([1.0, 0.01]).repeat(8)  # every second unit hardly matters
    with torch.no_grad():
        for block in nested.full.blocks:  # type: ignore[union-attr]
            block.down.weight.mul_(3 * shares)  # type: ignore[union-attr]
    inputs = torch.randint(0, 40, (200, 12))
    examples = Targeted(Samples(inputs, torch.zeros(200)), teacher_targets(nested.full, Samples(inputs, torch.zeros(200))))
    orders = sort_by_importance(nested, examples).orders
    assert all(np.mean(order[:8] % 2 == 0) == 1 for order in orders.values())


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1, "batch_size": 8}),
        ({"lr": 0.5}, {"optimizer": "adamw", "lr": 0.5, "weight_decay": 0.1, "batch_size": 8}),
        ({"optimizer": "sgd"}, {"optimizer": "sgd", "batch_size": 8}),
    ],
)
def test_a_familys_own_options_are_taken_where_nobody_says_otherwise(given: dict[str, Any], found: dict[str, Any]) -> None:
    assert with_usual(Embedder.usual_options(True), given) == found


def test_a_run_over_tags_of_entities_is_measured_by_whole_entities(tmp_path: Path) -> None:
    source = {"family": "tests.helpers.embedders:Tagger", "data": "tests.helpers.embedders:tagged", "settings": {}}
    options = {"batch_size": 8, "update": "sorted"}
    results = train(tmp_path / "run", task="token-classification", options=options, **source)
    assert results["metric"] == "entity_f1"
    task = load_run(tmp_path / "run").nested.family.task
    assert task.config() == {"labels": ("O", "B-place", "I-place")}
    bundle = export_run(tmp_path / "run", tmp_path / "bundle")
    assert bundle.metric == "entity_f1"
    for name, quality in bundle.qualities.items():
        assert quality == pytest.approx(results["test"][name]["quality"], abs=1e-5)
