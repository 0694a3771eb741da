"""What tests of trainings compare: weights and logs."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from tests.helpers.hard import Hard
from trainer import NestedModel, Samples
from trainer.data import Augmentation, DataSet
from trainer.data.augment import Augmented
from trainer.families import ResNet
from trainer.making import train_run
from trainer.task import Targets

SETTINGS = {"channels": [4, 8], "blocks": [1, 2], "widths": [0.5, 1.0], "depths": [1, 2]}


def weights(nested: NestedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in nested.full.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def network(digits: DataSet) -> NestedModel:
    torch.manual_seed(0)
    return NestedModel(ResNet.for_data(digits.spec, **SETTINGS))


def first(digits: DataSet, count: int) -> Samples:
    return Samples(*first_arrays(digits, count))


def first_arrays(digits: DataSet, count: int) -> tuple[Tensor, Tensor]:
    assert isinstance(digits.train, Samples)
    assert isinstance(digits.train.targets, Tensor)
    return digits.train.inputs["input"][:count], digits.train.targets[:count]


def hard() -> tuple[NestedModel, Samples]:
    """A network with dropout and BatchNorm, and 40 examples: 10 steps an epoch at batch_size=4."""
    torch.manual_seed(0)
    nested = NestedModel(Hard())
    return nested, Samples(torch.rand(40, 5), torch.arange(40) % 4)


def noise(at_step: int = -1, signals: tuple[signal.Signals, ...] = ()) -> Augmentation:
    """An augmentation that sends signals to this process when it is asked for the batch of that step."""
    calls = iter(range(10**6))

    def apply(inputs: Mapping[str, Tensor], targets: Targets, generator: Generator) -> Augmented:
        if next(calls) == at_step:
            for number in signals:
                signal.raise_signal(number)
        return {n: t + 0.1 * torch.rand(t.shape, generator=generator) for n, t in inputs.items()}, targets

    return apply


def train(folder: Path, *, family: str = "resnet", data: str = "digits", **changes: Any) -> dict[str, Any]:
    arguments = {"grid": {}, "settings": SETTINGS, "show_progress": False, **changes}
    arguments["options"] = {"epochs": 1, "batch_size": 64, "update": "full", **changes.get("options", {})}
    return train_run(family, data, folder, **arguments)
