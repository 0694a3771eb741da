"""A transformer encoder of 20 million parameters, as a user of the library would write it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import Family, SubModel

VOCABULARY, TOKENS, CLASSES, HEAD = 2000, 64, 10, 64


class Layer(nn.Module):
    """Pre-norm attention and feed-forward. Shapes: N sequences, T tokens, S = heads * HEAD."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        size = heads * HEAD
        self.heads = heads
        self.attention_norm = nn.LayerNorm(size)
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        self.feed_norm = nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, S)
        n, t = x.shape[0], x.shape[1]
        normed = self.attention_norm(x)
        q, k, v = (
            project(normed).reshape(n, t, -1, HEAD).transpose(1, 2) for project in (self.query, self.key, self.value)
        )  # each (N, heads, T, HEAD)
        weights = (q @ k.transpose(-2, -1) * HEAD**-0.5).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, -1))
        hidden: Tensor = x + self.down(F.gelu(self.up(self.feed_norm(x))))
        return hidden


class Network(nn.Module):
    def __init__(self, heads: int, layers: int) -> None:
        super().__init__()
        size = heads * HEAD
        self.tokens = nn.Embedding(VOCABULARY, size)
        self.positions = nn.Parameter(torch.randn(TOKENS, size) * 0.02)
        self.layers = nn.ModuleList(Layer(heads) for _ in range(layers))
        self.norm = nn.LayerNorm(size)
        self.classifier = nn.Linear(size, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:  # (N, TOKENS) -> (N, CLASSES)
        x = self.tokens(tokens) + self.positions
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classifier(self.norm(x.mean(dim=1)))
        return logits


class Encoder(Family):
    """Axes: attention heads of 64 (the width), layers."""

    def __init__(self) -> None:
        self.axes = {"heads": (2, 3, 4, 5, 6, 7, 8), "layers": (1, 2, 3, 4, 5, 6)}
        self.dynamic_axes = {"tokens": {0: "batch"}}

    def build(self, sub: SubModel) -> nn.Module:
        heads, layers = sub["heads"], sub["layers"]
        assert isinstance(heads, int)
        assert isinstance(layers, int)
        return Network(heads, layers)

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"tokens": torch.randint(VOCABULARY, (batch_size, TOKENS))}
