"""Which size says a text, and another one in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from exporter.bundle import BundleError
from exporter.bundle.session import SessionError
from selector.choose.budget import Budget
from selector.run.decode.decoder import Rows
from selector.run.generate import Generator
from selector.run.generate.choosing import Choice
from selector.run.generate.described import Described
from selector.run.generate.guessing import Guessing
from selector.run.generate.slots import Slot
from selector.run.inputs import InputError
from tests.helpers.decoding import per_token, profile_of
from tests.helpers.generators import QUIET, SIZES, WEIGHTS, options, tiny, tokenizer, write_bundle

PROMPT = "Once upon a time"
TOKENIZER = tokenizer()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "talker"
    write_bundle(path)
    return path


@pytest.fixture(scope="module")
def generator(path: Path) -> Iterator[Generator]:
    with Generator(path, feedback=False, **QUIET) as found:
        yield found


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (Budget(), "full"),
        (Budget(token_ms=8.0), "middle"),
        (Budget(token_ms=5.0), "shallow"),
        (Budget(token_ms=0.1), "small"),  # none keeps it: the nearest
        (Budget(first_token_ms=5.0), "shallow"),
        (Budget(first_token_ms=5.0, token_ms=3.0), "small"),
        (Budget(memory_mb=40.0), "middle"),
    ],
)
def test_a_size_is_chosen_by_what_a_token_and_the_first_one_may_cost(generator: Generator, budget: Budget, chosen: str) -> None:
    """The prompt has 16 tokens: the first one takes 10 ms of the largest."""
    generator._slots.all[0].clear()
    generation = generator.generate(PROMPT, options(3), budget)
    list(generation)
    assert generation.selection.submodel == chosen
    assert generation.tokens == tiny(chosen, eos=()).greedy(TOKENIZER.encode(PROMPT).ids, 3)


def test_another_size_in_the_middle_of_a_text(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load a smaller one goes on, within 5 tokens: first one that lacks nothing, then one that is computed anew; without
    it the largest again. Whatever it is, the text is that of the size that said it."""
    load, ticks = [1.0], count()
    took = Choice.took

    def as_loaded(self: Choice, ms: float, context: int, call: Rows) -> None:
        took(self, load[0] * per_token(WEIGHTS[self.selection.submodel], context), context, call)

    monkeypatch.setattr(Choice, "took", as_loaded)
    for module in ("generate.choosing", "runtime"):
        monkeypatch.setattr(f"selector.run.{module}.seconds", lambda: 0.01 * next(ticks))
    chosen = []
    with Generator(path, **QUIET) as generator:
        generation = generator.generate(PROMPT, options(200), Budget(token_ms=12.0))
        for number, piece in enumerate(generation):
            chosen.append(piece.submodel)
            load[0] = 1.5 if 20 <= number < 40 else 3.0 if 40 <= number < 80 else 1.0
    assert set(chosen[:20]) == {"full"}
    assert set(chosen[26:40]) == {"middle"}
    assert set(chosen[46:80]) == {"small"}
    assert set(chosen[-40:]) == {"full"}
    computed = {(switch.before, switch.after): switch.computed for switch in generation.switches}
    assert computed["full", "middle"] == 1  # the token that was just drawn
    into_small = next(switch for switch in generation.switches if switch.after == "small")
    assert into_small.computed == generation.prompt_tokens + into_small.token
    ids = TOKENIZER.encode(PROMPT).ids
    decoders = {name: tiny(name) for name in SIZES}
    for token, submodel in zip(generation.tokens, chosen, strict=True):
        assert token == decoders[submodel].logits(ids)[-1].argmax()
        ids.append(token)


def test_a_size_with_weights_of_its_own_shares_nothing(tmp_path: Path) -> None:
    """Whatever its axes say: its text is its own, in the middle of another's."""
    write_bundle(tmp_path / "b", odd="middle")
    with Generator(tmp_path / "b", feedback=False, **QUIET) as generator:
        generation = generator.generate(PROMPT, options(60), Budget(token_ms=12.0))
        next(generation)
        generation._choice._budget = Budget(token_ms=8.0)
        chosen = ["full", *(piece.submodel for piece in generation)]
    assert set(chosen) == {"full", "middle"}
    (switch,) = generation.switches
    assert switch.computed == generation.prompt_tokens + switch.token
    ids, decoders = TOKENIZER.encode(PROMPT).ids, {"full": tiny("full"), "middle": tiny("middle", seed=9)}
    for token, submodel in zip(generation.tokens, chosen, strict=True):
        assert token == decoders[submodel].logits(ids)[-1].argmax()
        ids.append(token)


def test_what_a_change_costs_is_weighed_against_what_is_left(path: Path) -> None:
    """Of a text that is nearly at its end nothing is computed again for another size."""
    with Generator(path, **QUIET) as generator:
        generation = generator.generate(PROMPT, options(4), Budget(token_ms=12.0))
        list(generation)
        choice, ids = generation._choice, TOKENIZER.encode(PROMPT).ids + generation.tokens
        controller = generator.runtime.controller
        assert controller is not None
        for tick in range(12):
            controller.observe(choice.selection, 3.3 * per_token(1.0, 20), tick / 100, length=20)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("selector.run.runtime.seconds", lambda: 0.12)
            assert choice.again(ids, 1)
            assert choice.selection.submodel == "shallow"  # takes too long, but lacks nothing
            assert choice.again(ids, 100)
            assert choice.selection.submodel == "small"


