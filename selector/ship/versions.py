"""The versions of a bundle that a device keeps, side by side, and going back to one.

parent/
  NAME/                       the bundle that is used: it opens as it is
  .NAME.versions/             in NAME, where that is a mount point
    <first of its hash>/      a bundle that stood there; files that are equal are one file under several names
    state.json                their order, the newest version number that was here, which were taken back and why, a trial
    lock

Which of them is used is not written down anywhere: it is the one whose manifest is in NAME. So a process that is killed
at any moment leaves the old bundle or the new one, and nothing that disagrees with it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from device_profiles.atomic import beside, left_behind, remove, replacing, sync_folder
from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, PROFILES_FOLDER, SIGNATURE_FILE, SIGNED_FILE, Bundle, BundleError
from exporter.bundle.atomic import built_beside, check_place, workplace
from exporter.bundle.local import carry_over
from exporter.bundle.written import WRITTEN_FILE
from selector.ship.signed import SignatureError, is_signed, read_signed

KEPT = 2
"""Versions beside the one that is used, unless told otherwise."""
STATE_FILE = "state.json"


class VersionError(BundleError):
    """A version that is not kept here, is older than what was here, or was taken back."""


class Trial(BaseModel):
    """A version that is being tried, and the one before, by their ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new: str
    previous: str


