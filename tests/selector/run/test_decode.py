"""The decoding loop against a naive one that computes every token again."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from exporter.bundle import BundleError
from selector.run.decode import Cache, Decoder, GenerationOptions
from selector.run.decode.calls import Call, Halt, Halted
from selector.run.inputs import InputError
from tests.helpers.decoders import Tiny

PROMPT = [3, 17, 42, 9, 9, 21]
PROMPTS = [PROMPT, [1], [5, 6, 7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="module")
def decoder(tiny: Tiny) -> Decoder:
    return tiny.decoder()


def tokens(decoder: Decoder, prompt: list[int], count: int = 12, **options: Any) -> list[int]:
    options = {"max_tokens": count, "ignore_eos": True, **options}
    return [step.token for step in decoder.generate(prompt, GenerationOptions(**options))]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_naive_loops(tiny: Tiny, decoder: Decoder, prompt: list[int]) -> None:
    assert tokens(decoder, prompt, 30) == Tiny(eos=()).greedy(prompt, 30)


@pytest.mark.parametrize("block", [1, 4, 5, 512])
def test_a_prompt_in_blocks_gives_the_same_logits(tiny: Tiny, block: int) -> None:
    decoder = tiny.decoder(prefill=block)
    ids = list(np.random.default_rng(1).integers(0, 63, 17))
    found = decoder.start(ids, decoder.cache())
    np.testing.assert_allclose(found, tiny.logits(ids)[-1], rtol=1e-4, atol=1e-4)


def test_what_the_cache_has_of_a_prompt_is_not_computed_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that goes on, one that goes back, and one that is the same again."""
    from selector.run.decode.calls import Call

    computed: list[int] = []
    plain = Call.__call__

    def counted(call: Any, options: Any) -> None:
        computed.append(call.ids.shape[1])
        plain(call, options)

    monkeypatch.setattr(Call, "__call__", counted)
    decoder = tiny.decoder()
    cache = decoder.cache()
    said = [step.token for step in decoder.generate(PROMPT, GenerationOptions(max_tokens=4, ignore_eos=True), cache)]
    assert computed == [6, 1, 1, 1]
    for prompt, new in [([*PROMPT, *said, 7, 8], 3), ([*PROMPT, 1, 2], 2), ([*PROMPT, 1, 2], 1), (PROMPT[:3], 1)]:
        computed.clear()
        found = decoder.start(prompt, cache)
        assert computed == [new]
        np.testing.assert_allclose(found, tiny.logits(prompt)[-1], rtol=1e-4, atol=1e-4)


def test_sizes_that_differ_in_depth_share_the_lower_layers(tiny: Tiny) -> None:
    """The shallower goes on at once; the deeper one catches up with what its upper layers lack."""
    shallow = Tiny(layers=1)
    large, small = tiny.decoder(), shallow.decoder()
    cache = large.cache()
    large.start(PROMPT, cache)
    text = [*PROMPT, 30, 31, 32]
    np.testing.assert_allclose(small.start(text, cache), shallow.logits(text)[-1], rtol=1e-4, atol=1e-4)
    assert cache.known == [9, 6]
    text += [33]
    np.testing.assert_allclose(large.start(text, cache), tiny.logits(text)[-1], rtol=1e-4, atol=1e-4)
    assert cache.known == [10, 10]


def test_several_texts_at_once_are_as_each_alone(decoder: Decoder) -> None:
    """Greedy and drawn, of different lengths; one that ends early leaves the others as they are."""
    for options in (GenerationOptions(max_tokens=20), GenerationOptions(max_tokens=20, temperature=0.8, seed=3)):
        found = defaultdict(list)
        finished = {}
        for number, step in decoder.generate_many(PROMPTS, options):
            found[number].append(step.token)
            finished[number] = step.finish
        for number, prompt in enumerate(PROMPTS):
            alone = list(decoder.generate(prompt, options))
            assert found[number] == [step.token for step in alone]
            assert finished[number] == alone[-1].finish


def test_one_of_several_texts_ends_before_the_others(tiny: Tiny) -> None:
    first = Tiny(eos=()).greedy(PROMPTS[0], 3)[-1]
    ending = Tiny(eos=(first,))
    found = defaultdict(list)
    for number, step in ending.decoder().generate_many(PROMPTS, GenerationOptions(max_tokens=15)):
        found[number].append(step.token)
    assert found == {number: ending.greedy(prompt, 15) for number, prompt in enumerate(PROMPTS)}
    assert len({len(one) for one in found.values()}) > 1


def test_the_buffers_grow_and_the_text_ends_with_the_context() -> None:
    tiny = Tiny(context=300, eos=())
    decoder = tiny.decoder()
    cache = decoder.cache()
    steps = list(decoder.generate(PROMPT, GenerationOptions(), cache))
    assert [step.finish for step in steps[-2:]] == [None, "context"]
    assert len(steps) + len(PROMPT) == 300
    assert cache.room == 300
    ids = [*PROMPT, *(step.token for step in steps[:-1])]
    np.testing.assert_allclose(decoder.start(ids, cache), tiny.logits(ids)[-1], rtol=1e-3, atol=1e-3)


