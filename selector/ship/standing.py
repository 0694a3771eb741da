"""The bundle that stands somewhere, though the version that is tried there may be damaged, or another one come meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from exporter.bundle import Bundle, BundleError, manifest_hash
from selector.ship.state import Trial, folder_of, id_of, read_state
from selector.ship.versions import content_of, rollback

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


def in_use(bundle: Bundle) -> Bundle:
    """The version by which most runs are answered where the bundle stands: while it is on trial the one before, and when it was
    taken back the one that stands there now; else the bundle itself."""
    state = read_state(bundle.path)
    trial, outcome = state.trial, state.outcome
    try:
        if trial is not None and trial.new == id_of(bundle):
            return Bundle(folder_of(bundle.path) / trial.previous, verify=False, name=bundle.name)
        if outcome is not None and outcome.reason is not None and not bundle.stands:
            kept = Bundle(folder_of(bundle.path) / id_of(bundle), verify=False)
            if outcome.content == content_of(kept):
                return Bundle(bundle.path, verify=False, name=bundle.name)
    except BundleError:
        pass
    return bundle


def place_of(bundle: Bundle) -> Path:
    """The folder that has the files of this very version: the bundle's, or, where another one has been put there since it was
    opened, that in which it is kept. Raises BundleError where it is not."""
    there = manifest_hash(bundle.path)
    if there == bundle.manifest.sha256:
        return bundle.path
    kept = folder_of(bundle.path) / id_of(bundle)
    if manifest_hash(kept) == bundle.manifest.sha256:
        return kept
    if there is None:
        raise BundleError(f"{str(bundle.path)!r}: there is no bundle any more, seen from {str(Path.cwd())!r}: open it anew")
    raise BundleError(f"{str(bundle.path)!r}: another version was put there, and {id_of(bundle)} is not kept: open it anew")


def _tried(path: Path) -> Trial | None:
    """The trial of what stands there; that which was begun last where its manifest cannot be read."""
    trial = read_state(path).trial
    try:
        return trial if trial is None or trial.new == id_of(Bundle(path, verify=False)) else None
    except BundleError:
        return trial
