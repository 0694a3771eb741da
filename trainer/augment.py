"""Augmentation of a whole batch at once, reproducible from a generator.

Shapes: N batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from trainer.readers import PADDING, UNKNOWN

Augmentation = Callable[[tuple[Tensor, ...], Generator], tuple[Tensor, ...]]


def shift(pixels: int) -> Augmentation:
    """Moves every image by up to that many pixels in either direction; zeros come in. (N, C, H, W)"""

    def apply(inputs: tuple[Tensor, ...], generator: Generator) -> tuple[Tensor, ...]:
        return (_shifted(inputs[0], pixels, generator), *inputs[1:])

    return apply


def flip_and_shift(pixels: int) -> Augmentation:
    """Mirrors half of the images left to right and moves all of them. (N, C, H, W)"""

    def apply(inputs: tuple[Tensor, ...], generator: Generator) -> tuple[Tensor, ...]:
        images = inputs[0]
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
        return (_shifted(images, pixels, generator), *inputs[1:])

    return apply


def mask_tokens(share: float) -> Augmentation:
    """Replaces that share of the tokens, padding excepted, by the unknown token. (N, T)"""

    def apply(inputs: tuple[Tensor, ...], generator: Generator) -> tuple[Tensor, ...]:
        tokens = inputs[0]
        masked = (torch.rand(tokens.shape, generator=generator) < share) & (tokens != PADDING)
        return (tokens.masked_fill(masked, UNKNOWN), *inputs[1:])

    return apply


def _shifted(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    n, _, h, w = images.shape
    windows = F.pad(images, (pixels,) * 4).unfold(2, h, 1).unfold(3, w, 1)  # a view: (N, C, places, places, H, W)
    down, right = (torch.randint(0, 2 * pixels + 1, (n, 1), generator=generator)[:, 0] for _ in range(2))
    return windows[torch.arange(n), :, down, right]
