"""Augmentation of a whole batch at once, reproducible from a generator.

Shapes: N batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from trainer.data.tokens import PADDING, UNKNOWN
from trainer.task import Targets

Augmented = tuple[Mapping[str, Tensor], Targets]
Augmentation = Callable[[Mapping[str, Tensor], Targets, Generator], Augmented]
"""From inputs by name and targets to others of the same shapes."""

_OfOne = Callable[[Tensor, Generator], Tensor]


def shift(pixels: int) -> Augmentation:
    """Moves every image by up to that many pixels in either direction; zeros come in. (N, C, H, W)"""
    return of_first(lambda images, generator: _shifted(images, pixels, generator))


def flip_and_shift(pixels: int) -> Augmentation:
    """Mirrors half of the images left to right and moves all of them. (N, C, H, W)"""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        return _shifted(torch.where(mirrored, images.flip(3), images), pixels, generator)

    return of_first(apply)


def random_resized_crop(area: tuple[float, float] = (0.25, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Augmentation:
    """Mirrors half of the images and resizes a part of each to the whole: its share of the area and its proportions are random
    (Szegedy et al. 2015, arXiv 1409.4842, section 6; there from 8 % on, of pictures larger than the network's). (N, C, H, W)
    """

    def apply(images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        share, proportion, x, y, mirrored = torch.rand(5, n, generator=generator)
        share = area[0] + (area[1] - area[0]) * share
        proportion = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * proportion)
        width, height = (share * proportion).sqrt().clamp_max(1), (share / proportion).sqrt().clamp_max(1)
        boxes = torch.zeros(n, 2, 3)  # from the result's coordinates, -1 to 1, to the image's
        boxes[:, 0, 0], boxes[:, 1, 1] = torch.where(mirrored < 0.5, -width, width), height
        boxes[:, 0, 2], boxes[:, 1, 2] = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        grid = F.affine_grid(boxes, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    return of_first(apply)


def mask_tokens(share: float) -> Augmentation:
    """Replaces that share of the tokens, padding excepted, by the unknown token. (N, T)"""

    def apply(tokens: Tensor, generator: Generator) -> Tensor:
        masked = (torch.rand(tokens.shape, generator=generator) < share) & (tokens != PADDING)
        return tokens.masked_fill(masked, UNKNOWN)

    return of_first(apply)


def of_first(apply: _OfOne) -> Augmentation:
    """Changes the first input alone: for targets that do not depend on where something is."""

    def augmentation(inputs: Mapping[str, Tensor], targets: Targets, generator: Generator) -> Augmented:
        name = next(iter(inputs))
        return {**inputs, name: apply(inputs[name], generator)}, targets

    return augmentation


def _shifted(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    n, _, h, w = images.shape
    windows = F.pad(images, (pixels,) * 4).unfold(2, h, 1).unfold(3, w, 1)  # a view: (N, C, places, places, H, W)
    down, right = (torch.randint(0, 2 * pixels + 1, (n, 1), generator=generator)[:, 0] for _ in range(2))
    return windows[torch.arange(n), :, down, right]
