"""`Fleet`: selectors of the store's profiles, kept in memory so that a budget query hardly ever waits for the database."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

from device_profiles import Profile
from exporter.bundle import Bundle
from selector.choose.budget import BudgetError
from selector.choose.candidates import Candidates
from selector.choose.cascades import Cascade
from selector.choose.selector import Selector
from selector.service.fleet.database import StoreUnavailable
from selector.service.fleet.device_models import aggregate, comparable
from selector.service.fleet.rings import plain_name
from selector.service.fleet.store import DeviceModel, Store, Stored

FRESH_S = 2.0
"""So old an answer from the store may be. A profile that one replica took is chosen by on all of them after this time."""

MODEL_FRESH_S = 30.0
"""The same for the profile of a device model, which is computed from many."""

ASK_AGAIN_S = 2.0
"""After a store that did not answer; where the network swallows what is sent, each who asks would wait for seconds."""

MODEL_DEVICES = 200
"""A device model's figures are the medians of so many devices at most: those that sent their profiles last."""

REMEMBERED = 512
"""Selectors in memory; some 0.1 MB each for a bundle of 160 sub-models."""

Value = TypeVar("Value")
Cascades = tuple[Cascade, ...]


class Aggregated(NamedTuple):
    """The profile of a device model, and of how many devices it is the median."""

    model: DeviceModel
    used: int
    profile: Profile


class Fleet:
    """What the devices of one store measured, of any bundle. For several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._selectors: _Fresh[Selector | None] = _Fresh(FRESH_S)
        self._models: _Fresh[Aggregated | None] = _Fresh(MODEL_FRESH_S)

    def selector(self, bundle: Bundle, device: str, cascades: Cascades = ()) -> Selector | None:
        """Of the device's newest profile, None when it sent none. Raises StoreUnavailable when that was never known."""
        key = _key(bundle, device)

        def made() -> Selector | None:
            found = self.store.profile(*key)
            return None if found is None else _selector(Profile.model_validate_json(found[1]), bundle, cascades)

        return self._selectors.get((*key, *_of(bundle, cascades)), lambda: _version(self.store.newest(*key)), made)

    def profile(self, bundle: Bundle, device: str) -> Profile | None:
        """What `selector` or `model_selector` is made of: the newest that the device sent, else, where none of that name lies
        in the bundle, the one of the devices of that model. Raises StoreUnavailable."""
        found = self.store.profile(*_key(bundle, device))
        if found is not None:
            return Profile.model_validate_json(found[1])
        model = None if device in bundle.devices() else self.model(bundle, device)
        return None if model is None else model.profile

    def model_selector(self, bundle: Bundle, model: str, cascades: Cascades = ()) -> Selector | None:
        """Of the devices of that model, None when there are none. Raises as `selector` does."""
        found = self.model(bundle, model)
        key = (*_key(bundle, f"model {model}"), *_of(bundle, cascades))  # no device has a space in its name
        version = "" if found is None else f"{found.model.newest} {found.model.devices}"
        return self._selectors.get(key, lambda: version, lambda: found and _selector(found.profile, bundle, cascades))

    def model(self, bundle: Bundle, model: str) -> Aggregated | None:
        """The median of the devices of that model, at most MODEL_FRESH_S old. None when there are none."""
        key = _key(bundle, model)

        def version() -> str:
            return "".join(f"{one.newest} {one.devices}" for one in self.store.models(*key))

        return self._models.get(key, version, lambda: self._aggregated(*key))

    def forget(self, bundle: Bundle, device: str) -> None:
        """What is known of a device: it has just sent a profile to this process."""
        self._selectors.forget(_key(bundle, device))

    def _aggregated(self, bundle: str, fingerprint: str, model: str) -> Aggregated | None:
        documents = self.store.documents_of_model(bundle, fingerprint, model, MODEL_DEVICES)
        models = self.store.models(bundle, fingerprint, model)
        if not documents or not models:
            return None
        found = comparable([Profile.model_validate_json(document) for document in documents])
        return Aggregated(models[0], len(found), aggregate(model, found))


def _key(bundle: Bundle, device: str) -> tuple[str, str, str]:
    """Of a device or device model in the store."""
    return plain_name(bundle.name), bundle.fingerprint, device


def _of(bundle: Bundle, cascades: Cascades) -> tuple[object, ...]:
    """What a selector is of, besides a profile: another version may have the same networks, by which profiles are kept, and
    other qualities."""
    return bundle.manifest.sha256, cascades


def _selector(profile: Profile, bundle: Bundle, cascades: Sequence[Cascade]) -> Selector | None:
    try:
        return Selector(Candidates.of(bundle, [profile], cascades))
    except BudgetError:  # no accuracy is known of any of its sub-models
        return None


def _version(stored: Stored | None) -> str:
    return "" if stored is None else stored.sha256


Key = tuple[object, ...]
"""The bundle's name and fingerprint, a device or device model; of selectors the manifest's hash and the cascades too."""


class _Entry(NamedTuple, Generic[Value]):
    until: float  # on the monotonic clock
    version: str
    value: Value


class _Fresh(Generic[Value]):
    """Remembers values by key, those that were last asked for. After a while the next one who asks compares versions, and makes
    the value again when they differ; the others meanwhile go on with the one before, and so do all while the database does not
    answer, which is asked by one of them now and then. That there is nothing is remembered too."""

    def __init__(self, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self._entries: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        self._ask_again_at = 0.0  # on the monotonic clock
        self._lock = Lock()

    def get(self, key: Key, version: Callable[[], str], make: Callable[[], Value]) -> Value:
        now = time.monotonic()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                if now < entry.until:
                    return entry.value
                self._entries[key] = entry._replace(until=now + self._fresh_s)  # the others go on with it
        try:
            if now < self._ask_again_at:
                raise StoreUnavailable("it did not answer just now")
            newest = version()
            if entry is not None and entry.version == newest:
                return entry.value
            value = make() if newest else None
        except StoreUnavailable:
            if now >= self._ask_again_at:
                self._ask_again_at = time.monotonic() + ASK_AGAIN_S
            if entry is None:
                raise
            return entry.value
        with self._lock:
            self._entries[key] = _Entry(now + self._fresh_s, newest, value)  # type: ignore[arg-type]
            self._entries.move_to_end(key)
            while len(self._entries) > REMEMBERED:
                self._entries.popitem(last=False)
        return value  # type: ignore[return-value]

    def forget(self, key: Key) -> None:
        """All keys that begin so."""
        with self._lock:
            for other in [other for other in self._entries if other[: len(key)] == key]:
                del self._entries[other]
