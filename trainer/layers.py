"""What a network may consist of.

Whatever training changes is a parameter or a BatchNorm's statistics, which `calibrate` measures for every sub-model; other
state would be one sub-model's, and lost when a run is reopened.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from trainer.submodel import TrainerError

_NOT_ON_DEVICES = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128)


def check_layers(module: nn.Module, what: str) -> None:
    """Raises TrainerError naming the layer or parameter that cannot be trained or exported, and what is allowed instead."""
    for name, layer in module.named_modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats and not isinstance(layer, _BatchNorm):
            raise TrainerError(
                f"{what}: layer {name!r} is {type(layer).__name__} with running statistics, which nobody measures for each "
                "sub-model; allowed are track_running_stats=False, and BatchNorm"
            )
        hooks = layer._forward_pre_hooks.values()
        if isinstance(layer, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
            owner = name.partition(".parametrizations.")[0]
            raise TrainerError(
                f"{what}: layer {owner!r} has spectral_norm, whose singular vectors are one sub-model's; allowed is weight_norm"
            )
    _check_numbers(dict(module.named_parameters()), f"{what}: parameter", ", trained with precision='bf16' if need be")


def check_inputs(inputs: Mapping[str, Tensor], what: str) -> None:
    """Raises TrainerError naming an input of numbers that devices do not have."""
    _check_numbers(inputs, f"{what}: input", ", integers and booleans")


def _check_numbers(tensors: Mapping[str, Tensor], what: str, more: str) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype in _NOT_ON_DEVICES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise TrainerError(f"{what} {name!r} holds {kind}, which devices do not have; allowed is float32{more}")
