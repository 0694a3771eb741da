"""How a setup is trained: the methods that are compared, and the variants of ours that were tried.

Methods compute the same number of sub-model gradients, each over a batch of the same size: who computes four in a step gets a
quarter of the epochs of who computes one. `ours-4` shows what four times the gradients give at the epochs of the networks
trained separately. Those of CONVERTING begin with the full model that was trained alone, or have as many gradients as it and
they have together: three times those of one training.

The learning rate is the same for all: of 0.1, 0.4 and 0.8 it was the best on the validation split for networks trained
separately (ResNet, 4 epochs, `results/exploration.csv`); plain `sorted` gained as much with 0.8. `ours` draws the two ends of
the grid more often: of what was tried (`exploration.csv`) nothing else won on the validation split over both families and two
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """An update rule with its options."""

    update: str
    samples_per_step: int
    per_step: int  # gradient computations
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: int = 0  # so many of the grid are trained, evenly spaced in the order of MACs; 0 means all
    alone: bool = False  # each of these sizes in a network of its own
    all_epochs: bool = False  # as many epochs as with one gradient per step
    budget: float = 1.0  # gradient computations, in those of a method with one sub-model per step
    begins: bool = False  # with the full model that was trained alone from the same seed, which is not part of the budget
    sort: str = "none"  # what it begins with
    teacher: bool = False  # and learns from it: a forward pass a step, a third of a gradient computation

    def epochs(self, asked: int) -> int:
        """How many epochs it may train where a method with one sub-model per step may train `asked`."""
        if self.alone or self.all_epochs:
            return asked
        views = self.options.get("teacher_views", 0)  # which it answers once
        each = self.per_step + (TEACHER_COST if self.teacher and not views else 0)
        return max(1, round((asked * self.budget - (TEACHER_COST * views if self.teacher else 0)) / each))


TEACHER_COST = 1 / 3
"""Of a gradient computation: a forward pass, without the backward pass, which takes twice as long."""

LR = 0.4
PLAIN = {"lr": LR, "edges": 0.0}
METHODS = {
    "ours": Method("sorted", 1, per_step=1, options={"lr": LR, "edges": 0.2}),
    "ours-4": Method("sorted", 4, per_step=4, options={"lr": LR, "edges": 0.2}, all_epochs=True),
    "sorted-1": Method("sorted", 1, per_step=1, options=PLAIN),
    "sorted-2": Method("sorted", 2, per_step=2, options=PLAIN),
    "sorted-4": Method("sorted", 4, per_step=4, options=PLAIN),
    "sandwich": Method("sandwich", 2, per_step=4, options=PLAIN),
    "sum-4": Method("sum", 1, per_step=4, sizes=4, options=PLAIN),
    "separate": Method("full", 1, per_step=1, sizes=7, alone=True, options=PLAIN),
}

SORT = "l2"
LEARNING = {**PLAIN, "teacher_share": 0.25, "temperature": 2.0, "teacher_views": 6}
CONVERTING = {
    "convert": Method("sorted", 1, per_step=1, options=LEARNING, budget=2, begins=True, sort=SORT, teacher=True),
    "convert-1": Method("sorted", 1, per_step=1, options=LEARNING, budget=1, begins=True, sort=SORT, teacher=True),
    "convert-4": Method("sorted", 1, per_step=1, options=LEARNING, budget=4, begins=True, sort=SORT, teacher=True),
    "convert-labels": Method("sorted", 1, per_step=1, options=PLAIN, budget=2, begins=True, sort=SORT),
    "sorted-total": Method("sorted", 1, per_step=1, options=PLAIN, budget=3),
    "sandwich-total": Method("sandwich", 2, per_step=4, options=PLAIN, budget=3),
    "random-linear": Method("random-linear", 1, per_step=1, options=PLAIN, budget=2, begins=True),
    "ats": Method("ats", 1, per_step=1, options=PLAIN, budget=2, begins=True),
}
"""With the training of the full model that they begin with, those of budget 2 have three times its gradients in all."""

VARIANTS = {
    "ours": METHODS["ours"],
    "without edges": METHODS["sorted-1"],
    **{f"lr {lr}": Method("sorted", 1, per_step=1, options={"lr": lr}) for lr in (0.2, 0.8)},
    "clipped at 4": Method("sorted", 1, per_step=1, options={"lr": LR, "clip_norm": 4.0}),
}
