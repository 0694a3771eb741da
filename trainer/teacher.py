"""A trained network that the sub-models learn from: frozen, it answers for the same augmented examples (Beyer et al. 2022,
arXiv 2106.05237, section 3: a consistent view)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.accelerator import Accelerator, single_precision
from trainer.calling import named, takes_by_name
from trainer.nested import NestedModel
from trainer.submodel import TrainerError
from trainer.task import Outputs, Task, own


class Teacher:
    """Any module that takes the model's inputs and gives the task's outputs, whatever its architecture.

    Its parameters and buffers stay as they are. Raises TrainerError where an output is missing or has another shape than the
    model's, and for a task without distillation, or without a temperature where one is asked for.
    """

    def __init__(self, module: nn.Module, nested: NestedModel, share: float, temperature: float) -> None:
        """`share`: of the loss, that is against the teacher's answers and not the targets; 0 to 1. `temperature`: by which
        logits are divided first (Hinton et al. 2015, arXiv 1503.02531, section 2)."""
        self.module, self.share, self.temperature = module, share, temperature
        self.input_names = nested.input_names
        self.output_names = list(nested.family.task.outputs)
        self._by_name = takes_by_name(module, self.input_names)
        self._check(nested)

    def answers(self, inputs: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
        """Outputs by name, in single precision, without gradients."""
        with torch.no_grad(), accelerator.autocast():
            return single_precision(self._outputs(inputs))

    def loss(self, task: Task, outputs: Outputs, answers: Outputs, of_targets: Tensor) -> Tensor:
        """The share of the teacher's and of the targets'."""
        found = task.distil(self._softened(task, outputs), self._softened(task, answers)) * self.temperature**2
        return found if self.share == 1 else self.share * found + (1 - self.share) * of_targets

    def _softened(self, task: Task, outputs: Outputs) -> Outputs:
        return {name: o / self.temperature if name in task.logits else o for name, o in outputs.items()}

    def to(self, device: torch.device) -> None:
        self.module.to(device).eval().requires_grad_(False)

    def _outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        result = self.module(**inputs) if self._by_name else self.module(*(inputs[name] for name in self.input_names))
        return named(result, self.output_names)

    def _check(self, nested: NestedModel) -> None:
        task, device = nested.family.task, next(nested.full.parameters()).device
        if self.temperature != 1 and not task.logits:
            raise TrainerError(f"temperature = {self.temperature}: the task {task.kind} has no logits; allowed is 1")
        training = nested.training
        self.to(device)
        inputs = {name: tensor.to(device) for name, tensor in nested.family.example_inputs(2).items()}
        with torch.no_grad(), own("teacher"):
            answers = self._outputs(inputs)
            outputs = nested.eval().outputs(inputs)
        nested.train(training)
        for name, output in outputs.items():
            if answers[name].shape != output.shape:
                raise TrainerError(
                    f"teacher: its output {name!r} has shape {tuple(answers[name].shape)}, the model's {tuple(output.shape)}"
                )
        with own(f"task {task.kind}: distil"):
            self.loss(task, outputs, answers, torch.zeros((), device=device))
