"""What a training step of a sub-model inside the nested model costs over the same step of that sub-model alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.path.found import Found
from trainer import NestedModel, SubModel
from trainer.families import ResNet
from trainer.options import FitOptions
from trainer.schedule import make_optimizer

SECONDS = 20.0  # of paired steps for each size
MIN_STEPS = 20
BATCH = 128


def measure() -> Found:
    """Forward, backward, gradient clipping and optimizer step; the two variants take turns."""
    family = ResNet(input_shape=(1, 28, 28))
    torch.manual_seed(0)
    nested = NestedModel(family).train()
    images, labels = torch.rand(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    rows: list[dict[str, object]] = []
    ratios = []
    for sub in (SubModel(width=0.25, depth=1), SubModel(width=0.5, depth=2), SubModel(width=0.75, depth=3), family.largest):
        ours, alone = _inside(nested, sub, images, labels), _alone(nested, sub, images, labels)
        for _ in range(3):  # primitives are created, memory is allocated
            ours()
            alone()
        taken: dict[str, list[float]] = {"ours": [], "alone": []}
        steps = [("ours", ours), ("alone", alone)]
        begun = time.perf_counter()
        while time.perf_counter() - begun < SECONDS or len(taken["ours"]) < MIN_STEPS:
            for name, step in steps:
                taken[name].append(_seconds(step))
            steps.reverse()  # neither always comes first
        ratio = float(np.median(np.array(taken["ours"]) / np.array(taken["alone"])))
        ratios.append(ratio)
        medians = {f"{name}_ms": round(1e3 * float(np.median(values)), 3) for name, values in taken.items()}
        rows.append({"part": "step", "submodel": sub.id, "pairs": len(taken["ours"]), "ratio": round(ratio, 4), **medians})
    note = (
        f"largest of {len(ratios)} sizes of the default ResNet, batch {BATCH} of 28 x 28; median of {SECONDS:.0f} seconds of "
        "paired steps each"
    )
    return Found({"train_step_overhead": max(ratios)}, {"train_step_overhead": note}, rows)


def _inside(nested: NestedModel, sub: SubModel, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = make_optimizer(nested.full, FitOptions())

    def step() -> None:
        nested.accumulate_gradients(sub, images, lambda outputs: F.cross_entropy(outputs["logits"], labels))
        torch.nn.utils.clip_grad_norm_(nested.full.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _alone(nested: NestedModel, sub: SubModel, images: Tensor, labels: Tensor) -> Callable[[], None]:
    module = nested.extract(sub).train()
    optimizer = make_optimizer(module, FitOptions())

    def step() -> None:
        F.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun
