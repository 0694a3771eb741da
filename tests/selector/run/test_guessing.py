"""Texts whose tokens are guessed and verified, from a bundle: the same text, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.bundle.session import SessionError
from selector.choose.budget import Budget
from selector.run.decode import GenerationOptions
from selector.run.decode import opening as decode_opening
from selector.run.decode.adaptive import Adaptive, Costs
from selector.run.decode.speculation import Proved, Speculation
from selector.run.generate import Generator
from selector.run.inputs import InputError
from tests.helpers.generators import QUIET, SIZES, always_guess, options, write_bundle

PROMPT = "abc abc abc abc "


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("guessing") / "bundle", verifies=list(SIZES), eos=(), context=256).path


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    always_guess(monkeypatch)


def text_of(path: Path, asked: GenerationOptions, **settings: Any) -> Any:
    with Generator(path, **QUIET, **settings) as generator:
        text = generator.generate(PROMPT, asked)
        return text, "".join(piece.text for piece in text)


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.2, "top_p": 0.9, "seed": 4}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("earlier", [0, 1000])
def test_the_text_is_the_same_and_says_what_was_guessed(path: Path, cheap: None, drawn: dict[str, Any], earlier: int) -> None:
    plain, said = text_of(path, options(100, speculative="off", **drawn))
    assert plain.guesses.drafted == 0
    with Generator(path, **QUIET, earlier_tokens=earlier) as generator:
        for turn in range(2):
            text = generator.generate(PROMPT, options(100, **drawn))
            pieces = list(text)
            assert "".join(piece.text for piece in pieces) == said
            assert text.tokens == plain.tokens
            found = text.guesses
            assert found.accepted == sum(piece.guessed for piece in pieces) > 0
            assert found.calls + found.accepted == 99
            assert sum(found.by.values()) == found.accepted <= found.drafted
            assert ("store" in found.by) == (turn > 0 and earlier > 0)


def test_a_stop_string_inside_a_draft(path: Path, cheap: None) -> None:
    """The text ends there, and the next one goes on from what was said."""
    _, said = text_of(path, options(80, speculative="off"))
    for begin in range(30, 60, 7):
        stop = said[begin : begin + 3]
        expected = said[: said.index(stop)]
        with Generator(path, **QUIET) as generator:
            text = generator.generate(PROMPT, options(80, stop=(stop,)))
            assert "".join(piece.text for piece in text) == expected
            assert text.finish == "stop"
            again = generator.generate(PROMPT, options(80))
            assert "".join(piece.text for piece in again) == said


def test_a_client_that_leaves_while_a_draft_is_verified(path: Path, cheap: None) -> None:
    plain, _ = text_of(path, options(60, speculative="off"))
    with Generator(path, **QUIET) as generator:
        for taken in (1, 2, 5, 17, 30):
            text = generator.generate(PROMPT, options(60))
            for _ in range(taken):
                next(text)
            text.close()
            assert generator.free_slots == 1
            assert text.guesses.accepted <= taken
        again = generator.generate(PROMPT, options(60))
        list(again)
        assert again.tokens == plain.tokens


def test_a_device_that_fails_its_test_guesses_nothing_and_says_why(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = text_of(path, options(30, speculative="off"))
    monkeypatch.setattr(decode_opening, "proved", lambda *given: Proved("4 tokens differ", Costs([{1: 1.0}])))
    for mode in ("auto", "ngram"):
        found, _ = text_of(path, options(30, speculative=mode))
        assert found.tokens == plain.tokens
        assert (found.guesses.drafted, found.guesses.problem) == (0, "4 tokens differ")


def test_a_device_that_cannot_open_what_verifies_generates_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose ONNX Runtime knows an operator in an older form."""

    def refused(graph: Path, options: Any) -> Any:
        assert graph.name.endswith(".padded.onnx")
        raise RuntimeError("[ONNXRuntimeError] : 10 : INVALID_GRAPH")

    plain, said = text_of(path, options(30, speculative="off"))
    monkeypatch.setattr(decode_opening, "open_session", refused)
    text, same = text_of(path, options(30))
    assert (text.tokens, same) == (plain.tokens, said)
    assert "do not run on this device: [ONNXRuntimeError]" in text.guesses.problem
    assert text.guesses.drafted == 0


