"""Memory layout of input batches: channels last for image networks on a CPU, where torch's convolutions are faster so.

How much faster: `python -m benchmarks.training cost`. Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.nested import NestedModel
from trainer.submodel import SubModel


def suits_channels_last(nested: NestedModel) -> bool:
    """Whether inputs of this model are best laid out with the channels last: images, on a CPU, safely.

    Not safe is a strided 1x1 convolution of fewer input channels than a vector has lanes: the backward pass of oneDNN's
    channels-last kernel then writes beyond its buffer (oneDNN issue 6035), and gradients are wrong or the process dies.
    """
    if next(nested.full.parameters()).device.type != "cpu":
        return False
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            inputs = {name: channels_last(t) for name, t in nested.family.example_inputs(2).items()}
            if not any(t.ndim == 4 for t in inputs.values()):
                return False
            module = nested.extract(nested.family.largest).train()
            with torch.no_grad(), _StridedPointwise() as found:
                nested.applied(module, inputs)
            if not _all_wide(nested, found.weights, {p.data_ptr(): name for name, p in module.named_parameters()}):
                return False
            torch.stack([output.sum() for output in nested.applied(module, inputs).values()]).sum().backward()  # type: ignore[no-untyped-call]
    except Exception:  # a network that cannot work on this layout, a `view` of its feature maps for example
        return False
    return True


def laid_out(inputs: Mapping[str, Tensor], device: torch.device, as_channels_last: bool) -> dict[str, Tensor]:
    """The inputs on the device: channels last where asked and possible, otherwise the last axis contiguous, and so on.

    Strides are always one of the two, never left as they came: those of a single channel could be read as either.
    """
    arranged = channels_last if as_channels_last else row_major
    return {name: to_device(arranged(t), device) for name, t in inputs.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there. To a GPU of CUDA from page-locked memory the copy goes on beside the computation; elsewhere that would
    not be safe."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def channels_last(batch: Tensor) -> Tensor:
    """(N, C, H, W) with C next to each other in memory; any other tensor row-major."""
    if batch.ndim != 4:
        return row_major(batch)
    return _with_strides_of(torch.empty(batch.shape, device="meta", memory_format=torch.channels_last), batch)


def row_major(batch: Tensor) -> Tensor:
    """The tensor with its last axis next to each other in memory, then the one before it, and so on."""
    return _with_strides_of(torch.empty(batch.shape, device="meta"), batch)


def _with_strides_of(wanted: Tensor, batch: Tensor) -> Tensor:
    if batch.stride() == wanted.stride():
        return batch
    return torch.empty_strided(batch.shape, wanted.stride(), dtype=batch.dtype, device=batch.device).copy_(batch)


class _StridedPointwise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context `weights` collects the kernels of all strided 1x1 convolutions that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket is torch.ops.aten.convolution:
            weight, strides = args[1], args[3]
            if max(weight.shape[2:]) == 1 and max(strides) > 1:
                self.weights.append(weight)
        return func(*args, **(kwargs or {}))


def _all_wide(nested: NestedModel, weights: Sequence[Tensor], names: dict[int, str]) -> bool:
    """Whether each of these kernels has as many input channels as a vector has lanes, in every sub-model that has it."""
    lanes = 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 16
    return all(
        _fewest_input_channels(nested, nested.submodels, names.get(weight.data_ptr(), "")) >= lanes for weight in weights
    )


def _fewest_input_channels(nested: NestedModel, submodels: Sequence[SubModel], name: str) -> int:
    """Of a kernel in any of the sub-models; 0 when it is no parameter of the model but computed from others."""
    kept = [nested.segments(sub).get(name) for sub in submodels]
    return min((sum(s.stop - s.start for s in segments[1]) for segments in kept if segments), default=0)
