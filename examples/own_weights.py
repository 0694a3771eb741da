"""A network that somebody has trained, made elastic: its state dict goes in, a bundle of all its sizes comes out.

`Network` and `train_alone` stand for what you have: an ordinary module, and a script that ended in `torch.save`. What is added
is `Elastic`, which says how to build the same module smaller. The command does the same as `python own_weights.py [WEIGHTS]`:

    sortednet train --family own_weights:Elastic --data mnist-5k --from alone.pth --expect-quality 0.9 --temperature 2 --out run
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from whole_path import as_script, whole_path

from exporter.bundle import Bundle
from trainer import Family, SubModel
from trainer.data import load_data
from trainer.start import Start

CHANNELS = (16, 32, 64)
HIDDEN = 128


class Network(nn.Module):
    """Your module, as it is."""

    def __init__(self, channels: Sequence[int] = CHANNELS, hidden: int = HIDDEN, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for after in channels:
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
            before = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(before * 9, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, classes))

    def forward(self, image: Tensor) -> Tensor:  # (N, 1, 28, 28) -> (N, classes)
        logits: Tensor = self.classifier(self.features(image).flatten(1))
        return logits


def train_alone(weights: Path, epochs: int = 12) -> None:
    """Your script: it knows nothing of sizes."""
    data = load_data("mnist-5k")
    torch.manual_seed(0)
    network, order = Network(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(epochs):
        for indices in torch.randperm(len(data.train), generator=order).split(64):
            batch = data.train.batch(indices)
            assert isinstance(batch.targets, Tensor)
            loss = F.cross_entropy(network(batch.inputs["input"]), batch.targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch.save({"state_dict": network.state_dict()}, weights)


class Elastic(Family):
    """The same module at a share of its channels and hidden units."""

    axes = {"width": (0.25, 0.375, 0.5, 0.75, 1.0), "hidden": (32, 64, 128)}  # noqa: RUF012

    def build(self, sub: SubModel) -> nn.Module:
        width, hidden = sub["width"], sub["hidden"]
        assert isinstance(width, float)
        assert isinstance(hidden, int)
        return Network([round(c * width) for c in CHANNELS], hidden)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"image": torch.rand(batch_size, 1, 28, 28)}


def main(weights: Path, **options: Any) -> Bundle:
    if not weights.exists():
        train_alone(weights)
        print(f"trained {weights} as anybody would")
    options = {"epochs": 12, "batch_size": 64, "temperature": 2.0, **options}
    return whole_path("own_weights:Elastic", "mnist-5k", start=Start(weights, expect_quality=0.9), **options)


def command(
    weights: Annotated[Path, typer.Argument(help="Trained first where there is no such file.")] = Path("alone.pth"),
) -> None:
    """Makes a network elastic that somebody has trained, exports it, measures it and runs it."""
    main(weights)


if __name__ == "__main__":
    as_script(command)
