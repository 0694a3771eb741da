"""A new version of a bundle that generates text: its texts are watched, by whichever process generates them."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import Bundle
from selector.choose.budget import Budget
from selector.fetch.pull import PullOptions
from selector.run.generate import Generation, Generator
from selector.run.generate.canary import CanaryGenerator
from selector.service import GenerateOptions, create_app, served
from selector.service.generate.generating import Generating
from selector.ship.runs import Run, Runs
from selector.ship.state import Figures, Trial, folder_of, id_of, report_of, trial_of
from selector.ship.trial import Limits
from selector.ship.versions import rollback, versions
from tests.helpers.commands import document
from tests.helpers.generators import QUIET, options, write_bundle
from tests.helpers.shelf import fetched, rewritten

PROMPT = "What a fine day"
FIRST_OLD = Limits(runs=4, slower=1e9)
"""Whatever they take, it stays after four."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Versions of a bundle. Tests must not change them."""
    folder = tmp_path_factory.mktemp("talkers")
    return write_bundle(folder / "old" / "talker").path, write_bundle(folder / "new" / "talker", seed=3).path


@pytest.fixture
def tried(two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The second on trial."""
    monkeypatch.setattr("selector.fetch.pull.examine", lambda *given, **named: Figures())  # their self-test is a stand-in
    mine = tmp_path / "talker"
    for version in two:
        fetched(version, mine, PullOptions(trial=True, overwrite=True))
        Bundle(mine).save_profile(Bundle(version).profile("bench"), overwrite=True)
    return mine


def id_here(path: Path) -> str:
    return id_of(Bundle(path, verify=False))


def known(target: Path, count: int, token_ms: float, *, first: bool) -> None:
    """So many texts of other processes, on the version before."""
    runs = Runs(target)
    for _ in range(count):
        runs.add(Run(new=False, submodel="full", latency_ms=token_ms, first=first))


def test_commands_that_generate_a_text_each_find_a_slower_version_together(tried: Path, two: tuple[Path, Path]) -> None:
    done: list[dict[str, Any]] = []
    for _ in range(3):
        known(tried, 45, 1e-6, first=True)
        for _ in range(5):
            done.append(document("generate", tried, "--prompt", PROMPT, "--max-tokens", "3", "--ignore-eos", "--threads", "1"))
    states = [one["trial"]["state"] for one in done if "trial" in one]
    assert states == ["trying"] * 11 + ["taken back"]
    assert "full, first run: p50" in done[11]["trial"]["reason"]
    assert id_here(tried) == id_here(two[0])
    told = report_of(tried, "model")
    assert (told.state, told.figures.runs, told.figures.submodel) == ("taken back", 12, "full, first run")


def test_a_service_takes_a_slower_version_back_and_goes_on(
    tried: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "LOOK_AGAIN_S", 0.0)
    client = create_app([Bundle(tried)], predict=None, generate=GenerateOptions(cores=1)).test_client()
    query = {"prompt": PROMPT, "stream": False, "options": {"max_tokens": 3, "ignore_eos": True}}
    for _ in range(3):
        known(tried, 45, 1e-6, first=False)
        for _ in range(5):
            answer = client.post("/v1/generate", json=query)
            assert answer.status_code == 200, answer.text
    assert id_here(tried) == id_here(two[0])
    assert "times that before" in str(report_of(tried, "model").reason)
    while client.get("/readyz").status_code != 200:  # the version before is loaded
        pass
    assert client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 3}).status_code == 200


@pytest.mark.parametrize(("budget", "late"), [(Budget(token_ms=1e-6), True), (Budget(token_ms=1e6), False), (Budget(), None)])
def test_limits_of_a_token_are_its_deadlines(tried: Path, budget: Budget, late: bool | None) -> None:
    with CanaryGenerator(tried, share=0.5, **QUIET) as generator:
        for _ in range(10):
            assert len(list(generator.generate(PROMPT, options(3), budget))) == 3
    found = Runs(tried).look()
    assert [run.new for run in found] == [False] * 5 + [True] * 5
    assert [run.missed for run in found] == [late] * 10
    assert all(run.latency_ms > 0 for run in found)
    assert [one.trial_runs for one in versions(tried)] == [5, None]


def test_one_that_is_as_good_stays_and_what_is_being_said_is_said_to_its_end(tried: Path, two: tuple[Path, Path]) -> None:
    settings = {**QUIET, "slots": 2, "memory_mb": 400}
    with CanaryGenerator(tried, share=0.5, limits=FIRST_OLD, **settings) as generator:
        long = generator.generate(PROMPT, options(8))
        next(long)
        for _ in range(9):
            list(generator.generate(PROMPT, options(2)))
        assert not generator.trying
        assert generator.reason is None
        assert [piece.finish for piece in long][-1] == "length"
        assert len(long.tokens) == 8
    assert id_here(tried) == id_here(two[1])
    assert report_of(tried, "model").state == "accepted"


def damaged(tried: Path) -> None:
    """By its manifest it is whole."""
    graph = tried / "models" / "full.onnx"
    graph.unlink()
    graph.write_bytes(b"nothing")
    new = trial_of(tried)
    assert new is not None
    rewritten(tried)
    state = folder_of(tried) / "state.json"
    state.write_text(state.read_text().replace(new.new, id_here(tried)))


def test_a_text_that_cannot_begin_is_generated_by_the_version_before(tried: Path, two: tuple[Path, Path]) -> None:
    damaged(tried)
    with CanaryGenerator(tried, share=0.5, **QUIET) as generator:
        texts: list[list[int]] = []
        for _ in range(6):
            text = generator.generate(PROMPT, options(4))
            list(text)
            texts.append(text.tokens)
        assert texts == [texts[0]] * 6
        assert "does not run: sub-model 'full': cannot be opened" in str(generator.reason)
    assert id_here(tried) == id_here(two[0])


@pytest.mark.parametrize("after", [0, 2])
def test_a_text_that_breaks_off_takes_its_version_back(
    tried: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Before its first token the version before says it all; later there is no way to take back what was said."""
    advance = Generation._advance

    def breaks(text: Generation) -> Any:
        if text._choice._runtime.bundle.path == tried and len(text.tokens) == after:
            raise RuntimeError("no more")
        return advance(text)

    monkeypatch.setattr(Generation, "_advance", breaks)
    with CanaryGenerator(tried, share=0.5, **QUIET) as generator:
        for _ in range(5):
            list(generator.generate(PROMPT, options(4)))
        text = generator.generate(PROMPT, options(4))
        if after:
            with pytest.raises(RuntimeError, match="no more"):
                list(text)
        else:
            assert len(list(text)) == 4
        assert generator.reason == "does not run: no more"
        assert len(list(generator.generate(PROMPT, options(4)))) == 4
    assert id_here(tried) == id_here(two[0])


def test_what_has_no_turn_holds_no_memory_where_that_is_bounded(tried: Path) -> None:
    with CanaryGenerator(tried, share=0.5, memory_mb=400, **QUIET) as generator:
        used: list[tuple[float, float]] = []
        for _ in range(6):
            list(generator.generate(PROMPT, options(2)))
            both: list[Generator] = [generator._before, generator._opened]  # type: ignore[list-item]
            used.append((both[0].cache_used_mb + len(both[0].runtime.pool.loaded), float(len(both[1].runtime.pool.loaded))))
    assert used[4][0] > 0
    assert used[4][1] == 0
    assert used[5][0] == 0
    assert used[5][1] > 0


def test_texts_of_a_bundle_that_is_replaced_are_said_to_their_end(two: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(two[0], tmp_path / "talker"))
    app = create_app([bundle], predict=None, generate=GenerateOptions(cores=4))
    generating: Generating = app.extensions["sortednet.generating"]
    asked: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True}
    text = generating.begin(bundle, None, PROMPT, asked, Budget(), time.monotonic())
    before = generating.opened(bundle)
    os.utime(bundle.path / "profiles", ns=(1, 1))  # as if it had been measured anew
    generating.begin(bundle, None, PROMPT, asked, Budget(), time.monotonic()).close()
    assert generating.opened(bundle) != before
    assert len(list(text)) == 8
    assert text.finish == "length"
    assert not before[0].generator.runtime.pool.loaded


def test_text_is_read_by_the_tokenizer_of_the_version_that_runs(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Though it is read first when another one stands in its place."""
    other = Path(shutil.copytree(two[1], tmp_path / "other" / "talker"))
    (other / "tokenizer.json").write_text("{}")
    rewritten(other)
    mine = tmp_path / "talker"
    fetched(two[0], mine, PullOptions())
    with Generator(mine, **QUIET) as generator:
        fetched(other, mine, PullOptions(overwrite=True))
        text = generator.generate(PROMPT, options(4))
        list(text)
    with Generator(two[0], **QUIET) as generator:
        expected = generator.generate(PROMPT, options(4))
        list(expected)
    assert text.tokens == expected.tokens


def test_a_trial_that_was_ended_elsewhere_is_over(tried: Path, two: tuple[Path, Path]) -> None:
    trial: Trial | None = trial_of(tried)
    assert trial is not None
    with CanaryGenerator(tried, share=0.5, limits=replace(FIRST_OLD, runs=2), **QUIET) as generator:
        rollback(tried, reason="by hand")
        for _ in range(7):
            list(generator.generate(PROMPT, options(2)))
    assert report_of(tried, "model").reason == "by hand"
    assert id_here(tried) == id_here(two[0])
