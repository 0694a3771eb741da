"""Update rules: which sub-models a training step computes, and the loss of each. Adding a rule means one class here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from random import Random
from typing import ClassVar

from torch import Tensor

from trainer.submodel import AxisValue, SubModel, TrainerError
from trainer.task import Outputs, Targets, Task


def drawn(step: int, seed: int) -> Random:
    """What is random in a step's choice, from the step's number: a resumed run draws the same."""
    return Random(f"{seed}/sample/{step}")


class UpdateRule(ABC):
    """The gradients of a step's sub-models are averaged, then applied once.

    The average instead of the sum keeps the learning rate independent of how many sub-models a step computes.
    """

    name: ClassVar[str]

    distils: ClassVar[bool] = False
    """Whether its loss needs `Task.distil`."""

    def __init__(self, submodels: Sequence[SubModel], samples_per_step: int, edges: float = 0.0) -> None:
        """`edges`: the share of a step's draws that are the largest or the smallest, half each, and not random."""
        if samples_per_step < 1:
            raise TrainerError(f"samples_per_step = {samples_per_step}: allowed are 1 and more")
        self.edges = edges
        self.submodels = list(submodels)
        self.smallest, self.largest = self.submodels[0], self.submodels[-1]
        self.samples_per_step = samples_per_step

    @property
    def trained(self) -> list[SubModel]:
        """Those that some step may compute: what a run is measured by."""
        return self.submodels

    @abstractmethod
    def sample(self, step: int, seed: int) -> list[SubModel]:
        """The sub-models of that step, in order of computation; the same for the same step and seed."""

    def loss(self, task: Task, outputs: Outputs, targets: Targets, earlier: Mapping[SubModel, Outputs]) -> Tensor:
        """Scalar loss of one sub-model. `earlier`: detached outputs of those already computed in this step."""
        return task.loss(outputs, targets)


class Sorted(UpdateRule):
    """SortedNet (Valipour et al., arXiv 2309.00255, section 3): G sub-models drawn uniformly, gradients accumulated.

    With `edges` the two ends of the grid, which have neighbours on one side only, are drawn more often than the others.
    """

    name = "sorted"

    def sample(self, step: int, seed: int) -> list[SubModel]:
        random = drawn(step, seed)
        found = random.sample(self.submodels, min(self.samples_per_step, len(self.submodels)))
        for place in range(len(found)):
            luck = random.random()
            end = self.largest if luck < self.edges / 2 else self.smallest if luck < self.edges else None
            if end is not None and end not in found:
                found[place] = end
        return found


class Sum(UpdateRule):
    """Every sub-model in every step: the joint loss that SortedNet samples from."""

    name = "sum"

    def sample(self, step: int, seed: int) -> list[SubModel]:
        return self.submodels


class Sandwich(UpdateRule):
    """The sandwich rule with in-place distillation (Yu & Huang 2019, arXiv 1903.05134, sections 3.1 and 3.2).

    The largest learns from the targets, the smallest and G random ones from the largest's predictions.
    """

    name = "sandwich"
    distils = True

    def sample(self, step: int, seed: int) -> list[SubModel]:
        between = self.submodels[1:-1]
        random_ones = drawn(step, seed).sample(between, min(self.samples_per_step, len(between)))
        return list(dict.fromkeys([self.largest, *random_ones, self.smallest]))

    def loss(self, task: Task, outputs: Outputs, targets: Targets, earlier: Mapping[SubModel, Outputs]) -> Tensor:
        if self.largest not in earlier:
            return super().loss(task, outputs, targets, earlier)
        return task.distil(task.counting(outputs, targets), task.counting(earlier[self.largest], targets))


class Depths(Sorted):
    """Sum over fixed depths (Sorted LLaMA: Kavehzadeh et al. 2023, arXiv 2309.08968, section 3): the sub-models of every depth,
    whose other sizes are those of a sub-model that is drawn as `Sorted` draws. Of a language model they cost one pass."""

    name = "depths"
    axes: ClassVar[Sequence[str]] = ("num_hidden_layers", "depth")

    def __init__(self, submodels: Sequence[SubModel], samples_per_step: int, edges: float = 0.0) -> None:
        super().__init__(submodels, samples_per_step, edges)
        self.axis = next((axis for axis in self.axes if axis in self.largest.axes), "")
        if not self.axis:
            raise TrainerError(
                f"update = 'depths': the axes are {', '.join(self.largest.axes)}; allowed are families with "
                f"{' or '.join(self.axes)}"
            )

    def sample(self, step: int, seed: int) -> list[SubModel]:
        drawn_ones = [self._widths(sub) for sub in super().sample(step, seed)]
        return [sub for sub in self.submodels if self._widths(sub) in drawn_ones]

    def _widths(self, sub: SubModel) -> dict[str, AxisValue]:
        return {axis: value for axis, value in sub.axes.items() if axis != self.axis}


class Full(UpdateRule):
    """Plain training of the full model alone: what the sub-models are compared with."""

    name = "full"

    @property
    def trained(self) -> list[SubModel]:
        return [self.largest]

    def sample(self, step: int, seed: int) -> list[SubModel]:
        return [self.largest]


RULES: dict[str, type[UpdateRule]] = {rule.name: rule for rule in (Sorted, Sum, Depths, Sandwich, Full)}


def register_rule(rule: type[UpdateRule]) -> None:
    """Makes `update = NAME` mean this class. Raises TrainerError when the name is taken by another one."""
    if RULES.get(rule.name, rule) is not rule:
        raise TrainerError(f"update rule {rule.name!r} is taken by {RULES[rule.name].__qualname__}")
    RULES[rule.name] = rule


def make_rule(name: str, submodels: Sequence[SubModel], samples_per_step: int, edges: float = 0.0) -> UpdateRule:
    """Raises TrainerError for an unknown name."""
    if name not in RULES:
        raise TrainerError(f"update = {name!r}: allowed are {', '.join(RULES)}")
    return RULES[name](submodels, samples_per_step, edges)
