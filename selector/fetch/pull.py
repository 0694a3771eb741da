"""`pull`: a bundle from the service, with just the sub-models that this device needs.

Files are fetched by their hash into a folder beside the target, which is kept when a pull is cut off, and put together there;
then the new bundle and the old one change places. Whatever the old one already has is taken from it.

parent/
  NAME/            the bundle: the old one or the new one
  .NAME.pull/      <sha256> files that have arrived, <sha256>.part such that are on their way; gone when the pull is done.
                   In NAME, where that is a mount point.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from device_profiles import Profile
from device_profiles.seal import SealError, check_seal
from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, PROFILES_FOLDER, Bundle, BundleError
from exporter.bundle.atomic import built_beside, check_place, workplace
from exporter.bundle.local import Lost, carry_over, lost
from exporter.bundle.manifest import Manifest, checked
from exporter.bundle.refit import same_networks
from exporter.bundle.written import WRITTEN_FILE
from selector.choose.budget import Budget
from selector.fetch.transfer import Client, GoneError, PullError, sha256_of

_NOT_EXPORTED = (MANIFEST_FILE, PROFILES_FOLDER, CASCADES_FILE, WRITTEN_FILE)
_SPARE_BYTES = 2**20  # of the disk, for the manifest and folders


@dataclass(frozen=True)
class Pulled:
    """What a pull has done."""

    bundle: Bundle
    fetched_files: int
    fetched_bytes: int  # of files, without what was there from a pull that was cut off
    reused_files: int
    selection: Mapping[str, Any] | None  # the `select` document, where a budget was given
    changed: bool  # False where the target was up to date
    lost: tuple[str, ...] = ()  # of what had been added here: what does not fit the bundle that came


@dataclass(frozen=True)
class _Offer:
    """What the service has for this device, and where."""

    manifest: Manifest
    text: str  # of manifest.json
    files: str  # path of the files on the service
    profile: Profile | None
    selection: Mapping[str, Any] | None


class NothingFitsError(PullError):
    """No sub-model fits the budget; nothing was fetched."""


def pull(
    client: Client,
    bundle: str,
    out: str | Path,
    *,
    submodels: Sequence[str] | None = None,
    budget: Budget | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pulled:
    """Writes the bundle `out` with these sub-models, or with the best one for the budget, or else with all.

    A bundle at `out` is updated: files that it has are not fetched again, what its profiles say of the same networks stays,
    cascades stay while their sub-models answer as before. A profile, cascade or file of the owner's that would go as a whole
    is refused, unless `overwrite` lets it go; so is a mount point with another bundle, which can only be replaced file by file.
    An empty mount point is filled in place. With `device` the profile of that name comes along. `progress` is told how many
    bytes of how many are here.

    Raises PullError when the service cannot be reached, does not know what is asked for or sends something else;
    NothingFitsError (exit code 3) when nothing fits the budget; BundleError when `out` is no bundle, would lose something or
    cannot be written.
    `out` is unchanged then, and what has arrived is kept for the next pull.
    """
    target = Path(out).resolve()  # of a link to a bundle, that bundle is updated
    old = _standing(target)
    for last in (False, True):
        offer = _ask(client, bundle, submodels, budget, device)
        try:
            return _fetch(client, offer, target, old, progress, overwrite)
        except GoneError:
            if last:  # else the bundle has been replaced on the service meanwhile
                raise
    raise AssertionError


def find_bundle(client: Client) -> str:
    """The name of the only bundle that is served. Raises PullError where there are several."""
    document = client.document("/v1/bundles")
    try:
        names = [str(entry["name"]) for entry in document["bundles"]]
    except (KeyError, TypeError):
        raise PullError(f"{client.shown}: is no sortednet service", 2) from None
    if len(names) != 1:
        raise PullError(f"bundle: which one? {client.shown} serves {', '.join(names) or 'none'}", 2)
    return names[0]


def _ask(client: Client, bundle: str, submodels: Sequence[str] | None, budget: Budget | None, device: str | None) -> _Offer:
    base = f"/v1/bundles/{urllib.parse.quote(bundle, safe='')}"
    if submodels is None and budget is None:
        document = client.document(f"{base}/files/{MANIFEST_FILE}")
        return _offer(document, f"{base}/files/", _profile(client, base, device) if device else None, None)
    query: dict[str, Any] = {"device": device} if device else {}
    if submodels is not None:
        query["submodels"] = list(submodels)
    else:
        query["budget"] = (budget or Budget()).model_dump(mode="json", exclude_defaults=True)
    answer = client.document(f"{base}/subsets", query)
    try:
        offer = _offer(answer["manifest"], answer["files"], answer["profile"], answer["selection"])
    except (KeyError, TypeError):
        raise PullError(f"{client.shown}{base}/subsets: an answer that this version does not understand") from None
    if offer.selection is not None and not offer.selection.get("feasible"):
        nearest, reason = offer.selection.get("submodel"), offer.selection.get("reason")
        raise NothingFitsError(f"{reason}; the nearest is {nearest}, which --submodels {nearest} would fetch", 3)
    return offer


def _profile(client: Client, base: str, device: str) -> Any:
    """The newest that the service keeps of the device, or else the one that came with the bundle."""
    name = urllib.parse.quote(device, safe="")
    try:
        return replace(client, tries=1).document(f"{base}/profiles/{name}")
    except PullError:  # a service without a store has none
        return client.document(f"{base}/files/{PROFILES_FOLDER}/{name}.json")


def _offer(document: Any, files: str, profile: Any, selection: Mapping[str, Any] | None) -> _Offer:
    """Checks the manifest as `Bundle` will. Raises PullError."""
    try:
        manifest = checked(document)
    except ValueError as error:
        raise PullError(f"the service's {MANIFEST_FILE}: {error}") from None
    try:
        measured = None if profile is None else Profile.model_validate(profile)
        if measured is not None:
            check_seal(profile)
    except SealError as error:
        raise PullError(f"the service's profile: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PullError(f"the service's profile: {place}: {first['msg']}") from None
    if measured is not None and measured.bundle != manifest.fingerprint:
        raise PullError(f"the service's profile of {measured.device.name} was measured on another bundle", 2)
    reserved = [name for name in manifest.files if name.split("/")[0] in _NOT_EXPORTED]
    if reserved:
        raise PullError(f"{MANIFEST_FILE}: lists {reserved[0]!r}, which is no file of an export")
    return _Offer(manifest, json.dumps(document, indent=1) + "\n", files, measured, selection)


def _standing(target: Path) -> Bundle | None:
    """The bundle at the target. Raises BundleError when something else stands there, or it cannot be written."""
    check_place(target, overwrite=True)
    try:
        return Bundle(target, verify=False)
    except BundleError:
        return None  # damaged: whatever of it has the right hash is used all the same


def _fetch(
    client: Client,
    offer: _Offer,
    target: Path,
    old: Bundle | None,
    progress: Callable[[int, int], None],
    overwrite: bool,
) -> Pulled:
    here = _files_here(target, offer.manifest)
    wanted = {entry.sha256: (path, entry) for path, entry in offer.manifest.files.items()}
    missing = {digest: found for digest, found in wanted.items() if digest not in here}
    total = sum(entry.bytes for _, entry in missing.values())
    reused = sum(entry.sha256 in here for entry in offer.manifest.files.values())
    same = old is not None and old.manifest.sha256 == offer.manifest.sha256
    if same and not missing and _is_whole(target) and _has_profile(old, offer.profile):
        assert old is not None
        return Pulled(old, 0, 0, reused, offer.selection, False)
    check_place(target, overwrite=overwrite)
    if old is not None and not overwrite:
        if old.manifest.family != offer.manifest.family:
            raise BundleError(
                f"out = {str(target)!r}: holds a bundle of {old.manifest.family}, the service's is of {offer.manifest.family}; "
                "choose another place, or replace it with --overwrite"
            )
        came = None if offer.profile is None else offer.profile.device.name
        _refuse(target, lost(old, same_networks(old.manifest, offer.manifest), came))
    with _store_beside(target) as store:
        arrived = [digest for digest in missing if (store / digest).is_file()]
        _check_disk(store, total - sum(_size(store / d) + _size(store / f"{d}.part") for d in missing))
        done = fetched = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        advance(0)
        before = sum(_size(store / f"{digest}.part") for digest in missing)
        for digest, (path, entry) in missing.items():
            if digest in arrived:  # hashed again when the bundle is opened
                advance(entry.bytes)
                continue
            client.file(f"{offer.files}{urllib.parse.quote(path)}", digest, entry.bytes, store / digest, advance)
            fetched += entry.bytes
        with built_beside(target, overwrite=overwrite) as folder:
            for path, entry in offer.manifest.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                _link(here.get(entry.sha256, store / entry.sha256), folder / path)
            (folder / MANIFEST_FILE).write_text(offer.text, encoding="utf-8")
            try:
                Bundle(folder)
            except BundleError:
                shutil.rmtree(store, ignore_errors=True)  # a file in it was damaged after it had arrived
                raise
            gone = carry_over(target, old, folder, offer.manifest, offer.profile)
            if not overwrite:
                _refuse(target, gone)
        shutil.rmtree(store, ignore_errors=True)
    files = len(missing) - len(arrived)
    lost_here = (*gone.files, *gone.measurements)
    return Pulled(Bundle(target), files, max(0, fetched - before), reused, offer.selection, True, lost_here)


def _files_here(target: Path, manifest: Manifest) -> dict[str, Path]:
    """By hash: the files of the target that the manifest wants, whatever they are called there."""
    sizes = {entry.bytes for entry in manifest.files.values()}
    digests = {entry.sha256 for entry in manifest.files.values()}
    found: dict[str, Path] = {}
    for path in sorted(target.rglob("*")) if target.is_dir() else ():
        if path.is_file() and not path.is_symlink() and path.stat().st_size in sizes:
            digest = sha256_of(path)
            if digest in digests:
                found.setdefault(digest, path)
    return found


def _is_whole(target: Path) -> bool:
    """Every file lies where the manifest says: one that was found by its hash may have another name."""
    try:
        Bundle(target)
    except BundleError:
        return False
    return True


def _has_profile(bundle: Bundle | None, profile: Profile | None) -> bool:
    if bundle is None or profile is None:
        return profile is None
    return (bundle.path / PROFILES_FOLDER / f"{profile.device.name}.json").is_file()


def _refuse(target: Path, found: Lost) -> None:
    """Raises BundleError naming the files that would go as a whole."""
    if found.files:
        words = replace(found, measurements=()).words
        raise BundleError(f"out = {str(target)!r}: would lose {words}; choose another place, or let it go with --overwrite")


@contextmanager
def _store_beside(target: Path) -> Iterator[Path]:
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


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise PullError(f"{str(folder.parent)!r}: {needed:,} bytes are to come and {free:,} are free on this disk")


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system knows no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
