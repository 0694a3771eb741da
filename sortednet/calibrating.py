"""Calibrates a cascade on validation data: needs the `train` extra, unlike the runtime that uses the cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_profiles import Profile
from exporter.bundle import Bundle
from selector.choose.budget import BudgetError
from selector.choose.cascades import Cascade, read_cascades, write_cascades
from selector.choose.profiles import find_profile
from selector.run.cascade import Logits, find_cascade, logits_of, split
from selector.run.files import read_inputs
from selector.run.runtime import check_inputs

SCREENED = 500
"""Validation examples on which all sub-models are compared."""
LEAST = 3
"""Validation examples: a third of them chooses, the others certify."""
SLACK = 0.005
"""What one may be behind a cheaper one there, and is still looked at: half the standard error of such a difference. More
would take minutes and find hardly anything: neighbours on the frontier make much the same cascade."""


def calibrate_cascade(bundle: Bundle, data: str, *, floor: float, confidence: float, device: str | None = None) -> Cascade:
    """Finds the cheapest pair on the device's frontier that keeps the floor, and adds it to the bundle's cascades.

    `data` is a data set as for `sortednet train`, whose validation split is used, or a .npz file with the inputs by name and
    `labels`. Raises BudgetError or InputError when nothing keeps the floor or the data are not what the bundle takes.
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

    The frontier is taken on the examples that choose: those that certify must not have had a say in it, and the accuracies in
    the manifest are of the test split. What a few examples show to be well behind is not run on the others.
    """
    choosing, certifying = split(len(labels))
    costs = {name: measured.latency_ms.mean for name, measured in profile.submodels.items()}
    order = sorted(costs, key=lambda name: costs[name])
    found: dict[str, Logits] = {}

    def best(names: Sequence[str], examples: NDArray[np.int64], slack: float) -> list[str]:
        """Runs them on these further examples, and keeps those that no cheaper one is more accurate than, by more than
        the slack, on all so far."""
        kept, highest = [], -1.0
        for name in names:
            further = logits_of(bundle, name, {key: array[examples] for key, array in inputs.items()})
            found[name] = np.concatenate([found[name], further]) if name in found else further
            accuracy = float((found[name].argmax(axis=1) == labels[choosing[: len(found[name])]]).mean())
            if accuracy > highest - slack:
                kept.append(name)
            highest = max(highest, accuracy)
        return kept

    promising = best(order, choosing[:SCREENED], SLACK)
    names = best(promising, choosing[SCREENED:], 0.0) if len(choosing) > SCREENED else promising
    logits = {}
    for name in names:
        rest = logits_of(bundle, name, {key: array[certifying] for key, array in inputs.items()})
        logits[name] = np.empty((len(labels), rest.shape[1]), np.float32)
        logits[name][choosing], logits[name][certifying] = found[name], rest
    return logits, {name: costs[name] for name in names}


def validation(bundle: Bundle, data: str) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """The inputs by name, each (N, …), and the labels (N,). Raises BudgetError or InputError when they are not what the bundle
    takes."""
    names = [spec.name for spec in bundle.manifest.inputs]
    if data.endswith(".npz"):
        arrays = read_inputs(Path(data))
        if not isinstance(arrays, dict) or set(arrays) != {*names, "labels"}:
            raise BudgetError(f"data = {data!r}: holds {sorted(arrays)}; allowed is {', '.join([*names, 'labels'])}")
        found = check_inputs(bundle, {name: arrays[name] for name in names})
        return found, _labels(bundle, arrays["labels"], len(found[names[0]]))
    import torch

    from trainer.data import load_data

    examples = load_data(data).validation
    inputs, targets = examples.batch(torch.arange(len(examples)))
    labels = targets if isinstance(targets, torch.Tensor) else next(iter(targets.values()))
    if len(inputs) != len(names):
        raise BudgetError(f"data = {data!r}: {len(inputs)} inputs per example; the bundle takes {', '.join(names)}")
    found = {name: array.numpy() for name, array in zip(names, inputs.values(), strict=True)}
    return check_inputs(bundle, found), _labels(bundle, labels.numpy(), len(examples))


def _labels(bundle: Bundle, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The labels of so many examples, (N,). Raises BudgetError naming what is wrong with them."""
    if labels.dtype.kind not in "iu":
        raise BudgetError(f"labels: dtype {labels.dtype}; allowed are whole numbers")
    if labels.shape != (count,):
        raise BudgetError(f"labels: shape {labels.shape}; allowed is ({count},), one for each example")
    if count < LEAST:
        raise BudgetError(f"data: {count} examples; allowed are {LEAST} or more, and few certify nothing")
    classes = bundle.manifest.outputs[0].shape[-1]
    wrong = (labels < 0) | (labels >= classes) if isinstance(classes, int) else labels < 0
    if wrong.any():
        place = int(wrong.argmax())
        allowed = f"0 to {classes - 1}" if isinstance(classes, int) else "numbers from 0"
        raise BudgetError(f"labels: {labels[place]} at position {place}; allowed are {allowed}")
    return labels.astype(np.int64)
