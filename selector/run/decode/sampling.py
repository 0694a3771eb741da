"""`Sampler`: draws the next token from logits.

Shapes: V tokens of the vocabulary, K those that are left.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from exporter.bundle import BundleError
from selector.run.decode.options import GenerationOptions

Logits = NDArray[np.float32]
_FIRST = 64  # tokens that are sorted to begin with where the fewest that reach `top_p` are looked for


class Sampler:
    """For one text: its random numbers, and which tokens it has had. `seen`: those of the prompt."""

    def __init__(self, options: GenerationOptions, seen: Iterable[int] = ()) -> None:
        self.options = options
        seed = None if options.seed is None else options.seed % 2**64
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._penalized = options.repetition_penalty != 1
        self._seen = set(seen) if self._penalized else set()

    def __call__(self, logits: Logits) -> tuple[int, float | None]:
        """The token, and the logarithm of its probability where the options ask for it. Shape (V,).

        Raises BundleError where the logits are no numbers: the weights are damaged, or the processor computes them wrong.
        """
        if self.options.greedy:
            scores = self._penalize(logits)
            token = int(scores.argmax())
            if not isfinite(scores[token]):
                raise BundleError(f"logits: the largest is {scores[token]}; allowed are finite numbers")
        else:
            kept, probabilities = self.distribution(logits)
            place = int(np.searchsorted(np.cumsum(probabilities), self._random.random(), side="right"))
            token = int(kept[min(place, len(kept) - 1)])
        if self._penalized:
            self._seen.add(token)
        return token, logprob(logits, token) if self.options.logprobs else None

    def distribution(self, logits: Logits) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The tokens that may be drawn, and their probabilities; each (K,), the most probable first where some were left out.

        In the order that is usual: penalty, temperature, `top_k`, `top_p`, `min_p`.
        """
        options = self.options
        scores = self._penalize(logits).astype(np.float64)
        highest = scores.max()
        if not isfinite(highest):
            raise BundleError(f"logits: the largest is {highest}; allowed are finite numbers")
        weights = np.exp((scores - highest) / max(options.temperature, 1e-6))
        kept = np.arange(len(weights))
        if options.top_k and options.top_k < len(kept):
            kept = _largest(weights, options.top_k)
        if options.top_p < 1:
            kept = _reaching(weights, kept, options.top_p)
        if options.min_p > 0:
            kept = kept[weights[kept] >= options.min_p * weights.max()]
        probabilities = weights[kept]
        return kept, probabilities / probabilities.sum()

    def _penalize(self, logits: Logits) -> Logits:
        if not self._seen:
            return logits
        places = np.fromiter(self._seen, np.intp, len(self._seen))
        scores, penalty = logits.copy(), self.options.repetition_penalty
        values = scores[places]
        scores[places] = np.where(values < 0, values * penalty, values / penalty)
        return scores


def logprob(logits: Logits, token: int) -> float:
    """The logarithm of the token's probability. Shape (V,)."""
    exact = logits.astype(np.float64)
    highest = exact.max()
    return float(exact[token] - highest - np.log(np.exp(exact - highest).sum()))


def _largest(weights: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The places of the largest, in descending order; of equal ones the first."""
    found = np.argpartition(-weights, count - 1)[:count]
    return found[np.lexsort((found, -weights[found]))]


def _reaching(weights: NDArray[np.float64], kept: NDArray[np.intp], share: float) -> NDArray[np.intp]:
    """The fewest of these whose weights add up to the share of all. Few are sorted first: all 49,152 take 4 ms."""
    own = weights[kept]
    wanted, count = share * own.sum(), min(_FIRST, len(own))
    while True:
        order = _largest(own, count)
        sums = np.cumsum(own[order])
        if sums[-1] >= wanted or count == len(own):
            return kept[order[: int(np.searchsorted(sums, wanted)) + 1]]
        count = min(8 * count, len(own))
