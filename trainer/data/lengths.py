"""Examples of unequal lengths: batches of like lengths, because a batch costs what its longest example does.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

WINDOW = 32
"""So many batches are put in the order of their lengths together: they hold like lengths then, and others every epoch."""

TOKENS = 2**14
"""Of a batch that is only looked at, padding included: attention needs memory for N x T x T numbers a head."""


def lengths_of(examples: Any) -> Tensor | None:
    """How long each example is (N,), where it says so: `Examples` may have an attribute `lengths`."""
    found = getattr(examples, "lengths", None)
    return found if isinstance(found, Tensor) and found.shape == (len(examples),) else None


def order_of_epoch(examples: Any, batch_size: int, seed: int) -> Tensor:
    """A permutation of all examples (N,), to be cut into batches from its beginning.

    Where they have lengths, those of a window are sorted by it and its batches shuffled with all others. What would be an
    incomplete batch comes last, and is another part of the examples at every seed.
    """
    generator = Generator().manual_seed(seed)
    permuted = torch.randperm(len(examples), generator=generator)
    lengths = lengths_of(examples)
    if lengths is None:
        return permuted
    whole = len(permuted) // batch_size * batch_size
    windows = [permuted[begin:whole][: WINDOW * batch_size] for begin in range(0, whole, WINDOW * batch_size)]
    batches = torch.cat([window[lengths[window].argsort(stable=True)] for window in windows]).view(-1, batch_size)
    return torch.cat([batches[torch.randperm(len(batches), generator=generator)].flatten(), permuted[whole:]])


def by_length(lengths: Tensor, batch_size: int, tokens: int = TOKENS) -> Iterator[Tensor]:
    """The indices of all examples in batches of at most `batch_size` and about so many tokens, the longest first: what does
    not fit into memory shows at once."""
    order = lengths.argsort(descending=True, stable=True)
    begin = 0
    while begin < len(order):
        longest = max(1, int(lengths[order[begin]]))
        count = max(1, min(batch_size, tokens // longest))
        yield order[begin : begin + count]
        begin += count
