"""What the outputs of a classification say: names of classes and their probabilities.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.bundle.manifest import TaskEntry

CLASSIFICATION = "classification"


class Answer(NamedTuple):
    """One class that an example may be of."""

    label: str  # its name, or its number where the classes have none
    probability: float  # 0 to 1


def answers(task: TaskEntry, outputs: Mapping[str, NDArray[Any]], count: int = 3) -> list[list[Answer]]:
    """For each example its most probable classes, the most probable first. Empty for another task than classification."""
    logits = next(iter(outputs.values()), None)
    if task.kind != CLASSIFICATION or logits is None or logits.ndim != 2:
        return []
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    chosen = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    names = task.labels if len(task.labels) == logits.shape[1] else tuple(map(str, range(logits.shape[1])))
    return [[Answer(names[c], float(row[c])) for c in best] for row, best in zip(probabilities, chosen, strict=True)]
