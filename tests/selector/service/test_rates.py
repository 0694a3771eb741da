"""What the store keeps of rate limits."""

from __future__ import annotations

import time
from pathlib import Path

import limits
import sqlalchemy as sa

from selector.service.fleet.database import open_engine
from selector.service.fleet.rates import CLEAN_S, RateLimit
from selector.service.fleet.tables import hits


def test_of_who_asked_once_nothing_is_kept_for_ever(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'store.db'}")
    limit, now = limits.parse("20 per hour"), time.time()
    for name in ("there once", "there lately"):
        assert RateLimit(engine, limit).wait_s(name) is None
    with engine.begin() as connection:
        connection.execute(hits.update().where(hits.c.key.contains("once")).values(expires_at=now - 2 * CLEAN_S))
    again = RateLimit(engine, limit)
    assert [again.wait_s("another"), again.wait_s("another")] == [None, None]
    with engine.begin() as connection:
        keys = sorted(connection.execute(sa.select(hits.c.key)).scalars())
    assert len(keys) == 2
    assert "another" in keys[0]
    assert "lately" in keys[1]
