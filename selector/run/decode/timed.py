"""`TimedDecoder`: what the measuring harness times of a language model, with exactly the calls that generate text."""

from __future__ import annotations

import numpy as np

from selector.run.decode.calls import Halt
from selector.run.decode.decoder import Decoder, OneStep
from selector.run.decode.options import GenerationOptions
from selector.run.decode.sampling import Sampler

_GREEDY = GenerationOptions()


class TimedDecoder:
    """Of a decoder that is open, with a cache of its own. Which tokens are in it changes nothing of what a call takes."""

    def __init__(self, decoder: Decoder, seed: int = 0) -> None:
        self._decoder, self._cache = decoder, decoder.cache()
        spec = decoder.spec
        self._ids: list[int] = np.random.default_rng(seed).integers(spec.vocabulary, size=spec.context).tolist()
        self._sampler, self._halt = Sampler(_GREEDY), Halt()
        self._step, self._room = OneStep(decoder, self._cache), 0

    def prefill(self, tokens: int) -> int:
        """Reads a prompt of so many tokens into an empty cache; the token that follows it."""
        self._cache.keep((), self._decoder.spec.layers)
        return self._sampler(self._decoder.start(self._ids[:tokens], self._cache))[0]

    def step(self, context: int) -> int:
        """Reads a token where so many are in the cache; the one that follows it."""
        cache, layers = self._cache, self._decoder.spec.layers
        cache.grow(context + 1)
        if self._room != cache.room:  # other buffers
            self._step, self._room = OneStep(self._decoder, cache), cache.room
        if len(cache.tokens) != context:
            cache.tokens[:], cache.known[:layers] = self._ids[:context], [context] * layers
        token = self._sampler(self._step(self._ids[context], self._halt))[0]
        cache.tokens.pop()
        return token
