"""The folder beside a bundle into which a pull fetches, and whether there is room for what is to come."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.bundle.atomic import workplace
from selector.fetch.transfer import PullError

_SPARE_BYTES = 2**20  # of the disk, for the manifest and folders


@contextmanager
def store_beside(target: Path) -> Iterator[Path]:
    """The folder for what arrives, to this process alone. Raises PullError when another pull uses it."""
    store = workplace(target).with_name(f".{target.name}.pull")
    try:
        store.mkdir(parents=True, exist_ok=True)
        with (store / "lock").open("w") as lock:
            try:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass  # Windows refuses to delete what another has open
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # others: a file system without locks, such as some NFS
                    raise PullError(f"out = {str(target)!r}: another pull is writing there") from None
            try:
                yield store
            finally:
                if store.is_dir() and {path.name for path in store.iterdir()} <= {"lock"}:
                    shutil.rmtree(store, ignore_errors=True)
    except OSError as error:
        raise PullError(f"out = {str(target)!r}: cannot be written: {error.strerror or error}") from None


def check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise PullError(f"{str(folder.parent)!r}: {needed:,} bytes are to come and {free:,} are free on this disk")


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
