"""Opening the bundle that stands somewhere, though the version that is tried there may be damaged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from exporter.bundle import Bundle, BundleError
from selector.ship.state import Trial, folder_of, id_of, read_state
from selector.ship.versions import rollback

log = logging.getLogger("sortednet.canary")


def opened_or_before(path: Path, opening: Callable[[Path], Bundle]) -> Bundle:
    """What `opening` makes of the bundle there. A version that is on trial, and cannot be opened, is taken back: the version
    before is put in its place, and the log says why. Raises what `opening` raises where there is none, or that cannot be opened
    either."""
    try:
        return opening(path)
    except BundleError as error:
        trial = _tried(path)
        if trial is None:
            raise
        try:
            opening(folder_of(path) / trial.previous)  # else it is not this version's fault: a wrong key, say
        except BundleError:
            raise error from None
        log.warning("version %s of %s is taken back: it cannot be opened: %s", trial.new, path, error)
        rollback(path, trial.previous, reason=f"cannot be opened: {error}")
        return opening(path)


def _tried(path: Path) -> Trial | None:
    """The trial of what stands there; that which was begun last where its manifest cannot be read."""
    trial = read_state(path).trial
    try:
        return trial if trial is None or trial.new == id_of(Bundle(path, verify=False)) else None
    except BundleError:
        return trial
