"""Data for cascades: what `sortednet cascade --data` names becomes arrays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Bundle
from selector.choose.budget import BudgetError
from selector.run.files import read_inputs

if TYPE_CHECKING:
    from trainer.data.dataset import Batch, Examples

BATCH = 64
"""Examples of unequal lengths that are padded to the longest of them."""

Inputs = list[dict[str, NDArray[Any]]]
"""Batches, of each the inputs by name, (N, …)."""


def validation(bundle: Bundle, data: str) -> tuple[Inputs, NDArray[Any]]:
    """The examples in batches, and a label for each in their order, as they were found; `calibrate_cascade` checks them.

    `data` is a data set as for `sortednet train`, whose validation split is used, or a .npz file with the inputs by name and
    `labels`. Raises BudgetError or InputError where these are not there.
    """
    names = [spec.name for spec in bundle.manifest.inputs]
    if data.endswith(".npz"):
        found = read_inputs(Path(data))
        if not isinstance(found, dict) or set(found) != {*names, "labels"}:
            raise BudgetError(f"data = {data!r}: holds {sorted(found)}; allowed is {', '.join([*names, 'labels'])}")
        return [{name: found[name] for name in names}], found["labels"]
    from trainer.data import load_data
    from trainer.start import check_same_classes, check_same_vocabulary, data_options_of

    loaded = load_data(data, data_options_of(None, data, {}, bundle.path))
    check_same_vocabulary(bundle.path, loaded)
    check_same_classes(bundle.manifest.task.labels, bundle.path, loaded)
    try:
        return arrays(loaded.validation, names)
    except ValueError as error:
        raise BudgetError(f"data = {data!r}: {error}") from None


def arrays(examples: Examples, names: list[str]) -> tuple[Inputs, NDArray[Any]]:
    """Those of one size as one batch, in order; those of unequal lengths, such as texts, sorted by them, in batches that are
    as long as their longest. And the labels. Raises ValueError for other inputs, or targets that are no labels."""
    import torch

    from trainer.data.dataset import as_inputs
    from trainer.data.lengths import lengths_of
    from trainer.data.loading import batches_of

    unequal = lengths_of(examples) is not None
    read: Iterable[Batch] = batches_of(examples, BATCH) if unequal else [examples.batch(torch.arange(len(examples)))]
    inputs, labels = [], []
    for batch in read:
        if not isinstance(batch.targets, torch.Tensor):
            raise ValueError(f"has targets {', '.join(batch.targets)}; allowed is a label for each example")
        if unequal and batch.targets.ndim != 1:
            raise ValueError(f"has targets of shape {tuple(batch.targets.shape)}; allowed is a label for each example")
        inputs.append({name: tensor.numpy() for name, tensor in as_inputs(batch.inputs, names).items()})
        labels.append(batch.targets.numpy())
    return inputs, np.concatenate(labels)
