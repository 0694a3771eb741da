"""What is trained on what: a family with a grid of 160 sub-models, the smallest with at most 1/16 of the largest's MACs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.data import DataSet
from trainer.family import Family, find_family

WIDTHS = tuple(round(k / 12, 4) for k in range(5, 13))
_NEIGHBOURS = [d for d in itertools.product((1, 2, 3), repeat=3) if abs(d[0] - d[1]) <= 1 and abs(d[1] - d[2]) <= 1]
DEPTHS = tuple(sorted([*_NEIGHBOURS, (1, 1, 3), (1, 3, 3), (3, 3, 1)], key=lambda d: (sum(d), d)))
"""Blocks kept in each of three stages: all settings in which neighbouring stages differ by at most one, and three more."""


@dataclass(frozen=True)
class Setup:
    """A family and its grid of 8 widths and 20 depths."""

    family: str
    settings: Mapping[str, Any]

    def build(self, data: DataSet) -> Family:
        return find_family(self.family).for_data(data.spec, **self.settings)


SETUPS = {
    "resnet": Setup(
        "resnet",
        {"channels": (24, 48, 96), "stem_stride": 2, "multiple": 8, "widths": WIDTHS, "depths": DEPTHS},
    ),
    "mobilenetv2": Setup(
        "mobilenetv2",
        {
            "channels": (16, 24, 56, 96),
            "blocks": (1, 3, 3, 3),
            "strides": (1, 2, 1, 2),
            "expansion": (1, 3, 3, 3),
            "stem": 16,
            "head": 192,
            "stem_stride": 2,
            "multiple": 8,
            "widths": WIDTHS,
            "depths": tuple((1, *d) for d in DEPTHS),
        },
    ),
}
