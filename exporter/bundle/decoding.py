"""Calls of a decoder's graph without a loop around it: for its self-test, and to measure its quality.

Shapes: N batch, T tokens of a call, R of them that get logits, V vocabulary, G heads of keys and values, D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]

PROMPT, NEXT = "input_ids", "next_ids"
"""Inputs of the self-test: texts (N, T), and a token (N, 1) that follows each."""
AFTER_PROMPT, AFTER_NEXT = "prefill", "step"
"""Its outputs, (N, K): of the logits of what follows the texts, and of what follows that token, K spaced evenly."""
KEPT = 1024
"""At most so many of them: those of 28 sizes over a vocabulary of 49,152 would take a quarter of what 4-bit weights do."""


class DecoderCall:
    """A text, or several side by side, with the cache of what has been read of them. ONNX Runtime makes a new cache in each
    call: for decoding there is `selector.run.decode`, which keeps it in place."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.names = [output.name for output in session.get_outputs()]
        self._shapes = {i.name: i.shape for i in session.get_inputs() if i.name.startswith("past.")}
        self._given = {i.name for i in session.get_inputs()}
        self.cache: dict[str, Array] = {}

    def __call__(self, first: Array, lengths: Sequence[int], rows: Sequence[int]) -> Array:
        """Logits (N, R, V) after `first`: token ids (N, T), filled up on the right where texts differ in length, or what a
        lower segment gave. `lengths`: of each text after this call, without what fills up; `rows`: which of the T get logits.

        Of a part below another its hidden state.
        """
        count = len(first)
        if not self.cache:
            self.cache = {name: np.zeros((count, s[1], 0, s[3]), np.float32) for name, s in self._shapes.items()}
        feed: dict[str, Array] = {
            "input_ids" if first.ndim == 2 else "hidden": first,
            "seqlens_k": np.array(lengths, dtype=np.int32) - 1,
            "total_length": np.array(max(lengths), dtype=np.int32),
            "rows": np.array(rows, dtype=np.int64),
            **self.cache,
        }
        found = dict(
            zip(self.names, self.session.run(self.names, {n: a for n, a in feed.items() if n in self._given}), strict=True)
        )
        end = max(lengths)  # a graph with padding has a row behind it
        self.cache = {
            f"past{name.removeprefix('present')}": np.ascontiguousarray(array[:, :, :end])
            for name, array in found.items()
            if name.startswith("present.")
        }
        answer: Array = found[self.names[0]]
        return answer

    def pretend(self, tokens: int, rng: np.random.Generator) -> None:
        """As if it had read one text of so many tokens: with random keys and values."""
        shapes = {name: (1, s[1], tokens, s[3]) for name, s in self._shapes.items()}
        self.cache = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def text_logits(session: ort.InferenceSession, ids: Array) -> Array:
    """(N, T, V) of token ids (N, T), as a model answers that reads them at once."""
    tokens = ids.shape[1]
    return DecoderCall(session)(ids.astype(np.int64), [tokens] * len(ids), range(tokens))


def spaced(logits: Array, most: int = KEPT) -> Array:
    """At most so many of (N, V), the first and the last among them."""
    count = logits.shape[1]
    return logits if count <= most else logits[:, np.linspace(0, count - 1, most).astype(int)]


ROWS = (2, 3, 4, 5, 6, 8, 12)
"""Tokens of a call that verifies a draft, the one before it included: few numbers, for each is tested where it is used."""
_BEFORE = 250
"""Tokens of the text that rows are compared behind: attention goes through keys in blocks (of 128 or 256 with ONNX Runtime 1.32
on x86-64), sums within them by eights and more, and these rows lie on both sides of such borders."""


def rows_begin(context: int, rows: Sequence[int] = ROWS) -> int:
    """Where rows are compared, in a text of at most so many tokens."""
    return max(1, min(_BEFORE, context - max(rows)))


def rows_problem(parts: Sequence[ort.InferenceSession], vocabulary: int, context: int, rows: Sequence[int] = ROWS) -> str:
    """How a token's logits, or its keys and values, depend on how many are computed in one call, in words; empty where they do
    not, to the bit, as far as the context has room. `parts`: of one decoder, the lowest first."""
    rng, first = np.random.default_rng(0), rows_begin(context, rows)
    ids = rng.integers(0, vocabulary, (1, first + max(rows)), dtype=np.int64)
    calls = [DecoderCall(part) for part in parts]

    def answer(begin: int, end: int) -> Array:
        value: Array = ids[:, begin:end]
        for call in calls:
            value = call(value, [end], range(end - begin))
        rows: Array = value[0]
        return rows

    fitting = [count for count in rows if first + count <= context]
    for call in calls:  # a text like any other, to the kernels
        call.pretend(first, rng)
    before = [call.cache for call in calls]
    single = [answer(place, place + 1)[0] for place in range(first, first + max(fitting, default=0))]
    known = [call.cache for call in calls]
    for count in fitting:
        for call, cache in zip(calls, before, strict=True):
            call.cache = cache
        found, end = answer(first, first + count), first + count
        off = float(np.abs(found - np.stack(single[:count])).max())
        for call, cache in zip(calls, known, strict=True):
            off = max(off, *(float(np.abs(call.cache[n][:, :, :end] - a[:, :, :end]).max()) for n, a in cache.items()))
        if off != 0:
            return f"{count} tokens in one call differ from one at a time by {off:.1e}"
    return ""


def selftest_outputs(
    session: ort.InferenceSession, inputs: dict[str, Array], *further: ort.InferenceSession, most: int = KEPT
) -> dict[str, Array]:
    """What a graph answers to the self-test's inputs, or several parts of one: `session` is the lowest then. `most`: logits."""
    calls, prompt = [DecoderCall(part) for part in (session, *further)], inputs[PROMPT]
    count, tokens = prompt.shape

    def answer(value: Array, length: int) -> Array:
        row = value.shape[1] - 1
        for call in calls:
            value = call(value, [length] * count, [row])
        return spaced(value[:, 0], most)

    return {AFTER_PROMPT: answer(prompt, tokens), AFTER_NEXT: answer(inputs[NEXT], tokens + 1)}


def padded_outputs(parts: Sequence[ort.InferenceSession], inputs: dict[str, Array], most: int = KEPT) -> dict[str, Array]:
    """The same of graphs that verify drafts, which take one text at a time."""
    each = [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(len(inputs[PROMPT]))]
    found = [selftest_outputs(parts[0], one, *parts[1:], most=most) for one in each]
    return {name: np.concatenate([one[name] for one in found]) for name in (AFTER_PROMPT, AFTER_NEXT)}
