"""The gradients of one step: of every sub-model that it computes, over the whole batch or over parts of it in turn.

Shapes: N examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.accelerator import Accelerator, single_precision
from trainer.blocks import named_blocks
from trainer.data.dataset import each
from trainer.nested import NestedModel
from trainer.options import FitOptions
from trainer.speed.layout import to_device
from trainer.submodel import SubModel, TrainerError
from trainer.task import Outputs, Targets, Task, own
from trainer.teacher import Answers, Teacher
from trainer.updates import UpdateRule


class Gradients:
    """Adds the mean gradient of a step's sub-models to the full parameters'.

    A batch is computed in `micro_batches` parts, whose losses weigh as many as they are the mean of (`Task.mean_over`): the
    memory of a part, the gradient of the whole, but for BatchNorm, whose statistics are a part's. Sub-models that one pass
    gives together (`Family.passes`) cost that one.
    """

    def __init__(
        self,
        nested: NestedModel,
        task: Task,
        rule: UpdateRule,
        teacher: Teacher | None,
        accelerator: Accelerator,
        scaler: torch.amp.GradScaler,
        options: FitOptions,
    ) -> None:
        self.nested, self.task, self.rule, self.teacher = nested, task, rule, teacher
        self.accelerator, self.scaler, self.options = accelerator, scaler, options
        self.passes = 0
        """Forward and backward passes over a batch so far."""
        if options.recompute and not named_blocks(nested.full):
            raise TrainerError("recompute: the network has no blocks (no ModuleList); allowed is False")

    def accumulate(
        self,
        shares: Mapping[SubModel, float],
        inputs: Mapping[str, Tensor],
        given: Targets,
        seed: int,
        indices: Tensor | None = None,
        check: Callable[[Outputs, Targets], None] | None = None,
        what: str = "",
    ) -> float:
        """Returns the loss, in which each sub-model has its share. `given`: targets, on any device. `seed`: of the positions
        that are looked at. `indices`: of the examples, where the teacher remembers them. `check`: of the first outputs.
        `what`: stands before the sub-model's name in errors."""
        device = next(iter(inputs.values())).device
        looked_at = self.task.looked_at(given, seed) if self.nested.family.narrows else None
        whole = _Part(dict(inputs), each(given, lambda t: to_device(t, device)), None, indices)
        if looked_at is not None:
            whole = whole._replace(looked_at=to_device(looked_at, device))
        total = torch.zeros((), device=device)
        for part, task, weight in self._parts(whole):
            answers = Answers({})
            if self.teacher:  # once for all sub-models of the step
                answers = self.teacher.answers(part.inputs, self.accelerator, part.indices, part.looked_at)
            earlier: dict[SubModel, Outputs] = {}
            for group in self.nested.family.passes(list(shares)):
                with own(f"{what}sub-model {group[0].id}"):
                    total += self._pass({sub: shares[sub] for sub in group}, part, task, answers, earlier, weight, check)
                check = None
        self.passes += len(self.nested.family.passes(list(shares)))
        return float(total)

    def _parts(self, whole: _Part) -> Iterator[tuple[_Part, Task, float]]:
        """Of the batch, each with the task as it is to be asked, and its share of the examples."""
        count = len(next(iter(whole.inputs.values())))
        parts = min(self.options.micro_batches, count)
        if parts == 1:
            yield whole, self.task, 1.0
            return
        of_whole = self._mean_over(whole)
        for begin, end in pairwise([count * i // parts for i in range(parts + 1)]):
            rows = slice(begin, end)
            part = _Part(*(None if field is None else each(field, itemgetter(rows)) for field in whole))  # type: ignore[arg-type]
            share = (end - begin) / count
            loss, distil = (_share(mine, all_of) / share for mine, all_of in zip(self._mean_over(part), of_whole, strict=True))
            alike = isinstance(loss, float) and loss == distil == 1
            yield part, self.task if alike else cast(Task, _Weighted(self.task, loss, distil)), share

    def _mean_over(self, part: _Part) -> tuple[Tensor | int, Tensor | int]:
        """Of how many things the loss is the mean, and of how many the distillation."""
        if part.looked_at is not None:
            return part.looked_at.sum(), part.looked_at.sum()
        with own(f"task {self.task.kind}: mean_over"):
            return self.task.mean_over(part.targets), self.task.mean_over(part.targets, distilled=True)

    def _pass(
        self,
        shares: Mapping[SubModel, float],
        part: _Part,
        task: Task,
        answers: Answers,
        earlier: dict[SubModel, Outputs],
        weight: float,
        check: Callable[[Outputs, Targets], None] | None,
    ) -> Tensor:
        """One forward and backward pass of the first of these sub-models, which gives the outputs of all; returns what it adds
        to the loss."""
        family, teacher, group = self.nested.family, self.teacher, list(shares)
        module = self.nested.skeleton(group[0])
        narrow = part.looked_at is not None
        targets = part.narrowed() if narrow else part.targets
        added: list[Tensor] = []

        def loss_of(outputs: dict[str, Tensor]) -> Tensor:
            found = single_precision(outputs)
            for place, sub in enumerate(group):
                mine = {n: o.chunk(len(group))[place] for n, o in found.items()} if len(group) > 1 else found
                if check is not None and place == 0:
                    check(mine, targets)
                if teacher is None or teacher.share < 1:
                    loss = self.rule.loss(task, mine, targets, earlier)
                else:
                    loss = torch.zeros((), device=part.device)
                if teacher is not None:
                    loss = teacher.loss(task, mine, answers.outputs, loss, None if narrow else targets)
                    if place == 0:  # the others have its layers
                        loss = loss + teacher.of_hidden(states, answers, part.inputs)
                added.append(loss * (shares[sub] * weight))
                if self.rule.distils or not family.narrows:  # those of a language model are large
                    earlier[sub] = {name: output.detach() for name, output in mine.items()}
            return self.scaler.scale(sum(added, torch.zeros((), device=part.device)))

        with ExitStack() as within:
            states = within.enter_context(teacher.states_of(module)) if teacher else []
            if part.looked_at is not None:
                within.enter_context(family.at_positions(module, part.looked_at))
            within.enter_context(family.leaving_at(module, group))
            if self.options.recompute:
                within.enter_context(recomputed(module))
            self.nested.accumulate_gradients(group[0], part.inputs, loss_of, self.accelerator.autocast())
        return sum((loss.detach() for loss in added), torch.zeros((), device=part.device))


class _Part(NamedTuple):
    """Examples of a batch, all of them or some."""

    inputs: dict[str, Tensor]
    targets: Targets
    looked_at: Tensor | None = None  # where a network gives no other positions
    indices: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return next(iter(self.inputs.values())).device

    def narrowed(self) -> Targets:
        """The targets that count, (1, M)."""
        found: Targets = each(self.targets, lambda t: t[self.looked_at][None])
        return found


class _Weighted:
    """A task whose `loss` and `distil` are multiplied: beside its share of the examples, by which everything of a part counts,
    each counts as much as it is the mean of."""

    def __init__(self, task: Task, loss: Tensor | float, distil: Tensor | float) -> None:
        self._task, self._loss, self._distil = task, loss, distil

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return self._task.loss(outputs, targets) * self._loss

    def distil(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        return self._task.distil(outputs, teacher) * self._distil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def _share(part: Tensor | int, whole: Tensor | int) -> Tensor | float:
    return part / (whole.clamp_min(1) if isinstance(whole, Tensor) else max(1, whole))


@contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """Within: what a block computes between its input and its output is forgotten, and computed again in the backward pass
    (Chen et al. 2016, arXiv 1604.06174): a third more time for memory that does not grow with the depth of a block."""
    blocks = list(named_blocks(module).values())
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
