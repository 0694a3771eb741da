"""The versions of a bundle that a device keeps, side by side, and going back to one.

parent/
  NAME/                       the bundle that is used: it opens as it is
  .NAME.versions/             in NAME, where that is a mount point
    <first of its hash>/      a bundle that stood there; files that are equal are one file under several names
    state.json                their order, the newest version number that was here, which were taken back and why, a trial
    trial.jsonl, lock         the runs of the trial

Which of them is used is not written down anywhere: it is the one whose manifest is in NAME. So a process that is killed
at any moment leaves the old bundle or the new one, and nothing that disagrees with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_profiles.atomic import beside, left_behind, remove, sync_folder
from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, PROFILES_FOLDER, SIGNATURE_FILE, SIGNED_FILE, Bundle, BundleError
from exporter.bundle.atomic import built_beside, check_place
from exporter.bundle.local import carry_over, foreign
from exporter.bundle.written import WRITTEN_FILE
from selector.ship.runs import Runs, forget_runs
from selector.ship.signed import SignatureError, is_signed, read_signed
from selector.ship.state import (
    Figures,
    Outcome,
    Remembered,
    Trial,
    Tried,
    alone,
    folder_of,
    id_of,
    read_state,
    trial_of,
    write_state,
)

KEPT = 2
"""Versions beside the one that is used, unless told otherwise."""


class VersionError(BundleError):
    """A version that is not kept here, is older than what was here, or was taken back."""


@dataclass(frozen=True)
class Version:
    """A version that is kept here."""

    id: str  # the first of its manifest's hash
    number: int | None  # of its signature; None where it has none
    submodels: tuple[str, ...]
    current: bool
    trial: bool
    trial_runs: int | None  # on it, of all processes; None where it is not on trial
    refused: str | None  # why it was taken back; None where it was not


def signed_version(bundle: Path) -> int | None:
    """The number of the version that is there; None where it is not signed."""
    return _signed(bundle)[0]


def content_of(bundle: Bundle) -> str:
    """What the version holds, whichever of its sub-models are here; of one that is not signed, those that are."""
    number, whole = _signed(bundle.path)
    return id_of(bundle) if number is None else whole[:12]


def versions(path: str | Path) -> list[Version]:
    """Those that are kept, the latest first, the one that is used among them, unless its manifest is damaged. Raises
    BundleError where there is no bundle."""
    target = check_place(path, overwrite=True)
    current = _current(target)
    state = read_state(target)
    found = {} if current is None else {id_of(current): current}
    for folder in kept_folders(target):
        with suppress(BundleError):
            found.setdefault(folder.name, Bundle(folder, verify=False))
    trial = None if current is None else trial_of(target)
    places = {identifier: place for place, identifier in enumerate(state.order)}
    listed = sorted(found.items(), key=lambda item: places.get(item[0], len(places)), reverse=True)
    return [
        Version(
            name,
            _signed(bundle.path)[0],
            tuple(bundle.submodels),
            bundle is current,
            trial is not None and bundle is current,
            sum(run.new for run in Runs(target).look()) if trial is not None and bundle is current else None,
            state.refused.get(content_of(bundle)),
        )
        for name, bundle in listed
    ]


def kept_folders(target: Path) -> list[Path]:
    """Of the versions beside the bundle."""
    folder = folder_of(target)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def check_newer(target: Path, number: int | None, content: str) -> None:
    """Raises VersionError for a version that was taken back, or, where it is signed, is older than one that was here."""
    state = read_state(target)
    newest = max(state.newest, _signed(target)[0] or 0)
    name = content if number is None else number
    if number is not None and number < newest:
        raise VersionError(f"version {number} is older than {newest}, which was here; --older takes it all the same")
    if reason := state.refused.get(content):
        raise VersionError(f"version {name} was taken back here ({reason}); --older takes it all the same")


def keep(target: Path, coming: Bundle, *, most: int = KEPT, trial: Figures | None = None, published: str | None = None) -> None:
    """Before `coming` takes the place of the bundle at `target`: keeps that one, and forgets the oldest beyond `most`.
    `trial`: what is known when one begins; `published`: what the service calls the version. Raises OSError."""
    try:
        old = Bundle(target, verify=False)
    except BundleError:
        return  # damaged
    state = read_state(target)
    name, new = id_of(old), id_of(coming)
    before = state.trial if state.trial is not None and state.trial.new == name else None
    if before is not None and not (folder_of(target) / before.previous).is_dir():
        before = None
    proven = name if before is None else before.previous  # what is still on trial is nothing to go back to
    began: Trial | None = None
    if trial is not None:
        forget_runs(target)
        began = Trial(**dict(tried(coming, trial, published)), new=new, previous=proven)
    elif before is not None and content_of(old) == content_of(coming):  # other sub-models of the version go on with its trial
        began = before.model_copy(update={"new": new})
    if most or began is not None:
        _copy_beside(old, folder_of(target) / name)
    others = [one for one in state.order if one not in (name, new)]
    order = [*others, name, new][-(most + 1) :]
    if began is not None and began.previous not in order:
        order.insert(0, began.previous)
    newest = _newest(state, old, *(() if began is not None else (coming,)))
    refused = {key: why for key, why in state.refused.items() if key != content_of(coming)}
    changed = {"order": tuple(order), "newest": newest, "refused": refused, "trial": began}
    write_state(target, state.model_copy(update=changed))
    for folder in kept_folders(target):
        if folder.name not in order:
            shutil.rmtree(folder, ignore_errors=True)


def tried(version: Bundle, figures: Figures, published: str | None = None) -> Tried:
    content = content_of(version)
    return Tried(content=content, published=published or content, number=signed_version(version.path), figures=figures)


def refuse(target: Path, version: Tried, reason: str) -> None:
    """Remembers that it was taken back, and is not taken again. Raises OSError."""
    state = read_state(target)
    outcome = Outcome(**dict(version), reason=reason)
    write_state(target, state.model_copy(update={"refused": {**state.refused, version.content: reason}, "outcome": outcome}))


def accept(target: Path, trial: Trial, figures: Figures) -> None:
    """The version that was tried stays. Raises BundleError while another process changes versions, OSError."""
    with alone(target):
        state = read_state(target)
        if state.trial == trial:  # else another process was first
            outcome = Outcome(**trial.model_dump(exclude={"new", "previous", "figures"}), figures=figures, reason=None)
            newest = max(state.newest, trial.number or 0)
            write_state(target, state.model_copy(update={"trial": None, "outcome": outcome, "newest": newest}))


def rollback(
    path: str | Path, version: str | None = None, *, reason: str = "rolled back by hand", figures: Figures | None = None
) -> Bundle:
    """Puts the version before the one that is used, or the one with this id or number, in its place in one step, and returns
    it. What was measured here of the same networks stays, as do files that no command of ours wrote. The one that was used is
    kept, damaged or not, and is not fetched again unless asked. `figures`: what its trial has shown.

    Raises VersionError where no such version is kept, BundleError where it is damaged or cannot be put there.
    """
    target = check_place(path, overwrite=True)
    if not folder_of(target).exists():  # what is refused makes none
        _find(target, Bundle(target, verify=False), version)
    with alone(target):
        current = _current(target)
        found = _find(target, current, version)
        chosen = Bundle(found)  # every hash
        try:
            state = read_state(target)
            with built_beside(target, overwrite=True) as folder:
                _link_all(chosen, folder)
                _copy_profiles(found, folder)
                carry_over(target, current, folder, chosen.manifest)
                if is_signed(found):
                    (folder / CASCADES_FILE).unlink(missing_ok=True)
                _copy(found / CASCADES_FILE, folder / CASCADES_FILE)
                _copy_others(target, foreign(target, (current or chosen).manifest, damaged=current is None), folder)
                there = [] if current is None else [current]  # damaged: nothing to keep
                for one in there:
                    _copy_beside(one, folder_of(target) / id_of(one))
                order = [one for one in (id_of(chosen),) if one not in state.order]
                order += [*state.order, *(id_of(one) for one in there if id_of(one) not in state.order)]
                refused = {key: why for key, why in state.refused.items() if key != content_of(chosen)}
                newest = _newest(state, *there)
                state = state.model_copy(update={"order": tuple(order), "newest": newest, "refused": refused})
                write_state(target, state)  # the trial goes on if this is killed now
                if current is None:
                    if state.trial is not None and state.trial.new != id_of(chosen):
                        refuse(target, _with(state.trial, figures), reason)
                elif order.index(id_of(chosen)) < order.index(id_of(current)):  # forward again says nothing of the older
                    refuse(target, _as_known(state, current, figures), reason)
            with suppress(OSError):  # a trial of what is not there any more is none
                write_state(target, read_state(target).model_copy(update={"trial": None}))
        except OSError as error:
            raise BundleError(f"{str(target)!r}: cannot be written: {error.strerror}") from None
    return Bundle(target)


def _newest(state: Remembered, *versions: Bundle) -> int:
    """The greatest number that was here, with these. One that is only tried does not count: if it is taken back, a version
    between the two is welcome."""
    tried = None if state.trial is None else state.trial.content
    return max([state.newest, *(signed_version(one.path) or 0 for one in versions if content_of(one) != tried)])


def _as_known(state: Remembered, version: Bundle, figures: Figures | None) -> Tried:
    """The version, with what its trial has shown."""
    known = next((one for one in (state.trial, state.outcome) if one and one.content == content_of(version)), None)
    return tried(version, figures or Figures()) if known is None else _with(known, figures)


def _with(known: Tried, figures: Figures | None) -> Tried:
    return Tried(content=known.content, published=known.published, number=known.number, figures=figures or known.figures)


def _current(target: Path) -> Bundle | None:
    """The one that is used; None where its manifest is damaged, and others are kept. Raises BundleError where none is."""
    try:
        return Bundle(target, verify=False)
    except BundleError:
        if not kept_folders(target):
            raise
        return None


def _find(target: Path, current: Bundle | None, version: str | None) -> Path:
    """The folder of the version. Raises VersionError."""
    listed = [one for one in versions(target) if not one.current]
    if version is None:
        order = read_state(target).order
        here = None if current is None else id_of(current)
        before = order[: order.index(here)] if here in order else order
        listed = [one for one in listed if one.id in before and one.refused is None] or [
            one for one in listed if one.refused is None
        ]
        if not listed:
            raise VersionError(f"{str(target)!r}: no version before this one is kept here")
        return folder_of(target) / listed[0].id
    for one in listed:
        if version in (one.id, str(one.number)):
            return folder_of(target) / one.id
    known = ", ".join(one.id if one.number is None else f"{one.id} ({one.number})" for one in listed) or "none"
    raise VersionError(f"version {version!r} is not kept here, or is the one that is used; others are {known}")


def _signed(bundle: Path) -> tuple[int | None, str]:
    """The number of the version and the hash of the whole bundle's manifest; None where it has no signature."""
    try:
        signed = read_signed((bundle / SIGNED_FILE).read_bytes())
    except (OSError, SignatureError):
        return None, ""
    return signed.version, str(signed.content.sha256)


