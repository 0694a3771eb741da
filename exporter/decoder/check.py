"""Whether a decoder's graph answers as torch does: texts read at once, in parts, token by token, and several side by side.

Shapes: N texts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort

from exporter.bundle.decoding import DecoderCall
from exporter.decoder.store import Array

PARITY = 1e-3
"""How far logits may be off torch's, relative to the largest: sums of many numbers in another order, layer after layer."""
TOKENS = 24
"""Of the texts that are compared, where the context has room for so many."""


def example_texts(vocabulary: int, context: int, count: int = 2) -> Array:
    """Token ids (count, T), the same each time."""
    tokens = min(TOKENS, context)
    return np.random.default_rng(0).integers(0, vocabulary, (count, tokens), dtype=np.int64)


def problem_of(session: ort.InferenceSession, texts: Array, expected: Array, allowed: float = PARITY) -> str:
    """How the graph's answers to two texts (2, T) differ from torch's (2, T, V), in words; empty if they do not."""
    scale = float(np.abs(expected).max())
    for what, found, wanted in _answers(session, texts, expected):
        error = float(np.abs(found - wanted).max()) / scale
        if not error <= allowed:
            return (
                f"{what}: the graph differs from torch by {error:.2e} relative to the largest logit; allowed is {allowed:.0e}"
            )
    return ""


def _answers(session: ort.InferenceSession, texts: Array, expected: Array) -> Iterator[tuple[str, Array, Array]]:
    """What was asked in words, what the graph says, what torch does."""
    tokens = texts.shape[1]
    whole = DecoderCall(session)(texts, [tokens] * 2, range(tokens))
    yield "two texts at once", whole, expected
    for prompt in sorted({1, tokens // 3, tokens - 4} & set(range(1, tokens))):
        call = DecoderCall(session)
        yield f"a prompt of {prompt} tokens", call(texts[:1, :prompt], [prompt], [prompt - 1])[0, 0], expected[0, prompt - 1]
        for place in range(prompt, min(prompt + 3, tokens)):
            found = call(texts[:1, place : place + 1], [place + 1], [0])[0, 0]
            yield f"token {place} after a prompt of {prompt}", found, expected[0, place]
    half = tokens // 2
    if half < 2:
        return
    call = DecoderCall(session)
    call(texts[:1, :half], [half], [0])
    found = call(texts[:1, half:], [tokens], range(tokens - half))[0]
    yield "a second part of a prompt", found, expected[0, half:]
    call, padded = DecoderCall(session), texts[:, :half].copy()
    padded[1, half - 1 :] = 0
    found = call(padded, [half, half - 1], [half - 1, half - 2])
    yield "two prompts of different lengths", found[[0, 1], [0, 1]], expected[[0, 1], [half - 1, half - 2]]
    for step in range(min(2, tokens - half)):
        places = [half + step, half - 1 + step]
        found = call(texts[[0, 1], places][:, None], [place + 1 for place in places], [0])[:, 0]
        yield "a token of each of two texts of different lengths", found, expected[[0, 1], places]
