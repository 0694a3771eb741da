"""Calibrates a cascade on validation data: needs the `train` extra, unlike the runtime that uses the cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import Bundle
from selector.budget import BudgetError
from selector.cascade import Cascade, find_cascade, logits_of, read_cascades, write_cascades
from selector.files import read_inputs
from selector.selector import Selector, find_profile


def calibrate_cascade(bundle: Bundle, data: str, *, floor: float, confidence: float, device: str | None = None) -> Cascade:
    """Finds the cheapest pair on the device's frontier that keeps the floor, and adds it to the bundle's cascades.

    `data` is a data set as for `sortednet train`, whose validation split is used, or a .npz file with the inputs by name and
    `labels`. Raises BudgetError when nothing keeps the floor or the data are not what the bundle takes.
    """
    inputs, labels = _validation(bundle, data)
    profile = find_profile(bundle, device)
    _, candidates = Selector(profile, bundle.accuracies).afforded_by("latency_ms")
    names = [candidate.submodel for candidate in candidates]
    costs = {name: profile.submodels[name].latency_ms.mean for name in names}
    found = find_cascade({n: logits_of(bundle, n, inputs) for n in names}, labels, costs, floor, confidence)
    others = [cascade for cascade in read_cascades(bundle) if cascade.id != found.id]
    write_cascades(bundle, [*others, found])
    return found


def _validation(bundle: Bundle, data: str) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
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