def _copy_beside(bundle: Bundle, target: Path) -> None:
    """The bundle under another name too, in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in left_behind(target.with_name("*"), "partial"):  # of any version
        remove(left)
    partial = beside(target, "partial")
    remove(partial)
    partial.mkdir()
    try:
        _link_all(bundle, partial)
        _copy_profiles(bundle.path, partial)
        for name in (CASCADES_FILE, WRITTEN_FILE):
            _copy(bundle.path / name, partial / name)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link_all(bundle: Bundle, folder: Path) -> None:
    """What was exported and signed. What devices write is copied, not linked: it is written anew."""
    for name in [*bundle.manifest.files, MANIFEST_FILE, SIGNED_FILE, SIGNATURE_FILE]:
        source, target = bundle.path / name, folder / name
        if not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        link(source, target)


def link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system knows no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy_profiles(source: Path, target: Path) -> None:
    for path in (source / PROFILES_FOLDER).glob("[!.]*.json"):
        (target / PROFILES_FOLDER).mkdir(exist_ok=True)
        _copy(path, target / PROFILES_FOLDER / path.name)


def _copy_others(source: Path, names: Iterable[str], target: Path) -> None:
    """Links stay links. What the version itself has under such a name is its own."""
    for name in names:
        if not os.path.lexists(target / name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name, follow_symlinks=False)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)


def documents(found: list[Version]) -> list[Mapping[str, Any]]:
    """As `sortednet versions --json` prints them."""
    return [{**vars(one), "submodels": list(one.submodels)} for one in found]
