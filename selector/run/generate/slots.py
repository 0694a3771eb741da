"""`Slots`: the places for texts that are generated at the same time. Each keeps its latest text's keys and values, so that a
conversation that goes on, or another one with the same beginning, is not read again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from itertools import count

from selector.run.decode import Cache
from selector.run.generate.described import Described


class BusyError(RuntimeError):
    """Every slot has a text."""

    exit_code = 1


class Slot:
    """Of one text: a cache for each kind of sub-model that had a part in it; of more than one only where their memory is not
    bounded."""

    def __init__(self, described: Described, memory_mb: float | None) -> None:
        self._described, self._memory_mb = described, memory_mb
        self._caches: dict[Hashable, Cache] = {}
        self.used = 0  # the later, the larger

    @property
    def memory_mb(self) -> float:
        """That its keys and values take now."""
        return sum(cache.memory_mb for cache in self._caches.values())

    def cache(self, submodel: str) -> Cache:
        """The sub-model's."""
        kind = self._described.kinds[submodel]
        cache = self._caches.get(kind)
        if cache is None:
            if self._memory_mb is not None:
                self._caches.clear()
            cache = self._caches[kind] = Cache(self._described.widest[kind], self._memory_mb)
        return cache

    def most(self, submodel: str) -> int:
        """Tokens of a text, that fit the context and the memory."""
        return self._described.widest[self._described.kinds[submodel]].most(self._memory_mb)

    def known(self, submodel: str, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, the sub-model need not compute."""
        cache = self._caches.get(self._described.kinds[submodel])
        return 0 if cache is None else cache.known_of(tokens, self._described.specs[submodel].layers)

    def longest(self, tokens: Sequence[int]) -> int:
        """The same of whatever sub-model has most of them."""
        return max((cache.reuse(tokens) for cache in self._caches.values()), default=0)

    def clear(self) -> None:
        self._caches.clear()


class Slots:
    """`count` of them. `memory_mb`: of all their keys and values together."""

    def __init__(self, described: Described, number: int, memory_mb: float | None) -> None:
        each = None if memory_mb is None else memory_mb / number
        self.all = [Slot(described, each) for _ in range(number)]
        self._free = list(self.all)
        self._changed = threading.Condition()
        self._clock = count(1)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, tokens: Sequence[int], wait_seconds: float | None = None) -> Slot:
        """A free one: that which has most of these tokens, else the one that was used longest ago. Raises BusyError where none
        becomes free in so long (None: any time)."""
        end = None if wait_seconds is None else time.monotonic() + wait_seconds
        with self._changed:
            while not self._free:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise BusyError(f"{len(self.all)} texts are being generated, which is the most at once; try again later")
                self._changed.wait(left)
            slot = max(self._free, key=lambda one: (one.longest(tokens), -one.used))
            self._free.remove(slot)
            return slot

    def forget(self) -> None:
        """The keys and values of those that are free."""
        with self._changed:
            for slot in self._free:
                slot.clear()

    def release(self, slot: Slot) -> None:
        with self._changed:
            slot.used = next(self._clock)
            self._free.append(slot)
            self._changed.notify()
