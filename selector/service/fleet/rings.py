"""A new version of a bundle, first for a few devices of each model, then for all of that model, by what these tell of it.

Nothing is written down but what devices told: which ring a model is in follows from it, whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from statistics import median
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from selector.service.fleet.database import reading, writing
from selector.service.fleet.tables import trials
from selector.ship.state import Figures, Report

CANARY = "@canary"
"""At the end of the name of a new version."""

JUDGED = 200
"""Devices of a model whose figures are compared: those that told last."""

Ring = Literal["canary", "all", "stopped"]


class RuleError(ValueError):
    """No rule, or a value that is none."""

    exit_code = 2


@dataclass(frozen=True)
class RingRules:
    """When a new version goes on from the first devices of a model to all of them, and when no further one gets it.

    A device takes it back by itself where it is a lot worse (`selector.ship.trial.Limits`). What many say together may be
    judged more closely: medians over the devices that tried it.
    """

    devices: int = 5  # of a model that try it first
    accepted: int = 3  # of them that must keep it before all get it
    taken_back: int = 2  # devices of a model that take it back: no further one gets it,
    share: float = 0.1  # if they are more than this share of those that know
    slower: float = 1.1  # times the latency before
    missed: float = 0.05  # more of the runs after their deadline
    points: float = 0.02  # of quality less on the labelled examples
    days: float = 7.0  # after which the place of one of the first devices, of which nothing is heard, is another's


RULES = RingRules()
"""Unless told otherwise."""


class ModelRing(NamedTuple):
    """The devices of a model, and the medians of what they told. `why`: in words."""

    model: str
    ring: Ring
    why: str
    trying: int
    accepted: int
    taken_back: int
    slower: float | None  # latency over that before
    missed: float | None  # share of the runs after their deadline, less that before
    points: float | None  # quality before, less that now


class DeviceTrial(NamedTuple):
    """What a device told of a version last."""

    device: str
    model: str
    state: str
    reason: str | None
    figures: Figures
    told_at: datetime


def plain_name(name: str) -> str:
    """Of all versions of a bundle: under it the store keeps what devices send, and tokens are for it."""
    return name.removesuffix(CANARY)


def parse_rules(items: Iterable[str]) -> RingRules:
    """NAME=VALUE each, such as devices=5. Raises RuleError naming the item."""
    known: dict[str, Any] = {field.name: int if field.type == "int" else float for field in fields(RingRules)}
    given: dict[str, Any] = {}
    for item in items:
        name, _, value = item.partition("=")
        try:
            number = known[name](value)
            if not 0 <= number < 1e9 or (known[name] is int and number < 1) or name in given:
                raise ValueError
        except (KeyError, ValueError):
            allowed = ", ".join(f"{one}={getattr(RingRules, one)}" for one in known)
            raise RuleError(f"canary_rule = {item!r}: allowed are, each once, {allowed}, or other numbers") from None
        given[name] = number
    rules = RingRules(**given)
    if rules.accepted > rules.devices:
        raise RuleError(f"canary_rule: accepted={rules.accepted}: allowed are up to devices={rules.devices}")
    return rules


class Rings:
    """Of the new versions of any bundle. All methods raise StoreUnavailable when the database does not answer."""

    def __init__(self, engine: sa.Engine, rules: RingRules = RULES) -> None:
        self.engine, self.rules = engine, rules

    def tell(self, bundle: str, device: str, report: Report, *, token: str | None = None) -> None:
        """Keeps what a device says of the version that it tries, or tried last."""
        if report.version is None or report.state is None:
            return
        with writing(self.engine) as connection:
            _one_by_one(connection, bundle, report.version)
            _put(connection, bundle, report.version, device, report, token)

    def place(
        self, bundle: str, version: str, device: str, model: str, *, tries: bool = True, token: str | None = None
    ) -> tuple[bool, str]:
        """Whether the new version is for this device, and why. It has a place among the first of its model from then on, if it
        tries one."""
        with writing(self.engine) as connection:
            _one_by_one(connection, bundle, version)
            told = connection.execute(_of(bundle, version, trials.c.device == device)).one_or_none()
            ring = self._judged(connection, bundle, version, model)
            if told is not None and told.state != "trying":
                return told.state == "accepted", f"{device} has {told.state} it"
            if ring.ring != "canary":
                return ring.ring == "all", ring.why
            if told is None and not tries:
                return False, f"{ring.why}; {device} does not try it"
            if told is None and ring.trying + ring.accepted + ring.taken_back >= self.rules.devices:
                return False, ring.why
            if told is None:
                _put(connection, bundle, version, device, Report(model=model, version=version, state="trying"), token)
        return True, ring.why

    def models(self, bundle: str, version: str) -> list[ModelRing]:
        """By name, those of which a device tried the version."""
        rows = sa.select(trials.c.model).distinct().where(trials.c.bundle == bundle, trials.c.version == version)
        with reading(self.engine) as connection:
            names = list(connection.execute(rows.order_by(trials.c.model)).scalars())
            return [self._judged(connection, bundle, version, name) for name in names]

    def devices(self, bundle: str, version: str, limit: int = 100) -> list[DeviceTrial]:
        """Those that tried the version and told last, the latest first."""
        with reading(self.engine) as connection:
            rows = connection.execute(_of(bundle, version).order_by(trials.c.told_at.desc(), trials.c.device).limit(limit))
            return [_told(row) for row in rows]

    def _judged(self, connection: sa.Connection, bundle: str, version: str, model: str) -> ModelRing:
        here = (trials.c.bundle == bundle, trials.c.version == version, trials.c.model == model)
        lost = (trials.c.state == "trying") & (trials.c.told_at < datetime.now(UTC) - timedelta(days=self.rules.days))
        counts = sa.select(trials.c.state, sa.func.count()).where(*here, ~lost).group_by(trials.c.state)
        by_state = {state: int(count) for state, count in connection.execute(counts)}
        newest = _of(bundle, version, trials.c.model == model, trials.c.state != "trying").order_by(trials.c.told_at.desc())
        told = [_told(row).figures for row in connection.execute(newest.limit(JUDGED))]
        trying, accepted, taken_back = (by_state.get(state, 0) for state in ("trying", "accepted", "taken back"))
        return judged(self.rules, model, trying, accepted, taken_back, told)


def judged(rules: RingRules, model: str, trying: int, accepted: int, taken_back: int, told: Sequence[Figures]) -> ModelRing:
    """The ring of a model, by how many devices are where and by the figures of those that know."""
    slower = _median(one.p50_ms / one.p50_ms_before for one in told if one.p50_ms and one.p50_ms_before)
    missed = _median(one.missed - one.missed_before for one in told if one.missed is not None and one.missed_before is not None)
    points = _median(
        one.quality_before - one.quality for one in told if one.quality is not None and one.quality_before is not None
    )
    ring: Ring = "canary"
    why = f"{accepted} of the first {rules.devices} devices have accepted it; {rules.accepted} must"
    if taken_back >= rules.taken_back and taken_back > rules.share * (accepted + taken_back):
        ring, why = "stopped", f"{taken_back} of {accepted + taken_back} devices took it back"
    elif accepted >= rules.accepted:
        ring, why = "all", f"{accepted} devices have accepted it"
        if slower is not None and slower > rules.slower:
            ring, why = "stopped", f"it takes {slower:.2f} times as long as before; allowed are {rules.slower:g} times"
        elif missed is not None and missed > rules.missed:
            ring, why = "stopped", f"{missed:.1%} more of the runs miss their deadline; allowed are {rules.missed:.1%}"
        elif points is not None and points > rules.points:
            ring, why = "stopped", f"its quality is {points:.3f} less than before; allowed are {rules.points:g}"
    return ModelRing(model, ring, why, trying, accepted, taken_back, slower, missed, points)


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _of(bundle: str, version: str, *more: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(trials).where(trials.c.bundle == bundle, trials.c.version == version, *more)


def _one_by_one(connection: sa.Connection, bundle: str, version: str) -> None:
    """Whoever else writes of the version waits until this transaction is over: two would give away the same place. SQLite has
    one writer anyway."""
    if connection.dialect.name == "postgresql":
        key = int.from_bytes(sha256(f"{bundle} {version}".encode()).digest()[:8], "big", signed=True)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def _put(connection: sa.Connection, bundle: str, version: str, device: str, report: Report, token: str | None) -> None:
    key = (trials.c.bundle == bundle, trials.c.version == version, trials.c.device == device)
    values: dict[str, Any] = {"model": report.model, "state": report.state, "reason": report.reason, "token_id": token}
    values |= {"figures": report.figures.model_dump_json(exclude_none=True), "told_at": datetime.now(UTC)}
    changed = connection.execute(trials.update().where(*key).values(values))
    if not changed.rowcount:
        connection.execute(trials.insert().values(bundle=bundle, version=version, device=device, **values))


def _told(row: Any) -> DeviceTrial:
    figures = Figures.model_validate_json(row.figures)
    return DeviceTrial(row.device, row.model, row.state, row.reason, figures, row.told_at)
