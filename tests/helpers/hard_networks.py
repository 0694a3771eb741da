"""Networks that are hard to write as a graph, and a family for any network of one width.

Shapes: N batch, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer import Family, SubModel

Inputs = Callable[[int], dict[str, Tensor]]


class One(Family):
    """A network of one width."""

    axes: ClassVar[dict[str, Sequence[int]]] = {"width": (8, 16)}

    def __init__(
        self, network: Callable[[int], nn.Module], inputs: Inputs, fused: Mapping[str, int] | None = None, **free: str
    ) -> None:
        self.network, self.inputs, self.fused = network, inputs, fused or {}
        if free:
            self.dynamic_axes = {name: {0: "batch", 1: axis} for name, axis in free.items()}

    def build(self, sub: SubModel) -> nn.Module:
        return self.network(int(sub["width"]))  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return self.inputs(batch_size)

    def fused_blocks(self, sub: SubModel) -> Mapping[str, Mapping[int, Sequence[int]]]:
        """Three blocks on an axis of each parameter of `fused`."""
        return {name: {axis: (int(sub["width"]),) * 3} for name, axis in self.fused.items()}  # type: ignore[arg-type]


def vectors(count: int) -> dict[str, Tensor]:
    return {"x": torch.rand(count, 32)}


def tokens(count: int) -> dict[str, Tensor]:
    return {"d": torch.randn(count, 6, 32)}


class PicksAToken(nn.Module):
    """Its constants are equal to indices that a cut needs, so that ONNX Runtime keeps those in the optimized graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.pos, self.fc = nn.Linear(32, width), nn.Parameter(torch.randn(1, 6, width)), nn.Linear(width, 4)

    def forward(self, d: Tensor) -> Tensor:
        hidden = self.inp(d) + self.pos
        result: Tensor = self.fc(hidden.index_select(1, torch.tensor([2])).squeeze(1))
        return result


class Patches(nn.Module):
    """A vision transformer of one layer with a fused projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch, self.norm, self.qkv = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.first, self.pos = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.fc = nn.Linear(width, 4)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(image.shape[0], -1, -1), patches], 1) + self.pos
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, width // 4, 4).permute(2, 0, 3, 1, 4)
        x = x + ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(n, t, width)
        result: Tensor = self.fc(x[:, 0])
        return result


class InByOut(nn.Module):
    """A linear layer whose weight is (in, out), as GPT-2 has them."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(into, out) / into**0.5), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).reshape(*x.shape[:-1], -1)


class LikeGpt2(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.embedding, self.attention = width, nn.Embedding(50, width), InByOut(width, 3 * width)
        self.out, self.fc = InByOut(width, width), nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:  # (N, T)
        x = self.embedding(ids)
        q, k, v = self.attention(x).split(self.width, dim=-1)
        result: Tensor = self.fc((x + self.out((q @ k.transpose(1, 2)).softmax(-1) @ v))[:, -1])
        return result


class NamedLikeOurs(nn.Module):
    """Tensors that are called like the input, the output, and what an export or ONNX Runtime's quantizer adds to a graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        names = ("x_scale", "x_quantized", "statistics", "recurrent", "v3", "t0", "w0", "c0")
        for name in names:
            setattr(self, name, nn.Parameter(torch.rand(width)))
        self.index, self.constant = (nn.ParameterList([nn.Parameter(torch.rand(width))]) for _ in range(2))
        self.logits, self.x, self.names = nn.Parameter(torch.randn(4)), nn.Linear(32, width), names
        self.register_buffer("y", torch.full((32,), 2.0))
        self.norm, self.fc = nn.BatchNorm1d(width), nn.Linear(width, 4)

    def forward(self, y: Tensor, v7: Tensor) -> Tensor:
        hidden = self.norm(self.x(y * self._buffers["y"] + v7))
        for name in self.names:
            hidden = hidden * getattr(self, name) + 0.5
        result: Tensor = self.fc((hidden * self.index[0] + self.constant[0]).relu()) + self.logits
        return result


class NamedLikeAWeight(nn.Module):
    """Input and weight are both `w`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w, self.fc = nn.Parameter(torch.randn(32, width)), nn.Linear(width, 4)

    def forward(self, w: Tensor) -> Tensor:
        result: Tensor = self.fc((w @ self.w).relu())
        return result


class WithAttention(nn.Module):
    """torch's own encoder layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.fc = nn.Linear(32, width), nn.Linear(width, 4)
        self.layer = nn.TransformerEncoderLayer(width, width // 4, 2 * width, batch_first=True)

    def forward(self, d: Tensor) -> Tensor:
        result: Tensor = self.fc(self.layer(self.inp(d)).mean(dim=1))
        return result


class Positive(nn.Module):
    """Has an answer for positive numbers alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(32, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.hidden((x + 0.1).log()).relu())
        return result


class Tied(nn.Module):
    """An embedding whose weight is used otherwise too."""

    def __init__(self, width: int, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.use = nn.Embedding(50, width), use
        self.hidden, self.fc = nn.LazyLinear(64), nn.Linear(64, 4)
        self.forward(torch.zeros(1, 6, dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:  # (N, T)
        used = self.use(self.embedding(ids).mean(1), self.embedding.weight)
        result: Tensor = self.fc(self.hidden(used).relu())
        return result


def tied(use: Callable[[Tensor, Tensor], Tensor]) -> One:
    return One(lambda width: Tied(width, use), lambda n: {"ids": torch.randint(50, (n, 6))})


class Masked(nn.Module):
    """Says of one class that it is not to be had."""

    def __init__(self, width: int, mask: float, network: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.network, self.mask = network(width), mask

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x).masked_fill(torch.arange(4) == 3, self.mask)
        return result
