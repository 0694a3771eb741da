"""A trained network that the sub-models learn from: frozen, it answers for the same augmented examples (Beyer et al. 2022,
arXiv 2106.05237, section 3: a consistent view). Where nothing is augmented its answers are the same in every epoch, and are
remembered where they are few.

Shapes: N examples of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.accelerator import Accelerator, single_precision
from trainer.calling import named, takes_by_name
from trainer.data.dataset import Examples, as_inputs, by_length, stays_the_same
from trainer.data.loading import batches_of
from trainer.hidden import distance
from trainer.interruption import progress_bar
from trainer.nested import NestedModel
from trainer.options import FitOptions
from trainer.submodel import SubModel, TrainerError
from trainer.task import Outputs, Targets, Task, own

REMEMBERED_BYTES = 256 * 2**20
"""Up to which size the answers for a whole split are computed once and held."""


class Answers(NamedTuple):
    """What a teacher says of a batch."""

    outputs: Mapping[str, Tensor]
    states: Sequence[Tensor] = ()  # what it has between its layers, where that is asked for


class Teacher:
    """Any module that takes the model's inputs and gives the task's outputs, whatever its architecture; with `hidden` one of
    the model's family.

    Its parameters and buffers stay as they are. Raises TrainerError where an output is missing or has another shape than the
    model's, and for a task without distillation, or without a temperature where one is asked for.
    """

    def __init__(self, module: nn.Module, nested: NestedModel, share: float, temperature: float, hidden: float = 0.0) -> None:
        """`share`: of the loss, that is against the teacher's answers and not the targets; 0 to 1. `temperature`: by which
        logits are divided first (Hinton et al. 2015, arXiv 1503.02531, section 2). `hidden`: weight of the distance from what
        it has between its layers (`trainer.hidden`), which is added."""
        self.module, self.share, self.temperature, self.hidden = module, share, temperature, hidden
        self.family = nested.family
        self.input_names = nested.input_names
        self.output_names = list(nested.family.task.outputs)
        self.remembered_passes = 0  # that the answers have cost which are remembered; 0: none are
        self._known: dict[str, Tensor] = {}  # answers by place
        self._is_known = torch.zeros(0, dtype=torch.bool)
        self._shapes: dict[str, torch.Size] = {}  # of one example's answers
        self._by_name = takes_by_name(module, self.input_names)
        self._check(nested)

    def answers(
        self,
        inputs: Mapping[str, Tensor],
        accelerator: Accelerator,
        indices: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Answers:
        """Outputs by name, in single precision, without gradients. `indices`: the places of what it remembers, those of the
        examples or of a view's batch. `positions`: (N, …) bool, those that are asked for; outputs are (1, M, …) then."""
        if self._known and indices is not None:
            if not self._is_known[indices].all():
                for name, output in self.answers(inputs, accelerator).outputs.items():
                    self._known[name][indices] = output.cpu()
                self._is_known[indices] = True
                self.remembered_passes += 1
            device = next(iter(inputs.values())).device
            found = {name: known[indices].to(device) for name, known in self._known.items()}
            return Answers(found if positions is None else _narrowed(found, positions))
        asked = nullcontext(False) if positions is None else self.family.at_positions(self.module, positions)
        with torch.no_grad(), accelerator.autocast(), asked as narrow:
            outputs, states = self._answered(inputs)
        if positions is not None and not narrow:
            outputs = _narrowed(outputs, positions)
        return Answers(single_precision(outputs), states)

    def loss(
        self, task: Task, outputs: Outputs, answers: Outputs, of_targets: Tensor, targets: Targets | None = None
    ) -> Tensor:
        """The share of the teacher's and of the targets'. `targets` say which positions count for nothing."""
        given, wanted = (
            task.counting(o, targets) if targets is not None else o
            for o in (self._softened(task, outputs), self._softened(task, answers))
        )
        found = task.distil(given, wanted) * self.temperature**2
        return found if self.share == 1 else self.share * found + (1 - self.share) * of_targets

    def of_hidden(self, states: Sequence[Tensor], answers: Answers, inputs: Mapping[str, Tensor]) -> Tensor:
        """What is added for the distance of a sub-model's states from the teacher's; 0 where there is no weight on it."""
        if not self.hidden:
            return torch.zeros((), device=next(iter(inputs.values())).device)
        return self.hidden * distance(states, answers.states, inputs)

    def states_of(self, module: nn.Module) -> AbstractContextManager[list[Tensor]]:
        """Within: what a module of the family has between its layers, where that is asked for; else nothing."""
        return self.family.hidden_states(module) if self.hidden else nullcontext([])

    def remember(
        self,
        examples: Examples,
        batch_size: int,
        accelerator: Accelerator,
        workers: int = -1,
        show_progress: bool = False,
    ) -> bool:
        """Computes the answers for all examples, always in the same batches, so that a resumed training has the same ones.
        Returns whether it did: they must have one shape, be few, and the examples be the same every time."""
        if not stays_the_same(examples) or self._not_remembered(examples, len(examples)):
            return False
        device = next(self.module.parameters(), torch.empty(0)).device
        parts: list[Mapping[str, Tensor]] = []
        order = by_length(examples)
        with progress_bar(show_progress) as progress:
            shown = progress.add_task("teacher", total=-(-len(examples) // batch_size), loss="")
            for batch in batches_of(examples, batch_size, order, workers):
                inputs = {name: t.to(device) for name, t in as_inputs(batch.inputs, self.input_names).items()}
                parts.append({name: o.cpu() for name, o in self.answers(inputs, accelerator).outputs.items()})
                progress.update(shown, advance=1)
        places = torch.argsort(order)
        self._known = {name: torch.cat([part[name] for part in parts])[places] for name in parts[0]}
        self._is_known = torch.ones(len(examples), dtype=torch.bool)
        self.remembered_passes = len(parts)
        return True

    def expect(self, examples: Examples, places: int) -> None:
        """Makes room for the answers of so many examples that come again (`teacher_views`); each is remembered as it comes.

        Raises TrainerError as `check_views` does.
        """
        self.check_views(examples, places)
        self._known = {name: torch.zeros(places, *shape) for name, shape in self._shapes.items()}
        self._is_known = torch.zeros(places, dtype=torch.bool)

    def check_views(self, examples: Examples, places: int) -> None:
        """Raises TrainerError where the answers of so many examples that come again have no one shape, or are many."""
        if why := self._not_remembered(examples, places):
            raise TrainerError(
                f"teacher_views: {why} cannot be remembered; allowed are up to {REMEMBERED_BYTES >> 20} MiB of logits"
            )

    def _not_remembered(self, examples: Examples, places: int) -> str:
        """Why the answers for so many examples cannot be held; empty where they can."""
        uneven = getattr(examples, "lengths", None) is not None  # then answers for each token have no one shape
        each_token = any(set(free) - {0} for free in self.family.task.outputs.values())
        size = 4 * places * sum(shape.numel() for shape in self._shapes.values())
        if self.hidden:
            return "teacher_hidden"
        if each_token and uneven:
            return "answers for each token"
        return f"{size >> 20} MiB of answers" if size > REMEMBERED_BYTES else ""

    def to(self, device: torch.device) -> None:
        self.module.to(device).eval().requires_grad_(False)

    def _softened(self, task: Task, outputs: Outputs) -> Outputs:
        return {name: o / self.temperature if name in task.logits else o for name, o in outputs.items()}

    def _answered(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        with self.states_of(self.module) as states:
            result = self.module(**inputs) if self._by_name else self.module(*(inputs[name] for name in self.input_names))
        return named(result, self.output_names), states

    def _check(self, nested: NestedModel) -> None:
        task, device = nested.family.task, next(nested.full.parameters()).device
        if self.temperature != 1 and not task.logits:
            raise TrainerError(f"temperature = {self.temperature}: the task {task.kind} has no logits; allowed is 1")
        training = nested.training
        self.to(device)
        inputs = {name: tensor.to(device) for name, tensor in nested.family.example_inputs(2).items()}
        states: dict[SubModel, list[Tensor]] = {}
        asked = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        with torch.no_grad(), own(f"teacher: asked with {asked}"):
            answers, its_states = self._answered(inputs)
            outputs = nested.eval().outputs(inputs)
            for sub in (nested.family.largest, nested.family.smallest) if self.hidden else ():
                with self.states_of(nested.skeleton(sub)) as states[sub]:
                    nested.outputs(inputs, sub)
        nested.train(training)
        for name, output in outputs.items():
            given, wanted = answers[name].shape, output.shape
            longer = name in task.prefixes and given[:-1] == wanted[:-1] and given[-1] >= wanted[-1]
            if given != wanted and not longer:
                raise TrainerError(
                    f"teacher: its output {name!r} has shape {tuple(given)}, the model's {tuple(wanted)}; of other "
                    "classes: train the full model on these data first (--update full) and begin with that run, or say "
                    "--teacher none"
                )
        self._shapes = {name: answer.shape[1:] for name, answer in answers.items()}
        with own(f"task {task.kind}: distil"):
            self.loss(task, outputs, answers, torch.zeros((), device=device))
        for of_size in states.values():
            self.of_hidden(of_size, Answers(answers, its_states), inputs)


def _narrowed(outputs: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
    return {name: output[positions][None] for name, output in outputs.items()}


def teacher_for(nested: NestedModel, module: nn.Module | None, options: FitOptions) -> Teacher | None:
    """The module as a teacher, if there is one. Raises TrainerError for options of a teacher that there is not."""
    for name, usual in (("teacher_share", 1), ("temperature", 1), ("teacher_hidden", 0), ("teacher_views", 0)):
        if module is None and getattr(options, name) != usual:
            raise TrainerError(f"{name} = {getattr(options, name)}: there is no teacher; allowed is {usual}")
    return (
        Teacher(module, nested, options.teacher_share, options.temperature, options.teacher_hidden)
        if module is not None
        else None
    )
