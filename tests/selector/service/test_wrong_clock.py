"""A clock that was fast for a while locks nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from limits import parse

from selector.service.fleet.database import open_engine
from selector.service.fleet.rates import RateLimit


def test_a_limit_that_was_reached_in_the_future_is_none_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = RateLimit(open_engine(f"sqlite:///{tmp_path / 'store.db'}"), parse("1/minute"))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 1e8)
    assert rate.wait_s("device") is None
    assert (rate.wait_s("device") or 0) > 0
    monkeypatch.setattr("time.time", lambda: now)
    assert rate.wait_s("device") is None
    assert 0 < (rate.wait_s("device") or 0) <= 60
