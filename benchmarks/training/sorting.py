"""What the order of units is worth before any training: quality at half width, by criterion; and which blocks to keep.

The full model was trained alone. Its half-width sub-model is cut from it and calibrated, nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.training.experiment import Experiment, begin_with, full_alone
from benchmarks.training.setups import SETUPS
from trainer import NestedModel, SubModel
from trainer.calibration import calibrate, calibration_batches
from trainer.data import DataSet
from trainer.evaluate import scores_of
from trainer.importance import CRITERIA, sort_by_importance

HALF = 0.5


def measure(setup: str, seed: int, epochs: int, data: DataSet, work: Path) -> list[dict[str, Any]]:
    """A row per criterion, with unsorted prefixes as "none", then a row per choice of two blocks of a stage's three."""
    original = full_alone(Experiment(setup, "separate", seed, epochs), data, work)
    family = SETUPS[setup].build(data)
    half = SubModel(**{**family.largest.axes, "width": HALF})
    rows = []
    for criterion in ("none", *CRITERIA):
        nested = NestedModel(family)
        begin_with(nested, original)
        if criterion != "none":
            sort_by_importance(nested, data.train, criterion)
        rows.append({"order": criterion, "sub_model": half.id, **_accuracies(nested, half, data)})
    for stage, kept in itertools.product(range(-3, 0), ((0, 1), (0, 2))):
        depth = list(family.largest["depth"])  # type: ignore[arg-type]
        depth[stage] = len(kept)
        sub = SubModel(**{**family.largest.axes, "depth": tuple(depth)})
        nested = NestedModel(family)
        begin_with(nested, original)
        _keep(nested.full, stage, kept)
        shown = f"blocks {' and '.join(str(b + 1) for b in kept)} of stage {len(depth) + stage + 1}"
        rows.append({"order": shown, "sub_model": sub.id, **_accuracies(nested, sub, data)})
    return [{"setup": setup, "seed": seed, **row} for row in rows]


def _accuracies(nested: NestedModel, sub: SubModel, data: DataSet) -> Mapping[str, float]:
    calibrate(nested, calibration_batches(data.train), [sub])
    return {
        split: round(100 * scores_of(nested, [sub], getattr(data, split))[sub].quality, 2) for split in ("validation", "test")
    }


def _keep(full: nn.Module, stage: int, kept: tuple[int, ...]) -> None:
    """The first blocks of the stage get the parameters of these."""
    stages: Any = full.get_submodule("stages")
    blocks = stages[stage]
    states = [{name: tensor.clone() for name, tensor in blocks[b].state_dict().items()} for b in kept]
    for block, state in zip(blocks, states, strict=False):
        block.load_state_dict(state)
