"""Small networks whose parameters and statistics are all unlike, and what a prefix of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.helpers.hugging_face import TINY
from trainer import Family, NestedModel, calibrate
from trainer.family import registered_families

IMAGES = {"input_shape": (1, 8, 8), "classes": 4, "widths": (0.5, 0.75, 1.0), "depths": (1, 2), "blocks": (1, 2)}


LLAMA = {
    "vocab_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "hidden_size": 32,
    "pad_token_id": 0,
}
SMALL: dict[str, dict[str, Any]] = {
    "resnet": {**IMAGES, "channels": (8, 16)},
    "mobilenetv2": {**IMAGES, "channels": (8, 16), "strides": (1, 2), "expansion": (1, 3), "stem": 8, "head": 32},
    **{name: {"config": config, "labels": 3, "tokens": 9} for name, config in TINY.items() if name != "vit"},
    "vit": {"config": TINY["vit"], "labels": 3},
    "llama": {"config": {"model_type": "llama", **LLAMA}, "tokens": 9},
    "transformers": {"config": {"model_type": "bert", **TINY["bert"]}, "labels": 3, "tokens": 9, "fixed": ["hidden_size"]},
}


def small(name: str, **settings: Any) -> Family:
    return registered_families()[name].configured({**SMALL.get(name, {}), **settings})


def calibrated(family: Family) -> NestedModel:
    """No two parameters alike, none zero; statistics unlike those of a fresh BatchNorm."""
    torch.manual_seed(0)
    nested = NestedModel(family).eval()
    with torch.no_grad():
        for parameter in nested.full.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    calibrate(nested, [family.example_inputs(16) for _ in range(2)])
    return nested


Blocks = Mapping[int, Sequence[int]]


def prefix_of(full: Tensor, shape: torch.Size, blocks: Blocks, full_blocks: Blocks) -> Tensor:
    """What a nested parameter must be, element by element: the first indices of every block of every axis."""
    for axis, size in enumerate(shape):
        available = full_blocks.get(axis, (full.shape[axis],))
        starts = [sum(available[:i]) for i in range(len(available))]
        kept = zip(starts, blocks.get(axis, (size,)), strict=True)
        full = full.index_select(axis, torch.tensor([start + i for start, count in kept for i in range(count)]))
    return full
