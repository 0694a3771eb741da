"""What tests of trainings compare: weights and logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import NestedModel

SETTINGS = {"channels": [4, 8], "blocks": [1, 2], "widths": [0.5, 1.0], "depths": [1, 2]}


def weights(nested: NestedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in nested.full.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
