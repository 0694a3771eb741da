"""A new version that is bad only in use: `sortednet run` takes it back by itself, whichever process runs it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle, atomic
from selector import Budget
from selector.fetch.pull import PullOptions
from selector.run import canary
from selector.service import create_app, served
from selector.ship.runs import RUNS_FILE, Run, Runs
from selector.ship.state import Figures, folder_of, report_of, trial_of
from selector.ship.trial import WorseError
from selector.ship.versions import VersionError, accept, rollback, signed_version, versions
from sortednet import CanaryRuntime
from sortednet.signing import sign
from tests.helpers.commands import call, document, refused
from tests.helpers.keys import Keys, made
from tests.helpers.pulls import SMALL
from tests.helpers.shelf import broken, fetched, larger, other_weights


@pytest.fixture
def tried(first: Path, second: Path, options: PullOptions, tmp_path: Path) -> Path:
    """Version 2 on trial."""
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    fetched(second, mine, replace(options, trial=True))
    return mine


@pytest.fixture
def ran(tried: Path, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """What `sortednet run --json` prints, once more."""
    (spec,) = Bundle(tried).manifest.inputs
    np.save(tmp_path / "input.npy", np.zeros((1, *spec.shape[1:]), spec.dtype))
    return lambda: document("run", tried, "--input", tmp_path / "input.npy")


def _known(target: Path, count: int, latency_ms: float, *, first: bool = True) -> None:
    """So many runs of other processes, each its first, on the version before."""
    runs = Runs(target)
    (largest,) = [entry.id for entry in Bundle(target).manifest.submodels if entry.id == "w1.00-d2"]
    for _ in range(count):
        runs.add(Run(new=False, submodel=largest, latency_ms=latency_ms, first=first))


def test_processes_that_run_once_each_find_a_slower_version_together(tried: Path, ran: Callable[[], dict[str, Any]]) -> None:
    """That before took next to nothing, by what is known of it."""
    done: Sequence[dict[str, Any]] = []
    for _ in range(3):
        _known(tried, 45, 1e-6)
        done = [*done, *(ran() for _ in range(5))]
        if done[-1].get("trial", {"state": ""})["state"] != "trying":
            break
        assert [one.trial_runs for one in versions(tried)] == [len(done), None]
    states = [one["trial"]["state"] for one in done if "trial" in one]
    assert states == ["trying"] * 11 + ["taken back"]
    assert [one["trial"]["runs"] for one in done if "trial" in one] == list(range(1, 13))
    assert "times that before" in done[11]["trial"]["reason"]
    assert signed_version(tried) == 1
    assert "trial" not in ran()
    told = report_of(tried, "model")
    assert (told.state, told.figures.runs) == ("taken back", 12)
    assert told.reason == done[11]["trial"]["reason"]


def test_a_service_on_the_device_takes_a_slower_version_back_and_goes_on(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "LOOK_AGAIN_S", 0.0)
    (spec,) = Bundle(tried).manifest.inputs
    query = {"inputs": {spec.name: np.zeros((1, *spec.shape[1:])).tolist()}}
    client = create_app([Bundle(tried)], generate=None).test_client()
    statuses = []
    for _ in range(3):
        _known(tried, 45, 1e-6, first=False)
        statuses += [client.post("/v1/predict", json=query).status_code for _ in range(5)]
    assert statuses == [200] * 15
    assert signed_version(tried) == 1
    assert "times that before" in str(report_of(tried, "model").reason)
    while client.get("/readyz").status_code != 200:  # the version before is loaded
        pass
    assert client.post("/v1/predict", json=query).status_code == 200


def test_a_batch_is_on_trial_by_what_each_of_its_examples_takes(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is each one's too."""
    noted: list[Run] = []
    monkeypatch.setattr(Runs, "add", lambda _, run: noted.append(run) or [])
    (spec,) = Bundle(tried).manifest.inputs
    batch = np.zeros((500, *spec.shape[1:]), spec.dtype)
    with CanaryRuntime(tried, sensors=False, battery=lambda: None) as runtime:
        result = runtime.run(batch)
        assert noted[0].latency_ms == result.each_ms == result.latency_ms / 500
        monkeypatch.setattr(canary.Runtime, "run", lambda *_: replace(result, latency_ms=400.0))
        for limit_ms in (1.0, 0.7):  # each took 0.8
            runtime.run(batch, Budget(latency_ms=limit_ms))
    assert [one.missed for one in noted] == [None, False, True]


def test_what_cannot_be_opened_any_more_is_taken_back_by_the_next_run(tried: Path, ran: Callable[[], dict[str, Any]]) -> None:
    graph = tried / Bundle(tried).submodel(SMALL).graph
    graph.unlink()  # the version before has it under another name
    graph.write_bytes(b"nothing")
    done = ran()
    assert done["trial"]["state"] == "taken back"
    assert "cannot be opened" in done["trial"]["reason"]
    assert signed_version(tried) == 1
    assert {one.number: one.refused is None for one in versions(tried)} == {1: True, 2: False}
    Bundle(tried)  # every hash


def _graph(tried: Path) -> None:
    graph = tried / Bundle(tried).submodel(SMALL).graph
    graph.unlink()
    graph.write_bytes(b"nothing")