class State(BaseModel):
    """What a device remembers of a bundle's versions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: tuple[str, ...] = ()  # ids in the order in which they came
    newest: int = 0  # the greatest version number that was here; of signed bundles
    refused: dict[str, str] = {}  # by what a version holds: why it was taken back
    trial: Trial | None = None


@dataclass(frozen=True)
class Version:
    """A version that is kept here."""

    id: str  # the first of its manifest's hash
    number: int | None  # of its signature; None where it has none
    submodels: tuple[str, ...]
    current: bool
    trial: bool
    refused: str | None  # why it was taken back; None where it was not


def signed_version(bundle: Path) -> int | None:
    """The number of the version that is there; None where it is not signed."""
    return _signed(bundle)[0]


def folder_of(target: Path) -> Path:
    """Where the versions of the bundle at `target` are."""
    target = target.resolve()
    return workplace(target).with_name(f".{target.name}.versions")


def id_of(bundle: Bundle) -> str:
    return bundle.manifest.sha256[:12]


def content_of(bundle: Bundle) -> str:
    """What the version holds, whichever of its sub-models are here; of one that is not signed, those that are."""
    number, whole = _signed(bundle.path)
    return id_of(bundle) if number is None else whole[:12]


def read_state(target: Path) -> State:
    """Empty where there is none. A damaged one is begun anew: it says nothing that a bundle could not be opened without."""
    try:
        return State.model_validate_json((folder_of(target) / STATE_FILE).read_bytes())
    except (OSError, ValidationError):
        return State()


def write_state(target: Path, state: State) -> None:
    """Raises OSError."""
    with replacing(folder_of(target) / STATE_FILE) as partial:
        partial.write_text(state.model_dump_json(indent=1) + "\n", encoding="utf-8")


def versions(path: str | Path) -> list[Version]:
    """Those that are kept, the latest first, the one that is used among them. Raises BundleError where there is no bundle."""
    target = check_place(path, overwrite=True)
    current = Bundle(target, verify=False)
    state = read_state(target)
    found = {id_of(current): current}
    for folder in kept_folders(target):
        with suppress(BundleError):
            found.setdefault(folder.name, Bundle(folder, verify=False))
    trial = state.trial.new if state.trial is not None else None
    places = {identifier: place for place, identifier in enumerate(state.order)}
    listed = sorted(found.items(), key=lambda item: places.get(item[0], len(places)), reverse=True)
    return [
        Version(
            name,
            _signed(bundle.path)[0],
            tuple(bundle.submodels),
            bundle is current,
            name == trial,
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


def check_newer(target: Path, number: int, content: str) -> None:
    """Raises VersionError for a signed version that is older than one that was here, or was taken back."""
    state = read_state(target)
    newest = max(state.newest, _signed(target)[0] or 0)
    if number < newest:
        raise VersionError(f"version {number} is older than {newest}, which was here; --older takes it all the same")
    if reason := state.refused.get(content):
        raise VersionError(f"version {number} was taken back here ({reason}); --older takes it all the same")


def keep(target: Path, coming: Bundle, *, most: int = KEPT, trial: bool = False) -> None:
    """Before `coming` takes the place of the bundle at `target`: keeps that one, and forgets the oldest beyond `most`. Raises
    OSError."""
    try:
        old = Bundle(target, verify=False)
    except BundleError:
        return  # damaged
    state = read_state(target)
    name, new = id_of(old), id_of(coming)
    tried = state.trial if state.trial is not None and state.trial.new == name else None
    if tried is not None and not (folder_of(target) / tried.previous).is_dir():
        tried = None
    proven = name if tried is None else tried.previous  # what is still on trial is nothing to go back to
    began: Trial | None
    if trial:
        began = Trial(new=new, previous=proven)
    else:  # another choice of the same version's sub-models goes on with its trial
        began = None if tried is None or content_of(old) != content_of(coming) else Trial(new=new, previous=proven)
    if most or began is not None:
        _copy_beside(old, folder_of(target) / name)
    others = [one for one in state.order if one not in (name, new)]
    order = [*others, name, new][-(most + 1) :]
    if began is not None and began.previous not in order:
        order.insert(0, began.previous)
    newest = max(state.newest, _signed(coming.path)[0] or 0, _signed(old.path)[0] or 0)
    refused = {key: why for key, why in state.refused.items() if key != content_of(coming)}
    write_state(target, State(order=tuple(order), newest=newest, refused=refused, trial=began))
    for folder in kept_folders(target):
        if folder.name not in order:
            shutil.rmtree(folder, ignore_errors=True)


def rollback(path: str | Path, version: str | None = None, *, reason: str = "rolled back by hand") -> Bundle:
    """Puts the version before the one that is used, or the one with this id or number, in its place in one step, and returns
    it. What was measured here of the same networks stays. The one that was used is kept and is not fetched again unless asked.

    Raises VersionError where no such version is kept, BundleError where it is damaged or cannot be put there.
    """
    target = check_place(path, overwrite=True)
    with alone(target):
        current = Bundle(target, verify=False)
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
                _copy_beside(current, folder_of(target) / id_of(current))
                unknown = [[one] if one not in state.order else [] for one in (id_of(chosen), id_of(current))]
                order = [*unknown[0], *state.order, *unknown[1]]
                refused = {key: why for key, why in state.refused.items() if key != content_of(chosen)}
                if order.index(id_of(chosen)) < order.index(id_of(current)):  # going forward again says nothing of the older
                    refused[content_of(current)] = reason
                newest = max(state.newest, _signed(target)[0] or 0)
                write_state(target, State(order=tuple(order), newest=newest, refused=refused))
        except OSError as error:
            raise BundleError(f"{str(target)!r}: cannot be written: {error.strerror}") from None
    return Bundle(target)


def end_trial(target: Path) -> None:
    """The new version stays."""
    with alone(target):
        write_state(target, read_state(target).model_copy(update={"trial": None}))


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """No other process puts a version in place. Raises BundleError where one does."""
    folder = folder_of(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise BundleError(f"{str(target)!r}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BundleError(f"{str(target)!r}: another version is just being put there") from None
        yield


def _find(target: Path, current: Bundle, version: str | None) -> Path:
    """The folder of the version. Raises VersionError."""
    listed = [one for one in versions(target) if not one.current]
    if version is None:
        order = read_state(target).order
        before = order[: order.index(id_of(current))] if id_of(current) in order else order
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


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)


def documents(found: list[Version]) -> list[Mapping[str, Any]]:
    """As `sortednet versions --json` prints them."""
    return [{**vars(one), "submodels": list(one.submodels)} for one in found]
