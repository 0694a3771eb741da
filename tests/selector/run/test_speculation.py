"""Guesses that are verified change nothing of a text: greedy or drawn, at its end, at the context's, when it is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError, get_ident
from typing import Any

import numpy as np
import pytest

from selector.run.decode import Decoder, GenerationOptions
from selector.run.decode.adaptive import Adaptive, Costs
from selector.run.decode.calls import Halt
from selector.run.decode.drafters import NONE, Automaton, Draft, Earlier, Store, Suffixes
from selector.run.decode.speculation import Speculation, proved
from tests.helpers.decoders import Tiny
from tests.helpers.generators import CALLS as CHEAP

PROMPT = [3, 17, 42, 9, 9, 21]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny(eos=())


@pytest.fixture(scope="module")
def decoder(tiny: Tiny) -> Decoder:
    return tiny.decoder(padded=True)


class Oracle:
    """Guesses what comes, but every so manieth token."""

    def __init__(self, text: Sequence[int], begun: int, wrong: int = 5) -> None:
        self.text, self.at, self.wrong = text, begun, wrong

    def push(self, token: int) -> None:
        self.at += 1

    def draft(self, most: int) -> Draft:
        found = [
            (token + 1) % 64 if place % self.wrong == 0 else token
            for place, token in enumerate(self.text[self.at : self.at + most], self.at)
        ]
        return Draft(found, "text 14") if found else NONE


def speculation(text: Sequence[int] = (), begun: int = 0, **options: Any) -> Speculation:
    """One that always guesses; from the text that is to come, where it is given."""
    made = Speculation(Adaptive(Costs([dict(CHEAP)])), **options)
    if text:
        begin = made.begin

        def begun_with(*given: Any) -> None:
            begin(*given)
            made._drafters = [Oracle(text, begun)]

        made.begin = begun_with  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "seed": 1},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3, "seed": 2},
        {"temperature": 1.0, "top_k": 1, "seed": 3},
        {"repetition_penalty": 1.5},
    ],
    ids=["greedy", "drawn", "filtered", "top-k 1", "penalized"],
)
def test_the_text_is_that_of_plain_decoding(decoder: Decoder, options: dict[str, Any]) -> None:
    """To the token, with the same seed; with the prompt's own words as guesses, and with guesses that are mostly right."""
    asked = GenerationOptions(max_tokens=60, ignore_eos=True, logprobs=True, **options)
    plain = [(step.token, step.logprob, step.finish) for step in decoder.generate(PROMPT, asked)]
    text = [*PROMPT, *(token for token, _, _ in plain)]
    for one in (speculation(), speculation(text, len(PROMPT))):
        cache = decoder.cache()
        steps = list(decoder.generate(PROMPT, asked, cache, speculation=one))
        one.end()
        assert [(step.token, step.logprob, step.finish) for step in steps] == plain
        assert one.figures.accepted == sum(step.call.tokens == 0 for step in steps)
        assert one.figures.calls + one.figures.accepted == len(steps) - 1
        assert cache.tokens == text[:-1]
        np.testing.assert_array_equal(decoder.start(text, cache), decoder.start(text, decoder.cache()))
    assert one.figures.accepted > 30
    assert one.figures.accepted < one.figures.drafted


