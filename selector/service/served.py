"""`Served`: the bundles, each as it lies in its folder now: one that is replaced is loaded while the service runs. A new
version that is not for all devices yet is a bundle too, under a name of its own: `NAME@canary`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock, Thread
from typing import NamedTuple, Protocol

from exporter.bundle import MANIFEST_FILE, Bundle, BundleError
from selector.service.fleet.rings import plain_name

LOOK_AGAIN_S = 1.0
"""After so many seconds each manifest is looked at again."""

log = logging.getLogger("sortednet.service")

Stamp = tuple[int, ...]
"""What a manifest's inode looks like; empty where there is none."""


class Opening(Protocol):
    """How a bundle is opened: as `Bundle`, or only where its signature is that of whom is trusted."""

    def __call__(self, path: Path, *, name: str) -> Bundle: ...


class _Seen(NamedTuple):
    stamp: Stamp
    until: float  # on the monotonic clock: looked at again then


class Served:
    """Raises BundleError when two bundles have the same name, and for a new version of none of them. `changed` is called with
    the name of one that was loaded anew.

    What has another manifest is loaded and verified beside the requests, which go on with the bundle before until the new one
    takes its place, in one step. What cannot be loaded, or is gone, is said by `problems`; it is tried again when it changes.
    """

    def __init__(
        self, bundles: Sequence[Bundle], changed: Callable[[str], object] = lambda name: None, opening: Opening = Bundle
    ) -> None:
        self._bundles: dict[str, Bundle] = {}
        for bundle in bundles:
            if bundle.name in self._bundles:
                raise BundleError(f"two bundles are named {bundle.name!r}; rename a folder")
            self._bundles[bundle.name] = bundle
        if lone := [name for name in self._bundles if plain_name(name) not in self._bundles]:
            raise BundleError(f"{lone[0]!r}: a new version of which bundle? Allowed are {', '.join(self._bundles)}")
        self._changed, self._opening = changed, opening
        self._seen = {name: _Seen(_stamp(bundle), time.monotonic() + LOOK_AGAIN_S) for name, bundle in self._bundles.items()}
        self._problems: dict[str, str] = {}
        self._lock = Lock()

    def all(self) -> dict[str, Bundle]:
        """By name, without new versions that are not for all."""
        for name in self._bundles:
            self._look(name)
        return {name: bundle for name, bundle in self._bundles.items() if plain_name(name) == name}

    def get(self, name: str) -> Bundle | None:
        self._look(name)
        return self._bundles.get(name)

    def problems(self) -> dict[str, str]:
        """By name, of those whose folder holds another bundle than is served: that it is being loaded, or why it is not."""
        self.all()
        return dict(self._problems)

    def _look(self, name: str) -> None:
        seen = self._seen.get(name)
        if seen is None or time.monotonic() < seen.until:
            return
        with self._lock:
            if self._seen[name] is not seen:  # another thread has just looked
                return
            stamp = _stamp(self._bundles[name])
            self._seen[name] = _Seen(stamp, time.monotonic() + LOOK_AGAIN_S)
            if stamp == seen.stamp:
                return
            self._problems[name] = f"bundle {name!r} was replaced and is being loaded"
        Thread(target=self._load, args=(name, stamp), name="sortednet-loading").start()

    def _load(self, name: str, stamp: Stamp) -> None:
        before = self._bundles[name]
        try:
            found: Bundle | None = self._opening(before.path, name=name)
            why = ""
        except (BundleError, OSError) as error:
            found, why = None, str(error).replace(str(before.path), name)
        with self._lock:
            if self._seen[name].stamp != stamp:  # replaced once more meanwhile: that one counts
                return
            if found is None:
                log.error("bundle %s was replaced and cannot be loaded: %s", name, why)
                self._problems[name] = f"bundle {name!r} was replaced and cannot be loaded: {why}"
                return
            if found.manifest.sha256 != before.manifest.sha256:
                self._bundles[name] = found
                log.warning("bundle %s was replaced and is loaded", name)
            self._problems.pop(name, None)
        self._changed(name)


def _stamp(bundle: Bundle) -> Stamp:
    try:
        found = os.stat(bundle.path / MANIFEST_FILE)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
