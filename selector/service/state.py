"""What the paths of one application share: the bundles that are served, and what is computed of them once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import limits
from flask import current_app

from device_profiles import Profile
from exporter.bundle import SIGNED_FILE, Bundle, BundleError
from selector.choose.budget import BudgetError
from selector.choose.cascades import CASCADES_FILE, read_cascades
from selector.choose.profiles import selector_for
from selector.choose.selector import Selector
from selector.service.fleet.database import StoreUnavailable
from selector.service.fleet.fleet import Cascades, Fleet
from selector.service.fleet.rates import RateLimit
from selector.service.fleet.rings import CANARY, RULES, RingRules, Rings, plain_name
from selector.service.fleet.store import Store
from selector.service.served import Opening, Served
from selector.service.web.problems import Problem, without_folder, wrong_field
from selector.ship.standing import in_use
from selector.ship.state import STATE_FILE, folder_of
from selector.ship.versions import content_of, signed_version

LOOK_AGAIN_S = 1.0
"""After so many seconds each profile is looked at again."""

T = TypeVar("T")

PUT_LIMIT = "600 per minute"
"""Profiles that one token may send."""


class State:
    """Raises BundleError when two bundles have the same name."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        store: Store | None = None,
        opening: Opening = Bundle,
        rules: RingRules = RULES,
    ) -> None:
        self.served = Served(bundles, self._forget, opening)
        self._files: dict[str, _Files] = {}
        self._versions: dict[str, tuple[tuple[str, int], tuple[str, int | None]]] = {}
        self._store = store
        self._generate_limit: RateLimit | None = None
        self._fleet = None if store is None else Fleet(store)
        self._rings = None if store is None else Rings(store.engine, rules)
        self._put_limit = None if store is None else RateLimit(store.engine, limits.parse(PUT_LIMIT))
        self._selectors: dict[tuple[str, str | None, Cascades], tuple[tuple[str, ...], Selector]] = {}
        self._cascades: dict[str, tuple[int, Cascades]] = {}
        self._used: dict[str, _Used] = {}

    def bundle(self, name: str | None) -> Bundle:
        """By name; without one the only one: the version by which most runs are answered, so that no path says anything of one
        that this device only tries. Raises Problem 404 for an unknown name, 422 where it is not clear which."""
        return self._in_use(self.standing(name))

    def standing(self, name: str | None) -> Bundle:
        """The same as it stands in its folder, on trial or not: whoever runs it tries it. Raises Problem likewise."""
        if name is not None and (found := self.served.get(name)) is not None:
            return found
        bundles = self.served.all()
        if name is None:
            if len(bundles) != 1:
                raise wrong_field("bundle", None, f"allowed are {', '.join(bundles)}", "which bundle?")
            return next(iter(bundles.values()))
        raise Problem(404, f"bundle {name!r} is not served; there are {', '.join(bundles)}")

    def canary(self, bundle: Bundle) -> Bundle | None:
        """The new version of a bundle that is not for all devices yet; None where there is none, or it is the same."""
        found = self.served.get(plain_name(bundle.name) + CANARY)
        return None if found is None or self.version(found)[0] == self.version(bundle)[0] else found

    def version(self, bundle: Bundle) -> tuple[str, int | None]:
        """What it holds (see `selector.ship.state`), and the number of its signature; read again when that is another."""
        try:
            changed_ns = os.stat(bundle.path / SIGNED_FILE).st_mtime_ns
        except OSError:
            changed_ns = 0
        stamp = (bundle.manifest.sha256, changed_ns)
        found = self._versions.get(bundle.name)
        if found is None or found[0] != stamp:
            found = self._versions[bundle.name] = (stamp, (content_of(bundle), signed_version(bundle.path)))
        return found[1]

    @property
    def bundles(self) -> dict[str, Bundle]:
        """By name, as they are now; each as `bundle` says."""
        return {name: self._in_use(one) for name, one in self.served.all().items()}

    def _in_use(self, standing: Bundle) -> Bundle:
        """Found out again when the bundle is another one, or what the device remembers of its versions."""
        known = self._used.get(standing.name)
        if known is not None and known.sha256 != standing.manifest.sha256:
            known = None
        file = str(folder_of(standing.path) / STATE_FILE) if known is None else known.file
        try:
            changed_ns = os.stat(file).st_mtime_ns
        except OSError:
            changed_ns = 0
        if known is None or known.changed_ns != changed_ns:
            known = self._used[standing.name] = _Used(standing.manifest.sha256, file, changed_ns, in_use(standing))
            self._forget(standing.name)
        return known.bundle

    def _forget(self, name: str) -> None:
        """What is known of a bundle: it is another one now."""
        self._files.pop(name, None)
        self._cascades.pop(name, None)
        self._selectors = {key: kept for key, kept in [*self._selectors.items()] if key[0] != name}

    @property
    def fleet(self) -> Fleet:
        """Raises Problem 503 when the service has no store."""
        return _there(self._fleet)

    @property
    def rings(self) -> Rings:
        """Raises Problem 503 when the service has no store."""
        return _there(self._rings)

    @property
    def has_store(self) -> bool:
        return self._fleet is not None

    def generate_limit(self, rate: str | None) -> RateLimit | None:
        """Of the texts that a token or an address may ask for; None where there is no limit, or no store to count in."""
        if rate is None or self._store is None:
            return None
        if self._generate_limit is None:
            self._generate_limit = RateLimit(self._store.engine, limits.parse(rate))
        return self._generate_limit

    @property
    def put_limit(self) -> RateLimit:
        """Of the profiles that a token may send. Raises Problem 503 when the service has no store."""
        return _there(self._put_limit)

    def profile(self, bundle: Bundle, device: str, *, sent: bool = True) -> Profile:
        """What `selector` goes by for the device; with `sent` False the one that lies in the bundle, by which it goes where no
        device is named. Raises Problem 404 where there is none, StoreUnavailable where the bundle could not answer instead."""
        if sent and self._fleet is not None:
            try:
                found = self._fleet.profile(bundle, device)
            except StoreUnavailable:
                if device not in bundle.devices():
                    raise
            else:
                if found is not None:
                    return found
        if device not in bundle.devices():
            raise Problem(404, f"device {device!r}: no profile; there are {', '.join(bundle.devices()) or 'none'}")
        try:
            return bundle.profile(device)
        except BundleError as error:
            raise Problem(404, without_folder(error, bundle)) from None

    def cascades(self, bundle: Bundle) -> Cascades:
        """Those of the bundle, read again when their file is another one. Raises Problem 500 where it is damaged."""
        try:
            changed_ns = os.stat(bundle.path / CASCADES_FILE).st_mtime_ns
        except OSError:
            return ()
        found = self._cascades.get(bundle.name)
        if found is None or found[0] != changed_ns:
            try:
                found = self._cascades[bundle.name] = (changed_ns, tuple(read_cascades(bundle)))
            except BudgetError as error:
                raise Problem(500, f"bundle {bundle.name!r}: {error}") from None
            self._selectors = {key: kept for key, kept in [*self._selectors.items()] if key[0] != bundle.name or not key[2]}
        return found[1]

    def selector(self, bundle: Bundle, device: str | None, cascades: Cascades = ()) -> Selector:
        """Of the newest profile that the device sent, else of the one in the bundle, else of the devices of that model; with
        these cascades among the candidates.

        Without a device where none was measured in the bundle, the only one that sent a profile counts. Built once per bundle
        and device, and again when profiles come or go or are measured anew. Those that were sent to another replica are seen
        after `fleet.FRESH_S`. Raises Problem 404.
        """
        if device is None and self._fleet is not None and not bundle.devices():
            device = _only(self._fleet, bundle)
        if device is not None and self._fleet is not None:
            found = self._sent(self._fleet, bundle, device, cascades)
            if found is not None:
                return found
        return self._measured(bundle, device, cascades)

    def _sent(self, fleet: Fleet, bundle: Bundle, device: str, cascades: Cascades) -> Selector | None:
        """Raises StoreUnavailable where the bundle could not answer instead."""
        try:
            found = fleet.selector(bundle, device, cascades)
            if found is not None or device in bundle.devices():
                return found
            return fleet.model_selector(bundle, device, cascades)
        except StoreUnavailable:
            if device in bundle.devices():
                return None
            raise

    def _measured(self, bundle: Bundle, device: str | None, cascades: Cascades) -> Selector:
        """Of a profile that lies in the bundle."""
        files = self._files_of(bundle)
        found = self._selectors.get((bundle.name, device, cascades))
        if found is not None and found[0] is files.version:
            return found[1]
        try:
            if device is not None and device not in bundle.devices():
                there = ", ".join(bundle.devices()) or "none"
                sent = f", and those of /v1/bundles/{bundle.name}/profiles and /models" if self._fleet is not None else ""
                raise BundleError(f"device {device!r}: no profile; there are {there}{sent}")
            selector = selector_for(bundle, device, cascades=cascades)
        except (BundleError, BudgetError) as error:
            raise Problem(404, without_folder(error, bundle)) from None
        self._selectors[(bundle.name, device, cascades)] = (files.version, selector)
        return selector

    def _files_of(self, bundle: Bundle) -> _Files:
        """The folder is looked at each time, which shows a file that came, went or was replaced; each of its files once in a
        while, which shows one that was written over."""
        files, now = self._files.get(bundle.name), time.monotonic()
        folder = files.folder if files is not None else str(bundle.path / "profiles")
        try:
            changed_ns = os.stat(folder).st_mtime_ns
        except OSError:
            changed_ns = 0
        if files is None or files.changed_ns != changed_ns or now > files.until:
            version = tuple(_named_and_timed(folder))
            if files is not None and files.version == version:
                version = files.version  # the same object: compared by identity above
            files = self._files[bundle.name] = _Files(folder, changed_ns, now + LOOK_AGAIN_S, version)
        return files


