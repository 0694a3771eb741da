"""A U-Net that says of every pixel which handwritten digit it belongs to, if any.

What it shows: skip connections. A decoder's first convolution takes two things side by side, what comes from below and what
the encoder had at that level; each is a prefix of its own, which `fused_blocks` says. The depth is how many levels down the
network goes. Pictures may be of any size that can be halved that often.

    python examples/segmentation.py
    sortednet train --family segmentation:UNet --data segmentation:pictures --out run --optimizer adamw    (in examples/)

Shapes: N pictures, C channels, H height, W width. Data: digits of MNIST, see `pasted.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from pasted import SIDE, pasted
from torch import Tensor, nn
from torch.nn import functional as F
from whole_path import as_script, whole_path

from trainer import Family, Samples, SubModel
from trainer.tasks import Segmentation

CLASSES = 11  # the background and ten digits
CHANNELS = (16, 24, 32, 48)  # of each level at width 1; with fewer at the top eleven classes do not pass


def pictures(count: int = 3000) -> dict[str, object]:
    """`count` pictures for training, a quarter of that for validation and for test; a class for every pixel."""
    parts = pasted(count)
    samples = {part: Samples(one.pictures, one.classes) for part, one in parts.items()}
    return {**samples, "labels": ["background", *"0123456789"]}


class _Level(nn.Sequential):
    """Two convolutions of 3 × 3."""

    def __init__(self, before: int, after: int) -> None:
        layers: list[nn.Module] = []
        for channels in (before, after):
            layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class _Network(nn.Module):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(_Level(*pair) for pair in pairwise((1, *channels)))
        self.decoder = nn.ModuleList(_Level(below + level, level) for level, below in pairwise(channels))
        self.head = nn.Conv2d(channels[0], CLASSES, 1)

    def forward(self, picture: Tensor) -> Tensor:  # (N, 1, H, W) -> (N, CLASSES, H, W)
        x, skips = picture, []
        for number, level in enumerate(self.encoder):
            x = level(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        for level, skip in zip(reversed(self.decoder), reversed(skips[:-1]), strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


class UNet(Family):
    """Ronneberger et al. 2015, arXiv 1505.04597. Axes: width scales the channels, levels is how often the picture is halved."""

    axes = {"width": (0.5, 0.75, 1.0), "levels": (1, 2, 3)}  # noqa: RUF012
    dynamic_axes = {"picture": {0: "batch", 2: "height", 3: "width"}}  # noqa: RUF012
    task = Segmentation()

    def channels(self, sub: SubModel) -> list[int]:
        width, levels = sub["width"], sub["levels"]
        assert isinstance(width, float)
        assert isinstance(levels, int)
        return [int(width * channels) for channels in CHANNELS[: levels + 1]]

    def build(self, sub: SubModel) -> nn.Module:
        return _Network(self.channels(sub))

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"picture": torch.rand(batch_size, 1, SIDE, SIDE)}

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        channels = self.channels(sub)
        return {f"decoder.{i}.0.weight": {1: (channels[i + 1], channels[i])} for i in range(len(channels) - 1)}


def main() -> None:
    """Trains the U-Net on pasted digits, exports it, measures it and runs it."""
    whole_path("segmentation:UNet", "segmentation:pictures", epochs=12, batch_size=16, optimizer="adamw", lr=0.005)


if __name__ == "__main__":
    as_script(main)
