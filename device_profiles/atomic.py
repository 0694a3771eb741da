"""Files that are whole or absent: written beside their place, synced, then renamed. The one place that knows how. And how
a JSON file that others have written is read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LEAST_BYTES = 4096
"""Written and removed to see whether a disk takes anything at all."""


def text_of(content: bytes) -> str:
    """A JSON document's text in whichever of Unicode's encodings it is (RFC 4627, section 3), without a byte-order mark, which
    editors and shells of Windows put before it. Raises ValueError where it is none."""
    return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a file to write beside `path`; on success it is synced and takes that place in one step, on any failure it is
    removed. What killed writers left there is removed first; a symbolic link stays, and what it leads to is replaced. Raises
    OSError where the system does not let it be written.
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in left_behind(target, "partial"):
        remove(left)
    partial = beside(target, "partial")
    try:
        yield partial
        sync(partial)
        partial.replace(target)
        sync_folder(target.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_writable(folder: str | Path, needed: int = 0) -> None:
    """Looks, before the work, whether files can be written into a folder that may not exist yet, and whether there is room
    for so many bytes. Leaves nothing behind. Raises the OSError that the system would raise after it."""
    import tempfile  # what only reads does not wait for it

    place = Path(folder).resolve()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(bytes(_LEAST_BYTES))
        file.flush()
        os.fsync(file.fileno())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed:,} bytes are to come, {free:,} are free", str(place))


def beside(target: Path, kind: str) -> Path:
    """This process's own name beside the target, such as `.manifest.json.partial-17`."""
    return target.with_name(f".{target.name}.{kind}-{os.getpid()}")


def left_behind(target: Path, kind: str) -> Iterator[Path]:
    """What processes that are gone left under such names beside the target."""
    for path in target.parent.glob(f".{target.name}.{kind}-*"):
        owner = path.name.rpartition("-")[2]
        if owner.isdigit() and not _alive(int(owner)):
            yield path


def remove(path: Path) -> None:
    """A file or a folder, as far as that goes."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """A file, or a folder with all that is in it, is on the disk when this returns."""
    for found in [*path.rglob("*"), path] if path.is_dir() else [path]:
        if found.is_dir():
            sync_folder(found)
        else:
            with found.open("rb") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The folder's list of names, not what they stand for."""
    if os.name == "nt":  # a folder cannot be opened there, and renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(process: int) -> bool:
    import psutil

    return process != os.getpid() and psutil.pid_exists(process)
