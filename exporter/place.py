"""Where a bundle goes: what stands there already, and whether anything of it would be lost."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, Bundle, BundleError
from exporter.bundle.atomic import check_place
from exporter.bundle.local import Lost, carry_over, lost
from exporter.bundle.manifest import Manifest
from exporter.selftest import ExportError
from trainer.family import family_name
from trainer.nested import NestedModel
from trainer.training import FREE_TO_CHANGE

Source = Mapping[str, Any]
"""What says of which run a bundle is."""


def source_of(nested: NestedModel, training: Mapping[str, Any]) -> Source:
    """Of a model that is to be exported with this record of its run."""
    axes = {axis: [list(v) if isinstance(v, tuple) else v for v in values] for axis, values in nested.family.axes.items()}
    return {"family": family_name(nested.family), "axes": axes, **training}


def check_target(
    out: str | Path, source: Source, ids: Collection[str], *, needed: int = 0, overwrite: bool = False
) -> tuple[Path, Bundle | None]:
    """Looks before the work: the place, links followed, and the bundle there, None where there is none or a damaged one.

    Raises BundleError when the place cannot be written; without `overwrite` ExportError when the bundle there is damaged or of
    another run, or when something was added to it that an export of these sub-models does not keep.
    """
    target = check_place(out, overwrite=overwrite, needed=needed)
    try:
        standing = Bundle(target, verify=False)
    except BundleError as error:
        if (target / MANIFEST_FILE).exists() and not overwrite:
            raise ExportError(
                f"out = {str(target)!r}: holds a bundle that cannot be read ({error}); choose another place, or replace it "
                "with --overwrite"
            ) from None
        return target, None
    if overwrite:
        return target, standing
    found = lost(standing, ids)
    if differing := _differing(_source(standing.manifest), source):
        more = f", with {found.words}" if found.words else ""
        raise ExportError(
            f"out = {str(target)!r}: holds the bundle of another run ({differing}){more}; choose another place, or replace it "
            "with --overwrite"
        )
    retrained = _plain(standing.manifest.training.get("results")) != _plain(source.get("results"))
    if retrained and (target / CASCADES_FILE).exists() and CASCADES_FILE not in found.files:
        found = Lost((*found.files, CASCADES_FILE), found.measurements)
    _refuse(target, found)
    return target, standing


def keep_what_fits(standing: Bundle | None, target: Path, folder: Path, manifest: Manifest, *, overwrite: bool) -> None:
    """Takes over into the new bundle what fits of what was added to the one that stands. Raises ExportError where something
    does not that could not be seen before, unless it may be overwritten."""
    found = carry_over(target, standing, folder, manifest)
    if not overwrite:
        _refuse(target, found)


def _refuse(target: Path, found: Lost) -> None:
    if found.words:
        raise ExportError(
            f"out = {str(target)!r}: would lose {found.words}; choose another place, or let it go with --overwrite"
        )


def _source(manifest: Manifest) -> Source:
    axes = {axis: [list(v) if isinstance(v, tuple) else v for v in values] for axis, values in manifest.axes.items()}
    return {"family": manifest.family, "axes": axes, **manifest.training}


def _differing(old: Source, new: Source) -> str:
    """The first thing in which two runs differ, in words; empty for the same run, trained again or for longer."""
    for name in ("family", "axes", "config", "data", "options"):
        if name not in old or name not in new:  # not recorded by earlier versions, or not a run of the command line
            continue
        there, here = (_comparable(name, source[name]) for source in (old, new))
        if there != here and isinstance(there, dict) and isinstance(here, dict):
            field = next(key for key in {**there, **here} if there.get(key) != here.get(key))
            return f"{name}: {field} = {there.get(field)!r}, here {here.get(field)!r}"
        if there != here:
            return f"{name} = {there!r}, here {here!r}"
    return ""


def _comparable(name: str, value: Any) -> Any:
    value = _plain(value)
    if name == "options" and isinstance(value, dict):
        return {field: one for field, one in value.items() if field not in FREE_TO_CHANGE}
    if name == "data" and isinstance(value, dict) and "content_sha256" in value:  # by that they are known, wherever they lie
        return {field: one for field, one in value.items() if field != "name"}
    return value


def _plain(value: Any) -> Any:
    """As it is when it has been written and read again."""
    return json.loads(json.dumps(value))
