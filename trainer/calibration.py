"""BatchNorm calibration: running statistics are no prefixes, so every sub-model gets its own after training.

As in US-Nets (Yu & Huang 2019, arXiv 1903.05134, section 3.3): after training, averages over training data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.data.dataset import Examples, as_inputs
from trainer.data.loading import Asked, read
from trainer.interruption import progress_bar
from trainer.nested import NestedModel, batchnorm_names
from trainer.speed.layout import laid_out, suits_channels_last
from trainer.speed.sharing import sharing
from trainer.submodel import SubModel, TrainerError

EXAMPLES = 2048
BATCH = 256


def calibration_batches(examples: Examples, limit: int | None = None, workers: int = -1) -> Iterator[Mapping[str, Tensor]]:
    """Inputs for BatchNorm calibration: training examples, evenly spaced over the split, not augmented.

    In batches of nearly equal size, because every batch counts the same. With `limit` the first batches only.
    """
    count = min(len(examples), EXAMPLES)
    indices = torch.linspace(0, len(examples) - 1, count).long().tensor_split(-(-count // BATCH))
    order = (Asked(part, number) for number, part in enumerate(indices[:limit]))
    return (batch.inputs for batch in read(examples, order, workers))


@torch.no_grad()
def calibrate(
    nested: NestedModel,
    batches: Iterable[Tensor | Mapping[str, Tensor]],
    submodels: Iterable[SubModel] | None = None,
    *,
    show_progress: bool = False,
) -> None:
    """Fills `nested.calibration` for the given sub-models (default: the whole grid).

    `batches`: model inputs from the training split, for each batch one tensor or several by name. The statistics are
    the cumulative average over the batches, rounded to half precision where that keeps three digits: they are all that
    the sub-models of a bundle do not share, and this halves them. Raises TrainerError when there is no batch.
    """
    device, as_channels_last = next(nested.full.parameters()).device, suits_channels_last(nested)
    chosen = [s for s in (nested.submodels if submodels is None else submodels) if batchnorm_names(nested.skeleton(s))]
    entered: dict[SubModel, _Entered] = {sub: {} for sub in chosen}
    was_training = nested.training
    nested.eval()
    seen = 0
    try:
        with progress_bar(show_progress and bool(chosen), transient=True) as progress:
            shown = progress.add_task("calibrating", total=None, loss="")
            for seen, inputs in enumerate(batches, 1):  # noqa: B007
                placed = laid_out(as_inputs(inputs, nested.input_names), device, as_channels_last)
                shared = sharing(device)
                for sub in chosen:
                    with shared:
                        _measure(nested, sub, placed, entered[sub])
                    progress.update(shown, advance=1)
    finally:
        nested.train(was_training)
    if not seen:
        raise TrainerError("batches = []: allowed is at least one batch of training data")
    for sub, layers in entered.items():
        nested.calibration[sub] = {
            f"{name}.{leaf}" if name else leaf: statistic
            for name, (mean, variance, count) in layers.items()
            for leaf, statistic in {
                "running_mean": _rounded(mean / count),
                "running_var": _rounded(variance / count),
                "num_batches_tracked": torch.tensor(count),
            }.items()
        }


_Entered = dict[str, tuple[Tensor, Tensor, int]]
"""By layer: the sum of means, the sum of variances, and of how many batches."""


def _measure(nested: NestedModel, sub: SubModel, inputs: Mapping[str, Tensor], entered: _Entered) -> None:
    """Adds mean and variance of what enters each BatchNorm layer while each normalises by those of this batch."""
    module = nested.skeleton(sub).eval()

    def add(name: str, layer: nn.Module, positional: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> None:
        (entering,) = (*positional, *by_name.values())
        axes = [axis for axis in range(entering.ndim) if axis != 1]
        variance, mean = torch.var_mean(entering, axes)
        means, variances, count = entered.get(name, (0, 0, 0))
        entered[name] = (means + mean, variances + variance, count + 1)

    layers = {n: layer for n in batchnorm_names(module) if isinstance(layer := module.get_submodule(n), _BatchNorm)}
    hooks = [layer.register_forward_pre_hook(partial(add, name), with_kwargs=True) for name, layer in layers.items()]
    try:
        for layer in layers.values():
            layer.train().track_running_stats = False
        nested(inputs, sub)
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.eval().track_running_stats = True


def _rounded(statistic: Tensor) -> Tensor:
    """The tensor rounded to float16 when every value keeps a relative precision of 1e-3, otherwise as it is."""
    if not statistic.is_floating_point():
        return statistic
    half = statistic.half().to(statistic.dtype)
    precise = torch.isfinite(half) & ((half - statistic).abs() <= 1e-3 * statistic.abs() + 1e-7)
    return half if bool(precise.all()) else statistic