class _Used(NamedTuple):
    """The version of a bundle that is used, and of what that was found out: the manifest where it stands, the file and its time
    in which a device remembers versions."""

    sha256: str
    file: str
    changed_ns: int
    bundle: Bundle


class _Files(NamedTuple):
    """Of a bundle's profiles: the folder and its time of change, until when this holds, and name and time of each file."""

    folder: str
    changed_ns: int
    until: float
    version: tuple[str, ...]


def _named_and_timed(folder: str) -> Iterator[str]:
    for path in sorted(Path(folder).glob("*.json")):
        with suppress(FileNotFoundError):  # gone in the meantime
            yield f"{path.name}:{path.stat().st_mtime_ns}"


def _only(fleet: Fleet, bundle: Bundle) -> str | None:
    """The device that sent a profile, None where there is none or the store does not answer. Raises Problem 404 where there are
    several."""
    try:
        sent = [one.device for one in fleet.store.devices(plain_name(bundle.name), bundle.fingerprint, limit=4)]
    except StoreUnavailable:
        return None
    if len(sent) > 1:
        more = ", …" if len(sent) == 4 else ""
        raise Problem(404, f"device: which one? There are {', '.join(sent[:3])}{more} of /v1/bundles/{bundle.name}/profiles")
    return sent[0] if sent else None


def _there(found: T | None) -> T:
    if found is None:
        raise Problem(503, "this service was started without a store and keeps no profiles of devices")
    return found


def state() -> State:
    """Of the application that answers the present request."""
    found: State = current_app.extensions["sortednet"]
    return found
