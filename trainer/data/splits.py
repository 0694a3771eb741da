"""Splits that are the same every time, and the record by which a run knows its data again.

Shapes: N examples.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.dataset import Samples, named_targets
from trainer.data.token_examples import Packed, TokenExamples
from trainer.submodel import TrainerError

SPLIT_SEED = 0
"""The split does not follow `--seed`: runs with different seeds are compared on the same examples."""

Array = NDArray[Any]


TEST, VALIDATION = 0.2, 0.15 / 0.8
"""The share of all examples, then that of what is left."""


def split_by_class(labels: Array, names: Sequence[str] = ()) -> tuple[Array, Array, Array]:
    """Training, validation and test indices, stratified: 65 % training, 15 % validation, 20 % test.

    Of a class of which the test part leaves one example that is for training. `names`: of the classes, for errors.
    """
    _check(labels, (TEST, VALIDATION), names)
    rest, test = _divided(np.arange(len(labels)), labels, TEST)
    classes, counts = np.unique(labels[rest], return_counts=True)
    several = np.isin(labels[rest], classes[counts > 1])
    train, validation = _divided(rest[several], labels[rest][several], VALIDATION)
    return np.sort(np.concatenate([train, rest[~several]])), validation, test


def stratified(indices: Array, labels: Array, share: float, names: Sequence[str] = ()) -> tuple[Array, Array]:
    """The indices in two parts, that share of every class in the second. `names`: of the classes, for errors."""
    _check(labels, (share,), names)
    return _divided(indices, labels, share)


def _check(labels: Array, shares: Sequence[float], names: Sequence[str]) -> None:
    """Raises TrainerError for a class of one example, and where there are fewer than such parts, one after the other, take."""
    classes, counts = np.unique(labels, return_counts=True)
    if not len(classes) or counts.min() < 2:
        least = classes[counts.argmin()] if len(classes) else 0
        fewest = f"class {names[least] if names else least} has {counts.min()}" if len(classes) else "there are none"
        raise TrainerError(
            f"data: {len(labels)} examples cannot be split by class: {fewest}; allowed are 2 and more of every class"
        )
    enough = next(count for count in itertools.count(len(classes)) if _suffices(count, len(classes), shares))
    if len(labels) < enough:
        raise TrainerError(
            f"data: {len(labels)} examples of {len(classes)} classes cannot be split; allowed are {enough} examples and more"
        )


def _suffices(count: int, classes: int, shares: Sequence[float]) -> bool:
    """Whether there is one of every class in each part, and in what is left."""
    for share in shares:
        taken = ceil(share * count)
        count -= taken
        if min(taken, count) < classes:
            return False
    return True


def _divided(indices: Array, labels: Array, share: float) -> tuple[Array, Array]:
    from sklearn.model_selection import train_test_split

    first, second = train_test_split(indices, test_size=share, stratify=labels, random_state=SPLIT_SEED)
    return np.sort(first), np.sort(second)


def samples_of(inputs: Array, labels: Array, indices: Array) -> Samples:
    """The examples of these indices, in memory."""
    return Samples(torch.from_numpy(inputs[indices]), torch.from_numpy(labels[indices]))


LATER = ("max_tokens", "truncated")
"""What records of texts lack that were written by earlier versions; it follows from what they have."""


def as_recorded(record: Mapping[str, Any], begun: Mapping[str, Any]) -> dict[str, Any]:
    """What a run would have recorded of these data when it was begun, to be compared with what it did."""
    return {name: value for name, value in record.items() if name in begun or name not in LATER}


def description(
    name: str, parts: Mapping[str, Array], split: Mapping[str, Samples | TokenExamples | Packed], files: Mapping[str, bytes]
) -> dict[str, Any]:
    """What was split how, and a hash of everything in it: an export must see the data that the training saw."""
    content = hashlib.sha256(b"".join(files.values()))
    for examples in split.values():
        if isinstance(examples, (TokenExamples, Packed)):
            tensors = tuple(examples.tensors())
        else:
            tensors = (*examples.inputs.values(), *named_targets(examples.targets).values())
        for tensor in tensors:
            content.update(tensor.contiguous().numpy().data)  # its bytes, which are not copied
    return {
        "name": name,
        "split_seed": SPLIT_SEED,
        "sizes": {part: len(indices) for part, indices in parts.items()},
        "split_sha256": hashlib.sha256(b"".join(p.astype("<i8").tobytes() for p in parts.values())).hexdigest(),
        "content_sha256": content.hexdigest(),
    }
