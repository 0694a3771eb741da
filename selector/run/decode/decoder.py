"""`Decoder`: the loop over a decoder's graph. It takes and gives token ids.

Shapes: B texts, T tokens of each in one call, V tokens of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporter.bundle.session import give_back_memory
from selector.run.decode.buffers import Cache, DecoderSpec
from selector.run.decode.calls import Call, Halt, Halted, Part
from selector.run.decode.options import GenerationOptions
from selector.run.decode.sampling import Sampler
from selector.run.inputs import InputError

if TYPE_CHECKING:
    from selector.run.decode.speculation import Speculation

Array = NDArray[Any]
Finish = Literal["stop", "length", "context", "memory", "stopped"]
"""Why a text ended: its own end or a stop string; `max_tokens`; the model's context; the memory; whoever asked for it."""
PREFILL = 256
"""Tokens of a prompt in one call: half or twice as many are up to 10 % slower, and what a call holds grows with them."""

LONG = 128
"""Tokens of a prompt from which on giving back what they took, 3 ms, is hardly noticed."""


class Rows(NamedTuple):
    """How a token's logits came about."""

    tokens: int = 1  # that were computed in the call; 0: it had been guessed, and computed with one before
    worth: float | None = 1.0  # what the call takes, in calls of one token; None: it is not known


class Step(NamedTuple):
    """One token, and the last one why there is no further one."""

    token: int
    logprob: float | None  # where the options ask for it
    ms: float  # since the step before was taken; of the first one, the prompt's included
    finish: Finish | None = None
    call: Rows = Rows()


@dataclass(frozen=True)
class Decoder:
    """A decoder's graph that is open, with what the loop needs to know of it. For any number of threads, each with its own
    `Cache`."""

    session: ort.InferenceSession
    spec: DecoderSpec
    prefill: int = PREFILL
    above: tuple[Part, ...] = ()
    """Where `session` is the lowest part of the graph: the others."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The graph, or its parts from the lowest on."""
        return (Part(self.session, 0, self.above[0].first if self.above else self.spec.layers), *self.above)

    def cache(self, memory_mb: float | None = None, texts: int = 1) -> Cache:
        """An empty one, for this decoder and for those of fewer layers and the same widths."""
        return Cache(self.spec, memory_mb, texts)

    def generate(
        self,
        prompt: Sequence[int],
        options: GenerationOptions | None = None,
        cache: Cache | None = None,
        sampler: Sampler | None = None,
        halt: Halt | None = None,
        speculation: Speculation | None = None,
    ) -> Iterator[Step]:
        """The tokens that follow the prompt, one by one. What the cache has of the prompt is not computed again; without one
        the text has a cache of its own. `sampler`: one that goes on, in place of a new one. `speculation`: guesses tokens to
        come and verifies several in one call; the text is the same.

        Raises InputError for a prompt that is empty, too long, or holds what is no token id.
        """
        options, halt, cache = options or GenerationOptions(), halt or Halt(), cache or self.cache()
        ids = check_prompt(prompt, self.spec, cache.most)
        return self.go_on(ids, len(ids), options, cache, sampler or Sampler(options, ids), halt, speculation)

    def go_on(
        self,
        ids: Sequence[int],
        prompt_tokens: int,
        options: GenerationOptions,
        cache: Cache,
        sampler: Sampler,
        halt: Halt,
        speculation: Speculation | None = None,
    ) -> Iterator[Step]:
        """The tokens that follow these, of which the first so many are the prompt and the others were generated already."""
        begun, count = time.perf_counter(), len(ids)
        try:
            logits = self.start(list(ids), cache, halt)
            step: OneStep | Speculation = OneStep(self, cache) if speculation is None else speculation
            if speculation is not None:
                speculation.begin(self, cache, ids)
            call = Rows()
            while True:
                token, logprob = sampler(logits)
                count += 1
                finish = self._finish(token, count - prompt_tokens, count, options, cache)
                yield Step(token, logprob, (time.perf_counter() - begun) * 1e3, finish, call)
                begun = time.perf_counter()
                if finish is not None or halt.is_set:
                    return
                if isinstance(step, OneStep):
                    logits = step(token, halt)
                else:
                    left = cache.most - count if options.max_tokens is None else prompt_tokens + options.max_tokens - count
                    logits, call = step(token, halt, min(left, cache.most - count))
        except Halted:
            return

    def _finish(self, token: int, new: int, count: int, options: GenerationOptions, cache: Cache) -> Finish | None:
        """Why the text ends with this token, the so manieth new one; None where it goes on."""
        if token in self.spec.eos and not options.ignore_eos:
            return "stop"
        if new == options.max_tokens:
            return "length"
        if count >= cache.most:
            return "context" if cache.most == self.spec.context else "memory"
        return None

    def start(self, ids: Sequence[int], cache: Cache, halt: Halt | None = None, text: int = 0) -> Array:
        """Logits after these tokens, (V,): computes what the cache lacks of them, at least the last. Raises Halted."""
        halt = halt or Halt()
        cache.grow(len(ids))
        alone = cache.texts == 1
        begun = place = min(cache.keep(ids, self.spec.layers), len(ids) - 1) if alone else 0
        call = None
        while place < len(ids):
            block = ids[place : place + self.prefill]
            if call is None or call.ids.shape[1] != len(block):
                call = Call(self.parts, [buffer[text : text + 1] for buffer in cache.buffers], len(block))
            call.ids[0] = block
            place += len(block)
            call.lengths[0] = place
            if alone:  # a call that is not finished may have written behind the block too, where lower layers knew more
                layers, begins = self.spec.layers, place - len(block)
                cache.known[:layers] = [min(known, begins) for known in cache.known[:layers]]
            call(halt.shrinking if place == len(ids) and len(block) > 1 else halt.plain)
            if alone:
                cache.tokens[place - len(block) :] = block
                cache.known[: self.spec.layers] = [place] * self.spec.layers
        assert call is not None
        logits: Array = call.logits[0, 0]
        if len(ids) - begun >= LONG:
            give_back_memory()
        return logits

    def generate_many(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions | None = None, memory_mb: float | None = None
    ) -> Iterator[tuple[int, Step]]:
        """The tokens that follow each prompt, all texts at once, each as if it were alone: the number of a prompt and its
        next token, round by round. `memory_mb`: of all texts' keys and values. Raises InputError, naming the prompt, as
        `generate` does."""
        options = options or GenerationOptions()
        if self.spec.spare and len(prompts) > 1:
            raise InputError("prompts: several; allowed is one with a graph that verifies drafts")
        if not prompts:
            raise InputError("prompts: none given; allowed is one or more")
        cache, texts = Cache(self.spec, memory_mb, len(prompts)), []
        for number, prompt in enumerate(prompts):
            try:
                texts.append(check_prompt(prompt, self.spec, cache.most))
            except InputError as error:
                raise InputError(f"prompts[{number}]: {error}") from None
        return self._rounds(texts, options, cache)

    def _rounds(self, texts: list[list[int]], options: GenerationOptions, cache: Cache) -> Iterator[tuple[int, Step]]:
        samplers = [Sampler(options, ids) for ids in texts]
        lengths, new = [len(ids) for ids in texts], [0] * len(texts)
        cache.grow(max(lengths))
        begun = time.perf_counter()
        rows = list(range(len(texts)))  # of the buffers: whose text is there
        logits = np.stack([self.start(ids, cache, text=number) for number, ids in enumerate(texts)])
        call: Call | None = None
        while rows:
            drawn = [samplers[number](row) for number, row in zip(rows, logits, strict=True)]
            took = (time.perf_counter() - begun) * 1e3
            left: list[tuple[int, int]] = []  # a row, and the token that goes on there
            for row, (token, logprob) in enumerate(drawn):
                number = rows[row]
                lengths[number] += 1
                new[number] += 1
                finish = self._finish(token, new[number], lengths[number], options, cache)
                yield number, Step(token, logprob, took, finish)
                if finish is None:
                    left.append((row, token))
            begun = time.perf_counter()
            if not left:
                return
            if len(left) < len(rows):  # the rows of those that have ended are of use no more
                for place, (row, _) in enumerate(left):
                    for buffer in cache.buffers if place != row else ():
                        buffer[place] = buffer[row]
                rows, call = [rows[row] for row, _ in left], None
            if cache.grow(max(lengths[number] for number in rows)) or call is None:
                call = Call(self.parts, [buffer[: len(rows)] for buffer in cache.buffers], 1)
            call.ids[:, 0] = [token for _, token in left]
            call.lengths[:] = [lengths[number] for number in rows]
            call(None)
            logits = call.logits[:, 0]


