"""`pull`: a bundle from the service, with just the sub-models that this device needs.

Files are fetched by their hash into a folder beside the target, which is kept when a pull is cut off, and put together there;
then the new bundle and the old one change places, and the old one is kept as a version (`selector.ship.versions`). Whatever the
old one and kept versions already have is taken from them.

parent/
  NAME/            the bundle: the old one or the new one
  .NAME.pull/      <sha256> files that have arrived, <sha256>.part such that are on their way; gone when the pull is done.
                   In NAME, where that is a mount point.
"""

from __future__ import annotations

import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from device_profiles import Profile
from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, PROFILES_FOLDER, SIGNATURE_FILE, SIGNED_FILE, Bundle, BundleError
from exporter.bundle.atomic import Standing, built_beside, check_place, check_unchanged, standing_at
from exporter.bundle.local import Lost, carry_over, foreign, lost
from exporter.bundle.manifest import FileEntry
from exporter.bundle.refit import same_networks
from selector.choose.budget import Budget
from selector.choose.cascades import Cascade, write_cascades
from selector.fetch.offer import NothingFitsError, Offer, SignedPart, Wanted, ask, ask_signed
from selector.fetch.ranges import Plan, assemble, fetch_runs, planned
from selector.fetch.rings import Reporter, placed
from selector.fetch.store import check_disk, size, store_beside
from selector.fetch.transfer import Client, GoneError, PullError, sha256_of
from selector.ship.parts import check_content
from selector.ship.signed import SignatureError, Trust, is_signed
from selector.ship.state import Figures, alone, trial_of
from selector.ship.trial import WorseError, examine
from selector.ship.versions import KEPT, VersionError, check_newer, content_of, keep, kept_folders, link, rollback

__all__ = ["NothingFitsError", "PullOptions", "Pulled", "find_bundle", "pull"]


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
class PullOptions:
    """How a pull puts in place what it fetches."""

    overwrite: bool = False  # what would be lost may go
    trust: Trust | None = None  # whose signature the bundle must have
    older: bool = False  # a version that is older than one that was here, or was taken back, is taken
    keep: int = KEPT  # versions beside the one that is used; 0: none
    trial: bool = False  # look at a new version beside the old one before it is put in place, and have its first runs watched
    token: str | None = None  # of the device: the service is told how trials go, and has the version of its ring


