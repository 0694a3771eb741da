"""`resnet`: pre-activation ResNet for small images (He et al. 2016, arXiv 1603.05027, CIFAR variant of section 4.2).

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.families.images import ImageFamily, NormalizePixels, scaled, whole_numbers
from trainer.submodel import SubModel, TrainerError


class ResNet(ImageFamily):
    """Axes: `width` scales every stage's channels, `depth` is the number of blocks kept per stage.

    Every stage but the first halves the resolution. `channels` are the stages' channels at width 1.0; scaled channels
    are rounded to `multiple`. `stem_stride=2` halves the resolution once more at the start.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        channels: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[float] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
        depths: Sequence[int | Sequence[int]] | None = None,
        stem_stride: int = 1,
        multiple: int = 4,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        if len(channels) != len(blocks):
            raise TrainerError(f"channels and blocks have {len(channels)} and {len(blocks)} entries: allowed is one per stage")
        whole_numbers("channels", channels)
        whole_numbers("stem_stride", stem_stride)
        self.channels = tuple(channels)
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
        channels = [scaled(c, width, self.multiple) for c in self.channels]
        return _Network(self, channels, self.kept_blocks(sub["depth"]))

    def config(self) -> dict[str, Any]:
        own = {"channels": list(self.channels), "stem_stride": self.stem_stride}
        return {**super().config(), **own}


class _Network(nn.Module):
    def __init__(self, family: ResNet, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.normalize = NormalizePixels(family.mean, family.std)
        self.stem = nn.Conv2d(family.input_shape[0], channels[0], 3, stride=family.stem_stride, padding=1, bias=False)
        self.stages = nn.ModuleList()
        before = channels[0]
        for stage, (after, count) in enumerate(zip(channels, blocks, strict=True)):
            # Which block projects its shortcut is fixed by its place, never by its widths: the graph of a narrow
            # sub-model has the same nodes as that of a wide one.
            projects = stage > 0
            first = _Block(before, after, stride=2 if projects else 1, projects=projects)
            rest = [_Block(after, after, stride=1, projects=False) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            before = after
        self.norm = nn.BatchNorm2d(before)
        self.classifier = nn.Linear(before, family.classes)
        _initialise(self)

    def forward(self, pixels: Tensor) -> Tensor:  # (N, C, H, W) -> (N, classes)
        x = self.stem(self.normalize(pixels))
        for stage in self.stages:
            x = stage(x)
        x = F.adaptive_avg_pool2d(F.relu(self.norm(x)), 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


class _Block(nn.Module):
    def __init__(self, before: int, after: int, *, stride: int, projects: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        total: Tensor = out + skip
        return total


def _initialise(network: nn.Module) -> None:
    """He et al. 2015 (arXiv 1502.01852, section 2.2) for convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
