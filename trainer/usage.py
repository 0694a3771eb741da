"""How often the parts of a full parameter are used, and gradients scaled to make up for it.

The last channels and blocks belong to the largest sub-models alone. Where sizes are drawn at random, most steps leave
them as they are, and at the learning rate of the others the full model is trained too little.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.nested import NestedModel, add_into
from trainer.submodel import SubModel


def usage_of(nested: NestedModel, shares: Mapping[SubModel, float]) -> dict[str, Tensor]:
    """For each element of the full parameters, by name: the share of all passes whose sub-model has it.

    `shares`: of the passes of a training, by sub-model; they add up to 1.
    """
    usage = {name: torch.zeros_like(p, requires_grad=False) for name, p in nested.full.named_parameters()}
    for sub, share in shares.items():
        for name, segments in nested.segments(sub).items():
            kept = [sum(s.stop - s.start for s in slices) for slices in segments]
            add_into(usage[name], segments, torch.full(kept, share, device=usage[name].device))
    return usage


class UsageScaling:
    """Divides gradients by usage ** power: 0 leaves them, at 1 every element moves as if it were always used."""

    def __init__(self, nested: NestedModel, shares: Mapping[SubModel, float], power: float) -> None:
        usage = usage_of(nested, shares)
        self.parameters = dict(nested.full.named_parameters())
        # What no sub-model uses has no gradient to scale.
        self.factors = {name: torch.where(u > 0, u, 1.0) ** -power for name, u in usage.items()}

    @torch.no_grad()
    def apply(self) -> None:
        """Scales the gradients that there are."""
        pairs = [(p.grad, self.factors[name]) for name, p in self.parameters.items() if p.grad is not None]
        torch._foreach_mul_([gradient for gradient, _ in pairs], [factor for _, factor in pairs])
