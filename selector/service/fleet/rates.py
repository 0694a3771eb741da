"""Rate limits that all processes and replicas of one store count together: a storage for `limits` in its database."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from limits import RateLimitItem
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy.dialects import postgresql, sqlite

from selector.service.fleet.database import StoreUnavailable, reading, writing
from selector.service.fleet.tables import hits

CLEAN_S = 3600.0
"""After so many seconds each process removes the windows that ended as long ago."""


class RateLimit:
    """So many requests per window of time, by key; a window begins with its first request."""

    def __init__(self, engine: sa.Engine, limit: RateLimitItem) -> None:
        self.limit = limit
        self._limiter = FixedWindowRateLimiter(_Storage(engine))

    def wait_s(self, key: str) -> float | None:
        """Counts a request. None when it may go on, else the seconds until it may. Raises StoreUnavailable."""
        if self._limiter.hit(self.limit, key):
            return None
        return max(0.0, self._limiter.get_window_stats(self.limit, key).reset_time - time.time())


class _Storage(Storage):
    """One row per key. A request is one statement, so that none is lost where many come at once."""

    STORAGE_SCHEME = None

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__()
        self._engine = engine
        self._clean_at = 0.0
        self._insert: Any = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    @property
    def base_exceptions(self) -> type[Exception]:
        return StoreUnavailable

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = time.time()
        # One that lies farther off than two windows was written by a clock that was fast, and would lock the key until then.
        # Not than one: a request that waited for its turn has an earlier `now` than the one that began the window.
        over = (hits.c.expires_at <= now) | (hits.c.expires_at > now + 2 * expiry)
        statement = self._insert(hits).values(key=key, count=amount, expires_at=now + expiry)
        statement = statement.on_conflict_do_update(
            index_elements=[hits.c.key],
            set_={
                "count": sa.case((over, amount), else_=hits.c.count + amount),
                "expires_at": sa.case((over, now + expiry), else_=hits.c.expires_at),
            },
        )
        with writing(self._engine) as connection:
            count = int(connection.execute(statement.returning(hits.c.count)).scalar_one())
        if time.monotonic() >= self._clean_at:  # else each address that ever came keeps a row
            self._clean_at = time.monotonic() + CLEAN_S
            with suppress(StoreUnavailable), writing(self._engine) as connection:  # two at once may be in each other's way
                connection.execute(hits.delete().where(hits.c.expires_at < now - CLEAN_S))  # other clocks may be slower
        return count

    def get(self, key: str) -> int:
        now = time.time()
        with reading(self._engine) as connection:
            found = connection.execute(sa.select(hits.c.count).where(hits.c.key == key, hits.c.expires_at > now))
            return int(found.scalar() or 0)

    def get_expiry(self, key: str) -> float:
        with reading(self._engine) as connection:
            found = connection.execute(sa.select(hits.c.expires_at).where(hits.c.key == key)).scalar()
            return time.time() if found is None else float(found)

    def check(self) -> bool:
        try:
            with reading(self._engine) as connection:
                connection.execute(sa.select(1))
        except StoreUnavailable:
            return False
        return True

    def reset(self) -> int | None:
        with writing(self._engine) as connection:
            return connection.execute(hits.delete()).rowcount

    def clear(self, key: str) -> None:
        with writing(self._engine) as connection:
            connection.execute(hits.delete().where(hits.c.key == key))
