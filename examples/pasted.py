"""Pictures with handwritten digits of MNIST in them, at random places and sizes, in noise: data for two examples.

Shapes: N pictures of SIDE × SIDE, up to M = MOST digits in each.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import Samples
from trainer.data import load_data

SIDE, MOST = 48, 3
SMALLEST, LARGEST = 12, 24  # pixels of a digit's longer side
INK = 0.4  # from this on a pixel belongs to the digit
NOISE = 0.2


class Pasted(NamedTuple):
    """What the examples make their targets from."""

    pictures: Tensor  # (N, 1, SIDE, SIDE) uint8
    classes: Tensor  # (N, SIDE, SIDE) int64: of each pixel 0, or 1 + the digit
    boxes: Tensor  # (N, M, 4) float32: left, top, right, bottom in pixels; zeros where there is none
    labels: Tensor  # (N, M) int64: the digit, or -1 where there is none


@cache
def pasted(count: int) -> dict[str, Pasted]:
    """`count` pictures for training, a quarter of that for validation and for test, the same every time. The digits are those
    of MNIST's own parts: none is in two of them."""
    digits = load_data("mnist-5k")
    parts = {"train": (digits.train, count), "validation": (digits.validation, count // 4), "test": (digits.test, count // 4)}
    return {name: _pictures(part, size, len(name)) for name, (part, size) in parts.items() if isinstance(part, Samples)}


def _pictures(digits: Samples, count: int, seed: int) -> Pasted:
    source = np.random.default_rng(seed)
    (images,), labels_of = digits.inputs.values(), digits.targets
    pictures = torch.from_numpy(NOISE * source.random((count, SIDE, SIDE), dtype=np.float32))
    classes = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    boxes, labels = torch.zeros(count, MOST, 4), torch.full((count, MOST), -1)
    for number in range(count):
        for place in range(source.integers(1, MOST, endpoint=True)):
            index = source.integers(len(digits))
            digit = _cropped(images[index, 0].float() / 255, source.integers(SMALLEST, LARGEST, endpoint=True))
            height, width = digit.shape
            top, left = (int(source.integers(SIDE - size, endpoint=True)) for size in (height, width))
            box = torch.tensor([left, top, left + width, top + height])
            if _overlaps(box, boxes[number]):
                continue
            here = (number, slice(top, top + height), slice(left, left + width))
            pictures[here] = torch.maximum(pictures[here], digit)
            label = int(labels_of[index])
            classes[here][digit > INK] = 1 + label
            boxes[number, place], labels[number, place] = box, label
    return Pasted((255 * pictures).to(torch.uint8)[:, None], classes, boxes, labels)


def _cropped(digit: Tensor, size: int) -> Tensor:
    """The digit without its margin, its longer side so long."""
    inked = digit > INK
    rows, columns = inked.any(1).nonzero()[:, 0], inked.any(0).nonzero()[:, 0]
    digit = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    shape = [max(3, round(side * size / max(digit.shape))) for side in digit.shape]
    return F.interpolate(digit[None, None], shape, mode="bilinear", align_corners=False, antialias=True)[0, 0]


def _overlaps(box: Tensor, others: Tensor) -> bool:
    shared = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    return bool((shared > 0).all(dim=1).any())
