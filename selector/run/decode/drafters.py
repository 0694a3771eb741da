"""Drafters: guess the tokens to come from what is there. One class each: `Suffixes` looks the text up in itself, `Earlier` in
texts that were generated before. What the model guesses itself, by its exits, is in `selector.run.decode.speculation`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple, Protocol

_CLASSES = (1, 2, 3, 4, 6, 9, 14)
"""Lengths of a match from which on what follows it is counted apart: the longer, the more often it is right."""
_LINKS = 24
"""States whose latest place is noted at each token; those beyond are of shorter ends of the text, which are there often."""


class Draft(NamedTuple):
    """Tokens that may come, and what kind of guess it is: acceptance is counted by kind."""

    tokens: Sequence[int]
    kind: str


NONE = Draft((), "")


class Drafter(Protocol):
    """Of one text."""

    def push(self, token: int) -> None:
        """The next token of the text."""

    def draft(self, most: int) -> Draft:
        """At most so many tokens that may follow; NONE where it has no idea."""


class Automaton:
    """All that occurs in a text that grows: a suffix automaton (Blumer et al. 1985), with the latest place where each of its
    states ends. A token costs some microseconds, whatever the text's length."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.next: list[dict[int, int]] = [{}]
        self.link, self.length, self.end = [-1], [0], [0]
        self._last = 0

    def push(self, token: int) -> None:
        self.tokens.append(token)
        following, link, length = self.next, self.link, self.length
        new, state = len(length), self._last
        length.append(length[state] + 1)
        following.append({})
        link.append(0)
        self.end.append(len(self.tokens))
        while state >= 0 and token not in following[state]:
            following[state][token] = new
            state = link[state]
        if state >= 0:
            other = following[state][token]
            if length[state] + 1 == length[other]:
                link[new] = other
            else:
                copy = len(length)
                length.append(length[state] + 1)
                following.append(dict(following[other]))
                link.append(link[other])
                self.end.append(self.end[other])
                while state >= 0 and following[state].get(token) == other:
                    following[state][token] = copy
                    state = link[state]
                link[other] = link[new] = copy
        self._last = new

    def repeated(self) -> tuple[int, int]:
        """The longest end of the text that was there before: how long it is, and behind which token it was latest. (0, 0) where
        not even the last token was. What ends here now is noted: to be asked once for each token."""
        state = self.link[self._last]
        found = (self.length[state], self.end[state]) if state > 0 else (0, 0)
        here = len(self.tokens)
        for _ in range(_LINKS):
            if state <= 0:
                break
            self.end[state] = here
            state = self.link[state]
        return found

    def walk(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """The state of the longest end of another text that is in this one, and how long that is, one token later."""
        while state > 0 and token not in self.next[state]:
            state = self.link[state]
            matched = self.length[state]
        following = self.next[state].get(token)
        return (0, 0) if following is None else (following, matched + 1)


class Suffixes:
    """What followed the longest end of the text where it was there before, in the prompt or in what was generated."""

    name = "ngram"

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._text = Automaton()
        self._found = (0, 0)
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        self._text.push(token)
        self._found = self._text.repeated()

    def draft(self, most: int) -> Draft:
        matched, end = self._found
        if not matched or most < 1:
            return NONE
        text, period = self._text.tokens, len(self._text.tokens) - end
        tokens = [text[end + i % period] for i in range(most)]  # behind the text's end: what repeats itself goes on so
        return Draft(tokens, f"text {_class_of(matched)}")


class Store:
    """Texts that were generated before, at most so many tokens: the oldest are forgotten first. For several texts at once."""

    def __init__(self, tokens: int = 16384) -> None:
        self.most = tokens
        self._texts: deque[tuple[int, ...]] = deque()
        self.automaton = Automaton()
        self._adding = Lock()

    def add(self, tokens: Sequence[int]) -> None:
        """A text that has ended. From any thread; those that read need not wait."""
        with self._adding:
            self._add(tuple(tokens[-self.most // 2 :]))

    def _add(self, kept: tuple[int, ...]) -> None:
        self._texts.append(kept)
        if len(self.automaton.tokens) + len(kept) + 1 <= self.most:
            _append(self.automaton, kept)
            return
        while sum(map(len, self._texts)) + len(self._texts) > self.most // 2 and len(self._texts) > 1:
            self._texts.popleft()
        fresh = Automaton()
        for text in self._texts:
            _append(fresh, text)
        self.automaton = fresh  # whoever reads the old one goes on with it


class Earlier:
    """What followed the end of the text where it was in earlier ones."""

    name = "store"

    def __init__(self, store: Store, tokens: Sequence[int] = ()) -> None:
        self._texts = store.automaton
        self._state = self._matched = 0
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        self._state, self._matched = self._texts.walk(self._state, self._matched, token)

    def draft(self, most: int) -> Draft:
        if self._state <= 0 or most < 1:
            return NONE
        end = self._texts.end[self._state]
        tokens = self._texts.tokens[end : end + most]
        if _BORDER in tokens:
            tokens = tokens[: tokens.index(_BORDER)]
        return Draft(tokens, f"store {_class_of(self._matched)}") if tokens else NONE


_BORDER = -1
"""Between two texts."""


def _append(automaton: Automaton, tokens: Sequence[int]) -> None:
    for token in (*tokens, _BORDER):
        automaton.push(token)
        automaton.repeated()


def _class_of(matched: int) -> int:
    return max(length for length in _CLASSES if length <= matched)
