"""What the order of units is worth before any training: half of one kind of units cut from the fine-tuned full model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.text.data import WORK, checkpoint
from benchmarks.text.experiment import WITHOUT_DROPOUT, Experiment, Setting, full
from benchmarks.text.scoring import DEPTH, accuracies
from trainer import NestedModel, SubModel
from trainer.family import Family, find_family
from trainer.importance import CRITERIA, sort_by_importance

NONE = "none"
HALVES = {"intermediate_size": (768, 1536), "num_attention_heads": (6, 12), "hidden_size": (192, 384)}
"""Half of each, and all of it."""


def measure(task: str, seed: int, given: Setting, work: Path = WORK / "runs") -> list[dict[str, Any]]:
    """A row per cut and criterion, accuracies on the validation split."""
    trained, _ = full(Experiment(task, "full", seed), given, work)
    family = family_with_halves(given)
    rows = []
    for criterion in (NONE, *CRITERIA):
        nested = NestedModel(family).eval()
        with torch.no_grad():
            nested.full.load_state_dict(trained.full.state_dict())
        if criterion != NONE:
            sort_by_importance(nested, given.data.train, criterion)
        cuts = {axis: SubModel(**{**family.largest.axes, axis: values[0]}) for axis, values in HALVES.items()}
        if criterion == NONE:
            cuts = {"": family.largest, **cuts}
        found = accuracies(nested, cuts.values(), given.data.validation)
        rows += [
            {"task": task, "seed": seed, "half": axis, "order": criterion, "validation": found[sub.id]}
            for axis, sub in cuts.items()
        ]
        for row in rows[-len(cuts) :]:
            print(row, flush=True)
    return rows


def family_with_halves(given: Setting) -> Family:
    """The task's family with all of its axes."""
    family = find_family("bert").for_data(given.data.spec, checkpoint=checkpoint(), **WITHOUT_DROPOUT)
    return family.with_grid({DEPTH: (int(family.largest.axes[DEPTH]),), **HALVES})  # type: ignore[arg-type]
