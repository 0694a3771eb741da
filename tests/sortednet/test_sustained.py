"""`profile --sustain`, and the commands that show what it found."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from device_profiles.sustain import sustain
from exporter.bundle import Bundle
from selector.run import profiling
from tests.helpers.commands import call, document, refused


def test_the_commands_measure_and_show_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(profiling, "sustain", functools.partial(sustain, clock=lambda: next(ticks) / 2))
    measuring = ("profile", copied, "--device", "mine", "--repeats", "1", "--threads", "1")
    assert "allowed are 2 to 240 minutes" in refused(*measuring, "--sustain", "1")
    assert not (copied / "profiles" / "mine.json").exists()
    assert "without a pause for 3 min: p50" in call(*measuring, "--sustain", "3").stdout
    profile = Bundle(copied).profile("mine")
    assert profile.sustained is not None
    slowest = max(profile.submodels.items(), key=lambda item: item[1].latency_ms.p50)[0]
    assert profile.sustained.submodel == slowest
    assert profile.sustained.first.p50 == profile.sustained.after.p50 == 500.0
    assert "In steady work" in call("inspect", copied, "--device", "mine").stdout
    assert document("inspect", copied, "--device", "mine")["sustained"]["mine"]["minutes"] == 3
    assert "in steady work" in document("select", copied, "--device", "mine", "--sustained")["reason"]
    assert call("report", copied, "--device", "mine", "--out", copied.parent / "page.html").exit_code == 0
    assert "In steady work" in (copied.parent / "page.html").read_text(encoding="utf-8")
