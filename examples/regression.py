"""A regressor: how far a handwritten digit is turned, and where it is.

What it shows: two outputs, both of them numbers, each with targets of its own name; quality is R², the share of the variance
that is explained, over all of their numbers. A layer that reads a feature map flattened has prefixes too: channels come first.

    python examples/regression.py
    sortednet train --family regression:Pose --data regression:turned --out run --optimizer adamw          (in examples/)

Shapes: N pictures, C channels, H height, W width. Data: digits of MNIST, turned, moved and shrunk.
"""

from __future__ import annotations

from functools import cache
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from whole_path import as_script, whole_path

from trainer import Family, Samples, SubModel
from trainer.data import load_data
from trainer.tasks import Regression

SIDE = 32
MOST_TURNED = pi / 4
STEPS = 3  # the network halves the picture so often


@cache
def turned(copies: int = 2) -> tuple[Samples, ...]:
    """Each of MNIST's digits so many times: turned by up to 45 degrees, moved, at 50 to 80 % of the picture's side.

    Targets: `rotation` (N, 2), the angle's sine and cosine; `place` (N, 3), the centre (0 to 1, x and y) and the size.
    """
    digits = load_data("mnist-5k")
    return tuple(_turned(part, copies, seed) for seed, part in enumerate((digits.train, digits.validation, digits.test)))


def _turned(digits: object, copies: int, seed: int) -> Samples:
    assert isinstance(digits, Samples)
    generator = torch.Generator().manual_seed(seed)
    images = next(iter(digits.batch(torch.arange(len(digits)).repeat(copies)).inputs.values()))
    angle, x, y, size = torch.rand(4, len(images), generator=generator)
    angle, size = (2 * angle - 1) * MOST_TURNED, 0.5 + 0.3 * size
    x, y = (size / 2 + (1 - size) * place for place in (x, y))
    # From the picture's coordinates, -1 to 1, to the digit's: moved to the digit's centre, turned back, enlarged.
    sine, cosine = angle.sin() / size, angle.cos() / size
    turn = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)
    centre = torch.stack([2 * x - 1, 2 * y - 1], 1)[:, :, None]
    grid = F.affine_grid(torch.cat([turn, -turn @ centre], dim=2), [len(images), 1, SIDE, SIDE], align_corners=False)
    pictures = F.grid_sample(images, grid, align_corners=False)
    rotation = torch.stack([angle.sin(), angle.cos()], 1)
    return Samples((255 * pictures).to(torch.uint8), {"rotation": rotation, "place": torch.stack([x, y, size], 1)})


class _Network(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for step in range(STEPS):
            layers = [_convolution(width if step else 1, width, 2), *(_convolution(width, width, 1) for _ in range(depth - 1))]
            self.stages.append(nn.Sequential(*layers))
        # Flattened (N, C H W) with all of a channel's cells side by side: the first channels are a prefix.
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width * (SIDE >> STEPS) ** 2, n) for name, n in (("rotation", 2), ("place", 3))}
        )

    def forward(self, picture: Tensor) -> dict[str, Tensor]:  # (N, 1, SIDE, SIDE)
        x = picture
        for stage in self.stages:
            x = stage(x)
        return {name: head(x.flatten(1)) for name, head in self.heads.items()}


def _convolution(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Pose(Family):
    """Axes: width in channels, depth in convolutions of each stage."""

    axes = {"width": (8, 16, 24, 32), "depth": (1, 2, 3)}  # noqa: RUF012
    task = Regression(names=("rotation", "place"))

    def build(self, sub: SubModel) -> nn.Module:
        width, depth = sub["width"], sub["depth"]
        assert isinstance(width, int)
        assert isinstance(depth, int)
        return _Network(width, depth)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"picture": torch.rand(batch_size, 1, SIDE, SIDE)}


def main() -> None:
    """Trains the regressor on turned digits, exports it, measures it and runs it."""
    whole_path("regression:Pose", "regression:turned", epochs=20, batch_size=64, optimizer="adamw")


if __name__ == "__main__":
    as_script(main)
