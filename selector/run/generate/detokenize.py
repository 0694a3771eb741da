"""Text of tokens that come one by one: no character is split, and a stop string is found across their borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the library comes with the extra `text`
    from tokenizers import Tokenizer

_UNFINISHED = "\ufffd"
_MOST = 3  # bytes of a character that is not yet whole; some tokenizers show each as one of these


class Detokenizer:
    """Of one text. What `push` gives, one after the other, and `finish` in the end, is the tokenizer's text of all tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self._window: list[int] = []  # tokens from the last but one border of characters on: a first one loses its space
        self._said = ""  # of the window's text, what was handed on
        self._border = 0  # how many of the window's tokens end with a whole character

    def push(self, token: int) -> str:
        """What can be said after this token, without the beginning of a character whose end is still to come."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_UNFINISHED) and not text.startswith(self._said):
            return ""  # byte tokens: with the last character unfinished, those of the whole run are shown so
        whole = len(text)
        while whole > 0 and len(text) - whole < _MOST and text[whole - 1] == _UNFINISHED:
            whole -= 1
        new = text[len(self._said) : whole]
        if new:
            self._said = text[:whole]
        if whole == len(text) and new:
            self._window = self._window[self._border :]
            self._border = len(self._window)
            self._said = self._decode(self._window)
        return new

    def finish(self) -> str:
        """What is left: bytes of a character that never came to its end, as the tokenizer shows them."""
        text: str = self._decode(self._window)[len(self._said) :]
        self._said += text
        return text


class StopStrings:
    """Holds back what may be the beginning of one of these."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What certainly comes before any of them. `found` is set where one is there; what follows it is dropped."""
        if self.found:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        kept = max(_beginning(held, stop) for stop in self._stops)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept]

    def finish(self) -> str:
        """What was held back and became none."""
        held, self._held = self._held, ""
        return held


def _beginning(text: str, stop: str) -> int:
    """Of the text's end, how many characters are the beginning of the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
