"""`Cache`: keys and values of a text, in buffers that a graph reads and writes in place.

Layout: for each layer a buffer of keys and one of values, (B, G, S, D) float32: B texts, G groups of heads, S tokens that there
is room for, D the size of a head. Text b has its tokens at the places 0, 1, … of row b; what lies behind them is never read.
Sub-models that differ only in depth have the same keys and values in the layers that they share. So each layer knows how many
of the text's tokens it has: a smaller one goes on at once, a larger one catches up with those that its upper layers lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selector.run.inputs import InputError

BLOCK = 256
"""Tokens by which the buffers grow."""


@dataclass(frozen=True)
class DecoderSpec:
    """What the loop needs to know of a decoder's graph."""

    layers: int
    kv_heads: int  # groups of heads that share keys and values
    head_size: int
    context: int  # the most tokens of a text, those of its prompt included
    vocabulary: int
    eos: tuple[int, ...] = ()  # tokens that end a text
    spare: int = 0  # places behind a text that its graph writes to and never reads

    @property
    def token_bytes(self) -> int:
        """Of keys and values, for each token of a text."""
        return 2 * 4 * self.layers * self.kv_heads * self.head_size

    def most(self, memory_mb: float | None, texts: int = 1) -> int:
        """Tokens of each of so many texts, that fit the context and this memory."""
        if memory_mb is None:
            return self.context
        return min(self.context, int(memory_mb * 2**20 // (texts * self.token_bytes)) - self.spare)


class Cache:
    """Of one text, or of several side by side. `memory_mb`: the most that its buffers take."""

    def __init__(self, spec: DecoderSpec, memory_mb: float | None = None, texts: int = 1) -> None:
        self.spec, self.texts = spec, texts
        self.most = spec.most(memory_mb, texts)
        """Tokens of a text that fit the context and the memory."""
        self.room = 0
        self.buffers: list[NDArray[Any]] = [self._empty(0) for _ in range(2 * spec.layers)]
        """Keys and values of layer 0, of layer 1, …"""
        self.tokens: list[int] = []
        """Whose keys and values are here; of several texts those of none."""
        self.known = [0] * spec.layers
        """Of these tokens, how many each layer has."""

    @property
    def memory_mb(self) -> float:
        """That the buffers take now."""
        return self.texts * self.room * self.spec.token_bytes / 2**20

    def grow(self, tokens: int) -> bool:
        """Makes room for so many tokens of each text; whether the buffers are others than before. Raises InputError where the
        memory does not allow it."""
        needed = tokens + self.spec.spare
        if needed <= self.room:
            return False
        if tokens > self.most:
            raise InputError(f"tokens = {tokens}: allowed are {self.most}, which fit the context and the memory")
        had, room = self.room, min(-(-needed // BLOCK) * BLOCK, self.most + self.spec.spare)
        for place, old in enumerate(self.buffers):  # one after the other: no more than one of them is there twice
            grown = self._empty(room)
            grown[:, :, :had] = old[:, :, :had]
            self.buffers[place] = grown
        self.room = room  # only now: where there was no memory for one of them, the next text tries again
        return True

    def keep(self, tokens: Sequence[int], layers: int) -> int:
        """How many of these tokens the first so many layers have already. What the text is is now these: what was behind their
        common beginning is forgotten."""
        common = self.reuse(tokens)
        del self.tokens[common:]
        self.known = [min(known, common) for known in self.known]
        return min(self.known[:layers])

    def reuse(self, tokens: Sequence[int]) -> int:
        """How many of these tokens are the beginning of the text that is here."""
        pairs = enumerate(zip(self.tokens, tokens, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(self.tokens), len(tokens)))

    def known_of(self, tokens: Sequence[int], layers: int) -> int:
        """How many of these tokens, from the first on, the first so many layers have."""
        return min(self.reuse(tokens), *self.known[:layers])

    def clear(self) -> None:
        """Gives the memory back."""
        self.room, self.tokens, self.known = 0, [], [0] * self.spec.layers
        self.buffers = [self._empty(0) for _ in self.buffers]

    def _empty(self, room: int) -> NDArray[Any]:
        return np.zeros((self.texts, self.spec.kv_heads, room, self.spec.head_size), np.float32)
