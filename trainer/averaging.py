"""Averaging of weights over the last steps of a training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a module's parameters (Polyak & Juditsky 1992), over about `horizon` steps.

    In the first steps it looks back no further than a tenth of what has been, so that the first weights are forgotten.
    """

    def __init__(self, module: nn.Module, horizon: float) -> None:
        self.horizon = max(1.0, horizon)
        self.by_name = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._averages: list[Tensor] = list(self.by_name.values())
        self._parameters: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """To be called after the optimizer's step number `step`, counted from 0."""
        weight = max(1 / self.horizon, 10 / (10 + step))
        torch._foreach_lerp_(self._averages, self._parameters, weight)

    @torch.no_grad()
    def apply(self) -> None:
        """Puts the averages in the parameters' place."""
        torch._foreach_copy_(self._parameters, self._averages)
