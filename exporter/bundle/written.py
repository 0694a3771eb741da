"""`written.json`: what has been written into a bundle since its export, profiles and cascades, and the check of all of it.

Such a document carries its own checksum (`device_profiles.seal`), which tells an altered one but neither one that is gone nor
one that was put in the place of another. The index names each document and its checksum. While one is being replaced it names
both, so that a writer that is killed on the way leaves nothing that looks altered.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from device_profiles import ProfileError, read_profile
from device_profiles.seal import SEAL, SealError, check_seal, seal_of, write_sealed

WRITTEN_FILE = "written.json"
PROFILES_FOLDER = "profiles"
CASCADES_FILE = "cascades.json"
_NAME = re.compile(rf"{PROFILES_FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]*\.json|{re.escape(CASCADES_FILE)}")

Fault = Literal["missing", "damaged", "misnamed", "altered"]
_Index = dict[str, list[str | None]]  # checksums that a document may have; None: it may be absent, or any


@dataclass(frozen=True)
class Written:
    """A document of the bundle, as it was found."""

    name: str  # relative to the bundle: "profiles/phone.json"
    sealed: bool  # it has a checksum of its own, which fits
    recorded: bool  # the index names it
    fault: Fault | None = None
    problem: str = ""  # the fault in words that begin with the name


def check_written(bundle: Path) -> list[Written]:
    """Every document that is in the bundle's folder or in its index, by name. A damaged index comes first, as a document."""
    try:
        index, found = _read(bundle), []
    except SealError as error:
        index, found = {}, [Written(WRITTEN_FILE, False, False, "damaged", f"{WRITTEN_FILE}: {error}")]
    return found + [_checked(bundle, name, index.get(name)) for name in sorted({*_present(bundle), *index})]


@contextmanager
def locked(bundle: Path) -> Iterator[None]:
    """One writer at a time of the index and of what it names, where the system and the file system know locks. What is read and
    written anew is read within it."""
    descriptor = None
    with suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(bundle, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def recording(bundle: Path, name: str, document: Mapping[str, Any]) -> Iterator[None]:
    """Around the writing of a document, within `locked`: the index knows it when this ends, and knows of the writing before it
    begins. Where that fails, the index is as before. Raises OSError where the index cannot be written, SealError as `seal_of`
    does.

    A damaged index begins anew with the documents that are whole.
    """
    new = seal_of(document)
    try:
        before = _read(bundle)
    except SealError:
        before = _whole(bundle)
    known = before.get(name, [None])
    if known != [new]:
        _write(bundle, before | {name: [*known, new]})
    try:
        yield
    except BaseException:
        with suppress(OSError):
            _write(bundle, before)
        raise
    if known != [new]:
        _write(bundle, before | {name: [new]})


def record_all(bundle: Path) -> None:
    """Takes the documents that are here, those that are whole, for what was written: a folder that has just been built, or a
    user who has put or removed some by hand and insists. Raises OSError."""
    with locked(bundle):
        entries = _whole(bundle)
        if entries or (bundle / WRITTEN_FILE).exists():
            _write(bundle, entries)


def _checked(bundle: Path, name: str, allowed: list[str | None] | None) -> Written:
    path, recorded = bundle / name, allowed is not None
    if not path.is_file():
        if allowed is None or None in allowed:
            return Written(name, False, False)
        return Written(name, False, recorded, "missing", f"{name}: is missing; it was written to this bundle")
    try:
        document = _document(path)
        is_sealed = isinstance(document, dict) and check_seal(document)
        device = read_profile(path).device.name if name != CASCADES_FILE else None
    except ProfileError as error:
        return Written(name, False, recorded, "damaged", f"{name}: {str(error).removeprefix(f'profile {path.name}: ')}")
    except (OSError, ValueError) as error:
        return Written(name, False, recorded, "damaged", f"{name}: {error}")
    if device is not None and device != path.stem:
        problem = f"{name}: is the profile of {device!r}; a profile's file has the name of its device"
        return Written(name, is_sealed, recorded, "misnamed", problem)
    if allowed is not None and None not in allowed and _seal(document) not in allowed:
        problem = f"{name}: is another document than was written to this bundle (its checksum is not that in {WRITTEN_FILE})"
        return Written(name, is_sealed, recorded, "altered", problem)
    return Written(name, is_sealed, recorded)


def _present(bundle: Path) -> list[str]:
    """Names that begin with a dot are other programs' files and half-written ones."""
    profiles = [path for path in (bundle / PROFILES_FOLDER).glob("*.json") if not path.name.startswith(".")]
    cascades = [CASCADES_FILE] if (bundle / CASCADES_FILE).exists() else []
    return [f"{PROFILES_FOLDER}/{path.name}" for path in profiles] + cascades


def _whole(bundle: Path) -> _Index:
    found = [name for name in _present(bundle) if _NAME.fullmatch(name) and _checked(bundle, name, None).fault is None]
    return {name: [_seal(_document(bundle / name))] for name in found}


def _seal(document: Any) -> str:
    """Of what has no checksum of its own too: a list is a `cascades.json` from before."""
    return seal_of(document if isinstance(document, dict) else {"": document})


def _document(path: Path) -> Any:
    """Raises OSError, ValueError."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SealError(f"is truncated or no JSON: {error}") from None
    if not isinstance(document, dict | list):
        raise SealError(f"is a JSON {type(document).__name__}; allowed is an object")
    return document


def _read(bundle: Path) -> _Index:
    """Empty where there is none. Raises SealError saying what is wrong with it, OSError where it cannot be read."""
    path = bundle / WRITTEN_FILE
    if not path.exists():
        return {}
    document = _document(path)
    if not isinstance(document, dict) or not check_seal(document):
        raise SealError(f"has no {SEAL}")
    entries = document.get("documents")
    if not isinstance(entries, dict) or not all(_NAME.fullmatch(name) for name in entries):
        raise SealError(f"documents: allowed are {PROFILES_FOLDER}/DEVICE.json and {CASCADES_FILE}")
    if not all(isinstance(one, list) and one and all(isinstance(d, str | None) for d in one) for one in entries.values()):
        raise SealError("documents: allowed are lists of checksums")
    return entries


def _write(bundle: Path, entries: _Index) -> None:
    write_sealed({"documents": dict(sorted(entries.items()))}, bundle / WRITTEN_FILE)