class OneStep:
    """Takes one more token of a text; the inputs and outputs of its calls stay in place."""

    def __init__(self, decoder: Decoder, cache: Cache) -> None:
        self._decoder, self._cache = decoder, cache
        self._call: Call | None = None

    def __call__(self, token: int, halt: Halt) -> Array:
        """Logits after it, (V,); valid until the next call. Raises Halted."""
        cache, layers = self._cache, self._decoder.spec.layers
        length = len(cache.tokens) + 1
        if cache.grow(length) or self._call is None:
            self._call = Call(self._decoder.parts, cache.buffers, 1)
        call = self._call
        call.ids[0, 0], call.lengths[0] = token, length
        call(halt.plain)
        cache.tokens.append(token)
        cache.known[:layers] = [length] * layers
        logits: Array = call.logits[0, 0]
        return logits


def check_prompt(prompt: Sequence[int], spec: DecoderSpec, most: int | None = None) -> list[int]:
    """The prompt's ids, of which a text of at most so many tokens (default: the context) can begin. Raises InputError."""
    most, size = spec.context if most is None else most, spec.vocabulary
    if len(prompt) == 0:
        raise InputError("prompt: no tokens; allowed is one or more")
    if len(prompt) >= most:
        why = "the context" if most == spec.context else "the memory for keys and values"
        raise InputError(f"prompt: {len(prompt)} tokens; allowed are less than {most}, which is {why}")
    for place, token in enumerate(prompt):
        if isinstance(token, bool) or not isinstance(token, int | np.integer) or not 0 <= token < size:
            raise InputError(f"prompt[{place}] = {token!r}: allowed are token ids from 0 to {size - 1}")
    return [int(token) for token in prompt]
