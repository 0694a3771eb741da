"""A folder that is whole or absent: built beside its target, synced, then renamed."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_profiles.atomic import beside, left_behind, remove, sync, sync_folder
from exporter.bundle.bundle import MANIFEST_FILE, BundleError
from exporter.bundle.written import record_all


@contextmanager
def built_beside(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; on success it takes the target's place, on any failure it is removed.

    A bundle that stood at the target is replaced. Raises BundleError when something else stands there or the disk is
    full. What a killed export left behind is removed by the next one, or put back when it is the bundle that stood there.
    """
    target = target.absolute()
    try:
        _clear_up(target)
        if target.exists() and not (target / MANIFEST_FILE).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise BundleError(f"out = {str(target)!r}: exists and is no bundle; choose another place or remove it")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = beside(target, "partial")
        partial.mkdir()
    except OSError as error:
        raise BundleError(f"out = {str(target)!r}: cannot be written: {error.strerror}") from None
    try:
        yield partial
        record_all(partial)
        sync(partial)
        _put_in_place(partial, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise BundleError(f"out = {str(target)!r}: the disk is full ({error.strerror}); nothing was left behind") from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, target: Path) -> None:
    if target.exists() and _exchanged(partial, target):
        shutil.rmtree(partial, ignore_errors=True)  # what stood there
    elif target.exists():
        replaced = beside(target, "replaced")
        target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        partial.rename(target)
    sync_folder(target.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """The two have changed places in one step (Linux, renameat2(2)), so that nobody finds the target absent; False where the
    system or the file system does not know how."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _clear_up(target: Path) -> None:
    """Takes care of what killed exports left beside the target."""
    for path in left_behind(target, "partial"):
        remove(path)
    for path in left_behind(target, "replaced"):
        if target.exists():
            remove(path)
        else:
            path.rename(target)