def test_nothing_is_said_for_long_only_where_much_is_left(path: Path) -> None:
    """The largest one would read 400 tokens, in 218 ms: so much is a tenth of the time of 156 tokens within 14 ms."""

    class Read(Slot):
        def known(self, submodel: str, tokens: Sequence[int]) -> int:
            return len(tokens) if submodel == "small" else 0

    with Generator(path, feedback=False, **QUIET) as generator:
        slot = Read(generator.described, None)
        choice = Choice(generator.runtime, generator.described, Budget(token_ms=3.0), [1] * 400, slot, Guessing(options()))
        assert choice.selection.submodel == "small"
        choice._budget = Budget(token_ms=14.0)
        assert not choice.again([1] * 400, 150)
        assert choice.again([1] * 400, 200)
        assert choice.selection.submodel == "full"


@pytest.mark.parametrize(("budget", "opened"), [(Budget(), {"full"}), (Budget(token_ms=8.0), {"middle", "full", "shallow"})])
def test_other_sizes_are_opened_ahead_where_there_is_a_limit(path: Path, budget: Budget, opened: set[str]) -> None:
    with Generator(path, feedback=False, **{**QUIET, "load_ahead": True}) as generator:
        list(generator.generate(PROMPT, options(2), budget))
        generator.runtime.pool.settle()
        assert {submodel for submodel, _ in generator.runtime.pool.loaded} == opened


def test_a_size_that_cannot_be_opened_is_no_reason_to_end_a_text(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = generator.generate(PROMPT, options(12), Budget(token_ms=8.0))
    next(generation)

    def choose(*given: Any, **named: Any) -> Any:
        raise BundleError("sub-model 'full': cannot be opened: it is gone")

    monkeypatch.setattr(generator.runtime, "choose", choose)
    list(generation)
    assert generation.tokens == tiny("middle", eos=()).greedy(TOKENIZER.encode(PROMPT).ids, 12)


@pytest.mark.parametrize("error", [BundleError, SessionError, InputError, MemoryError])
def test_a_size_that_fails_when_it_is_looked_at_is_no_reason_either(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    generation = generator.generate(PROMPT, options(12), Budget(token_ms=8.0))
    next(generation)

    def prove(described: Described, submodel: str, decoder: Any) -> None:
        raise error("what it is")

    monkeypatch.setattr(Described, "prove", prove)
    generation._choice._budget = Budget()
    list(generation)
    assert generation.tokens == tiny("middle", eos=()).greedy(TOKENIZER.encode(PROMPT).ids, 12)
    assert (generation.switches, generation.selection.submodel) == ([], "middle")


def test_the_same_size_in_another_profile_is_what_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "b")
    bundle.save_profile(profile_of(WEIGHTS, bundle.fingerprint, device="other"))
    with Generator(bundle, device=["bench", "other"], feedback=False, **QUIET) as generator:
        generation = generator.generate(PROMPT, options(12))
        next(generation)
        first = generation.selection
        other = "other" if first.device == "bench" else "bench"
        program = generator.runtime.program("full", other)
        monkeypatch.setattr(generator.runtime, "choose", lambda *given, **named: (first._replace(device=other), program))
        list(generation)
        assert generation.selection.device == other
        assert [one.device for one in generation.selections] == [first.device, other]
        assert generation._choice.decoder.session is program.session
    assert generation.switches == []
    assert generation.tokens == tiny("full", eos=()).greedy(TOKENIZER.encode(PROMPT).ids, 12)


def test_no_size_is_taken_that_has_no_room_for_the_text(path: Path) -> None:
    """Of the largest one's keys and values 60 tokens fit, of the smallest's 360."""
    bound = 60 * tiny("full").spec.token_bytes / 2**20
    with Generator(path, cache_mb=bound, memory_mb=500.0, feedback=False, **QUIET) as generator:
        long = generator.generate("x" * 80, options(20))
        assert long.selection.submodel == "small"
        assert [piece.finish for piece in long][-1] == "length"
        text = generator.generate(PROMPT, options(200), Budget(token_ms=3.0))
        next(text)
        text._choice._budget = Budget()  # with which the largest one would be taken
        list(text)
        assert (text.finish, len(text.tokens)) == ("length", 200)
        assert "full" not in {one.submodel for one in text.selections}
        short = generator.generate(PROMPT, options(20))
        assert short.selection.submodel == "full"
        short.close()


def test_a_look_that_failed_is_none(tmp_path: Path) -> None:
    """Whether a size has the keys and values of its kind is looked at again where that failed."""
    described = Described.of(write_bundle(tmp_path / "b", odd="middle"))
    full, middle = tiny("full").decoder(), tiny("middle", seed=9).decoder()

    class Fails:
        spec = full.spec

        def cache(self) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        described.prove("full", Fails())  # type: ignore[arg-type]
    described.prove("full", full)
    described.prove("middle", middle)
    assert described.kinds["middle"] != described.kinds["full"]
