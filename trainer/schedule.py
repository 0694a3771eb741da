"""Optimizer and learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.blocks import blocks_above
from trainer.submodel import TrainerError

if TYPE_CHECKING:
    from trainer.options import FitOptions


def make_optimizer(module: nn.Module, options: FitOptions) -> torch.optim.Optimizer:
    """Weight decay for matrices and kernels only. Raises TrainerError for a layer-wise rate of a network without blocks.

    A group's `scale` is what `learning_rate` is multiplied by there.
    """
    groups = _groups(module, options)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.peak_lr, fused=True)
    momentum = options.momentum
    optimizer = torch.optim.SGD(groups, lr=options.peak_lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    for parameter in module.parameters() if momentum else ():
        # A block that is sampled late gets its buffer late; the fused kernel wants all of them from the first step.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _groups(module: nn.Module, options: FitOptions) -> list[dict[str, Any]]:
    """Parameters of one decay of weights and one rate (Howard & Ruder 2018, arXiv 1801.06146, section 3.2: discriminative
    fine-tuning)."""
    named = dict(module.named_parameters())
    above = dict.fromkeys(named, 0)
    if options.layer_decay != 1:
        above = blocks_above(module)
        if not any(above.values()):
            raise TrainerError(
                f"layer_decay = {options.layer_decay}: the network has no blocks (no ModuleList with several); allowed is 1"
            )
    found: list[dict[str, Any]] = []
    for count in sorted(set(above.values())):
        scale = options.layer_decay**count
        for matrices, decay in ((True, options.weight_decay), (False, 0.0)):
            parameters = [p for name, p in named.items() if above[name] == count and (p.ndim > 1) is matrices]
            found.append({"params": parameters, "weight_decay": decay, "scale": scale, "lr": options.peak_lr * scale})
    return [group for group in found if group["params"]]


def learning_rate(options: FitOptions, step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, section 3)."""
    warmup = max(1, int(options.warmup * total))
    if step < warmup:
        return options.peak_lr * (step + 1) / warmup
    return options.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
