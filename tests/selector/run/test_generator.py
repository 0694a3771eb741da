"""Text from a bundle: what is said, when it ends, what is chosen for it and in the middle of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle, BundleError
from selector.choose.budget import Budget, BudgetError
from selector.run.generate import BusyError, Generation, GenerationOptions, Generator
from selector.run.generate.choosing import Choice
from selector.run.inputs import InputError
from selector.run.runtime import Runtime
from tests.helpers.generators import QUIET, options, tiny, tokenizer, write_bundle

PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": "Who are you?"}]
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


def said(generation: Generation) -> str:
    return "".join(piece.text for piece in generation)


def test_the_text_is_that_of_the_naive_loop(generator: Generator) -> None:
    ids = TOKENIZER.encode(PROMPT).ids
    expected = tiny("full", eos=()).greedy(ids, 40)
    generation = generator.generate(PROMPT, options(40))
    pieces = list(generation)
    assert [piece.tokens for piece in pieces] == [(token,) for token in expected]
    assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(expected)
    assert generation.tokens == expected
    assert (generation.prompt_tokens, generation.finish) == (len(ids), "length")
    assert pieces[0].ms == generation.first_token_ms
    assert {piece.submodel for piece in pieces} == {"full"}
    assert said(generator.generate(ids, options(40))) == TOKENIZER.decode(expected)


def test_messages_go_through_the_template(generator: Generator) -> None:
    text = "<|start|>user\nWho are you?<|end|>\n<|start|>assistant\n"
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    generation = generator.generate(MESSAGES, options())
    assert said(generation) == TOKENIZER.decode(tiny("full", eos=()).greedy(ids, 20))
    assert generation.prompt_tokens == len(ids)


def test_a_token_that_ends_the_text_is_no_text(tmp_path: Path) -> None:
    ids = TOKENIZER.encode(PROMPT).ids
    free = tiny("full", eos=()).greedy(ids, 6)
    last = next(token for token in free[1:] if token not in free[:1])
    write_bundle(tmp_path / "b", eos=(last,))
    with Generator(tmp_path / "b", **QUIET) as generator:
        generation = generator.generate(PROMPT)
        text = said(generation)
    assert generation.finish == "stop"
    assert generation.tokens[-1] == last
    assert text == TOKENIZER.decode(generation.tokens[:-1])


def test_the_text_ends_before_a_stop_string(generator: Generator) -> None:
    whole = said(generator.generate(PROMPT, options(40)))
    stop = whole[4:7]
    generation = generator.generate(PROMPT, options(40, stop=[stop, "never there"]))
    assert said(generation) == whole[: whole.find(stop)]
    assert generation.finish == "stop"
    assert generator.free_slots == 1


def test_a_conversation_that_goes_on_is_not_read_again(path: Path) -> None:
    with Generator(path, feedback=False, slots=2, **QUIET) as generator:
        first = generator.generate(MESSAGES, options(8))
        answer = said(first)
        other = generator.generate("Something else", options(3))
        list(other)
        assert other.reused_tokens == 0
        ids = [*TOKENIZER.encode("<|start|>user\nWho are you?<|end|>\n<|start|>assistant\n").ids, *first.tokens]
        more = generator.generate([*ids, 5, 6, 7], options(8))
        list(more)
        assert more.reused_tokens == len(ids) - 1  # the last token was never computed
        assert more.tokens == tiny("full", eos=()).greedy([*ids, 5, 6, 7], 8)
        turns = [*MESSAGES, {"role": "assistant", "content": answer}, {"role": "user", "content": "And I?"}]
        again = generator.generate(turns, options(2))
        assert said(again) is not None
        assert again.reused_tokens >= first.prompt_tokens


@pytest.mark.parametrize("how", ["stop", "close", "with", "forgotten", "error"])
def test_a_slot_is_free_when_nobody_wants_its_text_any_more(generator: Generator, how: str, monkeypatch: Any) -> None:
    generation: Any = generator.generate(PROMPT, options(300))
    next(generation)
    with pytest.raises(BusyError, match="1 texts are being generated"):
        generator.generate(PROMPT, wait_seconds=0)
    assert generator.free_slots == 0
    if how == "stop":
        generation.stop()
        (last,) = generation
        assert (last.finish, last.tokens, generation.finish) == ("stopped", (), "stopped")
    elif how == "close":
        generation.close()
        assert list(generation) == []
    elif how == "with":
        with generation:
            next(generation)
    elif how == "error":
        monkeypatch.setattr(Choice, "took", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(generation)
        monkeypatch.undo()
    del generation
    assert generator.free_slots == 1
    assert said(generator.generate(PROMPT, options(3), wait_seconds=0)) is not None


def test_a_text_is_closed_while_another_thread_generates_it(generator: Generator, monkeypatch: Any) -> None:
    """As when a client goes: the thread that generates comes to its end within one token."""
    within, going_on = threading.Event(), threading.Event()

    def took(self: Choice, ms: float, context: int, call: Any) -> None:
        within.set()
        assert going_on.wait(60)

    monkeypatch.setattr(Choice, "took", took)
    generation, pieces = generator.generate(PROMPT, options(300)), []
    thread = threading.Thread(target=lambda: pieces.extend(generation))
    thread.start()
    assert within.wait(60)
    generation.close()
    going_on.set()
    thread.join(60)
    assert not thread.is_alive()
    assert pieces == []
    assert generator.free_slots == 1


def test_texts_that_are_generated_at_once_are_as_each_alone(path: Path) -> None:
    prompts = [PROMPT, "To be", "Ein Text äöü", "x"]
    alone = {prompt: tiny("full", eos=()).greedy(TOKENIZER.encode(prompt).ids, 15) for prompt in prompts}
    found = {}
    with Generator(path, feedback=False, slots=2, **QUIET) as generator:

        def generate(prompt: str) -> None:
            generation = generator.generate(prompt, options(15))
            list(generation)
            found[prompt] = generation.tokens

        threads = [threading.Thread(target=generate, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert generator.free_slots == 2
    assert found == alone


def test_texts_end_when_the_generator_is_closed(path: Path) -> None:
    with Generator(path, **QUIET) as generator:
        generation = generator.generate(PROMPT, options(300))
        next(generation)
    assert [piece.finish for piece in generation] == ["stopped"]


def test_a_runtime_says_what_runs_such_a_bundle(path: Path) -> None:
    with Runtime(path, **QUIET) as runtime:
        for run in (lambda: runtime.run(np.zeros((1, 3), np.int64)), lambda: runtime.run_text("Once")):
            with pytest.raises(InputError, match="this bundle generates text; allowed are `sortednet generate`"):
                run()


def test_memory_is_of_sub_models_and_texts_together(path: Path) -> None:
    with Generator(path, memory_mb=200.0, cache_mb=0.04, feedback=False, **QUIET) as generator:
        assert generator.runtime.pool.memory_mb == pytest.approx(199.96)
        generation = generator.generate("x", GenerationOptions(ignore_eos=True))
        list(generation)
        assert generation.finish == "memory"
        assert 0 < generator.cache_used_mb <= 0.04
        with pytest.raises(InputError, match="which is the memory for keys and values"):
            generator.generate("x" * 400)
    with pytest.raises(BudgetError, match="cache_mb = 300: allowed is less than memory_mb = 200"):
        Generator(path, memory_mb=200.0, cache_mb=300.0, **QUIET)
    with pytest.raises(BudgetError, match=r"memory_mb = 0\.01, of which 0\.0025 for keys and values: no sub-model fits"):
        Generator(path, memory_mb=0.01, **QUIET)


@pytest.mark.parametrize(
    ("prompt", "more", "error", "message"),
    [
        ("", {}, InputError, "prompt: is empty"),
        ("a\ud83d", {}, InputError, r"prompt: character 1 is '\\ud83d'"),
        ("a" * 512, {}, InputError, "prompt: 512 tokens; allowed are less than 512, which is the context"),
        ([], {}, InputError, "prompt: no tokens"),
        ([1, 259], {}, InputError, r"prompt\[1\] = 259"),
        (b"bytes", {}, InputError, "prompt: is a bytes"),
        (None, {}, InputError, "prompt: is a NoneType"),
        ([{"role": "user"}], {}, InputError, r"messages\[0\].content = None"),
        ("a", {"options": 3}, InputError, "options = 3"),
        ("a", {"budget": 3}, BudgetError, "budget = 3"),
        ("a", {"budget": Budget(min_accuracy=0.5)}, BudgetError, "min_accuracy"),
    ],
)
def test_bad_input_is_refused_before_the_first_piece(
    generator: Generator, prompt: Any, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generator.generate(prompt, **more)
    assert generator.free_slots == 1


def test_without_tokenizer_template_or_profile(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bare", text=False, template=None, profiled=False)
    with Generator(tmp_path / "bare", **QUIET) as generator:
        generation = generator.generate([1, 2, 3], options(5))
        assert said(generation) == ""
        assert generation.tokens == tiny("full", eos=()).greedy([1, 2, 3], 5)
        for prompt, more, message in [
            ("text", {}, "has no file 'tokenizer.json'"),
            (MESSAGES, {}, "no chat template"),
            ([1], {"options": options(stop=["a"])}, "stop: this bundle has no tokenizer"),
            ([1], {"budget": Budget(token_ms=5.0)}, "has not been measured"),
        ]:
            with pytest.raises((InputError, BundleError, BudgetError), match=message):
                generator.generate(prompt, **more)  # type: ignore[arg-type]
        assert generator.free_slots == 1


def test_another_bundle_generates_no_text(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b")
    bundle = Bundle(tmp_path / "b")
    bundle.manifest = bundle.manifest.model_copy(update={"decoder": None})
    with pytest.raises(BundleError, match="generates no text, its task is language-modelling"):
        Generator(bundle)


@pytest.mark.parametrize("named", [{"slots": 0}, {"slots": True}, {"cache_mb": 0}, {"cache_mb": float("nan")}])
def test_wrong_options_of_the_generator(path: Path, named: dict[str, Any]) -> None:
    (name,) = named
    with pytest.raises(BudgetError, match=f"{name} = "):
        Generator(path, **named)
