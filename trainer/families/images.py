"""What the image families share: rounding of channels, pixel normalisation, the depth axis per stage.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from trainer.family import DataSpec, Family
from trainer.submodel import AxisValue, TrainerError


def scaled(channels: int, width: float, multiple: int) -> int:
    """`channels * width`, rounded to the nearest multiple and at least one multiple."""
    return max(multiple, int(channels * width / multiple + 0.5) * multiple)


class NormalizePixels(nn.Module):
    """(x - mean) / std per channel, inside the network, so that a device feeds raw pixels in [0, 1].

    The statistics are buffers: every sub-model carries the same ones.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


def whole_numbers(name: str, value: int | Sequence[int]) -> None:
    """Raises TrainerError unless it is a whole number from 1, or a sequence of them."""
    if any(type(number) is not int or number < 1 for number in (value if isinstance(value, Sequence) else (value,))):
        raise TrainerError(f"{name} = {value!r}: allowed are whole numbers from 1")


class ImageFamily(Family):
    """Base of the image families: an input of (N, C, H, W) floats in [0, 1]; axes width and depth.

    Depth is the number of blocks kept in each stage: one number for all stages (a stage with fewer blocks keeps all
    that it has) or a tuple with a number per stage. `depths=None` is every number up to the longest stage's. Scaled
    channels are rounded to `multiple`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        classes: int,
        widths: Sequence[float],
        depths: Sequence[int | Sequence[int]] | None,
        blocks: Sequence[int],
        multiple: int,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise TrainerError(f"input_shape = {tuple(input_shape)}: allowed is (channels, height, width), each at least 1")
        if type(classes) is not int or classes < 1:
            raise TrainerError(f"classes = {classes!r}: allowed are whole numbers from 1")
        if not blocks or any(type(b) is not int or b < 1 for b in blocks):
            raise TrainerError(f"blocks = {tuple(blocks)}: allowed is at least one block in each of at least one stage")
        whole_numbers("multiple", multiple)
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.blocks = tuple(blocks)
        self.multiple = multiple
        self.mean = tuple(mean) or (0.0,) * input_shape[0]
        self.std = tuple(std) or (1.0,) * input_shape[0]
        if len(self.mean) != input_shape[0] or len(self.std) != input_shape[0]:
            raise TrainerError(f"mean and std: {len(self.mean)} and {len(self.std)} values for {input_shape[0]} channels")
        self.axes = {"width": (1.0,), "depth": (max(self.blocks),)}
        chosen = range(1, max(self.blocks) + 1) if depths is None else depths
        self.with_grid({"width": widths, "depth": [tuple(d) if isinstance(d, Sequence) else d for d in chosen]})

    @classmethod
    def for_data(cls, spec: DataSpec, **settings: Any) -> Self:
        if len(spec.input_shape) != 3:
            raise TrainerError(
                f"family {cls.__name__} takes images (C, H, W); this data set has examples of shape {spec.input_shape}"
            )
        of_data = {"input_shape": spec.input_shape, "classes": spec.outputs, "mean": spec.mean, "std": spec.std}
        return cls.configured({**of_data, **settings})

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.rand(batch_size, *self.input_shape)}

    def allows(self, axis: str, value: AxisValue) -> bool:
        if axis != "depth":
            return super().allows(axis, value)
        if isinstance(value, tuple):
            return len(value) == len(self.blocks) and all(1 <= v <= b for v, b in zip(value, self.blocks, strict=True))
        return isinstance(value, int) and 1 <= value <= max(self.blocks)

    def per_stage(self, axis: str, value: int, stages: int) -> tuple[int, ...]:
        return tuple(min(value, b) for b in self.blocks)

    def kept_blocks(self, depth: AxisValue) -> tuple[int, ...]:
        """Blocks kept in each stage."""
        assert not isinstance(depth, float)
        return depth if isinstance(depth, tuple) else self.per_stage("depth", depth, len(self.blocks))

    def config(self) -> dict[str, Any]:
        depths = [list(d) if isinstance(d, tuple) else d for d in self.axes["depth"]]
        return {
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "widths": list(self.axes["width"]),
            "depths": depths,
            "blocks": list(self.blocks),
            "multiple": self.multiple,
            "mean": list(self.mean),
            "std": list(self.std),
        }
