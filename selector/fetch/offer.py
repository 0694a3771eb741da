"""What a service has for this device: of a signed bundle the part that the device puts together itself and can check to the
byte, of another the part that the service cuts for it."""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from device_profiles import Profile
from device_profiles.seal import SealError, check_seal
from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, PROFILES_FOLDER, SIGNATURE_FILE, SIGNED_FILE
from exporter.bundle.manifest import FileEntry, Manifest, checked
from exporter.bundle.refit import refit
from exporter.bundle.written import WRITTEN_FILE
from selector.choose.budget import Budget
from selector.fetch.transfer import Client, GoneError, PullError
from selector.ship.parts import Part, part_of
from selector.ship.signed import SignatureError, Trust, verified

_NOT_EXPORTED = (MANIFEST_FILE, PROFILES_FOLDER, CASCADES_FILE, WRITTEN_FILE, SIGNED_FILE, SIGNATURE_FILE)


@dataclass(frozen=True)
class Wanted:
    """What the device asks for: these sub-models, or the best one for the budget, or else all; the profile of `device`.
    `itself`: that is this device, which may have none on the service."""

    bundle: str
    submodels: Sequence[str] | None = None
    budget: Budget | None = None
    device: str | None = None
    itself: bool = False


@dataclass(frozen=True)
class SignedPart:
    """A part whose signature holds, and the two files that say so."""

    part: Part
    text: bytes
    signature: bytes


@dataclass(frozen=True)
class Offer:
    """What the service has for this device, and where. Of a signed part the hashes of the weights in `manifest`
    are those of the whole files."""

    manifest: Manifest
    text: str  # of manifest.json; of a signed part it follows from what arrives
    base: str  # path of the files on the service
    profile: Profile | None
    selection: Mapping[str, Any] | None
    signed: SignedPart | None = None
    published: str | None = None  # what the service calls the version

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """Those that come as they are."""
        return self.manifest.files if self.signed is None else self.signed.part.files


class NothingFitsError(PullError):
    """No sub-model fits the budget; nothing was fetched."""


def ask(client: Client, wanted: Wanted) -> Offer:
    """Raises PullError, NothingFitsError."""
    base = f"/v1/bundles/{urllib.parse.quote(wanted.bundle, safe='')}"
    if wanted.submodels is None and wanted.budget is None:
        document = client.document(f"{base}/files/{MANIFEST_FILE}")
        profile = _wanted_profile(client, base, wanted) if wanted.device else None
        return _offer(document, f"{base}/files/", profile, None)
    query: dict[str, Any] = {"device": wanted.device} if wanted.device else {}
    if wanted.submodels is not None:
        query["submodels"] = list(wanted.submodels)
    else:
        query["budget"] = _budget(wanted)
    try:
        answer = client.document(f"{base}/subsets", query)
    except GoneError:
        if not wanted.itself or wanted.submodels is None:
            raise
        return ask(client, replace(wanted, device=None, itself=False))
    try:
        offer = _offer(answer["manifest"], answer["files"], answer["profile"], answer["selection"])
    except (KeyError, TypeError):
        raise PullError(f"{client.shown}{base}/subsets: an answer that this version does not understand") from None
    _check_fits(offer.selection)
    return offer


def ask_signed(client: Client, wanted: Wanted, trust: Trust, target: Path) -> Offer:
    """Of a bundle that is signed by whom is trusted; what the target has of the same content is not asked for again. Raises
    SignatureError, BundleError for an unknown sub-model, PullError, NothingFitsError."""
    base = f"/v1/bundles/{urllib.parse.quote(wanted.bundle, safe='')}"
    try:
        text, signature = (_again(client, f"{base}/files/{name}", target / name) for name in (SIGNED_FILE, SIGNATURE_FILE))
    except GoneError as error:
        if "has no file" not in str(error):  # in the service's words; else there is no such bundle
            raise
        raise SignatureError(f"{wanted.bundle} is not signed on the service ({error})") from None
    signed = verified(text, signature, trust)
    selection: Mapping[str, Any] | None = None
    submodels = wanted.submodels
    if submodels is None and wanted.budget is not None:
        query = {"bundle": wanted.bundle, "budget": _budget(wanted), **({"device": wanted.device} if wanted.device else {})}
        answer = client.document("/v1/select", query)
        if not isinstance(answer, dict) or not isinstance(answer.get("submodel"), str):
            raise PullError(f"{client.shown}/v1/select: an answer that this version does not understand")
        _check_fits(answer)
        selection, submodels = answer, [answer["submodel"]]  # that it is one is checked against what was signed
    part = part_of(signed, submodels)
    manifest = part.manifest()
    device = wanted.device or (selection or {}).get("device")
    profile = None
    if device:
        measured = _wanted_profile(client, base, replace(wanted, device=str(device)))
        profile = None if measured is None else refit(_checked_profile(measured), signed.content, manifest)
    return Offer(manifest, "", f"{base}/files/", profile, selection, SignedPart(part, text, signature))


def _again(client: Client, path: str, known: Path) -> bytes:
    held = known.read_bytes() if known.is_file() else None
    found = client.content(path, None if held is None else hashlib.sha256(held).hexdigest())
    if found is None:
        assert held is not None
        return held
    return found


def _budget(wanted: Wanted) -> dict[str, Any]:
    return (wanted.budget or Budget()).model_dump(mode="json", exclude_defaults=True)


def _check_fits(selection: Mapping[str, Any] | None) -> None:
    if selection is not None and not selection.get("feasible"):
        nearest, reason = selection.get("submodel"), selection.get("reason")
        raise NothingFitsError(f"{reason}; the nearest is {nearest}, which --submodels {nearest} would fetch", 3)


def _wanted_profile(client: Client, base: str, wanted: Wanted) -> Any:
    assert wanted.device is not None
    try:
        return _profile(client, base, wanted.device)
    except GoneError:
        if not wanted.itself:
            raise
        return None


def _profile(client: Client, base: str, device: str) -> Any:
    """The newest that the service keeps of the device, or else the one that came with the bundle."""
    name = urllib.parse.quote(device, safe="")
    try:
        return replace(client, tries=1).document(f"{base}/profiles/{name}")
    except PullError:  # a service without a store has none
        return client.document(f"{base}/files/{PROFILES_FOLDER}/{name}.json")


def _offer(document: Any, files: str, profile: Any, selection: Mapping[str, Any] | None) -> Offer:
    """Checks the manifest as `Bundle` will. Raises PullError."""
    try:
        manifest = checked(document)
    except ValueError as error:
        raise PullError(f"the service's {MANIFEST_FILE}: {error}") from None
    measured = None if profile is None else _checked_profile(profile)
    if measured is not None and measured.bundle != manifest.fingerprint:
        raise PullError(f"the service's profile of {measured.device.name} was measured on another bundle", 2)
    reserved = [name for name in manifest.files if name.split("/")[0] in _NOT_EXPORTED]
    if reserved:
        raise PullError(f"{MANIFEST_FILE}: lists {reserved[0]!r}, which is no file of an export")
    return Offer(manifest, json.dumps(document, indent=1) + "\n", files, measured, selection)


def _checked_profile(document: Any) -> Profile:
    """Raises PullError."""
    try:
        measured = Profile.model_validate(document)
        check_seal(document)
    except SealError as error:
        raise PullError(f"the service's profile: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PullError(f"the service's profile: {place}: {first['msg']}") from None
    return measured
