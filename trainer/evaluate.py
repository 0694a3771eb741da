"""Scores of sub-models in torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from numpy.typing import NDArray

from trainer.accelerator import single_precision
from trainer.data.dataset import Examples, Samples, as_inputs, each
from trainer.data.lengths import TOKENS
from trainer.data.loading import batches_of, reads_files
from trainer.interruption import progress_bar
from trainer.nested import NestedModel
from trainer.speed.layout import laid_out, suits_channels_last
from trainer.speed.sharing import sharing
from trainer.submodel import SubModel, TrainerError
from trainer.task import Outputs, Score, Scorer, Targets, Task, own

BATCH = 512
NUMBERS = 2**26
"""Outputs of a batch that is looked at, where each token has as many as there are words: 256 MiB in single precision."""
ArrayTargets = NDArray[Any] | Mapping[str, NDArray[Any]]
FILES_BATCH = 64  # of what is read from files: worker processes keep several batches ready


@torch.no_grad()
def scores_of(
    nested: NestedModel, submodels: Iterable[SubModel], examples: Examples, workers: int = -1, shown_as: str = ""
) -> dict[SubModel, Score]:
    """For each sub-model what the task's scorer says of these examples, read by so many workers (-1: the usual number).

    `shown_as`: the word beside a progress bar of answers; none where it is empty.

    The model must be in eval mode and calibrated for these sub-models. Raises TrainerError when the task's own code fails.
    """
    device = next(nested.full.parameters()).device
    as_channels_last = suits_channels_last(nested)
    task = nested.family.task
    with own(f"task {task.kind}: scorer"):
        scorers = {sub: task.scorer() for sub in submodels}
    family, largest = nested.family, nested.family.largest
    order = list(scorers)
    if any(hasattr(scorer, "compare") for scorer in scorers.values()):
        order.sort(key=lambda sub: sub != largest)  # the others are compared with the full one
    groups = family.passes(order)
    together = max(map(len, groups), default=1)
    most = min(TOKENS, max(1, NUMBERS // (family.outputs_per_token * together))) if family.outputs_per_token > 1 else TOKENS
    with progress_bar(bool(shown_as), transient=True) as progress:
        shown = progress.add_task(shown_as, total=len(examples) * len(order), loss="")
        for batch in batches_of(examples, FILES_BATCH if reads_files(examples) else BATCH, workers=workers, tokens=most):
            placed = laid_out(as_inputs(batch.inputs, nested.input_names), device, as_channels_last)
            targets = as_arrays(batch.targets)
            shared = nullcontext() if family.outputs_per_token > 1 else sharing(device)
            checked = isinstance(examples, Samples)  # of those in memory all were checked before
            looked_at = task.looked_at(batch.targets) if family.narrows else None
            if looked_at is not None:
                targets = as_arrays(each(batch.targets, lambda t, kept=looked_at: t[kept][None]))
            for group in groups:
                module = nested.skeleton(group[0])
                narrow = nullcontext() if looked_at is None else family.at_positions(module, looked_at.to(device))
                with narrow, family.leaving_at(module, group), shared:
                    found = nested.outputs(placed, group[0])
                for place, sub in enumerate(group):
                    outputs = {name: o.chunk(len(group))[place] for name, o in found.items()} if len(group) > 1 else found
                    if not checked:
                        task.check(outputs, each(targets, torch.from_numpy))
                        checked = True
                    add(task, scorers[sub], outputs, targets)
                    compare = getattr(scorers[sub], "compare", None)
                    if compare is not None and largest in scorers:
                        compare(scorers[largest])
                progress.update(shown, advance=len(group) * len(next(iter(batch.inputs.values()))))
    return {sub: value(task, scorer) for sub, scorer in scorers.items()}


def add(task: Task, scorer: Scorer, outputs: Outputs, targets: ArrayTargets) -> None:
    """Adds a batch to a score. Raises TrainerError when the task's own code fails."""
    with own(f"task {task.kind}: scorer"):
        scorer.add({name: output.cpu().numpy() for name, output in single_precision(outputs).items()}, targets)


def value(task: Task, scorer: Scorer) -> Score:
    """The score of all that was added. Raises TrainerError when the task's own code fails, or its quality is none."""
    with own(f"task {task.kind}: scorer"):
        score = scorer.value()
    check_score(task, score)
    return score


def check_score(task: Task, score: Score) -> None:
    """Raises TrainerError for a quality outside 0 to 1, by which nothing could be chosen, and a metric that is not there."""
    if not 0 <= score.quality <= 1:
        raise TrainerError(f"task {task.kind}: scorer: quality = {score.quality}; allowed are values from 0 to 1")
    if task.metric not in score.metrics:
        given = ", ".join(score.metrics) or "none"
        raise TrainerError(f"task {task.kind}: scorer: metrics {given}; allowed are those with the task's own, {task.metric}")


def as_arrays(targets: Targets) -> ArrayTargets:
    """Targets as a scorer takes them."""
    arrays: ArrayTargets = each(targets, lambda tensor: tensor.cpu().numpy())
    return arrays
