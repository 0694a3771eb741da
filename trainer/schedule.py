"""Optimizer and learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from trainer.options import FitOptions


def make_optimizer(module: nn.Module, options: FitOptions) -> torch.optim.Optimizer:
    """Weight decay for matrices and kernels only."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.peak_lr, fused=True)
    momentum = options.momentum
    optimizer = torch.optim.SGD(groups, lr=options.peak_lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    for parameter in module.parameters() if momentum else ():
        # A block that is sampled late gets its buffer late; the fused kernel wants all of them from the first step.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def learning_rate(options: FitOptions, step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, section 3)."""
    warmup = max(1, int(options.warmup * total))
    if step < warmup:
        return options.peak_lr * (step + 1) / warmup
    return options.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
