"""What a training may cost the full model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.language import language_family, mixed, sequences
from trainer import Samples, TrainerError, fit
from trainer.evaluate import scores_of
from trainer.hold import taken_back
from trainer.interruption import TrainingInterrupted


@pytest.mark.parametrize(("may_lose", "kept"), [(0.2, 1.0), (0.1, 1.0), (0.05, 0.5), (0.0, 0.0), (0.07, 0.6875)])
def test_so_much_of_the_way_is_kept_as_costs_no_more_than_it_may(may_lose: float, kept: float) -> None:
    begin, parameters = {"p": torch.zeros(3)}, {"p": torch.ones(3)}
    found = taken_back(parameters, begin, lambda: 0.5 * (1 - 0.1 * float(parameters["p"][0])), may_lose)
    assert found == pytest.approx(kept)
    assert parameters["p"].tolist() == pytest.approx([kept] * 3)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_training_that_harms_the_full_model_is_taken_back_as_far_as_it_must(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate that destroys what it knew; one that was interrupted still knows where it began."""
    nested = mixed(language_family())
    original, inputs = nested.extract(nested.family.largest), sequences().inputs
    data = Samples(inputs, nested.eval().outputs(inputs)["logits"].argmax(-1))  # what it knows
    (before,) = scores_of(nested, [nested.family.largest], data).values()
    said: dict[str, Any] = {
        "optimizer": "adamw",
        "lr": 0.3,
        "batch_size": 2,
        "may_lose": 0.01,
        "epochs": 2,
        "accelerator": "cpu",
    }
    said |= {"show_progress": False, "teacher": original, "run": tmp_path}
    if interrupted:
        monkeypatch.setattr("trainer.training._Training._validate", _stopped)
        with pytest.raises(TrainingInterrupted):
            fit(nested, data, data, **said)
        monkeypatch.undo()
        nested = mixed(language_family(), seed=5)
    result = fit(nested, data, data, resume=interrupted, **said)
    assert result.kept < 1
    (after,) = scores_of(nested.eval(), [nested.family.largest], data).values()
    assert after.quality >= 0.99 * before.quality


def _stopped(training: Any) -> dict[str, float]:
    training._save()
    raise TrainingInterrupted("stopped")


def test_without_validation_data_it_cannot_be_known() -> None:
    with pytest.raises(TrainerError, match=r"may_lose = 0.5: it is measured on validation data"):
        fit(mixed(language_family()), sequences(), may_lose=0.5, batch_size=2, show_progress=False, accelerator="cpu")
