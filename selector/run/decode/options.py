"""`GenerationOptions`: how the next token is drawn, and when a text ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from selector.run.inputs import InputError

MOST_STOPS = 64
Mode = Literal["auto", "off", "ngram", "exit"]
MODES = ("auto", "off", "ngram", "exit")


@dataclass(frozen=True)
class GenerationOptions:
    """Without any: the most probable token each time, until the model ends its text.

    Raises InputError naming the field, its value and what is allowed.
    """

    max_tokens: int | None = None  # None: as many as the context and the memory take
    temperature: float = 0.0  # logits are divided by it; 0: always the most probable token
    top_k: int = 0  # only the so many most probable; 0: all
    top_p: float = 1.0  # of these the fewest whose probabilities add up to it (Holtzman et al. 2020, arXiv 1904.09751)
    min_p: float = 0.0  # only those at least so probable, relative to the most probable (arXiv 2407.01082)
    repetition_penalty: float = 1.0  # above 1: what was there before is less probable (Keskar et al. 2019, arXiv 1909.05858)
    seed: int | None = None  # the same one gives the same tokens on this machine; None: others each time
    stop: Sequence[str] = ()  # the text ends before the first of these
    ignore_eos: bool = False  # goes on after the token that ends a text
    speculative: Mode = "auto"
    """What guesses tokens to come, which are verified several at a time; the text is the same: whatever pays, nothing, what is
    there already (ngram), or the model's own exits. With a `Generator` whose graphs verify."""
    early_exit: float | None = (
        None  # the text is another one: a token of which an exit is so sure is said without the layers above
    )
    logprobs: bool = False  # each step says how probable its token was, before temperature and all that follows it

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, (fits, allowed) in _ALLOWED.items():
            value = getattr(self, name)
            if not fits(value):
                raise InputError(f"{name} = {value!r}: allowed {allowed}")
        object.__setattr__(self, "stop", tuple(self.stop))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _whole(value: object, least: int, most: int = 2**31 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _real(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and least <= value <= most


def _stops(value: object) -> bool:
    listed = isinstance(value, Sequence) and len(value) <= MOST_STOPS
    return listed and all(isinstance(one, str) and one for one in value)  # type: ignore[attr-defined]


_YES_OR_NO: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, bool), "are True and False")
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_tokens": (lambda v: v is None or _whole(v, 1), "are whole numbers from 1, and None"),
    "temperature": (lambda v: _real(v, 0, 100), "are finite values from 0 to 100"),
    "top_k": (lambda v: _whole(v, 0), "are whole numbers from 0, which is all"),
    "top_p": (lambda v: _real(v, 0, 1) and v > 0, "are values above 0 up to 1"),
    "min_p": (lambda v: _real(v, 0, 1), "are values from 0 to 1"),
    "repetition_penalty": (lambda v: _real(v, 0.01, 100), "are finite values from 0.01 to 100"),
    "seed": (lambda v: v is None or _whole(v, -(2**63), 2**64 - 1), "are whole numbers of 64 bits, and None"),
    "stop": (_stops, f"are up to {MOST_STOPS} texts that are not empty"),
    "ignore_eos": _YES_OR_NO,
    "speculative": (lambda v: v in MODES, f"are {', '.join(MODES)}"),
    "early_exit": (lambda v: v is None or (_real(v, 0, 1) and v > 0), "are probabilities above 0 up to 1, and None"),
    "logprobs": _YES_OR_NO,
}
