"""`Store`: the profiles that the fleet's devices sent, the latest versions of each, and the tokens that may write them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from random import random
from types import TracebackType
from typing import Any, NamedTuple, Self

import sqlalchemy as sa

from device_profiles import Profile
from device_profiles.models import model_of
from selector.service.fleet.database import StoreUnavailable, default_url, open_engine, reading, writing
from selector.service.fleet.tables import profiles
from selector.service.fleet.tokens import Tokens

TRIES = 50
"""Of giving a profile the next version, when others take it first. More than a few happens only to one device's name."""


KEPT = 20
"""Versions of a device's profile, the latest ones: one of 160 sub-models has 74 kB."""


class Stored(NamedTuple):
    """A version of a device's profile, without its document."""

    bundle: str
    device: str
    model: str
    version: int
    sha256: str  # of the document
    received_at: datetime


class DeviceModel(NamedTuple):
    """The devices of one model: how many, and what changes when one of them sends a new profile."""

    model: str
    devices: int
    newest: int


class VersionConflict(Exception):
    """Whoever puts a profile does not want what is there to be replaced."""


class Store:
    """In SQLite or PostgreSQL, see `open_engine`. Several processes, also on several machines, may use one at once.

    All methods raise StoreUnavailable when the database does not answer.
    """

    def __init__(self, url: str | None = None, *, keep: int = KEPT) -> None:
        """`keep`: so many versions of a device's profile, 1 or more. Raises StoreError when it cannot be opened. The tables are
        made, or upgraded, where needed."""
        self.keep = keep
        self.engine = open_engine(url or default_url())
        self.tokens = Tokens(self.engine)

    def close(self) -> None:
        """Closes its connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def put(
        self,
        bundle: str,
        profile: Profile,
        *,
        token: str | None = None,
        may_replace: Callable[[str | None], bool] = lambda newest: True,
    ) -> tuple[Stored, bool]:
        """Keeps a profile as the device's next version, and tells whether it did: one equal to the newest is not kept again.

        `may_replace` is given the hash of the newest version of these networks (None: there is none) and says whether another
        may follow it; an equal profile is welcome nevertheless, so that a request may be repeated. Raises VersionConflict
        where it may not.
        """
        document = canonical(profile)
        row: dict[str, Any] = {
            "bundle": bundle,
            "fingerprint": profile.bundle,
            "device": profile.device.name,
            "model": model_of(profile.device),
            "sha256": sha256_of(document),
            "document": document,
            "token_id": token,
        }
        for attempt in range(TRIES):
            try:
                return self._put_once(row, may_replace)
            except sa.exc.IntegrityError as error:
                if "version" not in str(error.orig):
                    raise
                if attempt == TRIES - 1:
                    raise StoreUnavailable(f"device {row['device']!r}: too many new versions at once") from error
                time.sleep(random() * 0.002 * attempt)
        raise AssertionError

    def _put_once(self, row: dict[str, Any], may_replace: Callable[[str | None], bool]) -> tuple[Stored, bool]:
        """Raises IntegrityError when another one took the version meanwhile (PostgreSQL; SQLite has one writer)."""
        with writing(self.engine) as connection:
            here = (profiles.c.bundle == row["bundle"], profiles.c.device == row["device"])
            versions = sa.select(*_STORED, profiles.c.fingerprint).where(*here).order_by(profiles.c.version.desc())
            newest = connection.execute(versions.limit(1)).one_or_none()
            if newest is not None and newest.sha256 == row["sha256"]:
                return _stored(newest), False
            current = newest.sha256 if newest is not None and newest.fingerprint == row["fingerprint"] else None
            if not may_replace(current):
                raise VersionConflict
            new = {**row, "version": newest.version + 1 if newest else 1, "received_at": datetime.now(UTC)}
            connection.execute(profiles.insert().values(new))
            connection.execute(profiles.delete().where(*here, profiles.c.version <= new["version"] - self.keep))
        return Stored(**{name: new[name] for name in Stored._fields}), True

    def newest(self, bundle: str, fingerprint: str, device: str, version: int | None = None) -> Stored | None:
        """The device's newest version that was measured on these networks; or that `version`, whatever it was measured on."""
        row = self._row(_STORED, bundle, fingerprint, device, version)
        return None if row is None else _stored(row)

    def profile(self, bundle: str, fingerprint: str, device: str, version: int | None = None) -> tuple[Stored, str] | None:
        """As `newest`, with the document: canonical JSON."""
        row = self._row([*_STORED, profiles.c.document], bundle, fingerprint, device, version)
        return None if row is None else (_stored(row), str(row.document))

    def _row(self, columns: Sequence[sa.Column[Any]], bundle: str, fingerprint: str, device: str, version: int | None) -> Any:
        one = profiles.c.fingerprint == fingerprint if version is None else profiles.c.version == version
        rows = sa.select(*columns).where(profiles.c.bundle == bundle, profiles.c.device == device, one)
        with reading(self.engine) as connection:
            return connection.execute(rows.order_by(profiles.c.version.desc()).limit(1)).one_or_none()

    def devices(self, bundle: str, fingerprint: str, *, after: str = "", limit: int = 100) -> list[Stored]:
        """The newest version of each device, by its name, from the one behind `after` on."""
        rows = sa.select(*_STORED).where(*_newest(bundle, fingerprint), profiles.c.device > after)
        with reading(self.engine) as connection:
            return [_stored(row) for row in connection.execute(rows.order_by(profiles.c.device).limit(limit))]

    def models(
        self, bundle: str, fingerprint: str, model: str | None = None, *, after: str = "", limit: int = 100
    ) -> list[DeviceModel]:
        """The device models by name, from the one behind `after` on; or only `model`."""
        rows = (
            sa.select(profiles.c.model, sa.func.count(), sa.func.max(profiles.c.id))
            .where(*_newest(bundle, fingerprint))
            .where(profiles.c.model > after if model is None else profiles.c.model == model)
            .group_by(profiles.c.model)
            .order_by(profiles.c.model)
            .limit(limit)
        )
        with reading(self.engine) as connection:
            return [DeviceModel(*row) for row in connection.execute(rows)]

    def documents_of_model(self, bundle: str, fingerprint: str, model: str, limit: int) -> list[str]:
        """The newest document of each device of the model; of more than `limit` devices those that sent theirs last."""
        rows = sa.select(profiles.c.document).where(*_newest(bundle, fingerprint), profiles.c.model == model)
        with reading(self.engine) as connection:
            return list(connection.execute(rows.order_by(profiles.c.id.desc()).limit(limit)).scalars())


def canonical(profile: Profile) -> str:
    """The profile as JSON with sorted keys and without spaces: equal profiles have equal texts."""
    return json.dumps(profile.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def sha256_of(document: str) -> str:
    """The hash that a version is known by."""
    return sha256(document.encode()).hexdigest()


_STORED = [profiles.c[name] for name in Stored._fields]


def _stored(row: Any) -> Stored:
    return Stored(**{name: getattr(row, name) for name in Stored._fields})


def _newest(bundle: str, fingerprint: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Conditions for the rows of each device's newest version. Both sides of the last one read an index, so that asking for an
    unknown model costs as little as asking for one."""
    later = profiles.alias("later")
    same = (later.c.bundle == profiles.c.bundle, later.c.fingerprint == profiles.c.fingerprint)
    newer = sa.exists().where(*same, later.c.device == profiles.c.device, later.c.version > profiles.c.version)
    return profiles.c.bundle == bundle, profiles.c.fingerprint == fingerprint, ~newer
