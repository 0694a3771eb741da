"""Windows of tokens: a mixture of kinds to be trained on, always the same for a seed, and held-out ones.

Shapes: N windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.llm.data import CHAT, KINDS, WORK
from trainer.data.dataset import Batch
from trainer.tasks.checks import IGNORED


def stream(kind: str, part: str) -> tuple[Tensor, Tensor]:
    """Ids (M,) int32 and which of them count as targets (M,) bool: of chats answers alone. Nothing where there is no file."""
    path = WORK / f"{kind}.npz"
    if not path.exists():
        return torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.bool)
    with np.load(path) as file:
        ids = torch.from_numpy(file[part].astype(np.int32))
        marks = f"{part}.answers"
        counts = torch.from_numpy(file[marks].astype(bool)) if marks in file else torch.ones(len(ids), dtype=torch.bool)
    return ids, counts


class Windows:
    """Windows over one stream at any places, as `Examples`: input `input_ids` (N, T), targets the tokens that follow."""

    repeats = True

    def __init__(self, ids: Tensor, counts: Tensor, begins: Tensor, length: int) -> None:
        self.ids, self.counts, self.begins, self.length = ids, counts, begins, length
        self.lengths = torch.full((len(begins),), length)

    def __len__(self) -> int:
        return len(self.begins)

    def batch(self, indices: Tensor) -> Batch:
        places = self.begins[indices][:, None] + torch.arange(self.length + 1)
        ids = self.ids[places].long()
        targets = torch.where(self.counts[places[:, 1:]], ids[:, 1:], IGNORED)
        return Batch({"input_ids": ids[:, :-1].contiguous()}, targets)

    def part(self, indices: Tensor) -> Windows:
        return Windows(self.ids, self.counts, self.begins[indices], self.length)


def mixture(count: int, length: int, shares: Mapping[str, float], seed: int) -> Windows:
    """So many training windows, of each kind its share, where there is any of it. Each kind is gone through from a random
    place on, again and again."""
    random = np.random.default_rng(seed)
    streams = {kind: stream(kind, "train") for kind in shares}
    there = {kind: (ids, marks) for kind, (ids, marks) in streams.items() if len(ids) > 2 * length and shares[kind] > 0}
    if not there:
        raise SystemExit(f"{WORK}: no training data; python -m benchmarks.llm.training data")
    weights = np.array([shares[kind] for kind in there])
    drawn = random.choice(len(there), size=count, p=weights / weights.sum())
    begins = np.zeros(count, dtype=np.int64)
    offset = 0
    for number, (ids, _) in enumerate(there.values()):
        mine = np.flatnonzero(drawn == number)
        places: list[Any] = []
        while sum(map(len, places)) < len(mine):
            first = int(random.integers(0, length))
            places.append(random.permutation(np.arange(first, len(ids) - length - 1, length)))
        begins[mine] = offset + np.concatenate([np.zeros(0, dtype=np.int64), *places])[: len(mine)]
        offset += len(ids)
    joined = torch.cat([ids for ids, _ in there.values()]), torch.cat([marks for _, marks in there.values()])
    return Windows(*joined, torch.from_numpy(begins), length)


def held_out(part: str, length: int, most: int) -> dict[str, Windows]:
    """Of each kind that is there at most so many windows."""
    found = {}
    for kind in (CHAT, *KINDS):
        ids, marks = stream(kind, part)
        count = min(most, (len(ids) - 1) // length)
        if count > 0:
            found[kind] = Windows(ids, marks, torch.arange(count) * length, length)
    return found


def tokens_of(kinds: Sequence[str]) -> dict[str, int]:
    """How many tokens of each kind there are to train on."""
    return {kind: len(stream(kind, "train")[0]) for kind in kinds}
