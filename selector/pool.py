"""`SessionPool`: the sessions that are open, within a memory budget; opens and closes them on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from math import inf

import onnxruntime as ort

from device_profiles.host import return_freed_memory


class SessionPool:
    """Sessions by sub-model; the least recently used are closed when a further one would exceed `memory_mb`.

    `open` opens a sub-model's session, `memory_of` says what one takes (MB). All methods may be called from any thread.
    `get` never waits; a session that is taken out of the pool while it runs lives until it has finished.
    """

    def __init__(
        self, open: Callable[[str], ort.InferenceSession], memory_of: Callable[[str], float], memory_mb: float | None = None
    ) -> None:
        self.memory_mb = inf if memory_mb is None else memory_mb
        self._open, self._memory_of = open, memory_of
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._last_used: dict[str, int] = {}
        self._clock = count()
        self._opening: set[str] = set()
        self._asked: set[str] = set()  # in the background, and not yet done
        self._changed = threading.Condition()  # of the sessions; never held while one opens or closes
        self._background = ThreadPoolExecutor(1, "sortednet-pool")

    def get(self, submodel: str) -> ort.InferenceSession | None:
        """The session, if it is open."""
        session = self._sessions.get(submodel)
        if session is not None:
            self._last_used[submodel] = next(self._clock)
        return session

    def load(self, submodel: str) -> ort.InferenceSession:
        """The session, opened now where it is not. Raises what `open` raises."""
        session = self.get(submodel)
        if session is None:
            session = self._open_unless(submodel)
            assert session is not None
            self._last_used[submodel] = next(self._clock)
        return session

    def load_ahead(self, submodels: Iterable[str], *, keep: Collection[str] = ()) -> None:
        """Opens these in the background, in this order, if there is room without closing one of them or of `keep`."""
        asked = [name for name in submodels if name not in self._sessions and name not in self._asked]
        if asked:
            self._asked.update(asked)
            self._background.submit(self._load_ahead, asked, {*asked, *keep})

    def fit_together(self, *submodels: str) -> bool:
        """Whether the memory budget lets these be open at the same time."""
        return sum(map(self._memory_of, submodels)) <= self.memory_mb

    @property
    def loaded(self) -> Collection[str]:
        """The sub-models whose sessions are open."""
        return self._sessions.keys()

    @property
    def memory_used_mb(self) -> float:
        """Of the sessions that are open or being opened, by `memory_of`."""
        with self._changed:
            return self._used()

    def settle(self) -> None:
        """Waits until what was asked for in the background is done."""
        self._background.submit(lambda: None).result()

    def close(self) -> None:
        """Closes every session and ends the thread."""
        self._background.shutdown(cancel_futures=True)
        with self._changed:
            self._sessions.clear()

    def _load_ahead(self, submodels: list[str], keep: set[str]) -> None:
        try:
            for name in submodels:
                self._open_unless(name, keep)
        finally:
            self._asked.difference_update(submodels)

    def _open_unless(self, submodel: str, keep: Collection[str] | None = None) -> ort.InferenceSession | None:
        """Opens the session unless another thread does or has; makes room first, and waits for what cannot be closed
        because it is just being opened. Where that would close one of `keep`, it does nothing and returns None."""
        closed: list[ort.InferenceSession] = []
        needed = self._memory_of(submodel)
        with self._changed:
            while True:
                if submodel in self._sessions:
                    return self._sessions[submodel]
                if submodel not in self._opening:
                    if (
                        keep is not None
                        and self._used(name for name in self._sessions if name in keep) + needed > self.memory_mb
                    ):
                        return None
                    closed += self._make_room(needed, keep or ())
                    if not self._opening or self._used() + needed <= self.memory_mb:
                        break
                self._changed.wait()
            self._opening.add(submodel)
        if closed:
            self._background.submit(_close, closed)
        try:
            session = self._open(submodel)
        except BaseException:
            with self._changed:
                self._opening.remove(submodel)
                self._changed.notify_all()
            raise
        with self._changed:
            self._opening.remove(submodel)
            self._sessions = {**self._sessions, submodel: session}  # whoever goes through `loaded` keeps the old one
            self._last_used.setdefault(submodel, next(self._clock))
            self._changed.notify_all()
        return session

    def _make_room(self, memory_mb: float, keep: Collection[str]) -> list[ort.InferenceSession]:
        """Takes out the least recently used until so much more fits. Those that are being opened cannot be taken out."""
        left = dict(self._sessions)
        closed = []
        for name in sorted(self._sessions.keys() - set(keep), key=lambda n: self._last_used[n]):
            if self._used(left) + memory_mb <= self.memory_mb:
                break
            closed.append(left.pop(name))
            del self._last_used[name]
        self._sessions = left
        return closed

    def _used(self, sessions: Iterable[str] | None = None) -> float:
        return sum(map(self._memory_of, [*(self._sessions if sessions is None else sessions), *self._opening]))


def _close(sessions: list[ort.InferenceSession]) -> None:
    """Drops what is the last reference, as a rule, off the path of those who run."""
    sessions.clear()
    return_freed_memory()
