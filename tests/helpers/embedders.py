"""Families that make a vector of a text, or tags of its words: small, of the inputs that our own sources of text give.

Shapes: N batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trainer import Family, SubModel
from trainer.tasks import Embedding


class Embedder(Family):
    """Axes: numbers of a token, which are those of the vector too; width within a block; blocks."""

    axes: ClassVar[Mapping[str, Any]] = {"hidden": (4, 8), "inner": (8, 16), "blocks": (1, 2)}
    task = Embedding()

    def __init__(self, vocabulary: int = 40, tokens: int = 12) -> None:
        self.vocabulary, self.tokens = vocabulary, tokens

    def build(self, sub: SubModel) -> nn.Module:
        hidden, inner, blocks = (int(sub[axis]) for axis in ("hidden", "inner", "blocks"))  # type: ignore[arg-type]
        return _Network(self.vocabulary, hidden, inner, blocks)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.randint(0, self.vocabulary, (batch_size, self.tokens))}

    def config(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "tokens": self.tokens}

    @classmethod
    def for_data(cls, spec: Any, **settings: Any) -> Embedder:
        return cls.configured({"vocabulary": spec.vocabulary, "tokens": spec.input_shape[0], **settings})

    @classmethod
    def usual_options(cls, pretrained: bool) -> Mapping[str, Any]:
        return {"optimizer": "adamw", "lr": 0.003 if pretrained else 0.01, "weight_decay": 0.1, "batch_size": 8}


class _Block(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(hidden, inner), nn.Linear(inner, hidden), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(self.up(x).relu()))


class _Network(nn.Module):
    def __init__(self, vocabulary: int, hidden: int, inner: int, blocks: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, inner) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:  # (N, T) -> (N, hidden)
        x = self.words(x)
        for block in self.blocks:
            x = block(x)
        return nn.functional.normalize(x.mean(dim=1), dim=1)


class Tagger(Family):
    """A class for each token."""

    axes: ClassVar[Mapping[str, Any]] = {"hidden": (4, 8)}

    def __init__(self, classes: int = 3) -> None:
        self.classes = classes

    def build(self, sub: SubModel) -> nn.Module:
        hidden = int(sub["hidden"])  # type: ignore[arg-type]
        return nn.Sequential(nn.Embedding(9, hidden), nn.Linear(hidden, self.classes))

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.randint(0, 9, (batch_size, 6))}

    def config(self) -> dict[str, Any]:
        return {"classes": self.classes}

    @classmethod
    def for_data(cls, spec: Any, **settings: Any) -> Tagger:
        return cls.configured({"classes": spec.classes, **settings})


def tagged() -> dict[str, Any]:
    """Words with tags of entities; the first word is one that counts for nothing."""
    words = torch.randint(0, 9, (60, 6), generator=torch.Generator().manual_seed(0))
    tags = words % 3
    tags[:, 0] = -100
    parts = zip(("train", "validation", "test"), (slice(0, 40), slice(40, 50), slice(50, 60)), strict=True)
    return {**{name: TensorDataset(words[part], tags[part]) for name, part in parts}, "labels": ["O", "B-place", "I-place"]}
