"""Counts multiply-accumulates of a forward pass with torch's own formulas, layer by layer."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class LayerShape(NamedTuple):
    """What the cost of a convolution or matrix product depends on, for a batch of the size that was counted."""

    kind: str  # torch's name of the operator, or "depthwise"
    macs: int
    weights: int  # elements of the second operand
    activations: int  # elements read and written
    channels_in: int
    channels_out: int


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context `macs` grows by every convolution and matrix product that runs, and `layers` counts their shapes.

    `torch.utils.flop_counter.FlopCounterMode` sums the same formulas but also tracks modules, which made a pass through
    a small MobileNetV2 take 33 ms instead of 14.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        self.layers: Counter[LayerShape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, formula = func._overloadpacket.__name__, flop_registry.get(func._overloadpacket)
        if name == _LSTM:
            layer = _lstm(args)
        elif formula is not None:
            layer = _layer(name, formula(*args, **(kwargs or {}), out_val=result) // 2, args, result)
        else:
            return result
        self.macs += layer.macs
        self.layers[layer] += 1
        return result


_LSTM = "mkldnn_rnn_layer"  # what torch runs an LSTM's layer with on a CPU, in one piece


def _lstm(args: Any) -> LayerShape:
    """A layer's sequence (T, N, C) or (N, T, C) times its weights (4 H, C) and (4 H, H): of every position both products."""
    sequence, of_input, of_state = args[:3]
    positions, hidden = prod(sequence.shape[:2]), of_state.shape[1]
    weights = prod(of_input.shape) + prod(of_state.shape)
    return LayerShape("lstm", positions * weights, weights, positions * (sequence.shape[2] + hidden), sequence.shape[2], hidden)


def _layer(operator: str, macs: int, args: Any, result: Any) -> LayerShape:
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    first, second = tensors[1:3] if operator in ("addmm", "baddbmm") else tensors[:2]  # there the bias comes first
    output = result[0] if isinstance(result, tuple) else result
    axis = 1 if operator == "convolution" else -1
    channels_in, channels_out = first.shape[axis], output.shape[axis]
    if operator == "convolution" and second.shape[1] == 1 < channels_in:
        operator = "depthwise"
    activations = prod(first.shape) + prod(output.shape)
    return LayerShape(operator, macs, prod(second.shape), activations, channels_in, channels_out)
