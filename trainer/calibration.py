"""BatchNorm calibration: running statistics are no prefixes, so every sub-model gets its own after training.

As in US-Nets (Yu & Huang 2019, arXiv 1903.05134, section 3.3): after training, averages over training data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.layout import laid_out, suits_channels_last
from trainer.nested import NestedModel, batchnorm_names
from trainer.sharing import sharing
from trainer.submodel import SubModel, TrainerError


@torch.no_grad()
def calibrate(nested: NestedModel, batches: Sequence[Sequence[Tensor]], submodels: Iterable[SubModel] | None = None) -> None:
    """Fills `nested.calibration` for the given sub-models (default: the whole grid).

    `batches`: model inputs from the training split, a sequence of positional arguments per batch. The statistics are
    the cumulative average over the batches, rounded to half precision where that keeps three digits: they are all that
    the sub-models of a bundle do not share, and this halves them. Raises TrainerError when there is no batch.
    """
    if not batches:
        raise TrainerError("batches = []: allowed is at least one batch of training data")
    device, as_channels_last = next(nested.full.parameters()).device, suits_channels_last(nested)
    chosen = [s for s in (nested.submodels if submodels is None else submodels) if batchnorm_names(nested.skeleton(s))]
    sums: dict[SubModel, dict[str, Tensor]] = {sub: {} for sub in chosen}
    was_training = nested.training
    nested.eval()
    for inputs in batches:
        placed = laid_out(inputs, device, as_channels_last)
        with sharing(device):
            for sub in chosen:
                for name, statistic in _statistics(nested, sub, placed).items():
                    sums[sub][name] = sums[sub][name] + statistic if name in sums[sub] else statistic
    nested.train(was_training)
    for sub, summed in sums.items():
        averages = {name: _rounded(total / len(batches)) for name, total in summed.items()}
        counts = {f"{name}.num_batches_tracked": torch.tensor(len(batches)) for name in batchnorm_names(nested.skeleton(sub))}
        nested.calibration[sub] = {**averages, **counts}


def _statistics(nested: NestedModel, sub: SubModel, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean and variance of what enters each BatchNorm layer, when each normalises by those of this batch."""
    module = nested.skeleton(sub).eval()
    found: dict[str, Tensor] = {}

    def measure(name: str, layer: nn.Module, entering: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(entering[0].ndim) if axis != 1]
        variance, mean = torch.var_mean(entering[0], axes)
        found[f"{name}.running_mean"], found[f"{name}.running_var"] = mean, variance

    layers = {n: layer for n in batchnorm_names(module) if isinstance(layer := module.get_submodule(n), _BatchNorm)}
    hooks = [layer.register_forward_pre_hook(partial(measure, name)) for name, layer in layers.items()]
    try:
        for layer in layers.values():
            layer.train().track_running_stats = False
        nested.call(sub, inputs, nested.view(sub))
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.eval().track_running_stats = True
    return found


def _rounded(statistic: Tensor) -> Tensor:
    """The tensor rounded to float16 when every value keeps a relative precision of 1e-3, otherwise as it is."""
    if not statistic.is_floating_point():
        return statistic
    half = statistic.half().to(statistic.dtype)
    precise = torch.isfinite(half) & ((half - statistic).abs() <= 1e-3 * statistic.abs() + 1e-7)
    return half if bool(precise.all()) else statistic
