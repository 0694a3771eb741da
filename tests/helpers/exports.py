"""Small networks to export."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.hugging_face import TINY
from tests.helpers.networks import small as small_as_elsewhere
from trainer import Family, NestedModel, calibrate
from trainer.family import registered_families

OF_TRANSFORMERS = {*TINY, "transformers"}
EVERY_KIND = sorted(registered_families().keys() - {"transformers", "roberta", "distilbert", "llama"})
"""Families whose networks are of another kind each; tests/trainer/test_transformers.py exports the others, and
language models have an exporter of their own."""


def small(name: str) -> Family:
    """A registered family at a size for tests."""
    if name in OF_TRANSFORMERS:
        return small_as_elsewhere(name)
    settings = {"input_shape": (1, 8, 8), "classes": 4, "widths": (0.5, 1.0), "depths": (1, 2)}
    more: dict[str, dict[str, Any]] = {"resnet": {"channels": (8, 16), "blocks": (2, 2)}}
    more["mobilenetv2"] = {
        "channels": (8, 16),
        "blocks": (1, 2),
        "strides": (1, 2),
        "expansion": (1, 3),
        "stem": 8,
        "head": 32,
    }
    return registered_families()[name](**settings, **more.get(name, {}))


def calibrated(family: Family) -> NestedModel:
    torch.manual_seed(0)
    nested = NestedModel(family).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in nested.full.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no two tensors alike, biases not zero
    calibrate(nested, [family.example_inputs(32)])
    return nested
