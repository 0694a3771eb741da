"""`Shelf`: what one process has opened, by bundle and profile, and what makes room for another one."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from exporter.bundle import PROFILES_FOLDER, Bundle, BundleError
from selector.choose.budget import BudgetError
from selector.choose.cascades import CASCADES_FILE
from selector.choose.profiles import find_profile
from selector.service.predict.gate import Overloaded
from selector.service.web.problems import Problem, without_folder
from selector.ship.standing import in_use

log = logging.getLogger("sortednet.service")

RUNTIMES = 8  # at most in one process; each keeps sessions of its own
Stamp = tuple[str, int, int]
"""Of the manifest, of the folder of profiles and of the cascades' file."""
Key = tuple[str, str | None]
"""A bundle's name, and the profile's."""


class Opened(Protocol):
    """What is kept."""

    @property
    def stamp(self) -> Stamp: ...


O = TypeVar("O", bound=Opened)  # noqa: E741


class Shelf(Generic[O]):
    """At most RUNTIMES; a request without a device shares that of the profile it comes to. Where there is no room the one that
    was taken longest ago makes it, of those that nobody has now.

    `opening` is given the bundle, the version of it by which most runs are answered, the device, the stamp and what was there
    before; raises Problem. `close` ends what was replaced, which somebody may still have, or made room. `alone`: of each bundle
    there is one at a time."""

    def __init__(
        self,
        opening: Callable[[Bundle, Bundle, str | None, Stamp, O | None], O],
        close: Callable[[str, O], object],
        *,
        alone: bool = False,
    ) -> None:
        self._opening, self._close, self._alone = opening, close, alone
        self._kept: dict[Key, O] = {}  # the one that was taken longest ago first
        self._defaults: dict[str, tuple[Stamp, Key]] = {}  # by bundle: what a request without a device comes to
        self._taken: Counter[Key] = Counter()
        self._lock, self._one_opens = threading.Lock(), threading.Lock()

    @contextmanager
    def taken(self, bundle: Bundle, device: str | None) -> Iterator[O]:
        """Opened at the first call for the bundle and profile, and again when the profile was measured anew. Raises Problem,
        and Overloaded where no room can be made now."""
        stamp = stamp_of(bundle)
        found = self._known(bundle.name, device, stamp)
        if found is None:
            with self._one_opens:
                found = self._known(bundle.name, device, stamp) or self._opened(bundle, device, stamp)
        key, kept = found
        try:
            yield kept
        finally:
            with self._lock:
                self._taken[key] -= 1

    def of(self, bundle: str) -> list[O]:
        """What there is of that bundle, the latest last."""
        with self._lock:
            return [kept for (name, _), kept in self._kept.items() if name == bundle]

    def bundles(self) -> set[str]:
        """Of which there is something."""
        with self._lock:
            return {name for name, _ in self._kept}

    def _known(self, name: str, device: str | None, stamp: Stamp) -> tuple[Key, O] | None:
        """Takes it where it is open and nothing has changed."""
        with self._lock:
            known, key = self._defaults.get(name, (None, None)) if device is None else (stamp, (name, device))
            kept = self._kept.get(key) if key is not None and known == stamp else None
            return None if kept is None or key is None or kept.stamp != stamp else self._take(key, kept)

    def _take(self, key: Key, kept: O) -> tuple[Key, O]:
        self._taken[key] += 1
        self._kept.pop(key, None)
        self._kept[key] = kept
        return key, kept

    def _opened(self, bundle: Bundle, device: str | None, stamp: Stamp) -> tuple[Key, O]:
        used = in_use(bundle)
        key = (bundle.name, device) if device is not None else self._default(bundle, used, stamp)
        with self._lock:
            before = self._kept.get(key)
            if before is not None and self._goes_on(before.stamp, bundle, stamp):
                return self._take(key, before)
        if key[1] is not None and key[1] not in used.devices():
            self._remove(key)
            raise Problem(404, f"device {key[1]!r}: no profile; there are {', '.join(used.devices()) or 'none'}")
        if before is None:
            self._make_room(key)
        kept = self._opening(bundle, used, key[1], stamp, before)
        with self._lock:
            found = self._take(key, kept)
        if before is not None:
            self._close(bundle.name, before)
        return found

    def _default(self, bundle: Bundle, used: Bundle, stamp: Stamp) -> Key:
        """What a request without a device comes to. While a version is on trial that has no name: it may be another profile of
        each of the two."""
        known = self._defaults.get(bundle.name)
        if known is not None and self._goes_on(known[0], bundle, stamp):
            return known[1]
        try:
            name = find_profile(used).device.name if used is bundle and used.devices() else None
        except (BundleError, BudgetError) as error:
            raise not_opened(error, bundle) from None
        self._defaults[bundle.name] = stamp, (bundle.name, name)
        return bundle.name, name

    def _goes_on(self, before: Stamp, bundle: Bundle, stamp: Stamp) -> bool:
        """With what is open: nothing has changed, or another bundle stands there, which is being loaded."""
        return before[0] == stamp[0] and (before == stamp or not bundle.stands)

    def _make_room(self, key: Key) -> None:
        """Raises Overloaded where all that would make it is being used."""
        with self._lock:
            closing = [other for other in self._kept if other[0] == key[0]] if self._alone else []
            if any(self._taken[other] for other in closing):
                raise Overloaded("queue_full", f"bundle {key[0]!r} is at work by another profile, and its memory is for one")
            if not closing and len(self._kept) >= RUNTIMES:
                closing = [other for other in self._kept if not self._taken[other]][:1]
                if not closing:
                    raise Overloaded("queue_full", f"all {RUNTIMES} bundles and profiles that may be open at once are at work")
            closed = [(other[0], self._kept.pop(other)) for other in closing]
        for name, kept in closed:
            self._close(name, kept)

    def _remove(self, key: Key) -> None:
        with self._lock:
            kept = self._kept.pop(key, None)
        if kept is not None:
            self._close(key[0], kept)


def not_opened(error: BundleError | BudgetError, bundle: Bundle) -> Problem:
    """404 where it is not clear which of several profiles is meant; else it is nothing that a client did: 500."""
    asked = isinstance(error, BudgetError) and str(error).startswith("device: ")
    if not asked:
        log.error("bundle %s cannot be opened: %s", bundle.name, error)
    return Problem(404 if asked else 500, without_folder(error, bundle))


def stamp_of(bundle: Bundle) -> Stamp:
    """Changes when the bundle is another one, or when a profile's file or that of the cascades comes, goes or is replaced."""

    def changed(name: str) -> int:
        try:
            return (bundle.path / name).stat().st_mtime_ns
        except OSError:
            return 0

    return bundle.manifest.sha256, changed(PROFILES_FOLDER), changed(CASCADES_FILE)