def _manifest(tried: Path) -> None:
    (tried / "manifest.json").unlink()
    (tried / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [_graph, _manifest])
def test_a_service_of_a_version_on_trial_that_is_damaged_serves_the_one_before(
    tried: Path,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    """But not where it is the key that is wrong."""
    begun: list[Any] = []
    monkeypatch.setattr("selector.service.serve", lambda app, *given, **named: begun.append(app))
    serve = ("serve", tried, "--port", "0", "--store", f"sqlite:///{tmp_path / 'store.db'}", "--key")
    damage(tried)
    refused(*serve, made(tmp_path, "another").public, code=1)
    assert signed_version(next(tried.parent.glob(".mine.versions/[0-9a-f]*"))) == 1
    assert call(*serve, keys.public).exit_code == 0
    assert "is taken back: it cannot be opened" in caplog.text
    assert signed_version(begun[0].extensions["sortednet"].bundle("mine").path) == signed_version(tried) == 1
    told = report_of(tried, "model")
    assert (told.state, str(told.reason).partition(":")[0]) == ("taken back", "cannot be opened")


def test_what_has_a_damaged_manifest_is_taken_back_by_the_next_run(tried: Path, ran: Callable[[], dict[str, Any]]) -> None:
    _manifest(tried)
    assert [one.number for one in versions(tried)] == [1]
    ran()
    assert signed_version(tried) == 1
    assert report_of(tried, "model").state == "taken back"


def test_a_damaged_manifest_is_no_reason_not_to_go_back(tried: Path) -> None:
    """Nor where nothing is on trial."""
    trial = trial_of(tried)
    assert trial is not None
    accept(tried, trial, Figures())
    _manifest(tried)
    assert document("rollback", tried)["number"] == 1
    assert report_of(tried, "model").state == "accepted"


def test_a_version_that_this_device_has_not_measured_waits(
    tried: Path, ran: Callable[[], dict[str, Any]], bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A budget could not be kept by it: the version before goes on, and nothing is taken back."""
    previous = next(path for path in (tried.parent / ".mine.versions").iterdir() if path.is_dir())
    shutil.copytree(bundle_path / "profiles", previous / "profiles", dirs_exist_ok=True)
    with caplog.at_level(logging.WARNING):
        assert ran()["trial"]["runs"] == 0
    assert "this device has not measured it, which `sortednet profile" in caplog.text
    assert [one.trial for one in versions(tried)] == [True, False]


def test_killed_while_it_is_taken_back_its_trial_goes_on(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*given: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_put_in_place", killed)
        with pytest.raises(Killed):
            rollback(tried, reason="slow")
    assert signed_version(tried) == 2
    assert report_of(tried, "model").state == "trying"
    assert signed_version(rollback(tried, reason="slow").path) == 1
    assert report_of(tried, "model").state == "taken back"


def test_after_one_that_was_taken_back_a_version_between_is_welcome(
    tried: Path, first: Path, second: Path, keys: Keys, options: PullOptions, tmp_path: Path
) -> None:
    """A device that skipped a version tries the newest: taken back, it must not be kept from the one between."""
    between, newest = (Path(shutil.copytree(second, tmp_path / name / "digits")) for name in ("between", "newest"))
    rollback(tried, reason="slow")
    for number, path in ((5, between), (6, newest)):
        other_weights(path, lambda weights: larger(weights, 1 + number / 1e4))  # noqa: B023
        sign(Bundle(path), key=keys.private, version=number)
    fetched(newest, tried, replace(options, trial=True))
    with pytest.raises(VersionError, match="version 5 is older than 6"):
        fetched(between, tried, replace(options, trial=True))
    rollback(tried, reason="slow")
    fetched(between, tried, replace(options, trial=True))
    trial = trial_of(tried)
    assert trial is not None
    assert (signed_version(tried), trial.number) == (5, 5)
    accept(tried, trial, Figures())
    with pytest.raises(VersionError, match="version 1 is older than 5"):
        fetched(first, tried, options)


def test_a_disk_that_is_full_fails_no_run(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(canary, "accept", full)
    (folder_of(tried) / RUNS_FILE).mkdir()  # cannot be written either
    (spec,) = Bundle(tried).manifest.inputs
    limits = replace(canary.Limits(), runs=4, slower=1e9)
    with CanaryRuntime(tried, share=0.5, limits=limits, sensors=False) as runtime:
        for _ in range(12):
            runtime.run(np.zeros((1, *spec.shape[1:]), spec.dtype))
        assert not runtime.trying
        assert runtime.reason is None


def test_a_pull_whose_version_is_worse_says_so_and_what_runs_is_the_one_before(
    first: Path, keys: Keys, options: PullOptions, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    fetched(first, mine, options)
    bad = Path(shutil.copytree(first, tmp_path / "bad" / "digits"))
    broken(bad)
    sign(Bundle(bad), key=keys.private, version=2)
    with pytest.raises(WorseError):
        fetched(bad, mine, replace(options, trial=True))
    told = report_of(mine, "model")
    assert (told.state, told.version) == ("taken back", json.loads((bad / "manifest.json").read_bytes())["sha256"][:12])
    assert "the self-test fails" in str(told.reason)
    assert "no version before this one" in refused("rollback", mine, code=2)
