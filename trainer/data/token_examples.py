"""Token ids of unequal lengths, held in memory: a batch is as long as the longest in it.

Shapes: N examples, T tokens of the longest of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.data.dataset import Batch, each, named_targets
from trainer.submodel import TrainerError
from trainer.task import Targets
from trainer.tasks.checks import IGNORED

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
"""Names of inputs, as transformers has them."""


class Ragged:
    """Rows of whole numbers, each of its own length, laid one behind the other."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        self.begins = self.lengths.cumsum(0) - self.lengths
        self.values = torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *(np.asarray(r, dtype=np.int32) for r in rows)]))

    def padded(self, indices: Tensor, fill: int) -> Tensor:
        """These rows as (N, T) int64, filled up at their ends."""
        lengths = self.lengths[indices]
        places = torch.arange(int(lengths.max()) if len(lengths) else 0)
        inside = places < lengths[:, None]
        found = torch.full(inside.shape, fill, dtype=torch.int64)
        found[inside] = self.values[(self.begins[indices][:, None] + places)[inside]].long()
        return found


class Packed:
    """Token ids one behind the other, cut into windows: input `input_ids` (N, T) int64, targets (N, T) of each token the one
    that follows. Of the last window what is missing is filled up, and its targets are `IGNORED`.

    `lengths` (N,): tokens of each window that have a target. Raises TrainerError where there is none.
    """

    repeats = True

    def __init__(self, ids: Tensor, length: int, pad_id: int = 0) -> None:
        self.ids, self.length, self.pad_id = ids, length, pad_id
        count = -(-(len(ids) - 1) // length)
        if count < 1:
            raise TrainerError(f"data: {len(ids)} tokens; allowed are two and more, each with one that follows")
        self.lengths = (len(ids) - 1 - torch.arange(count) * length).clamp_max(length)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Tensor) -> Batch:
        places = indices[:, None] * self.length + torch.arange(int(self.lengths[indices].max()))
        inside = places < len(self.ids) - 1
        places = places.clamp_max(len(self.ids) - 2)
        inputs, targets = self.ids[places].long(), self.ids[places + 1].long()
        return Batch({IDS: inputs.masked_fill(~inside, self.pad_id)}, targets.masked_fill(~inside, IGNORED))

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds, for a hash of it."""
        yield from (self.ids, self.lengths)


class TokenExamples:
    """Examples that are token ids: inputs `input_ids`, `attention_mask`, `token_type_ids` where types are given, (N, T) int64.
    Without a `mask`, for networks whose tokens see none that follow, padding is no input of its own.

    `targets`: (N, …), one for each example; with `tags` instead one for each token, (N, T), where `IGNORED` counts for nothing.
    `lengths` (N,): how many tokens each has, by which batches are made of examples of like length. Raises TrainerError where
    counts or lengths differ, and for an example without a token.
    """

    repeats = True

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        targets: Targets | None = None,
        *,
        types: Sequence[Sequence[int]] | None = None,
        tags: Sequence[Sequence[int]] | None = None,
        pad_id: int = 0,
        mask: bool = True,
    ) -> None:
        if (targets is None) == (tags is None):
            raise TrainerError("data: allowed are targets, or tags, one for each token; not both, and not none")
        self.pad_id, self.mask = pad_id, mask
        self._ids = Ragged(ids)
        self._types = None if types is None else Ragged(types)
        self._tags = None if tags is None else Ragged(tags)
        self.targets = targets
        self.lengths = self._ids.lengths
        for what, rows in (("token types", self._types), ("tags", self._tags)):
            if rows is not None and not torch.equal(rows.lengths, self.lengths):
                raise TrainerError(f"data: {what} of other lengths than the token ids; allowed is one for each token")
        for name, target in named_targets(targets).items() if targets is not None else ():
            if len(target) != len(self):
                raise TrainerError(f"data: {len(self)} examples, {name or 'targets'} {len(target)}; allowed is one for each")
        if len(self) and int(self.lengths.min()) < 1:
            raise TrainerError(f"data: example {int(self.lengths.argmin())} has no token; allowed is one and more")

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Tensor) -> Batch:
        """Padded with `pad_id` to the longest of these examples."""
        ids = self._ids.padded(indices, self.pad_id)
        inputs = {IDS: ids}
        if self.mask:
            inputs[MASK] = (torch.arange(ids.shape[1]) < self.lengths[indices][:, None]).long()
        if self._types is not None:
            inputs[TYPES] = self._types.padded(indices, 0)
        if self._tags is not None:
            return Batch(inputs, self._tags.padded(indices, IGNORED))
        return Batch(inputs, each(self.targets, lambda tensor: tensor[indices]))

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds, for a hash of it."""
        for rows in (self._ids, self._types, self._tags):
            if rows is not None:
                yield from (rows.lengths, rows.values)
        yield from named_targets(self.targets).values() if self.targets is not None else ()
