"""`module:function`: a function of yours that returns map-style datasets, three of them or by name.

Shapes: N examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.data.dataset import Batch, DataSet, Examples, as_examples, named_targets
from trainer.data.folders import PARTS
from trainer.data.loading import batches_of
from trainer.data.sources import Source, register_source
from trainer.data.statistics import channel_statistics
from trainer.family import DataSpec
from trainer.submodel import TrainerError
from trainer.task import imported, own

HASHED_EXAMPLES = 64
SCANNED_EXAMPLES = 10_000
"""Of a larger data set the classes are not counted: `labels` must say how many there are."""

_OTHERS = ("labels", "augment")


def _from_function(name: str, rest: str, /, **options: Any) -> DataSet:
    """The options are the function's arguments. See `docs/extending.md`."""
    function = imported(name, "data", [])
    if not callable(function):
        raise TrainerError(f"data {name!r}: is a {type(function).__name__}; allowed is a function that returns datasets")
    with own(f"data {name!r}"):
        returned = function(**options)
    given = _named(name, returned)
    labels = _labels(name, given)
    with own(f"data {name!r}"):
        parts = {part: as_examples(given[part]) for part in PARTS}
        sizes = {part: len(examples) for part, examples in parts.items()}
    for part, size in sizes.items():
        if size < 2:
            raise TrainerError(f"data {name!r}: {part} has {size} examples; allowed are 2 and more")
    augment = given.get("augment")
    if augment is not None and not callable(augment):
        raise TrainerError(f"data {name!r}: augment is a {type(augment).__name__}; allowed is a function")
    with own(f"data {name!r}"):
        record = {"name": name, "sizes": sizes, "test_sample_sha256": _sample_hash(parts["test"]), "class_names": list(labels)}
        spec = _spec(name, parts["train"], getattr(given["train"], "targets", None), len(labels))
    return DataSet(name, spec, parts["train"], parts["validation"], parts["test"], augment, record, labels=labels)


def _named(name: str, returned: Any) -> Mapping[str, Any]:
    """The datasets, and what else was returned, by name."""
    if isinstance(returned, tuple) and len(returned) == len(PARTS):
        return dict(zip(PARTS, returned, strict=True))
    if not isinstance(returned, Mapping):
        size = f" of {len(returned)}" if isinstance(returned, tuple) else ""
        raise TrainerError(
            f"data {name!r}: returns a {type(returned).__name__}{size}; allowed is (train, validation, test) or a dict of them"
        )
    for key in [*PARTS, *returned]:
        if key not in returned or key not in (*PARTS, *_OTHERS):
            problem = "without" if key not in returned else "with an unknown"
            needed = f"{', '.join(PARTS)} are needed, {' and '.join(_OTHERS)} allowed"
            raise TrainerError(f"data {name!r}: returns a dict {problem} {key!r}; {needed}")
    return returned


def _labels(name: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes: those returned, or as torchvision's datasets have them."""
    labels = given["labels"] if "labels" in given else getattr(given["train"], "classes", ())
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not all(isinstance(label, str) for label in labels):
        raise TrainerError(f"data {name!r}: labels = {labels!r}; allowed is a list of the classes' names")
    return tuple(labels)


def _spec(name: str, train: Examples, all_targets: Any, classes: int) -> DataSpec:
    """`all_targets`: where the dataset knows them without reading every example."""
    batch = train.batch(torch.arange(2))
    inputs = {key: tuple(t.shape[1:]) for key, t in batch.inputs.items()}
    first, target = next(iter(batch.inputs.values())), next(iter(named_targets(batch.targets).values()))
    if not classes and _whole(target):
        classes = _count(name, train, all_targets)
    mean, std = channel_statistics(train) if first.ndim == 4 and first.is_floating_point() else ((), ())
    several = inputs if len(inputs) > 1 else {}
    return DataSpec(tuple(first.shape[1:]), classes, mean, std, inputs=several, target_shape=tuple(target.shape[1:]))


def _count(name: str, train: Examples, all_targets: Any) -> int:
    """One more than the largest of the targets."""
    known = _all_of(all_targets, len(train))
    if known is not None:
        return max(0, int(known.max()) + 1)
    if len(train) > SCANNED_EXAMPLES:
        raise TrainerError(
            f"data {name!r}: {len(train)} examples are not read to count the classes; return a dict with 'labels', their names"
        )
    batches = batches_of(train, 64)
    return max(0, max(int(next(iter(named_targets(batch.targets).values())).max()) for batch in batches) + 1)


def _all_of(targets: Any, count: int) -> Tensor | None:
    """The targets of so many examples, of several the first; None for what else a dataset may call so."""
    try:
        found = torch.as_tensor(next(iter(targets.values())) if isinstance(targets, Mapping) else targets)
    except (TypeError, ValueError, RuntimeError, StopIteration):
        return None
    return found.long() if found.numel() and found.ndim and len(found) == count and _whole(found) else None


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def _sample_hash(examples: Examples) -> str:
    """Of a few examples: an export must see the data that the training saw, and cannot read all of what may be large."""
    batch: Batch = examples.batch(torch.linspace(0, len(examples) - 1, min(len(examples), HASHED_EXAMPLES)).long())
    digest = hashlib.sha256()
    for tensor in (*batch.inputs.values(), *named_targets(batch.targets).values()):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


register_source(Source("", _from_function, "module:function"))
