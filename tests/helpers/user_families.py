"""Families as users write them: code that knows nothing of sub-models, with what is hard to cut into prefixes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import DataSpec, Family, SubModel

HEAD = 8  # size of one attention head


class _Layer(nn.Module):
    """Attention with one fused projection, a literal number of heads, and a scale that depends on the width."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, heads * HEAD
        self.norm = nn.LayerNorm(self.size)
        self.qkv = nn.Linear(self.size, 3 * self.size)
        self.out = nn.Linear(self.size, self.size)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, size)
        n, t = x.shape[0], x.shape[1]
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(self.size)).softmax(dim=-1)
        attended = (weights @ v).transpose(1, 2).reshape(n, t, self.size)
        result: Tensor = x + self.out(attended)
        return result


class _Encoder(nn.Module):
    positions: Tensor

    def __init__(self, vocabulary: int, tokens: int, classes: int, heads: int, layers: int) -> None:
        super().__init__()
        size = heads * HEAD
        self.embedding = nn.Embedding(vocabulary, size)
        self.layers = nn.ModuleList(_Layer(heads) for _ in range(layers))
        self.mix = nn.Linear(size, vocabulary, bias=False)
        self.mix.weight = self.embedding.weight  # tied
        self.classifier = nn.Linear(vocabulary, classes)
        # A buffer that is different at every size, and no prefix of the full one.
        self.register_buffer("positions", torch.linspace(-1, 1, tokens * size).reshape(tokens, size))

    def forward(self, tokens: Tensor) -> Tensor:  # (N, T) -> (N, classes)
        x = self.embedding(tokens) + self.positions
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classifier(F.relu(self.mix(x.mean(dim=1))))
        return logits


class TextEncoder(Family):
    """A small transformer over token ids; axes: heads (the width) and layers (the depth)."""

    def __init__(self, vocabulary: int = 50, tokens: int = 6, classes: int = 3) -> None:
        self.vocabulary, self.tokens, self.classes = vocabulary, tokens, classes
        self.axes = {"heads": (1, 2, 3), "layers": (1, 2)}

    @classmethod
    def for_data(cls, spec: DataSpec, **settings: int) -> TextEncoder:
        return cls(spec.vocabulary, spec.input_shape[0], spec.classes, **settings)

    def config(self) -> dict[str, int]:
        return {"vocabulary": self.vocabulary, "tokens": self.tokens, "classes": self.classes}

    def build(self, sub: SubModel) -> nn.Module:
        heads, layers = sub["heads"], sub["layers"]
        assert isinstance(heads, int)
        assert isinstance(layers, int)
        return _Encoder(self.vocabulary, self.tokens, self.classes, heads, layers)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"tokens": torch.randint(0, self.vocabulary, (batch_size, self.tokens))}

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        heads, layers = sub["heads"], sub["layers"]
        assert isinstance(heads, int)
        assert isinstance(layers, int)
        three = {0: (heads * HEAD,) * 3}
        return {f"layers.{i}.qkv.{leaf}": three for i in range(layers) for leaf in ("weight", "bias")}


class _Dense(nn.Module):
    """Two branches whose outputs are concatenated: the next layer's second axis is two blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, width, 3, padding=1)
        self.right = nn.Conv2d(1, 2 * width, 3, padding=1)
        self.join = nn.Conv2d(3 * width, width, 1)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.right(x)], dim=1).relu()
        logits: Tensor = self.classifier(self.join(joined).mean(dim=(2, 3)))
        return logits


class Branches(Family):
    """Axis: width in channels."""

    axes = {"width": (2, 4, 8)}  # noqa: RUF012

    def build(self, sub: SubModel) -> nn.Module:
        width = sub["width"]
        assert isinstance(width, int)
        return _Dense(width)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"image": torch.rand(batch_size, 1, 8, 8)}

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        width = sub["width"]
        assert isinstance(width, int)
        return {"join.weight": {1: (width, 2 * width)}}


class Noisy(Branches):
    """Answers differently every time, so that no graph can be equal to it."""

    def build(self, sub: SubModel) -> nn.Module:
        return nn.Sequential(super().build(sub), _Noise())


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)
