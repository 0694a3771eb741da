"""`mobilenetv2`: MobileNetV2 for small images (Sandler et al. 2018, arXiv 1801.04381, table 2, strides as usual on CIFAR).

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.families.images import ImageFamily, NormalizePixels, scaled, whole_numbers
from trainer.submodel import SubModel, TrainerError

_EXPANSION = (1, 6, 6, 6, 6, 6, 6)
_CHANNELS = (16, 24, 32, 64, 96, 160, 320)
_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
_STRIDES = (1, 1, 2, 2, 1, 2, 1)


class MobileNetV2(ImageFamily):
    """Axes: `width` scales every channel count, `depth` is the number of blocks kept per stage.

    `channels`, `blocks`, `strides` and `expansion` have one entry per stage; `stem` and `head` are the channels before
    and after the stages at width 1.0. Scaled channels are rounded to `multiple`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        channels: Sequence[int] = _CHANNELS,
        blocks: Sequence[int] = _BLOCKS,
        strides: Sequence[int] = _STRIDES,
        expansion: Sequence[int] = _EXPANSION,
        stem: int = 32,
        head: int = 1280,
        widths: Sequence[float] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
        depths: Sequence[int | Sequence[int]] | None = None,
        stem_stride: int = 1,
        multiple: int = 4,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        if not len(channels) == len(blocks) == len(strides) == len(expansion):
            raise TrainerError(
                f"channels, blocks, strides and expansion have {len(channels)}, {len(blocks)}, {len(strides)} and "
                f"{len(expansion)} entries: allowed is one per stage in each"
            )
        for name, numbers in (("channels", channels), ("strides", strides), ("expansion", expansion)):
            whole_numbers(name, numbers)
        for name, number in (("stem", stem), ("head", head), ("stem_stride", stem_stride)):
            whole_numbers(name, number)
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.expansion = tuple(expansion)
        self.stem = stem
        self.head = head
        self.stem_stride = stem_stride
        super().__init__(
            input_shape=input_shape,
            classes=classes,
            widths=widths,
            depths=depths,
            blocks=blocks,
            multiple=multiple,
            mean=mean,
            std=std,
        )

    def build(self, sub: SubModel) -> nn.Module:
        width = sub["width"]
        assert isinstance(width, (int, float))
        return _Network(self, width, self.kept_blocks(sub["depth"]))

    def config(self) -> dict[str, Any]:
        own = {
            "channels": list(self.channels),
            "strides": list(self.strides),
            "expansion": list(self.expansion),
            "stem": self.stem,
            "head": self.head,
            "stem_stride": self.stem_stride,
        }
        return {**super().config(), **own}


class _Network(nn.Module):
    def __init__(self, family: MobileNetV2, width: float, blocks: Sequence[int]) -> None:
        super().__init__()
        self.normalize = NormalizePixels(family.mean, family.std)
        before = scaled(family.stem, width, family.multiple)
        self.stem = _ConvNorm(family.input_shape[0], before, kernel=3, stride=family.stem_stride)
        self.stages = nn.ModuleList()
        for base, count, stride, expand in zip(family.channels, blocks, family.strides, family.expansion, strict=True):
            after = scaled(base, width, family.multiple)
            # Only blocks after a stage's first have a residual; where it is follows from the place, never from widths.
            first = _Block(before, after, stride=stride, expand=expand, residual=False)
            rest = [_Block(after, after, stride=1, expand=expand, residual=True) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            before = after
        head = scaled(family.head, width, family.multiple)
        self.head = _ConvNorm(before, head, kernel=1)
        self.classifier = nn.Linear(head, family.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, pixels: Tensor) -> Tensor:  # (N, C, H, W) -> (N, classes)
        x = F.relu6(self.stem(self.normalize(pixels)))
        for stage in self.stages:
            x = stage(x)
        x = F.adaptive_avg_pool2d(F.relu6(self.head(x)), 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


class _ConvNorm(nn.Module):
    def __init__(self, before: int, after: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class _Block(nn.Module):
    """Inverted residual with a linear bottleneck (section 3.3)."""

    def __init__(self, before: int, after: int, *, stride: int, expand: int, residual: bool) -> None:
        super().__init__()
        hidden = before * expand
        self.residual = residual
        self.expand = _ConvNorm(before, hidden, kernel=1) if expand != 1 else None
        self.depthwise = _ConvNorm(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = _ConvNorm(hidden, after, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(out)))
        total: Tensor = x + out if self.residual else out
        return total
