"""A folder that is whole or absent: built beside its target, synced, then renamed.

Nothing can be renamed over a mount point (a container's volume). There the folder is built inside, and its files are moved up
one by one, the manifest last: a folder without one is no bundle.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from device_profiles.atomic import beside, check_writable, left_behind, remove, sync, sync_folder
from exporter.bundle.bundle import MANIFEST_FILE, BundleError
from exporter.bundle.manifest import FORMAT_VERSION
from exporter.bundle.written import record_all

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EIO, errno.EXDEV, errno.ENOTEMPTY)

Standing = tuple[int, int, str | None] | None
"""What stands at a place, to be known again: the folder, and the hash of its manifest; None where nothing does."""


@contextmanager
def built_beside(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target`; on success it takes the target's place, on any failure it is removed.

    A bundle that stood at the target is replaced; of a symbolic link, what it leads to. Raises BundleError when something
    else stands there, or has come there meanwhile, when it cannot be written or the disk is full, and, without `overwrite`, for
    a bundle of a newer format and for a mount point with a bundle, which cannot be replaced in one step. What a killed export
    left behind is removed by the next one, or put back when it is the bundle that stood there.
    """
    target = check_place(target, overwrite=overwrite)
    standing = standing_at(target)
    place = workplace(target)
    try:
        _clear_up(target, place)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = beside(place, "partial")
        partial.mkdir()
    except OSError as error:
        raise _not_written(target, error) from None
    try:
        yield partial
        record_all(partial)
        sync(partial)
        check_unchanged(target, standing)
        _put_in_place(partial, target)
    except OSError as error:
        if error.errno in _FULL:
            full = _full_disk(partial)
            raise BundleError(f"out = {str(target)!r}: {full} is full ({error.strerror}); nothing was left behind") from None
        if error.errno in _REFUSED:
            raise _not_written(target, error) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_place(target: str | Path, *, overwrite: bool = False, needed: int = 0) -> Path:
    """Looks, before the work, whether a bundle of so many bytes can be put there; returns the place, links followed. Raises
    BundleError as `built_beside` does."""
    target = Path(target).resolve()
    try:
        for left in left_behind(target, "replaced"):
            if not target.exists():
                left.rename(target)
        holds = _holds_bundle(target, newer=overwrite)
        if os.path.lexists(target) and not holds and (not target.is_dir() or _entries(target)):
            raise BundleError(f"out = {str(target)!r}: exists and is no bundle; choose another place or remove it")
        if holds and not overwrite and is_mount(target):
            raise BundleError(
                f"out = {str(target)!r}: is a mount point, whose bundle cannot be replaced in one step; choose a folder in it, "
                f"such as {str(target / 'bundle')!r}, or replace it file by file with --overwrite"
            )
        check_writable(workplace(target).parent, needed)
    except OSError as error:
        if error.errno in _FULL:
            raise BundleError(f"out = {str(target)!r}: the disk is full ({error.strerror})") from None
        raise _not_written(target, error) from None
    return target


def standing_at(target: Path) -> Standing:
    """Raises OSError."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    manifest = target / MANIFEST_FILE
    held = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
    return status.st_dev, status.st_ino, held


def check_unchanged(target: Path, standing: Standing) -> None:
    """Raises BundleError where something else stands at the target than did; files added to a bundle do not count."""
    found = standing_at(target)
    if found != standing or (found is not None and found[2] is None and _entries(target)):
        raise BundleError(
            f"out = {str(target)!r}: what is there has changed while the new bundle was built, and stays as it is; the new one "
            "is removed"
        )


def workplace(target: Path) -> Path:
    """Beside which what is not finished lies: the target, or for a mount point a name in it."""
    return target / target.name if is_mount(target) else target


def is_mount(path: Path) -> bool:
    """Whether a volume is mounted there, a bind mount of the same file system included, where the system tells of those."""
    if os.path.ismount(path):
        return True
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            found = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4])
            if found == str(path):
                return True
    return False


def _not_written(target: Path, error: OSError) -> BundleError:
    return BundleError(f"out = {str(target)!r}: cannot be written: {error.strerror}")


def _full_disk(partial: Path) -> str:
    """Which it is that took no more: an export writes temporary files too."""
    import tempfile  # what only reads does not wait for it

    with suppress(OSError):
        temporary = tempfile.gettempdir()
        if shutil.disk_usage(temporary).free < shutil.disk_usage(partial).free:
            return f"the disk of temporary files, {temporary!r} (TMPDIR),"
    return "the disk"


def _holds_bundle(target: Path, *, newer: bool) -> bool:
    """Whether a bundle stands there, be it damaged: other programs have a `manifest.json` too. Raises BundleError for one of a
    newer format, unless it is allowed."""
    path = target / MANIFEST_FILE
    if not path.is_file():
        return False
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return True
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is int and version > FORMAT_VERSION and not newer:
        raise BundleError(
            f"out = {str(target)!r}: holds a bundle of format {version}, newer than {FORMAT_VERSION}: update sortednet, choose "
            "another place, or replace it with --overwrite"
        )
    return version is not None


def _entries(target: Path) -> list[Path]:
    """What lies in a folder, without what unfinished work of ours and the file system keep there."""
    own = (f".{target.name}.", "lost+found")
    return [path for path in target.iterdir() if not path.name.startswith(own)]


def _put_in_place(partial: Path, target: Path) -> None:
    if partial.parent == target:
        _move_up(partial, target)
        return
    if target.exists() and exchanged(partial, target):
        shutil.rmtree(partial, ignore_errors=True)  # what stood there
    elif target.exists():
        replaced = beside(target, "replaced")
        target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        partial.rename(target)
    sync_folder(target.parent)


def _move_up(partial: Path, target: Path) -> None:
    """Fills a mount point from a folder in it. Whoever reads meanwhile finds no manifest, and so no bundle."""
    (target / MANIFEST_FILE).unlink(missing_ok=True)
    sync_folder(target)
    for path in _entries(target):
        remove(path)
    for path in sorted(partial.iterdir(), key=lambda found: found.name == MANIFEST_FILE):
        if path.name == MANIFEST_FILE:
            sync_folder(target)
        path.rename(target / path.name)
    sync_folder(target)


def exchanged(one: Path, other: Path) -> bool:
    """The two have changed places in one step (Linux, renameat2(2)), so that nobody finds the target absent; False where the
    system or the file system does not know how."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _clear_up(target: Path, place: Path) -> None:
    """Takes care of what killed exports left there."""
    for path in left_behind(place, "partial"):
        remove(path)
    for path in left_behind(target, "replaced"):
        remove(path)
