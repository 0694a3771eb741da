"""A detector: where in a picture are handwritten digits, and which.

What it shows: a task of one's own. The network gives three outputs by name, a heatmap of centres for each class and, at every
cell, the size of a box and where in the cell its centre lies; the targets are two tensors by name, boxes and labels. Loss and
score are the class `Detection`: another detector needs another loss, nothing else of ours.

    python examples/detection.py
    sortednet train --family detection:Detector --data detection:pictures --out run --optimizer adamw      (in examples/)

Shapes: N pictures, C classes, H × W cells of CELL × CELL pixels, M boxes at most. Data: digits of MNIST, see `pasted.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from boxes import MeanAveragePrecision
from pasted import SIDE, pasted
from torch import Tensor, nn
from torch.nn import functional as F
from whole_path import as_script, whole_path

from trainer import Family, Samples, SubModel, Task, TrainerError

CLASSES, CELL = 10, 4


def pictures(count: int = 3000) -> dict[str, object]:
    """`count` pictures for training, a quarter of that for validation and for test; a box and a label for each digit."""
    samples = {part: Samples(p.pictures, {"boxes": p.boxes, "labels": p.labels}) for part, p in pasted(count).items()}
    return {**samples, "labels": list("0123456789")}


@dataclass(frozen=True)
class Detection(Task):
    """CenterNet (Zhou et al. 2019, arXiv 1904.07850, section 3). Outputs `heatmap` (N, C, H, W) logits, `size` (N, 2, H, W) and
    `offset` (N, 2, H, W) in cells. Targets `boxes` (N, M, 4), left, top, right, bottom in pixels, and `labels` (N, M), -1 where
    there is no box. Quality: mean average precision at an overlap of a half.
    """

    size_weight: float = 0.1

    kind: ClassVar[str] = "detection"
    metric: ClassVar[str] = "map_50"
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {name: {0: "batch"} for name in ("heatmap", "size", "offset")}  # type: ignore[misc]

    def loss(self, outputs: Mapping[str, Tensor], targets: Any) -> Tensor:
        boxes, labels = targets["boxes"] / CELL, targets["labels"]
        n, place = (labels >= 0).nonzero(as_tuple=True)  # of B boxes: the picture, and which of its boxes
        label, corners = labels[n, place], boxes[n, place]
        centre, extent = (corners[:, 2:] + corners[:, :2]) / 2, corners[:, 2:] - corners[:, :2]  # (B, 2), x and y
        x, y = centre.long().unbind(1)
        heat = outputs["heatmap"].float()
        around = _around(centre.floor(), extent, heat.shape[2], heat.shape[3])
        index = (n * heat.shape[1] + label)[:, None, None].expand_as(around)
        wanted = torch.zeros_like(heat).flatten(0, 1).scatter_reduce(0, index, around, "amax").view_as(heat)
        # A focal loss (equation 1) that asks less of what is near a centre, then sizes and offsets at the centres alone.
        hit = F.logsigmoid(heat) * (1 - heat.sigmoid()) ** 2 * (wanted == 1)
        miss = F.logsigmoid(-heat) * heat.sigmoid() ** 2 * (1 - wanted) ** 4 * (wanted < 1)
        found = [outputs[name].float()[n, :, y, x] for name in ("size", "offset")]
        size, offset = (F.l1_loss(f, t, reduction="sum") for f, t in zip(found, (extent, centre - centre.floor()), strict=True))
        total: Tensor = (-(hit + miss).sum() + self.size_weight * size + offset) / max(1, len(n))
        return total

    def mean_over(self, targets: Any, distilled: bool = False) -> Tensor:
        """The boxes, of parts of a batch (--micro-batches)."""
        found: Tensor = (targets["labels"] >= 0).sum()
        return found

    def check(self, outputs: Mapping[str, Tensor], targets: Any) -> None:
        if not isinstance(targets, Mapping) or set(targets) != {"boxes", "labels"}:
            raise TrainerError("targets: allowed are 'boxes' (N, M, 4) and 'labels' (N, M) by name")
        boxes, labels, classes = targets["boxes"], targets["labels"], outputs["heatmap"].shape[1]
        if boxes.ndim != 3 or tuple(boxes.shape) != (*labels.shape, 4):
            raise TrainerError(f"targets 'boxes': shape {tuple(boxes.shape)}; allowed is {(*labels.shape, 4)}")
        if labels.is_floating_point() or bool(((labels < -1) | (labels >= classes)).any()):
            raise TrainerError(f"targets 'labels': {labels.dtype}; allowed are whole numbers from -1, no box, to {classes - 1}")
        limit = torch.tensor([s * CELL for s in outputs["heatmap"].shape[:1:-1]] * 2)
        there = boxes[labels >= 0]
        if bool(((there < 0) | (there > limit)).any()) or bool((there[:, 2:] <= there[:, :2]).any()):
            raise TrainerError("targets 'boxes': allowed are left < right and top < bottom, within the picture, in pixels")

    def scorer(self) -> MeanAveragePrecision:
        return MeanAveragePrecision(CELL)


def _around(centre: Tensor, extent: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W): 1 at each box's centre, falling off with its size as a Gaussian."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    x, y = (centre[:, axis, None, None] for axis in (0, 1))
    spread = (extent.amin(dim=1) / 6).clamp_min(0.5)[:, None, None]
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after)
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.conv(x)))
        total: Tensor = x + out if self.residual else out
        return total


class _Network(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_Block(1, width // 2, stride=2), _Block(width // 2, width, stride=2))
        self.blocks = nn.ModuleList(_Block(width, width) for _ in range(depth))
        self.heads = nn.ModuleDict(
            {name: nn.Conv2d(width, channels, 1) for name, channels in (("heatmap", CLASSES), ("size", 2), ("offset", 2))}
        )
        nn.init.constant_(self.heads["heatmap"].bias, -2.19)  # type: ignore[arg-type]  # few cells are a centre: begin with one in ten

    def forward(self, picture: Tensor) -> dict[str, Tensor]:  # (N, 1, H, W) pixels
        x = self.stem(picture)
        for block in self.blocks:
            x = block(x)
        return {name: head(x) for name, head in self.heads.items()}


class Detector(Family):
    """Axes: width in channels, depth in blocks at a quarter of the picture's resolution."""

    axes = {"width": (16, 32, 64), "depth": (2, 4, 6)}  # noqa: RUF012
    task = Detection()

    def build(self, sub: SubModel) -> nn.Module:
        width, depth = sub["width"], sub["depth"]
        assert isinstance(width, int)
        assert isinstance(depth, int)
        return _Network(width, depth)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"picture": torch.rand(batch_size, 1, SIDE, SIDE)}


def main() -> None:
    """Trains the detector on pasted digits, exports it, measures it and runs it."""
    whole_path("detection:Detector", "detection:pictures", epochs=20, batch_size=32, optimizer="adamw")


if __name__ == "__main__":
    as_script(main)
