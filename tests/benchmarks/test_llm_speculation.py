"""What `benchmarks.llm.speculation` makes of the texts that it times, on a model that repeats itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from benchmarks.llm import speculation
from exporter.bundle import Bundle
from selector.run.generate.described import Described
from selector.run.generate.prompts import Prompts
from tests.helpers.generators import CALLS, SIZES, always_guess, write_bundle


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    made = write_bundle(tmp_path / "talker", verifies=list(SIZES), eos=(), context=256)
    ids = Prompts(Described.of(made)).ids("abc abc abc abc ")
    monkeypatch.setattr(speculation, "bundle", lambda: made)
    monkeypatch.setattr(speculation, "asked", lambda kind, count=2: [ids, ids])
    monkeypatch.setattr(speculation, "KINDS", ("chat",))
    monkeypatch.setattr(speculation, "TOKENS", 100)
    always_guess(monkeypatch)
    for one in (speculation.opened, speculation._measured):
        one.cache_clear()
    yield made
    for one in (speculation.opened, speculation._measured):
        one.cache_clear()


def test_what_calls_are_predicted_to_take_are_those_of_calls(bundle: Bundle) -> None:
    """A token that was guessed and came took no call."""
    took = speculation._measured("fp32", 1)["chat"]
    assert took.tokens == 2 * (speculation.TOKENS - 1)
    one = speculation.opened("fp32", 1)
    (ids, _) = speculation.asked("chat")
    steps = list(one.padded.generate(ids, speculation._options(), speculation=speculation._speculation(one)))[1:]
    assert took.accepted == 2 * sum(step.call.tokens == 0 for step in steps) > 0
    assert took.predicted == pytest.approx(2 * sum(CALLS[step.call.tokens] for step in steps if step.call.tokens) / CALLS[1])
