"""Memory layout of image batches: where channels last is used, and where it must not be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.networks import small
from tests.helpers.user_families import TextEncoder
from trainer import Family, NestedModel, SubModel
from trainer.families import MobileNetV2, ResNet
from trainer.speed.layout import channels_last, laid_out, row_major, suits_channels_last


class _Images(Family):
    """A convolution of `width` channels, then whatever a test puts behind it."""

    axes: ClassVar[dict[str, Sequence[int]]] = {"width": (4, 16, 32)}

    def __init__(self, behind: Callable[[int], nn.Module]) -> None:
        self.behind = behind

    def build(self, sub: SubModel) -> nn.Module:
        width = int(sub["width"])  # type: ignore[arg-type]
        behind = self.behind(width)
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), behind, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        return {"image": torch.rand(batch_size, 3, 8, 8)}


class _Computed(nn.Module):
    """A strided 1x1 convolution whose kernel is no parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.rand(width, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.abs(), stride=2)


class _Flat(nn.Module):
    """Takes for granted that images lie row by row."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)[:, :, None, None]


@pytest.mark.parametrize(
    ("behind", "suits"),
    [
        (lambda width: nn.Conv2d(width, 8, 3, stride=2, padding=1), True),
        (lambda width: nn.Conv2d(width, 8, 1), True),
        (lambda width: nn.Conv2d(width, 8, 1, stride=2), False),  # 4 channels: fewer than any vector has lanes
        (lambda width: nn.Sequential(nn.Conv2d(width, 16, 1), nn.Conv2d(16, 8, 1, stride=(1, 2))), True),
        (_Computed, False),
        (lambda width: _Flat(), False),
    ],
    ids=["strided 3x3", "pointwise", "strided pointwise, narrow", "strided pointwise, wide", "computed kernel", "view"],
)
def test_channels_last_is_used_where_it_is_safe(behind: Callable[[int], nn.Module], suits: bool) -> None:
    nested = NestedModel(_Images(behind))
    random = torch.random.get_rng_state()
    with torch.no_grad():  # as calibration and evaluation ask
        assert suits_channels_last(nested) is suits
    assert torch.equal(torch.random.get_rng_state(), random)
    assert suits_channels_last(nested) is suits
    assert all(p.grad is None for p in nested.full.parameters())


def test_the_families_and_texts() -> None:
    assert suits_channels_last(NestedModel(ResNet(widths=(0.5, 1.0))))
    narrow = ResNet(channels=(4, 8), blocks=(1, 1), widths=(1.0,))  # its shortcut takes 4 channels
    assert not suits_channels_last(NestedModel(narrow))
    assert suits_channels_last(NestedModel(MobileNetV2(blocks=(1,) * 7)))  # strides are in its depthwise convolutions
    assert not suits_channels_last(NestedModel(TextEncoder()))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("came_as", [channels_last, row_major])
def test_strides_are_those_asked_for_however_the_batch_came(channels: int, came_as: Callable[[Tensor], Tensor]) -> None:
    batch = torch.rand(4, channels, 5, 6)
    lengths = torch.arange(4)
    images, numbers = laid_out({"image": came_as(batch), "length": lengths}, torch.device("cpu"), True).values()
    assert images.stride() == (channels * 30, 1, channels * 6, channels)
    assert laid_out({"image": came_as(batch)}, torch.device("cpu"), False)["image"].stride() == (channels * 30, 30, 6, 1)
    assert torch.equal(images, batch)
    assert torch.equal(numbers, lengths)


@pytest.mark.parametrize("make", [lambda: ResNet(multiple=8, widths=(0.5, 1.0)), lambda: small("mobilenetv2")])
def test_gradients_do_not_depend_on_the_layout(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    nested = NestedModel(make()).train()
    assert suits_channels_last(nested)
    example = nested.family.example_inputs(16)["input"]
    found = []
    for sub in (nested.family.smallest, nested.family.largest):
        for images in (channels_last(example), row_major(example)):
            nested.zero_grad()
            nested.accumulate_gradients(sub, images, lambda outputs: outputs["logits"].square().mean())
            found.append(torch.cat([p.grad.flatten() for p in nested.full.parameters() if p.grad is not None]))
    for first, second in (found[:2], found[2:]):
        assert (first - second).norm() <= 0.02 * first.norm()  # BatchNorm of few examples in float32
