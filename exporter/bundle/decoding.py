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

        Of a lower segment its hidden state.
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
        self.cache = {
            f"past{name.removeprefix('present')}": array for name, array in found.items() if name.startswith("present.")
        }
        answer: Array = found["logits" if "logits" in found else "hidden"]
        return answer


def text_logits(session: ort.InferenceSession, ids: Array) -> Array:
    """(N, T, V) of token ids (N, T), as a model answers that reads them at once."""
    tokens = ids.shape[1]
    return DecoderCall(session)(ids.astype(np.int64), [tokens] * len(ids), range(tokens))


def spaced(logits: Array, most: int = KEPT) -> Array:
    """At most so many of (N, V), the first and the last among them."""
    count = logits.shape[1]
    return logits if count <= most else logits[:, np.linspace(0, count - 1, most).astype(int)]


def selftest_outputs(
    session: ort.InferenceSession, inputs: dict[str, Array], upper: ort.InferenceSession | None = None, most: int = KEPT
) -> dict[str, Array]:
    """What a graph answers to the self-test's inputs, or two parts of one: `session` is the lower then. `most`: logits."""
    calls, prompt = [DecoderCall(part) for part in (session, upper) if part is not None], inputs[PROMPT]
    count, tokens = prompt.shape

    def answer(value: Array, length: int) -> Array:
        row = value.shape[1] - 1
        for call in calls:
            value = call(value, [length] * count, [row])
        return spaced(value[:, 0], most)

    return {AFTER_PROMPT: answer(prompt, tokens), AFTER_NEXT: answer(inputs[NEXT], tokens + 1)}
