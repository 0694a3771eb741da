"""A reader of one's own for the battery: what it gives instead of a battery is not lost without a word."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import selector.adapt.battery_reader
from selector import Battery
from selector.adapt.battery_reader import BatteryReader


def fails() -> Battery:
    raise OSError("no termux here")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda: {"percentage": 12, "status": "DISCHARGING"}, "gave {'percentage': 12"),
        (lambda: 12.0, "gave 12.0"),
        (fails, "failed: OSError('no termux here')"),
    ],
)
def test_what_is_no_battery_is_named_once(
    read: Any, said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(selector.adapt.battery_reader, "seconds", lambda: now[0])
    reader = BatteryReader(read)
    with caplog.at_level(logging.WARNING, "sortednet.battery"):
        for _ in range(3):
            assert reader.latest() is None
            now[0] += 100
    (message,) = (record.getMessage() for record in caplog.records)
    assert said in message
    assert "allowed are a Battery(percent=…, discharging=…) and None" in message


@pytest.mark.parametrize("state", [None, Battery(percent=12, discharging=True)])
def test_a_battery_and_none_are_told_to_nobody(state: Battery | None, caplog: pytest.LogCaptureFixture) -> None:
    assert BatteryReader(lambda: state).latest() == state
    assert not caplog.records
