"""Drawn texts whose tokens were guessed: a chi-squared test against the probabilities that plain decoding has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from selector.run.decode import Decoder, GenerationOptions, Sampler
from selector.run.decode.adaptive import Adaptive, Costs
from selector.run.decode.speculation import Speculation

DRAWS, SEED, KEPT = 20_000, 2311, 4
"""Continuations, the seed of the first one, and how many tokens each may be of."""


def p_value(decoder: Decoder) -> float:
    """Drawn with guesses, always guessed: are three tokens as frequent as plain decoding's probabilities say?"""
    rng = np.random.default_rng(SEED)
    statistic, freedom = 0.0, 0
    contexts = [[*words, *words, *words[:-1]] for words in rng.integers(1000, 8000, (4, 4)).tolist()]
    options: dict[str, Any] = {"max_tokens": 3, "ignore_eos": True, "temperature": 1.3, "top_k": KEPT, "top_p": 0.98}
    options["repetition_penalty"] = 1.1
    eager = Adaptive(Costs([dict.fromkeys((1, 2, 3, 4), 1.0)]))
    eager.length = lambda kind, most: min(most, 3)  # type: ignore[method-assign]
    for number, ids in enumerate(contexts):
        cache_, drawn = decoder.cache(), Counter[tuple[int, ...]]()
        for draw in range(DRAWS // len(contexts)):
            asked_ = GenerationOptions(**options, seed=SEED + number * DRAWS + draw)
            steps = decoder.generate(ids, asked_, cache_, speculation=Speculation(eager, "ngram"))
            drawn[tuple(step.token for step in steps)] += 1
        expected = _probabilities(decoder, ids, GenerationOptions(**options))
        assert set(drawn) <= set(expected)
        rare = [0.0, 0.0]
        for text, share in expected.items():
            wanted = share * DRAWS / len(contexts)
            if wanted < 5:
                rare = [rare[0] + wanted, rare[1] + drawn[text]]
                continue
            statistic, freedom = statistic + (drawn[text] - wanted) ** 2 / wanted, freedom + 1
        if rare[0] >= 5:
            statistic, freedom = statistic + (rare[1] - rare[0]) ** 2 / rare[0], freedom + 1
        freedom -= 1
    import torch

    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()))


def _probabilities(decoder: Decoder, ids: list[int], options: GenerationOptions) -> dict[tuple[int, ...], float]:
    """Of every text of three tokens that may be drawn, by plain decoding."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for text, share in found.items():
            logits = decoder.start([*ids, *text], decoder.cache())
            tokens, chances = Sampler(options, [*ids, *text]).distribution(logits)
            longer |= {(*text, int(token)): share * float(chance) for token, chance in zip(tokens, chances, strict=True)}
        found = longer
    return found
