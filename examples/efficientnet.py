"""An EfficientNet-like classifier, at every width and depth.

What it shows: convolutions with as many groups as there are channels (depthwise), or with groups of eight channels, so that
their number belongs to the size; squeeze-and-excitation, whose two layers scale channels by what all of the picture says; a
family that is built for the data that it gets (`for_data`).

    python examples/efficientnet.py
    sortednet train --family efficientnet:EfficientNet --data mnist-5k --out run                           (in examples/)

Shapes: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from whole_path import as_script, whole_path

from trainer import DataSpec, Family, SubModel

GROUP = 8  # channels of a group; widths are multiples of it


class Stage(NamedTuple):
    """A part of the network at one resolution, at width 1."""

    channels: int
    blocks: int
    stride: int
    kernel: int
    expansion: int
    depthwise: bool  # or groups of GROUP channels


STAGES = (Stage(16, 2, 1, 3, 2, False), Stage(32, 3, 2, 3, 4, True), Stage(64, 3, 2, 5, 4, True))
STEM, HEAD = 16, 128


class _ConvNorm(nn.Module):
    def __init__(self, before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.conv(x))
        return normalised


class _SqueezeExcitation(nn.Module):
    """Hu et al. 2018, arXiv 1709.01507."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.excite(F.silu(self.squeeze(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return x * scale


class _Block(nn.Module):
    """Inverted residual with squeeze-and-excitation (Tan & Le 2019, arXiv 1905.11946)."""

    def __init__(self, before: int, after: int, stage: Stage, first: bool) -> None:
        super().__init__()
        hidden = before * stage.expansion
        self.residual = not first
        self.expand = _ConvNorm(before, hidden)
        groups = hidden if stage.depthwise else hidden // GROUP
        self.spatial = _ConvNorm(hidden, hidden, stage.kernel, stage.stride if first else 1, groups)
        self.scale = _SqueezeExcitation(hidden, before // 4)
        self.project = _ConvNorm(hidden, after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.scale(F.silu(self.spatial(F.silu(self.expand(x))))))
        return x + out if self.residual else out


class _Network(nn.Module):
    def __init__(self, colours: int, classes: int, width: float, depth: int) -> None:
        super().__init__()
        before = _scaled(STEM, width)
        self.stem = _ConvNorm(colours, before, kernel=3)
        self.stages = nn.ModuleList()
        for stage in STAGES:
            after = _scaled(stage.channels, width)
            blocks = (_Block(before if i == 0 else after, after, stage, i == 0) for i in range(min(depth, stage.blocks)))
            self.stages.append(nn.Sequential(*blocks))
            before = after
        self.head = _ConvNorm(before, _scaled(HEAD, width))
        self.classifier = nn.Linear(_scaled(HEAD, width), classes)

    def forward(self, picture: Tensor) -> Tensor:  # (N, C, H, W) -> (N, classes)
        x = F.silu(self.stem(picture))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.classifier(F.silu(self.head(x)).mean(dim=(2, 3)))
        return logits


def _scaled(channels: int, width: float) -> int:
    return max(GROUP, round(channels * width / GROUP) * GROUP)


class EfficientNet(Family):
    """Axes: width scales the channels, depth is the number of blocks in each stage, as far as it has them."""

    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        self.input_shape, self.classes = tuple(input_shape), classes
        self.axes = {"width": (0.5, 0.75, 1.0), "depth": (1, 2, 3)}

    @classmethod
    def for_data(cls, spec: DataSpec, **settings: Any) -> EfficientNet:
        return cls.configured({"input_shape": spec.input_shape, "classes": spec.classes, **settings})

    def config(self) -> dict[str, Any]:
        return {"input_shape": list(self.input_shape), "classes": self.classes}

    def build(self, sub: SubModel) -> nn.Module:
        width, depth = sub["width"], sub["depth"]
        assert isinstance(width, float)
        assert isinstance(depth, int)
        return _Network(self.input_shape[0], self.classes, width, depth)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"picture": torch.rand(batch_size, *self.input_shape)}


def main() -> None:
    """Trains the classifier on 5,000 digits, exports it, measures it and runs it."""
    whole_path("efficientnet:EfficientNet", "mnist-5k", epochs=8, batch_size=64)


if __name__ == "__main__":
    as_script(main)
