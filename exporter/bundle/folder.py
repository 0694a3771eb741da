"""Where a folder that is no bundle is built: beside its place, which it takes when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from device_profiles.atomic import sync
from exporter.bundle.atomic import exchanged
from exporter.bundle.bundle import BundleError
from exporter.bundle.local import Lost, others

Written = Callable[[Path], Collection[str]]
"""The names of the files that a format has put into a folder; none where the folder is not of that format."""
_KEPT = ".git"
"""How the names begin that stay where they are: of a clone of a repository all that is not its files."""


def check_free(out: Path, written: Written, *, overwrite: bool) -> None:
    """Raises BundleError as `built` does where something stands there."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        allowed = "allowed is another place, or --overwrite for one that was written in this format"
        raise BundleError(f"out = {str(out)!r}: is there already; {allowed}")
    if out.exists() and not out.is_dir():
        raise BundleError(f"out = {str(out)!r}: is no folder; allowed is another place")
    if gone := [name for name in others(out, written(out)) if not name.startswith(_KEPT)]:
        words = f"would lose {Lost(tuple(gone)).words}, not written in this format"
        raise BundleError(f"out = {str(out)!r}: {words}; allowed is another place")


@contextmanager
def built(out: Path, written: Written, *, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder; on success it takes the place of `out`, links followed, on any failure it is removed. Raises
    BundleError where it cannot be written and where something stands there, with `overwrite` where files of it were not
    `written` in this format; those of git stay."""
    check_free(out, written, overwrite=overwrite)
    try:
        place = out.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as name:
            made = Path(name) / "made"
            made.mkdir()
            yield made
            check_free(out, written, overwrite=overwrite)  # something may have come there meanwhile
            for path in place.glob(f"{_KEPT}*"):
                if path.is_dir() and not path.is_symlink():
                    shutil.copytree(path, made / path.name, symlinks=True)
                else:
                    shutil.copy2(path, made / path.name, follow_symlinks=False)
            sync(made)
            if place.exists():
                if exchanged(made, place):  # in one step, where the system knows how
                    return
                place.rename(Path(name) / "replaced")
            made.rename(place)
    except OSError as error:
        raise BundleError(f"out = {str(out)!r}: cannot be written: {error.strerror or error}") from None
