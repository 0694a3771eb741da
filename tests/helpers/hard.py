"""A family whose network holds whatever a user's own may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import Family, NestedModel, SubModel


class Hard(Family):
    """What a user's own module may hold: a sum of two parameters, an unused one, dropout, BatchNorm, a scalar."""

    axes: ClassVar[dict[str, Sequence[int]]] = {"width": (2, 4, 6)}

    def build(self, sub: SubModel) -> nn.Module:
        return _HardNetwork(int(sub["width"]))  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.rand(batch_size, 5)}


class _HardNetwork(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(0.3 * torch.randn(width, 5))
        self.correction = nn.Parameter(0.1 * torch.randn(width, 5))
        self.common = nn.Parameter(0.3 * torch.randn(5, 5))  # as large in every sub-model
        self.common_correction = nn.Parameter(0.1 * torch.randn(5, 5))
        self.unused = nn.Parameter(torch.randn(width))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.norm = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:  # (N, 5) -> (N, 4)
        x = F.linear(x, self.common + self.common_correction)
        x = self.norm(F.linear(x, self.first + self.correction))
        logits: Tensor = self.classifier(F.dropout(x.tanh(), 0.2, self.training)) * self.temperature
        return logits


def filled(family: Family) -> NestedModel:
    torch.manual_seed(0)
    nested = NestedModel(family)
    with torch.no_grad():
        for parameter in nested.full.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return nested


def gradients(nested: NestedModel) -> dict[str, Tensor | None]:
    return {name: p.grad if p.grad is None else p.grad.clone() for name, p in nested.full.named_parameters()}
