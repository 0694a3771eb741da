"""Targets that the original model gives: for texts without any, what it answers is what smaller models are to answer.

Shapes: N examples, D numbers of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.calling import named, takes_by_name
from trainer.checkpoint import load_tensors, save_tensors
from trainer.data.dataset import Batch, DataSet, Examples, by_length, named_targets, stays_the_same
from trainer.data.loading import batches_of, reads_files
from trainer.folder import TARGETS_FILE
from trainer.interruption import progress_bar
from trainer.submodel import TrainerError
from trainer.task import Targets, Task, own

BATCH = 64


class Targeted:
    """Examples with other targets (N, …). Raises TrainerError where there are more or fewer of them."""

    def __init__(self, examples: Examples, targets: Tensor) -> None:
        if len(examples) != len(targets):
            raise TrainerError(f"targets: {len(targets)} for {len(examples)} examples; allowed is one for each")
        self.examples, self.targets = examples, targets
        self.reads_files = reads_files(examples)
        self.lengths = getattr(examples, "lengths", None)
        self.repeats = stays_the_same(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Tensor) -> Batch:
        return Batch(self.examples.batch(indices).inputs, self.targets[indices])


@torch.no_grad()
def teacher_targets(
    module: nn.Module, examples: Examples, output: str = "embedding", workers: int = -1, show_progress: bool = False
) -> Tensor:
    """What the module answers in eval mode for each of the examples, (N, D) float32, where it is.

    Raises TrainerError where it does not take their inputs or has no such output.
    """
    module.eval()
    device = next(module.parameters(), torch.empty(0)).device
    order = by_length(examples)
    parts: list[Tensor] = []
    with progress_bar(show_progress) as progress:
        shown = progress.add_task("targets", total=-(-len(examples) // BATCH), loss="")
        for batch in batches_of(examples, BATCH, order, workers):
            inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
            with own("targets: the original model"):
                result = module(**inputs) if takes_by_name(module, list(inputs)) else module(*inputs.values())
            parts.append(named(result, [output])[output].float().cpu())
            progress.update(shown, advance=1)
    return torch.cat(parts)[torch.argsort(order)]


def needs_targets(task: Task, data: DataSet) -> bool:
    """Whether the model's own answers are to be the targets: the task says so, and the data have no real numbers."""
    return task.answers_are_targets and not _are_real(data.train.batch(torch.arange(1)).targets)


def answered(data: DataSet, module: nn.Module, task: Task, show_progress: bool = False) -> tuple[DataSet, dict[str, Tensor]]:
    """The data with the module's answers for targets, and these by part."""
    (output,) = task.outputs
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    vectors = {part: teacher_targets(module, examples, output, -1, show_progress) for part, examples in parts.items()}
    return with_targets(data, vectors), vectors


def with_targets(data: DataSet, vectors: Mapping[str, Tensor]) -> DataSet:
    """The data with these targets in the parts that are named; names of classes are of no use then. Raises TrainerError where
    there are more or fewer than examples."""
    parts: dict[str, Any] = {part: Targeted(getattr(data, part), targets) for part, targets in vectors.items()}
    spec = replace(data.spec, classes=0, target_shape=())  # what the head gives does not follow from them
    return replace(data, spec=spec, labels=(), **parts)


def save_targets(folder: Path, vectors: Mapping[str, Tensor]) -> None:
    """Into a run's folder: an export has no original model to ask."""
    save_tensors({part: t for part, t in vectors.items() if part != "train"}, folder / TARGETS_FILE)


def run_data(folder: Path, data: DataSet) -> DataSet:
    """The data that a run was trained with, as they were read again: with its targets, where it keeps some."""
    path = folder / TARGETS_FILE
    return with_targets(data, load_tensors(path)[0]) if path.is_file() else data


def _are_real(targets: Targets) -> bool:
    return all(tensor.is_floating_point() for tensor in named_targets(targets).values())
