"""Random texts, and how many times as fast one way of running them is as another.

Shapes: N texts, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]
Figures = dict[str, float]
Run = Callable[[], object]
FIRST = 1000
"""Token ids below are marks and characters in BERT's vocabulary."""


def texts(count: int, length: int, seed: int, vocabulary: int, padded: bool = False) -> Feed:
    """(N, T) random tokens; `padded`: each text but the first has a length of its own, and padding behind it."""
    random = np.random.default_rng(seed)
    ids = random.integers(min(FIRST, vocabulary // 2), vocabulary, (count, length))
    lengths = random.integers(1, length + 1, count) if padded else np.full(count, length)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


def times_as_fast(ours: Run, theirs: Run, rounds: int) -> float:
    """The median over rounds, in which the two take turns, of what theirs takes over what ours does. Processor time of this
    thread: what others use the processor for does not count."""
    for run in (ours, theirs):
        run()
    ratios = []
    for number in range(rounds):
        taken = [0.0, 0.0]
        for place in (0, 1) if number % 2 else (1, 0):
            begun = time.thread_time()
            (ours, theirs)[place]()
            taken[place] = time.thread_time() - begun
        ratios.append(taken[1] / taken[0])
    return float(np.median(ratios))
