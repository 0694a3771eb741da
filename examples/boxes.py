"""Boxes out of the outputs of a centre-point detector, and how good they are. A device needs numpy for it, and nothing else.

Shapes: N pictures, C classes, H × W cells, M boxes at most, B boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainer import Score

Array = NDArray[Any]
MOST = 20  # boxes of a picture
LEAST_SCORE = 0.01


class Found(NamedTuple):
    """Boxes of a batch, the surest of each picture first."""

    picture: Array  # (B,) place in the batch
    label: Array  # (B,)
    score: Array  # (B,) 0 to 1
    boxes: Array  # (B, 4) left, top, right, bottom in pixels


def boxes_of(outputs: Mapping[str, Array], cell: int) -> Found:
    """The local maxima of the heatmap (Zhou et al. 2019, arXiv 1904.07850, section 4: no suppression of overlaps is needed)."""
    logits = outputs["heatmap"]
    padded = np.pad(logits, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    highest = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3)).max(axis=(4, 5))
    scores = np.where(logits == highest, 1 / (1 + np.exp(-logits)), 0)  # (N, C, H, W)
    picture, label, y, x = np.nonzero(scores > LEAST_SCORE)
    score = scores[picture, label, y, x]
    order = np.lexsort((-score, picture))
    rank = np.arange(len(order)) - np.searchsorted(picture[order], picture[order])
    picture, label, y, x, score = (values[order[rank < MOST]] for values in (picture, label, y, x, score))
    half = outputs["size"][picture, :, y, x] / 2
    centre = np.stack([x, y], axis=1) + outputs["offset"][picture, :, y, x]
    return Found(picture, label, score, cell * np.concatenate([centre - half, centre + half], axis=1))


def overlaps(ones: Array, others: Array) -> Array:
    """Intersection over union of boxes (B, 4) with others (M, 4): (B, M)."""
    least, most = np.maximum(ones[:, None, :2], others[:, :2]), np.minimum(ones[:, None, 2:], others[:, 2:])
    both = (most - least).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (ones, others)]
    union = areas[0][:, None] + areas[1] - both
    return both / np.where(union > 0, union, 1)


class MeanAveragePrecision:
    """Mean over the classes of the area under precision over recall; quality is that at an overlap of a half.

    Everingham et al. 2015, "The Pascal Visual Object Classes Challenge: A Retrospective", section 3.2.1.
    """

    least = (0.5, 0.75)  # overlaps from which on a box is right

    def __init__(self, cell: int) -> None:
        self.cell = cell
        self.wanted: dict[int, int] = {}  # by class: how many there are
        self.found: dict[
            tuple[float, int], list[tuple[float, bool]]
        ] = {}  # by overlap and class: score, and whether it is right

    def add(self, outputs: Mapping[str, Array], targets: Any) -> None:
        found = boxes_of(outputs, self.cell)
        for picture, (boxes, labels) in enumerate(zip(targets["boxes"], targets["labels"], strict=True)):
            boxes, labels = boxes[labels >= 0], labels[labels >= 0]
            for label in labels.tolist():
                self.wanted[label] = self.wanted.get(label, 0) + 1
            here = found.picture == picture
            shared = overlaps(found.boxes[here], boxes) * (found.label[here][:, None] == labels)
            for least in self.least:
                left = shared.copy()
                for row, label, score in zip(left, found.label[here].tolist(), found.score[here].tolist(), strict=True):
                    right = row.max(initial=0) >= least
                    if right:
                        left[:, row.argmax()] = 0  # it is found once
                    self.found.setdefault((least, label), []).append((score, bool(right)))

    def value(self) -> Score:
        from trainer import Score

        maps = {f"map_{round(100 * least)}": self._mean(least) for least in self.least}
        return Score(maps["map_50"], maps)

    def _mean(self, least: float) -> float:
        return float(np.mean([self._average(least, label) for label in self.wanted])) if self.wanted else 0.0

    def _average(self, least: float, label: int) -> float:
        ranked = sorted(self.found.get((least, label), []), key=lambda one: -one[0])
        right = np.array([is_right for _, is_right in ranked], dtype=bool)
        hits = np.cumsum(right)
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]  # the best at this recall or more
        return float(precision[right].sum() / self.wanted[label])
