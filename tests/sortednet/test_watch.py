"""`sortednet run --watch`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.commands import document, refused


@pytest.fixture
def clock_of_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which runs take no time."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("sortednet.watch.time", clock)


@pytest.mark.usefixtures("clock_of_watch")
def test_run_watch_runs_for_so_long_and_tells_the_history(bundle_path: Path, images: Path) -> None:
    runs = document("run", bundle_path, "--input", images, "--latency-ms", "5", "--watch", "--seconds", "0.5", "--rate", "50")[
        "runs"
    ]
    assert 25 <= len(runs) <= 26
    assert {
        "at",
        "submodel",
        "device",
        "latency_ms",
        "limit_ms",
        "slow_down",
        "battery_percent",
        "reason",
        "energy_mj",
        "feasible",
    } == set(runs[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--watch", "--output", "o.npz"], "output"), (["--rate", "5"], "rate"), (["--seconds", "1"], "seconds")],
)
def test_options_that_would_do_nothing_are_refused(bundle_path: Path, images: Path, options: list[str], named: str) -> None:
    assert f"error: {named} = " in refused("run", bundle_path, "--input", images, *options)


@pytest.mark.usefixtures("clock_of_watch")
def test_run_watch_without_feedback_tells_the_history_too(bundle_path: Path, images: Path) -> None:
    watch = ["--watch", "--seconds", "0.2", "--rate", "50", "--no-feedback"]
    assert len(document("run", bundle_path, "--input", images, *watch)["runs"]) >= 2


@pytest.mark.usefixtures("clock_of_watch")
def test_run_watch_says_that_nothing_fits_as_one_run_does(bundle_path: Path, images: Path) -> None:
    asked = ["run", bundle_path, "--input", images, "--latency-ms", "1e-6"]
    found = document(*asked, "--watch", "--seconds", "0.2", "--rate", "50", code=3)
    assert {run["feasible"] for run in found["runs"]} == {False}
    assert document(*asked, code=3)["feasible"] is False


def test_run_watch_runs_once_in_however_little_time(bundle_path: Path, images: Path) -> None:
    assert len(document("run", bundle_path, "--input", images, "--watch", "--seconds", "1e-9")["runs"]) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seconds", "0"], "seconds = 0.0: allowed are values above 0"),
        (["--seconds", "-1"], "seconds = -1.0"),
        (["--seconds", "nan"], "seconds = nan"),
        (["--rate", "0", "--seconds", "1"], "rate = 0.0: allowed are values above 0"),
        (["--rate", "-2", "--seconds", "1"], "rate = -2.0"),
        (["--rate", "nan", "--seconds", "1"], "rate = nan"),
    ],
)
def test_how_long_and_how_often_to_watch_are_checked(bundle_path: Path, images: Path, options: list[str], named: str) -> None:
    assert named in refused("run", bundle_path, "--input", images, "--watch", *options)


def test_watching_ends_in_time_however_seldom_it_runs(bundle_path: Path, images: Path) -> None:
    for rate in ("0.001", "1e-320"):
        watch = ["--watch", "--seconds", "0.3", "--rate", rate]
        assert len(document("run", bundle_path, "--input", images, *watch)["runs"]) == 1