def test_the_memory_bounds_a_text(tiny: Tiny) -> None:
    decoder = tiny.decoder()
    cache = decoder.cache(memory_mb=40 * tiny.spec.token_bytes / 2**20)
    steps = list(decoder.generate(PROMPT, GenerationOptions(ignore_eos=True), cache))
    assert steps[-1].finish == "memory"
    assert len(steps) + len(PROMPT) == 40
    assert cache.memory_mb <= 40 * tiny.spec.token_bytes / 2**20
    with pytest.raises(InputError, match="prompt: 40 tokens; allowed are less than 40, which is the memory"):
        decoder.generate([1] * 40, None, decoder.cache(memory_mb=40 * tiny.spec.token_bytes / 2**20))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt: no tokens"),
        ([1] * 96, "prompt: 96 tokens; allowed are less than 96, which is the context"),
        ([3, 64], r"prompt\[1\] = 64: allowed are token ids from 0 to 63"),
        ([-1], r"prompt\[0\] = -1: allowed"),
        ([True], r"prompt\[0\] = True: allowed"),
        ([1.0], r"prompt\[0\] = 1.0: allowed"),
    ],
)
def test_a_prompt_that_is_none_is_refused_before_the_first_token(decoder: Decoder, prompt: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoder.generate(prompt)
    with pytest.raises(InputError, match=rf"prompts\[1\]: {message}"):
        decoder.generate_many([[1], prompt])


def test_a_token_that_ends_the_text(tiny: Tiny) -> None:
    last = Tiny(eos=()).greedy(PROMPT, 3)[-1]
    decoder = Tiny(eos=(last,)).decoder()
    steps = list(decoder.generate(PROMPT, GenerationOptions(max_tokens=10)))
    assert [step.finish for step in steps] == [None, None, "stop"]
    assert len(list(decoder.generate(PROMPT, GenerationOptions(max_tokens=10, ignore_eos=True)))) == 10


def test_a_text_is_ended_in_the_middle_of_a_call(tiny: Tiny, decoder: Decoder) -> None:
    halt, cache = Halt(), decoder.cache()
    steps = decoder.generate(PROMPT, GenerationOptions(), cache, halt=halt)
    next(steps)
    known = list(cache.known)
    halt.set()
    assert list(steps) == []
    halted = decoder.generate([*PROMPT, 1, 2, 3], GenerationOptions(), cache, halt=halt)
    assert list(halted) == []  # within the prompt
    assert cache.known == known
    np.testing.assert_allclose(decoder.start(PROMPT, cache), tiny.logits(PROMPT)[-1], rtol=1e-4, atol=1e-4)


def test_how_probable_a_token_was(tiny: Tiny, decoder: Decoder) -> None:
    (step,) = decoder.generate(PROMPT, GenerationOptions(max_tokens=1, temperature=2.0, seed=1, logprobs=True))
    logits = tiny.logits(PROMPT)[-1]
    assert step.logprob == pytest.approx(logits[step.token] - np.log(np.exp(logits).sum()), abs=1e-4)


def test_an_error_of_the_runtime_is_no_fault_of_the_input(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr("onnxruntime.InferenceSession.run_with_iobinding", full)
    with pytest.raises(BundleError, match=r"could not be computed: std::bad_alloc"):
        list(decoder.generate(PROMPT))


def test_buffers_that_could_not_all_grow_do_so_the_next_time(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, plain, asked = tiny.decoder().cache(), Cache._empty, []

    def empty(self: Cache, room: int) -> Any:
        asked.append(room)
        if len(asked) == 3:
            raise MemoryError
        return plain(self, room)

    monkeypatch.setattr(Cache, "_empty", empty)
    with pytest.raises(MemoryError):
        cache.grow(20)
    assert cache.grow(20)
    assert {buffer.shape for buffer in cache.buffers} == {(1, tiny.groups, cache.room, tiny.head_size)}
    assert cache.room >= 20


def test_what_a_call_that_was_ended_has_written_is_not_taken_for_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deeper size catches up: its graph writes a row of zeros behind each block, where the lower layers knew the text."""
    deep, shallow = (Tiny(layers=n, context=700, eos=()).decoder(padded=True) for n in (3, 1))
    ids = np.random.default_rng(3).integers(0, 64, 600).tolist()
    wanted = shallow.start(ids, deep.cache()).copy()
    cache, call = deep.cache(), Call.__call__
    shallow.start(ids, cache)
    with monkeypatch.context() as patch:

        def ended(self: Call, options: Any) -> None:
            call(self, options)
            raise Halted

        patch.setattr(Call, "__call__", ended)
        with pytest.raises(Halted):
            deep.start(ids, cache)
    np.testing.assert_allclose(shallow.start(ids, cache), wanted, atol=1e-5)