def test_top_k_1_is_greedy(decoder: Decoder) -> None:
    greedy, first = ({"max_tokens": 30}, {"max_tokens": 30, "temperature": 2.0, "top_k": 1, "seed": 5})
    found = [
        [step.token for step in decoder.generate(PROMPT, GenerationOptions(**one), speculation=speculation())]  # type: ignore[arg-type]
        for one in (greedy, first)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("length", range(1, 14))
def test_max_tokens_and_the_context_may_end_in_the_middle_of_a_draft(length: int) -> None:
    tiny = Tiny(context=40, eos=())
    decoder = tiny.decoder(padded=True)
    text = [*PROMPT, *tiny.greedy(PROMPT, 34)]
    for options in (GenerationOptions(max_tokens=length), GenerationOptions()):
        prompt = PROMPT if options.max_tokens else text[: 40 - length]
        one = speculation(text, len(prompt))
        steps = list(decoder.generate(prompt, options, speculation=one))
        assert [step.token for step in steps] == text[len(prompt) :][:length]
        assert [step.finish for step in steps] == [None] * (length - 1) + ["length" if options.max_tokens else "context"]


def test_a_token_that_ends_the_text_inside_a_draft(tiny: Tiny) -> None:
    text = [*PROMPT, *tiny.greedy(PROMPT, 20)]
    end = text[len(PROMPT) + 7]
    ending = Tiny(eos=(end,))
    found = list(ending.decoder(padded=True).generate(PROMPT, speculation=speculation(text, len(PROMPT))))
    assert [step.token for step in found] == ending.greedy(PROMPT, 20)
    assert found[-1].finish == "stop"


def test_a_text_that_is_left_in_the_middle_of_a_draft_can_go_on(tiny: Tiny, decoder: Decoder) -> None:
    """The cache holds what was said, not what was guessed."""
    text = [*PROMPT, *tiny.greedy(PROMPT, 30)]
    for taken in range(1, 12):
        cache, halt = decoder.cache(), Halt()
        steps = decoder.generate(PROMPT, cache=cache, halt=halt, speculation=speculation(text, len(PROMPT)))
        said = [next(steps).token for _ in range(taken)]
        halt.set()
        assert list(steps) == []
        assert said == text[len(PROMPT) :][:taken]
        other = [*PROMPT, *said, 1, 2]
        assert cache.reuse(other) >= len(PROMPT) + taken - 1
        np.testing.assert_array_equal(decoder.start(other, cache), decoder.start(other, decoder.cache()))


def test_a_device_proves_its_rows(tiny: Tiny, decoder: Decoder) -> None:
    found = proved(decoder)
    assert found.problem == ""
    assert set(found.costs.rows) == set(CHEAP)
    assert all(ms > 0 for ms in found.costs.parts[0].values())


def test_a_device_whose_rows_differ_is_noticed(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from selector.run.decode.calls import PartCall

    plain = PartCall.__call__

    def other(call: PartCall, lengths: Any, options: Any) -> Any:
        found = plain(call, lengths, options)
        if call.given.shape[1] == 4:
            found[0, 0, 0] = np.nextafter(found[0, 0, 0], np.float32(np.inf))
        return found

    monkeypatch.setattr(PartCall, "__call__", other)
    assert "4 tokens in one call differ" in proved(decoder).problem


def test_kernels_that_differ_from_some_length_on_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention goes through keys in blocks: rows may be the same in the first of them alone. When a size is opened, and by
    `verify`."""
    from exporter.bundle.decoding import DecoderCall, rows_problem
    from selector.run.decode.calls import PartCall

    by_part, by_call = PartCall.__call__, DecoderCall.__call__

    def later(call: PartCall, lengths: Any, options: Any) -> Any:
        found = by_part(call, lengths, options)
        found[0, 0, 0] += lengths[0] > 256 and call.given.shape[1] > 1
        return found

    def further(call: DecoderCall, first: Any, lengths: Any, rows: Any) -> Any:
        found = by_call(call, first, lengths, rows)
        found[0, 0, 0] += lengths[0] > 256 and first.shape[1] > 1
        return found

    decoder = Tiny(context=300, eos=()).decoder(padded=True)
    assert rows_problem([decoder.session], 64, 300) == proved(decoder).problem == ""
    monkeypatch.setattr(PartCall, "__call__", later)
    monkeypatch.setattr(DecoderCall, "__call__", further)
    assert "8 tokens in one call differ" in proved(decoder).problem
    assert "8 tokens in one call differ" in rows_problem([decoder.session], 64, 300)


def test_the_longest_end_that_was_there_before() -> None:
    """Against looking for it everywhere; its latest place is one where it is."""
    rng = np.random.default_rng(0)
    for letters in (2, 4, 20):
        automaton, text = Automaton(), []
        for token in rng.integers(0, letters, 200).tolist():
            text.append(token)
            automaton.push(token)
            matched, end = automaton.repeated()
            longest = next((n for n in range(len(text) - 1, 0, -1) if _before(text, n)), 0)
            assert matched == longest
            assert text[end - matched : end] == text[len(text) - matched :]
            assert end < len(text)


def _before(text: list[int], length: int) -> bool:
    return any(text[i : i + length] == text[-length:] for i in range(len(text) - length))


def test_what_repeats_itself_is_guessed_to_go_on() -> None:
    assert list(Suffixes([1, 2, 3, 4, 9, 2, 3]).draft(3).tokens) == [4, 9, 2]
    assert list(Suffixes([5, 1, 2, 1, 2]).draft(5).tokens) == [1, 2, 1, 2, 1]
    assert Suffixes([1, 2, 3]).draft(4) == NONE


def test_earlier_texts_are_kept_within_a_bound() -> None:
    store = Store(tokens=64)
    store.add([1, 2, 3, 4, 5])
    drafter = Earlier(store, [7, 2, 3])
    assert list(drafter.draft(8).tokens) == [4, 5]  # no further than that text
    for number in range(30):
        store.add([100 + number, 200 + number, 300 + number])
        assert len(store.automaton.tokens) <= 64
    assert Earlier(store, [2, 3]).draft(4) == NONE
    assert list(Earlier(store, [129, 229]).draft(4).tokens) == [329]
    assert list(drafter.draft(8).tokens) == [4, 5]  # whoever reads it goes on with what was there


def test_texts_that_end_at_the_same_time_are_kept_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    store, push, within = Store(), Automaton.push, []
    at_once = Barrier(2, timeout=0.2)

    def pushed(automaton: Automaton, token: int) -> None:
        within.append(get_ident())
        with suppress(BrokenBarrierError):  # another thread is here too
            at_once.wait()
            within.append(-1)
        push(automaton, token)

    monkeypatch.setattr(Automaton, "push", pushed)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(store.add, [[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert -1 not in within
    assert len(set(within)) == 2
    assert list(Earlier(store, [1, 2]).draft(8).tokens) == [3, 4]
    assert list(Earlier(store, [5, 6]).draft(8).tokens) == [7, 8]


def test_guesses_that_do_not_pay_are_not_made() -> None:
    """Dear calls, or guesses that are wrong: none; cheap calls and right ones: many."""
    for right, rise, expected in [(1.0, 0.05, 11), (0.0, 0.05, 0), (1.0, 1.0, 0), (0.7, 0.2, 2)]:
        adaptive = Adaptive(Costs([{rows: 1 + rise * (rows - 1) for rows in CHEAP}]))
        rng = np.random.default_rng(0)
        for first, further in [adaptive.rates("text 14")]:
            for _ in range(300):
                first.add(bool(rng.random() < right))
                further.add(bool(rng.random() < right))
        found = adaptive.length("text 14", 11)
        assert found == expected if expected != 2 else 1 <= found <= 4


def test_a_load_changes_what_a_token_costs_and_no_choice() -> None:
    costs = Costs([{1: 10.0, 4: 14.0}])
    for _ in range(60):
        costs.observe(1, 20.0)
        costs.observe(4, 28.0)
    assert costs.plain_ms == pytest.approx(20, rel=0.05)
    assert costs.call(4) / costs.call(1) == pytest.approx(1.4, rel=0.05)
