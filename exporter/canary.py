"""Labelled examples in a bundle, by which a device tells whether a new version of it is worse (`selector.ship.trial`)."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from exporter.scoring import as_feed
from exporter.selftest import ExportError
from trainer.data.dataset import Examples
from trainer.nested import NestedModel


def canary_file(nested: NestedModel, examples: Examples | None, count: int) -> bytes:
    """The content of `canary.npz`: so many examples of the test split, spread over it, as arrays `input/NAME`, and `labels`.
    Raises ExportError where there are fewer, and for a task whose targets are no classes."""
    held = 0 if examples is None else len(examples)
    if examples is None or not 1 <= count <= held:
        raise ExportError(f"canary = {count}: allowed are 1 to {held}, the examples of the test split")
    if nested.family.task.kind != "classification":
        raise ExportError(f"canary: the task is {nested.family.task.kind}; allowed is classification")
    batch = examples.batch(torch.linspace(0, held - 1, count).round().long())
    assert isinstance(batch.targets, Tensor)
    arrays = {f"input/{name}": array for name, array in as_feed(batch.inputs, nested.input_names).items()}
    written = io.BytesIO()
    np.savez_compressed(written, labels=batch.targets.numpy(), **arrays)  # type: ignore[arg-type]
    return written.getvalue()