def test_what_could_not_be_opened_once_is_tried_again(path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = decode_opening.open_session, []

    def once(graph: Path, options: Any) -> Any:
        if not failed:
            failed.append(graph)
            raise RuntimeError("std::bad_alloc")
        return real(graph, options)

    monkeypatch.setattr(decode_opening, "open_session", once)
    with Generator(path, **QUIET) as generator:
        first = generator.generate(PROMPT, options(30))
        list(first)
        assert "std::bad_alloc" in first.guesses.problem
        generator.rest()
        second = generator.generate(PROMPT, options(30))
        list(second)
        assert (second.guesses.problem, second.tokens) == ("", first.tokens)
        assert second.guesses.drafted > 0


def test_a_device_without_threads_is_said_to_whoever_asks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that its graphs do not run here."""

    def none_left(graph: Path, options: Any) -> Any:
        raise SessionError("no more threads")

    monkeypatch.setattr(decode_opening, "open_session", none_left)
    with Generator(path, **QUIET) as generator, pytest.raises(SessionError, match="no more threads"):
        generator.generate(PROMPT, options(3))


def test_a_text_that_nobody_wants_any_more_is_not_remembered(path: Path) -> None:
    """It ends wherever the garbage collector runs, in the middle of a text that is being remembered too."""
    with Generator(path, earlier_tokens=1000, **QUIET) as generator:
        store = generator._lately.store
        assert store is not None
        text = generator.generate(PROMPT, options(30))
        next(text)
        with store._adding:
            del text
        assert (generator.free_slots, store.automaton.tokens) == (1, [])
        list(generator.generate(PROMPT, options(30)))
        assert len(store.automaton.tokens) == 31


def test_a_text_may_be_as_long_as_the_context_where_the_memory_allows_it(path: Path) -> None:
    with Generator(path, memory_mb=2000.0, **QUIET) as generator:
        text = generator.generate([7] * 250, options(30))
        list(text)
        assert (text.finish, len(text.tokens)) == ("context", 6)


def test_guesses_are_counted_across_a_change_of_the_size(path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last call of either size too: what guesses is told of its end before the other size begins."""
    told: list[tuple[str, int]] = []
    for what in ("begin", "end"):
        plain = getattr(Speculation, what)
        monkeypatch.setattr(
            Speculation, what, lambda self, *given, w=what, p=plain: (told.append((w, id(self))), p(self, *given))[1]
        )
    monkeypatch.setattr(Adaptive, "called", lambda *given: None)  # what guesses bring changes no limit
    with Generator(path, **QUIET, feedback=False) as generator:
        text = generator.generate(PROMPT, options(60), Budget(token_ms=12.0))
        next(text)
        text._choice._budget = Budget(token_ms=8.0)
        list(text)
        assert [switch.after for switch in text.switches] == ["middle"]
    assert [what for what, _ in told] == ["begin", "end", "begin", "end"]
    assert told[0][1] == told[1][1] != told[2][1] == told[3][1]


def test_what_a_bundle_cannot_do_is_refused(path: Path, tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain", eos=()).path
    for where, opened, asked, said in [
        (plain, "auto", {"speculative": "ngram"}, "no graph that is open here verifies guesses; allowed are auto, off"),
        (path, "off", {"speculative": "ngram"}, "no graph that is open here verifies guesses"),
        (path, "auto", {"speculative": "exit"}, "no graph that is open here has exits; allowed are auto, off, ngram"),
        (path, "auto", {"early_exit": 0.9}, "early_exit = 0.9: no graph that is open here has exits"),
    ]:
        with Generator(where, **QUIET, speculative=opened) as generator:  # type: ignore[arg-type]
            with pytest.raises(InputError, match=said):
                generator.generate(PROMPT, options(5, **asked))
            assert generator.free_slots == 1
            text = generator.generate(PROMPT, options(5))
            assert len(list(text)) == 5
    for wrong in ({"speculative": "tree"}, {"early_exit": 0.0}, {"early_exit": float("nan")}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            GenerationOptions(**wrong)  # type: ignore[arg-type]


def test_sizes_that_guess_and_sizes_that_do_not_are_one_frontier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full size takes 10 ms a token, more than is allowed; where guesses bring two tokens for one, it fits."""
    bundle = write_bundle(tmp_path / "bundle", verifies=["full"], eos=(), context=256)
    budget = Budget(token_ms=9.0)
    with Generator(bundle, **QUIET, feedback=False) as generator:
        assert generator.generate(PROMPT, options(4), budget).selection.submodel == "middle"
    monkeypatch.setattr(Adaptive, "called", lambda self, tokens, cost: setattr(self, "gain", 2.0))
    with Generator(bundle, **QUIET, feedback=False) as generator:
        list(generator.generate(PROMPT, options(9)))  # the full size: guesses bring much of late
        text = generator.generate(PROMPT, options(4), budget)
        assert text.selection.submodel == "full"
        assert "guesses bring 2.00 tokens for one" in text.selection.reason
        text.close()
        off = generator.generate(PROMPT, options(4, speculative="off"), budget)
        assert off.selection.submodel == "middle"
        off.close()
