"""`SubsetStore`: parts of the served bundles, each cut once and kept in a bounded folder.

folder/
  <hash of the bundle's manifest and the sub-models>/   a bundle like any other (see `exporter.subset`)
  .lock-<hash>                                          held while it is cut
  .<hash>.partial-*                                     being written
  .gone-*                                               being deleted

What else lies in the folder is left alone.

A part has a key that says what it is made of: which bundle, by its manifest's hash, and which of its sub-models, as a number
whose bits are these. Because the same request gives the same bytes, whoever has the key can have the part: another replica
of the service, or this one after it has forgotten it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from device_profiles.atomic import remove
from device_profiles.host import cache_folder
from exporter.bundle import MANIFEST_FILE, Bundle, BundleError

FOLDER_VARIABLE = "SORTEDNET_SUBSETS"
MAX_BYTES = 2**30
MAX_OPEN = 256  # parts whose manifest is held in memory
CUT_AT_ONCE = 2
ABANDONED_S = 3600.0  # after which a part that is being made or deleted is not any more
_PART = re.compile(r"[0-9a-f]{32}")
_LEFTOVER = re.compile(r"\.lock-[0-9a-f]{32}|\.[0-9a-f]{32}\.(partial|replaced)-\d+|\.gone-\w+")
_KEY = re.compile(r"([0-9a-f]{16})-([0-9a-f]{1,4096})")


class BusyError(Exception):
    """As many parts are being cut as may be at once."""


def default_folder() -> Path:
    """What the environment variable SORTEDNET_SUBSETS says, or a folder in the user's caches; a new one where these are not."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    caches = cache_folder()
    return Path(mkdtemp(prefix="sortednet-subsets-")) if caches is None else caches / "subsets"


def key_of(bundle: Bundle, submodels: Collection[str]) -> str:
    """Names the part of the bundle that has these sub-models."""
    wanted = {bundle.submodel(name).id for name in submodels}
    bits = sum(1 << place for place, name in enumerate(bundle.submodels) if name in wanted)
    return f"{bundle.manifest.sha256[:16]}-{bits:x}"


def submodels_of(bundle: Bundle, key: str) -> list[str] | None:
    """The sub-models behind a key; None when it is no key of this bundle as it is now."""
    found = _KEY.fullmatch(key)
    if found is None or found[1] != bundle.manifest.sha256[:16]:
        return None
    bits = int(found[2], 16)
    names = [name for place, name in enumerate(bundle.submodels) if bits >> place & 1]
    return names if names and key_of(bundle, names) == key else None


class SubsetStore:
    """A folder of parts, at most `max_bytes` of them; the least recently used go first. Any number of threads and processes
    may use the same folder at once; each part is cut by one of them while the others wait."""

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.max_bytes = max_bytes
        self._open: dict[str, Bundle] = {}
        self._cutting = threading.BoundedSemaphore(CUT_AT_ONCE)
        self._lock = threading.Lock()

    def part(self, bundle: Bundle, submodels: Collection[str]) -> Bundle:
        """The part, cut if need be. Raises BundleError for an unknown sub-model or when it cannot be written, BusyError when
        too many others are being cut."""
        key = key_of(bundle, submodels)
        name = hashlib.sha256(f"{bundle.manifest.sha256} {key}".encode()).hexdigest()[:32]
        target = self.folder / name
        found = self._kept(target)
        if found is not None:
            return found
        if not self._cutting.acquire(timeout=5):
            raise BusyError(f"{CUT_AT_ONCE} parts are being cut at the moment")
        try:
            with self._alone(name):
                found = self._kept(target)
                if found is None:
                    found = self._cut(bundle, submodels, target)
        except OSError as error:
            raise BundleError(f"subsets: cannot be written to their folder: {error.strerror}") from None
        finally:
            self._cutting.release()
        self._make_room(target)
        return found

    def _cut(self, bundle: Bundle, submodels: Collection[str], target: Path) -> Bundle:
        from exporter.subset import subset

        shutil.rmtree(target, ignore_errors=True)  # what is there could not be opened
        bundle.verify_files()  # a bundle that was replaced under the running service is not cut as if it were the old one
        subset(bundle, submodels, target)
        found = Bundle(target, verify=False)  # every file is compared with its hash when it is first served
        self._remember(target, found)
        return found

    def _kept(self, target: Path) -> Bundle | None:
        """The part where it is in the folder; marks it as used."""
        try:
            os.utime(target)
        except OSError:
            with self._lock:
                self._open.pop(target.name, None)
            return None
        with self._lock:
            found = self._open.get(target.name)
        if found is None:
            try:
                found = Bundle(target)
            except (BundleError, OSError):
                return None
            self._remember(target, found)
        return found

    def _remember(self, target: Path, part: Bundle) -> None:
        with self._lock:
            while len(self._open) >= MAX_OPEN:
                del self._open[next(iter(self._open))]
            self._open[target.name] = part

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """No other thread or process is within for this part; the system lets go of it when a process is killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".lock-{name}"
        while True:
            with path.open("w") as file:
                with suppress(OSError):  # a file system without locks: at worst two cut the same part, each beside its place
                    fcntl.flock(file, fcntl.LOCK_EX)
                # Whoever had it before has removed it: the next has made another file, and waits for that one.
                if not _is_still(path, file.fileno()):
                    continue
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return

    def _make_room(self, newest: Path) -> None:
        """Removes the parts that were not used for longest, all but the newest, and what killed processes have left."""
        parts = []
        abandoned = time.time() - ABANDONED_S
        for path in self.folder.iterdir():
            with suppress(OSError):
                used = path.stat().st_mtime
                if _PART.fullmatch(path.name) and (path / MANIFEST_FILE).is_file():
                    parts.append((used, _bytes_of(path), path))
                elif used < abandoned and _LEFTOVER.fullmatch(path.name):
                    remove(path)
        total = sum(size for _, size, _ in parts)
        for _, size, path in sorted(parts):
            if total <= self.max_bytes:
                break
            if path == newest:
                continue
            with suppress(OSError):
                gone = Path(mkdtemp(prefix=".gone-", dir=self.folder))
                path.rename(gone / "part")
                shutil.rmtree(gone, ignore_errors=True)
            total -= size


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