def pull(
    client: Client,
    bundle: str,
    out: str | Path,
    *,
    submodels: Sequence[str] | None = None,
    budget: Budget | None = None,
    device: str | None = None,
    options: PullOptions = PullOptions(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pulled:
    """Writes the bundle `out` with these sub-models, or with the best one for the budget, or else with all.

    A bundle at `out` is updated: files that it has are not fetched again, what its profiles say of the same networks stays,
    cascades stay while their sub-models answer as before. A profile, cascade or file of the owner's that would go as a whole
    is refused, unless `overwrite` lets it go; so is a mount point with another bundle, which can only be replaced file by file.
    An empty mount point is filled in place. With `device` the profile of that name comes along. `progress` is told how many
    bytes of how many are here.

    Raises PullError when the service cannot be reached, does not know what is asked for or sends something else;
    NothingFitsError (exit code 3) when nothing fits the budget; SignatureError when it is not signed by whom is trusted, or
    would take the place of one that is signed; VersionError for an older version; WorseError for one that is worse than that
    which is here; BundleError when `out` is no bundle, would lose something or cannot be written.
    `out` is unchanged then, and what has arrived is kept for the next pull.
    """
    target = Path(out).resolve()  # of a link to a bundle, that bundle is updated
    old = _standing(target)
    if options.trust is None and old is not None and is_signed(target) and not options.overwrite:
        raise SignatureError(
            f"out = {str(target)!r}: holds a signed bundle; say with --key whose signature is taken, or let it go with "
            "--overwrite"
        )
    reporter = _reporter(client, bundle, device, options)
    place = placed(client, bundle, target, reporter)
    if place.withdrawn is not None and old is not None:
        old = _withdrawn(target, place.withdrawn) or old
    standing = standing_at(target)
    for last in (False, True):
        wanted = Wanted(place.bundle, submodels, budget, device, itself=options.token is not None)
        offer = ask(client, wanted) if options.trust is None else ask_signed(client, wanted, options.trust, target)
        offer = replace(offer, published=place.version)
        try:
            return _fetch(client, offer, target, old, standing, progress, options)
        except WorseError:
            if reporter is not None:
                with suppress(PullError):  # the next pull tells it too
                    reporter.tell(target)
            raise
        except GoneError:
            if last:  # else the bundle has been replaced on the service meanwhile
                raise
            place = placed(client, bundle, target, reporter)
    raise AssertionError


def find_bundle(client: Client) -> str:
    """The name of the only bundle that is served. Raises PullError where there are several."""
    try:
        document = client.document("/v1/bundles")
    except GoneError:
        allowed = "allowed is its address, such as http://HOST:8080, perhaps with /v1/bundles/NAME"
        raise PullError(f"{client.shown}: no sortednet service answers there; {allowed}", 2) from None
    try:
        names = [str(entry["name"]) for entry in document["bundles"]]
    except (KeyError, TypeError):
        raise PullError(f"{client.shown}: is no sortednet service", 2) from None
    if len(names) != 1:
        raise PullError(f"bundle: which one? --bundle NAME says it; {client.shown} serves {', '.join(names) or 'none'}", 2)
    return names[0]


def _standing(target: Path) -> Bundle | None:
    """The bundle at the target. Raises BundleError when something else stands there, or it cannot be written."""
    check_place(target, overwrite=True)
    try:
        return Bundle(target, verify=False)
    except BundleError:
        return None  # damaged: whatever of it has the right hash is used all the same


def _fetch(
    client: Client,
    offer: Offer,
    target: Path,
    old: Bundle | None,
    standing: Standing,
    progress: Callable[[int, int], None],
    options: PullOptions,
) -> Pulled:
    folders = [target, *kept_folders(target)]
    here = _files_here(folders, offer.files)
    wanted = {entry.sha256: (path, entry) for path, entry in offer.files.items()}
    missing = {digest: found for digest, found in wanted.items() if digest not in here}
    plan = Plan({}, ()) if offer.signed is None else planned(offer.signed.part, folders)
    total = sum(entry.bytes for _, entry in missing.values()) + plan.bytes
    reused = sum(entry.sha256 in here for entry in offer.files.values())
    if not missing and not plan.runs and _is_there(target, old, offer):
        assert old is not None
        return Pulled(old, 0, 0, reused, offer.selection, False)
    check_place(target, overwrite=options.overwrite)
    _check_update(target, old, offer, options)
    with store_beside(target) as store:
        arrived = [digest for digest in missing if (store / digest).is_file()]
        names = [*missing, *(run.name for run in plan.runs)]
        sizes = {name: size(store / f"{name}.part") for name in names}
        check_disk(store, total - sum(size(store / name) for name in names) - sum(sizes.values()))
        done = fetched = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        advance(0)
        for digest, (path, entry) in missing.items():
            if digest in arrived:  # hashed again when the bundle is opened
                advance(entry.bytes)
                continue
            client.file(f"{offer.base}{urllib.parse.quote(path)}", digest, entry.bytes, store / digest, advance)
            fetched += entry.bytes
        fetched += fetch_runs(client, offer.base, plan, store, advance)
        with alone(target) if old is not None else _nothing(), built_beside(target, overwrite=options.overwrite) as folder:
            check_unchanged(target, standing)
            for path, entry in offer.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                link(here.get(entry.sha256, store / entry.sha256), folder / path)
            new = _opened(folder, offer, plan, store)
            gone = carry_over(target, old, folder, new.manifest, offer.profile)
            if offer.signed is not None:
                _sign_along(new, offer.signed)
                gone = replace(gone, files=tuple(name for name in gone.files if not (folder / name).exists()))
            elif not options.overwrite:
                _refuse(target, gone)
            if old is not None:
                figures = None
                if options.trial and content_of(new) != content_of(old):
                    figures = _examine(target, old, new, store, offer.published)
                keep(target, new, most=options.keep, trial=figures, published=offer.published)
        shutil.rmtree(store, ignore_errors=True)
    files = len(missing) - len(arrived) + len(plan.runs)
    lost_here = (*gone.files, *gone.measurements)
    return Pulled(Bundle(target), files, max(0, fetched - sum(sizes.values())), reused, offer.selection, True, lost_here)


def _check_update(target: Path, old: Bundle | None, offer: Offer, options: PullOptions) -> None:
    """Raises BundleError for what must not take the old one's place, VersionError for an older version."""
    if not options.older:
        signed = None if offer.signed is None else offer.signed.part.signed
        content = (offer.manifest if signed is None else signed.content).sha256[:12]
        if old is None or content_of(old) != content:  # damaged or gone: what was here is remembered all the same
            check_newer(target, None if signed is None else signed.version, content)
    if options.overwrite:
        return
    if old is None:
        _refuse(target, Lost(tuple(foreign(target, offer.manifest, damaged=True))))
        return
    if old.manifest.family != offer.manifest.family:
        raise BundleError(
            f"out = {str(target)!r}: holds a bundle of {old.manifest.family}, the service's is of {offer.manifest.family}; "
            "choose another place, or replace it with --overwrite"
        )
    came = None if offer.profile is None else offer.profile.device.name
    found = lost(old, same_networks(old.manifest, offer.manifest), came)
    if offer.signed is not None:  # the cascades that were signed come with it
        found = replace(found, files=tuple(name for name in found.files if name != CASCADES_FILE))
    _refuse(target, found)


def _opened(folder: Path, offer: Offer, plan: Plan, store: Path) -> Bundle:
    """The bundle in the folder, whole. Raises BundleError where something was damaged after it had arrived; what has arrived is
    of no use then."""
    if offer.signed is None:
        text = offer.text
    else:
        text = offer.signed.part.manifest_text(assemble(offer.signed.part, plan, store, folder))
        (folder / SIGNED_FILE).write_bytes(offer.signed.text)
        (folder / SIGNATURE_FILE).write_bytes(offer.signed.signature)
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    try:
        return Bundle(folder)
    except BundleError:
        shutil.rmtree(store, ignore_errors=True)
        raise


def _sign_along(bundle: Bundle, offered: SignedPart) -> None:
    """The signed cascades, in the place of any that were here; then everything once more, against what was signed."""
    (bundle.path / CASCADES_FILE).unlink(missing_ok=True)
    document = offered.part.cascades
    if document is not None:
        write_cascades(bundle, [Cascade.model_validate(one) for one in document["cascades"]])
    check_content(bundle, offered.part.signed)


def _reporter(client: Client, bundle: str, device: str | None, options: PullOptions) -> Reporter | None:
    """None without a token. Raises PullError without the device's name."""
    if options.token is None:
        return None
    if device is None:
        raise PullError("token: needs --device NAME, whose token it is", 2)
    return Reporter(client, bundle, device, options.token, options.trial)


def _withdrawn(target: Path, reason: str) -> Bundle | None:
    """The version before the one that is on trial, in its place; None where none is."""
    trial = trial_of(target)
    try:
        return None if trial is None else rollback(target, trial.previous, reason=reason)
    except VersionError:  # it is not kept any more: what the service has for this device takes the place
        return None


def _examine(target: Path, old: Bundle, new: Bundle, store: Path, published: str | None) -> Figures:
    """What is known as the trial begins. Raises WorseError; what has arrived of such a version is of no use."""
    try:
        return examine(target, old, new, published=published)
    except WorseError:
        shutil.rmtree(store, ignore_errors=True)
        raise


def _is_there(target: Path, old: Bundle | None, offer: Offer) -> bool:
    """Whether all of it is here already. Every file lies where the manifest says: one that was found by its hash may have
    another name."""
    if old is None or not _has_profile(old, offer.profile):
        return False
    try:
        here = Bundle(target)
        if offer.signed is None:
            return here.manifest.sha256 == offer.manifest.sha256
        files = [(target / name).read_bytes() for name in (SIGNED_FILE, SIGNATURE_FILE)]
        if files != [offer.signed.text, offer.signed.signature] or tuple(here.submodels) != offer.signed.part.submodels:
            return False
        check_content(here, offer.signed.part.signed)
    except (BundleError, OSError, ValueError):
        return False
    return True


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _files_here(folders: Sequence[Path], files: Mapping[str, FileEntry]) -> dict[str, Path]:
    """By hash: those of these files that are in the folders, whatever they are called there."""
    sizes = {entry.bytes for entry in files.values()}
    digests = {entry.sha256 for entry in files.values()}
    found: dict[str, Path] = {}
    seen: set[tuple[int, int]] = set()  # of files under several names, the one
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*"))):
        if path.is_file() and not path.is_symlink() and (status := path.stat()).st_size in sizes:
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            digest = sha256_of(path)
            if digest in digests:
                found.setdefault(digest, path)
    return found


def _has_profile(bundle: Bundle | None, profile: Profile | None) -> bool:
    if bundle is None or profile is None:
        return profile is None
    return (bundle.path / PROFILES_FOLDER / f"{profile.device.name}.json").is_file()


def _refuse(target: Path, found: Lost) -> None:
    """Raises BundleError naming the files that would go as a whole."""
    if found.files:
        words = replace(found, measurements=()).words
        raise BundleError(f"out = {str(target)!r}: would lose {words}; choose another place, or let it go with --overwrite")
