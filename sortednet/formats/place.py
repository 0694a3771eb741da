"""Where a folder of another format is built: beside its place, which it takes when it is whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_profiles.atomic import sync
from exporter.bundle import BundleError
from exporter.bundle.atomic import exchanged


def check_free(out: Path, mark: str, *, overwrite: bool) -> None:
    """Raises BundleError as `built` does where something stands there."""
    if os.path.lexists(out) and not (overwrite and (out / mark).is_file()):
        allowed = f"another place{'' if overwrite else ', or --overwrite for one that was written in this format'}"
        raise BundleError(f"out = {str(out)!r}: is there already; allowed is {allowed}")


@contextmanager
def built(out: Path, mark: str, *, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder; on success it takes the place of `out`, on any failure it is removed. `mark`: a file that only
    what was written in this format has. Raises BundleError where something stands there, with `overwrite` only where that has
    no mark, and where it cannot be written."""
    check_free(out, mark, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
            made = Path(name) / "made"
            made.mkdir()
            yield made
            sync(made)
            if out.exists():
                if exchanged(made, out):  # in one step, where the system knows how
                    return
                out.rename(Path(name) / "replaced")
            made.rename(out)
    except OSError as error:
        raise BundleError(f"out = {str(out)!r}: cannot be written: {error.strerror or error}") from None
