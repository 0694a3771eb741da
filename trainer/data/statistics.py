"""What a family that normalises its input wants to know: mean and deviation of every channel.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.data.dataset import Examples
from trainer.data.loading import batches_of

SAMPLE = 512
BATCH_VALUES = 2**22  # that are looked at together
SMALLEST_STD = 1e-3


def channel_statistics(examples: Examples, workers: int = -1) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the first input (N, C, H, W), of examples evenly spaced over all."""
    indices = torch.linspace(0, len(examples) - 1, min(len(examples), SAMPLE)).long()
    of_one = next(iter(examples.batch(indices[:1]).inputs.values())).numel()
    count, first, second = 0, torch.zeros(()), torch.zeros(())
    for batch in batches_of(examples, max(1, min(32, BATCH_VALUES // of_one)), indices, workers):
        pixels = next(iter(batch.inputs.values())).double()
        count += pixels[:, 0].numel()
        first, second = first + pixels.sum(dim=(0, 2, 3)), second + pixels.square().sum(dim=(0, 2, 3))
    mean = first / count
    return rounded(mean), rounded((second / count - mean.square()).clamp_min(SMALLEST_STD**2).sqrt())


def rounded(values: Tensor) -> tuple[float, ...]:
    """As a run's record keeps them."""
    return tuple(round(float(v), 6) for v in values)
