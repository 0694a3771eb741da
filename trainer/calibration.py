"""BatchNorm calibration: running statistics are no prefixes, so every sub-model gets its own after training.

As in US-Nets (Yu & Huang 2019, arXiv 1903.05134, section 3.3): after training, averages over training data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.nested import NestedModel, batchnorm_names
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
    for sub in nested.submodels if submodels is None else submodels:
        names = batchnorm_names(nested.skeleton(sub))
        if not names:
            continue
        statistics = _statistics(nested, sub, names, batches)
        nested.calibration[sub] = {name: _rounded(tensor) for name, tensor in statistics.items()}


def _statistics(
    nested: NestedModel, sub: SubModel, names: Sequence[str], batches: Sequence[Sequence[Tensor]]
) -> dict[str, Tensor]:
    module = nested.extract(sub).eval()
    layers = {name: layer for name in names if isinstance(layer := module.get_submodule(name), _BatchNorm)}
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average instead of an exponential one
        layer.train()
    for inputs in batches:
        module(*inputs)
    return {
        f"{name}.{leaf}" if name else leaf: buffer.clone()
        for name, layer in layers.items()
        for leaf, buffer in layer.named_buffers(recurse=False)
    }


def _rounded(statistic: Tensor) -> Tensor:
    """The tensor rounded to float16 when every value keeps a relative precision of 1e-3, otherwise as it is."""
    if not statistic.is_floating_point():
        return statistic
    half = statistic.half().to(statistic.dtype)
    precise = torch.isfinite(half) & ((half - statistic).abs() <= 1e-3 * statistic.abs() + 1e-7)
    return half if bool(precise.all()) else statistic
