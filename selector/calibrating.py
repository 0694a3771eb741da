"""Calibrates a cascade on validation data: needs the `train` extra, unlike the runtime that uses the cascade."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_profiles import Profile
from exporter.bundle import Bundle
from selector.budget import BudgetError
from selector.cascade import Cascade, Logits, find_cascade, logits_of, read_cascades, split, write_cascades
from selector.files import read_inputs
from selector.selector import find_profile

SCREENED = 1000
"""Validation examples on which all sub-models are compared."""


def calibrate_cascade(bundle: Bundle, data: str, *, floor: float, confidence: float, device: str | None = None) -> Cascade:
    """Finds the cheapest pair on the device's frontier that keeps the floor, and adds it to the bundle's cascades.

    `data` is a data set as for `sortednet train`, whose validation split is used, or a .npz file with the inputs by name and
    `labels`. Raises BudgetError when nothing keeps the floor or the data are not what the bundle takes.
    """
    inputs, labels = validation(bundle, data)
    logits, costs = candidates(bundle, find_profile(bundle, device), inputs, labels)
    found = find_cascade(logits, labels, costs, floor, confidence)
    others = [cascade for cascade in read_cascades(bundle) if cascade.id != found.id]
    write_cascades(bundle, [*others, found])
    return found


def candidates(
    bundle: Bundle, profile: Profile, inputs: Mapping[str, NDArray[Any]], labels: NDArray[np.int64]
) -> tuple[dict[str, Logits], dict[str, float]]:
    """The logits on all validation examples (N, classes), and the mean latencies (ms), of the sub-models that are on the
    frontier of latency and accuracy.

    The frontier is taken on a part of the examples that choose: those that certify must not have had a say in it, and the
    accuracies in the manifest are of the test split.
    """
    part = split(len(labels))[0][:SCREENED]
    few = {name: array[part] for name, array in inputs.items()}
    costs = {name: measured.latency_ms.mean for name, measured in profile.submodels.items()}
    best, names = -1.0, []
    for name in sorted(costs, key=lambda name: costs[name]):
        accuracy = float((logits_of(bundle, name, few).argmax(axis=1) == labels[part]).mean())
        if accuracy > best:
            best = accuracy
            names.append(name)
    return {name: logits_of(bundle, name, inputs) for name in names}, {name: costs[name] for name in names}


def validation(bundle: Bundle, data: str) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """The inputs by name, each (N, …), and the labels (N,). Raises BudgetError when they are not what the bundle takes."""
    names = [spec.name for spec in bundle.manifest.inputs]
    if data.endswith(".npz"):
        arrays = read_inputs(Path(data))
        if not isinstance(arrays, dict) or set(arrays) != {*names, "labels"}:
            raise BudgetError(f"data = {data!r}: holds {sorted(arrays)}; allowed is {', '.join([*names, 'labels'])}")
        return {name: arrays[name] for name in names}, arrays["labels"].astype(np.int64)
    import torch

    from trainer.data import load_data

    examples = load_data(data).validation
    inputs, labels = examples.batch(torch.arange(len(examples)))
    if len(inputs) != len(names):
        raise BudgetError(f"data = {data!r}: {len(inputs)} inputs per example; the bundle takes {', '.join(names)}")
    return {name: array.numpy() for name, array in zip(names, inputs, strict=True)}, labels.numpy()
