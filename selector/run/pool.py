"""`SessionPool`: the sessions that are open, within a memory budget; opens and closes them on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from math import inf
from typing import Any, Generic, TypeVar

from device_profiles.host import return_freed_memory

log = logging.getLogger("sortednet.pool")

K = TypeVar("K", bound=Hashable)
AGAIN_SECONDS = 60.0
"""After so long one that could not be opened in the background is tried again there."""


class SessionPool(Generic[K]):
    """Sessions by name; the least recently used are closed when a further one would exceed `memory_mb`.

    `open` opens the session of a name, `memory_of` says what it takes (MB). All methods may be called from any thread.
    `get` never waits; a session that is taken out of the pool while it runs lives until it has finished.
    """

    def __init__(self, open: Callable[[K], Any], memory_of: Callable[[K], float], memory_mb: float | None = None) -> None:
        self.memory_mb = inf if memory_mb is None else memory_mb
        self._open, self._memory_of = open, memory_of
        self._sessions: dict[K, Any] = {}
        self._last_used: dict[K, int] = {}
        self._clock = count()
        self._opening: set[K] = set()
        self._asked: set[K] = set()  # in the background, and not yet done
        self._failed_at: dict[K, float] = {}  # in the background, monotonic seconds
        self._changed = threading.Condition()  # of the sessions; never held while one opens or closes
        self._background = ThreadPoolExecutor(1, "sortednet-pool")
        self._closing = ThreadPoolExecutor(1, "sortednet-closing")  # not behind those that are to be opened

    def get(self, name: K) -> Any | None:
        """The session, if it is open."""
        session = self._sessions.get(name)
        if session is not None:
            self._last_used[name] = next(self._clock)
        return session

    def load(self, name: K) -> Any:
        """The session, opened now where it is not. Raises what `open` raises."""
        session = self.get(name)
        if session is None:
            session = self._open_unless(name)
            assert session is not None
            self._last_used[name] = next(self._clock)
        return session

    def load_ahead(self, names: Iterable[K], *, keep: Collection[K] = ()) -> None:
        """Opens these in the background, in this order, if there is room without closing one of them or of `keep`. One that
        cannot be opened is logged, and not tried again for AGAIN_SECONDS."""
        asked = [
            name for name in names if name not in self._sessions and name not in self._asked and not self._has_failed(name)
        ]
        if asked:
            self._asked.update(asked)
            if not _later(self._background, self._load_ahead, asked, {*asked, *keep}):
                self._asked.difference_update(asked)
                asked.clear()  # of those that stay in the queue of a thread that could not be started

    def fit_together(self, *names: K) -> bool:
        """Whether the memory budget lets these be open at the same time."""
        return sum(map(self._memory_of, names)) <= self.memory_mb

    def limit(self, memory_mb: float) -> None:
        """From now on at most so much: closes the least recently used beyond it. A run in flight keeps its session; those that
        are being opened just now are finished, and the last of them stays."""
        with self._changed:
            self.memory_mb = memory_mb
            closed = self._make_room(0.0, ())
            self._changed.notify_all()
        _close_later(self._closing, closed)

    @property
    def loaded(self) -> Collection[K]:
        """The sub-models whose sessions are open."""
        return self._sessions.keys()

    @property
    def memory_used_mb(self) -> float:
        """Of the sessions that are open or being opened, by `memory_of`."""
        with self._changed:
            return self._used()

    def settle(self) -> None:
        """Waits until what was asked for in the background is done."""
        for executor in (self._background, self._closing):
            executor.submit(lambda: None).result()

    def close(self) -> None:
        """Closes every session and ends the threads. Runs in flight finish; nothing is opened in the background any more."""
        self._background.shutdown(cancel_futures=True)
        self._closing.shutdown()
        with self._changed:
            self._sessions = {}

    def _load_ahead(self, names: list[K], keep: set[K]) -> None:
        try:
            for name in names:
                try:
                    self._open_unless(name, keep)
                    self._failed_at.pop(name, None)
                except Exception as error:  # whoever has to have it is told by `load`
                    self._failed_at[name] = time.monotonic()
                    log.warning("%s cannot be opened: %s", name, error)
        finally:
            self._asked.difference_update(names)

    def _has_failed(self, name: K) -> bool:
        return name in self._failed_at and time.monotonic() - self._failed_at[name] < AGAIN_SECONDS

    def _open_unless(self, name: K, keep: Collection[K] | None = None) -> Any | None:
        """Opens the session unless another thread does or has; makes room first, and waits for what cannot be closed
        because it is just being opened. Where that would close one of `keep`, it does nothing and returns None."""
        closed: list[Any] = []
        needed = self._memory_of(name)
        with self._changed:
            while True:
                if name in self._sessions:
                    return self._sessions[name]
                if name not in self._opening:
                    if (
                        keep is not None
                        and self._used(other for other in self._sessions if other in keep) + needed > self.memory_mb
                    ):
                        return None
                    closed += self._make_room(needed, keep or ())
                    if not self._opening or self._used() + needed <= self.memory_mb:
                        break
                self._changed.wait()
            self._opening.add(name)
        if keep is None:  # whoever is waiting to run does not wait for that too
            _close_later(self._closing, closed)
        elif closed:
            _close(closed)
        try:
            session = self._open(name)
        except BaseException:
            with self._changed:
                self._opening.remove(name)
                self._changed.notify_all()
            raise
        with self._changed:
            self._opening.remove(name)
            self._sessions = {**self._sessions, name: session}  # whoever goes through `loaded` keeps the old one
            self._last_used.setdefault(name, next(self._clock))
            closed = self._make_room(0.0, (name,))  # the limit may have fallen meanwhile
            self._changed.notify_all()
        _close_later(self._closing, closed)
        return session

    def _make_room(self, memory_mb: float, keep: Collection[K]) -> list[Any]:
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

    def _used(self, sessions: Iterable[K] | None = None) -> float:
        return sum(map(self._memory_of, [*(self._sessions if sessions is None else sessions), *self._opening]))


def _later(executor: ThreadPoolExecutor, do: Callable[..., object], *given: object) -> bool:
    """On that thread; False where the pool has been closed meanwhile, or the system lets this process have no more threads."""
    try:
        executor.submit(do, *given)
    except RuntimeError:
        return False
    return True


def _close_later(executor: ThreadPoolExecutor, sessions: list[Any]) -> None:
    """Or now, where that cannot be."""
    if sessions and not _later(executor, _close, sessions):
        _close(sessions)


def _close(sessions: list[Any]) -> None:
    """Drops what is the last reference, as a rule, off the path of those who run."""
    sessions.clear()
    return_freed_memory()
