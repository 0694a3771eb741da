"""`Speculation`: guesses tokens to come, computes several in one call, and keeps those that the model would have said.

After the token that was taken come k guesses; one call over these k + 1 gives logits after each. The next token is drawn from
the first row as always, by the same random numbers; where it is the first guess, the one after it is drawn from the second row,
and so on. So the text is that of plain decoding, drawn or greedy, as long as a row is the same to the bit however many are
computed with it: `proved` tests it. Guesses that were wrong lie behind the text in the cache, where the next call writes.

Shapes: T tokens of a call, V tokens of the vocabulary, d hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporter.bundle.decoding import ROWS, rows_begin
from selector.run.decode.adaptive import Adaptive, Costs, Exit
from selector.run.decode.buffers import Cache
from selector.run.decode.calls import Halt, PartCall
from selector.run.decode.decoder import Decoder, Rows
from selector.run.decode.drafters import NONE, Drafter, Earlier, Store, Suffixes
from selector.run.decode.options import Mode

Array = NDArray[Any]
_clock = time.thread_time
"""What calls cost is compared with one another: what else the processor does meanwhile is of no interest."""


@dataclass
class Figures:
    """Of one text."""

    mode: str = "off"
    calls: int = 0  # of the whole graph, after the prompt's
    drafted: int = 0  # tokens that were guessed, and computed
    accepted: int = 0  # of these, that came
    by: dict[str, int] = field(default_factory=dict)  # accepted, by who guessed them
    exited: int = 0  # tokens that an exit said, unverified (`early_exit`)
    checked: int = 0  # of these, that the whole model has seen since
    differed: int = 0  # of these, where it thought another one likeliest
    problem: str = ""  # why nothing is guessed

    @property
    def words(self) -> str:
        """What was guessed, and what came of it; empty where nothing was."""
        if self.problem:
            return f"nothing guessed: {self.problem}"
        if self.exited:
            lost = (
                f", of {self.checked} of which the whole model would have said {self.differed} otherwise"
                if self.checked
                else ""
            )
            return f"{self.exited} tokens said by an exit{lost}"
        if not self.drafted:
            return ""
        by = ", ".join(f"{who} {count}" for who, count in self.by.items())
        return f"{self.accepted} of {self.drafted} guesses came{f' ({by})' if by else ''}, in {self.calls} calls"


@dataclass(frozen=True)
class Proved:
    """What the device's own test of a decoder has found."""

    problem: str  # why drafts cannot be verified; empty: they can
    costs: Costs


def proved(decoder: Decoder, head: ort.InferenceSession | None = None) -> Proved:
    """Whether a token's logits, keys and values are the same to the bit however many tokens are computed in one call, for those
    numbers of tokens that are used; and what such calls take here."""
    spec, parts, begin = decoder.spec, decoder.parts, rows_begin(decoder.spec.context)
    rows = [count for count in ROWS if begin + count <= spec.context]
    most = max(rows, default=1)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, spec.vocabulary, begin + most)
    cache = decoder.cache()
    cache.grow(begin + most)
    for buffer in cache.buffers:  # a text like any other, to the kernels
        buffer[:, :, :begin] = rng.standard_normal((*buffer.shape[:2], begin, buffer.shape[3]), dtype=np.float32)
    end = begin + most
    took: list[dict[int, float]] = [{} for _ in parts]

    def computed(calls: list[PartCall], place: int, count: int) -> Array:
        value: Array = ids[None, place : place + count]
        for call, ms in zip(calls, took, strict=True):
            call.given[...] = value
            before = _clock()
            value = call(np.array([place + count], np.int32), None)
            ms[count] = min(ms.get(count, np.inf), (_clock() - before) * 1e3)
        rows: Array = value[0].copy()
        return rows

    one = [PartCall(part, cache.buffers, 1) for part in parts]
    single = np.concatenate([computed(one, place, 1) for place in range(begin, end)])
    known = [buffer[:, :, begin:end].copy() for buffer in cache.buffers]
    problem = ""
    for count in rows:
        calls = [PartCall(part, cache.buffers, count, rows=count) for part in parts]
        for buffer in cache.buffers:
            buffer[:, :, begin:] = 0
        computed(calls, begin, count)  # once more: the first time a number of tokens costs its memory
        found = computed(calls, begin, count)
        same = np.array_equal(found, single[:count]) and all(
            np.array_equal(buffer[:, :, begin : begin + count], kept[:, :, :count])
            for buffer, kept in zip(cache.buffers, known, strict=True)
        )
        if not same:
            off = float(np.abs(found - single[:count]).max())
            problem = f"{count} tokens in one call differ on this device from one at a time, by {off:.1e} of the logits"
            break
    costs = Costs(took)
    if head is not None:
        hidden = np.zeros((1, 1, head.get_inputs()[0].shape[2]), np.float32)
        head.run(None, {"hidden": hidden})
        before = _clock()
        head.run(None, {"hidden": hidden})
        costs.head = (_clock() - before) * 1e3
    return Proved(problem, costs)


class Speculation:
    """Of one text. `head`: an exit's, `hidden` (1, 1, d) → `logits` (1, 1, tokens), where the decoder has parts. `store`: of
    texts that were generated before. `early_exit`: what an exit is so sure of is said without being verified: another text."""

    def __init__(
        self,
        adaptive: Adaptive,
        mode: Mode = "auto",
        *,
        figures: Figures | None = None,
        head: ort.InferenceSession | None = None,
        store: Store | None = None,
        early_exit: float | None = None,
    ) -> None:
        self.figures = figures or Figures()
        self.figures.mode = mode
        self._adaptive, self._mode, self._head, self._store = adaptive, mode, head, store
        self._early = early_exit

    def begin(self, decoder: Decoder, cache: Cache, ids: Sequence[int]) -> None:
        """The text so far, whose keys and values the cache has."""
        self._decoder, self._cache, self._layers = decoder, cache, decoder.spec.layers
        self._calls: dict[tuple[int, int], PartCall] = {}
        self._answers = np.empty((1, self._adaptive.costs.rows[-1], decoder.spec.vocabulary), np.float32)
        self._drafters: list[Drafter] = []
        if self._mode in ("auto", "ngram") and self._early is None:
            self._drafters = [Suffixes(ids), *([Earlier(self._store, ids)] if self._store is not None else [])]
        self._exits = self._head is not None and self._mode in ("auto", "exit") and len(decoder.parts) > 1
        if self._exits:
            for below in range(1, len(decoder.parts)):
                self._adaptive.exits.setdefault(below, Exit())
        self._draft: Sequence[int] = ()
        self._at = 0  # of the draft, how many came
        self._shadow, self._shadow_at = NONE, 0
        self._open: tuple[int, float, str, int] = 1, 0.0, "", 0  # of the latest call: rows, cost, who guessed, exit
        self._logits: Array = np.empty((0, 0))  # of the latest call, (T, V)
        self._pending: list[Array] = []  # hidden states of tokens that an exit said
        self._guess: Array | None = None
        self._room = cache.room

    def __call__(self, token: int, halt: Halt, left: int) -> tuple[Array, Rows]:
        """Logits after the token, (V,), valid until the next call; `left`: tokens that may follow. Raises Halted."""
        self._watch(token)
        cache = self._cache
        if self._at < len(self._draft) and self._draft[self._at] == token:
            self._at += 1
            self._accept(token)
            logits: Array = self._logits[self._at]
            return logits, Rows(0)
        self._close()
        cache.grow(min(len(cache.tokens) + 1 + len(self._pending) + self._adaptive.costs.rows[-1], cache.most))
        if cache.room != self._room:
            self._calls, self._room = {}, cache.room
        if self._early is not None:
            return self._exit_early(token, halt)
        most = min(left - 1, cache.most - len(cache.tokens) - 1, self._adaptive.costs.rows[-1] - 1)
        draft, who = self._looked_up(most)
        begun = _clock()
        below = self._adaptive.exit() if not draft and most > 0 and self._exits else None
        if below is None:
            self._draft, value, first, guessing = draft, np.array([[token, *draft]]), 0, 0.0
        else:
            self._draft, value, guessing = self._guessed(token, below, most, halt)
            first, who = below, "exit"
        rows = len(self._draft) + 1
        self._logits = self._pass(value, first, len(self._decoder.parts), len(cache.tokens) + rows, rows, halt)[0]
        ms, costs = (_clock() - begun) * 1e3, self._adaptive.costs
        if below is None:
            costs.observe(rows, ms)
        self._at = 0
        self._open = rows, ms / costs.plain_ms, who, below or 0
        self.figures.calls += 1
        self.figures.drafted += rows - 1
        self._append(token)
        return self._logits[0], Rows(rows, (guessing + costs.call(rows, first)) / costs.call(1))

    def end(self) -> None:
        """Of the text: its latest call is counted."""
        if hasattr(self, "_open"):
            self._close()

    def _looked_up(self, most: int) -> tuple[Sequence[int], str]:
        """The guesses that are worth a call, and who made them."""
        found = [drafter.draft(most) for drafter in self._drafters] if most > 0 else []
        found = [draft for draft in found if draft.tokens]
        if not found:
            return (), ""
        best = max(found, key=lambda draft: self._adaptive.rates(draft.kind)[0].value)
        count = self._adaptive.length(best.kind, len(best.tokens))
        if count or self._shadow_at >= len(self._shadow.tokens):
            self._shadow, self._shadow_at = best, 0
        return best.tokens[:count], best.kind.partition(" ")[0]

    def _watch(self, token: int) -> None:
        """What came, for the drafters, and for how often they are right."""
        shadow = self._shadow
        if self._shadow_at < len(shadow.tokens):
            right = shadow.tokens[self._shadow_at] == token
            self._adaptive.rates(shadow.kind)[min(self._shadow_at, 1)].add(right)
            self._shadow_at = self._shadow_at + 1 if right else len(shadow.tokens)
        for drafter in self._drafters:
            drafter.push(token)

    def _close(self) -> None:
        """The latest call gave what it gave."""
        rows, cost, who, below = self._open
        if cost:
            self._adaptive.called(self._at + 1, cost)
            if below:
                self._adaptive.exits[below].add(self._at + 1, cost)
            if self._at:
                self.figures.by[who] = self.figures.by.get(who, 0) + self._at
        self._open = rows, 0.0, "", 0
        self._draft, self._at = (), 0

    def _guessed(self, token: int, below: int, most: int, halt: Halt) -> tuple[list[int], Array, float]:
        """Guesses of an exit, as long as they are worth it, the hidden states (1, T, d) of the token and of these, and what the
        costs say that all this takes, in ms."""
        states: list[Array] = []
        draft: list[int] = []
        chance, adaptive, heads = 1.0, self._adaptive, 0
        length = len(self._cache.tokens)
        allowed = adaptive.costs.rows
        while True:
            length += 1
            given = np.array([[draft[-1] if draft else token]])
            states.append(self._pass(given, 0, below, length, 1, halt).copy())
            if len(draft) >= most:
                break
            _, guess, sure = self._said(states[-1])
            heads, chance = heads + 1, chance * sure
            if not adaptive.worth(below, chance, len(draft) + 1):
                break
            draft.append(guess)
        rows = max(count for count in allowed if count <= len(states))
        took = len(states) * adaptive.costs.call(1, 0, below) + heads * adaptive.costs.head
        return draft[: rows - 1], np.concatenate(states[:rows], axis=1), took

    def _said(self, hidden: Array) -> tuple[Array, int, float]:
        """What an exit says after a token: logits, the likeliest token, and its probability among those that its head knows."""
        assert self._head is not None
        logits: Array = self._head.run(None, {"hidden": hidden})[0][0, 0]
        guess = int(logits.argmax())
        return logits, guess, float(1 / np.exp(logits - logits[guess]).sum())

    def _exit_early(self, token: int, halt: Halt) -> tuple[Array, Rows]:
        """Logits of an exit that is sure, else of the whole model, which then also reads what it has missed."""
        parts, pending, cache = len(self._decoder.parts), self._pending, self._cache
        length, below = len(cache.tokens) + 1, min(self._adaptive.exits)
        state = self._pass(np.array([[token]]), 0, below, length, 1, halt).copy()
        logits, _, sure = self._said(state)
        assert self._early is not None
        full = len(pending) + 1 >= self._adaptive.costs.rows[-1]
        if sure >= self._early and not full:
            pending.append(state)
            cache.tokens.append(token)
            cache.known[: self._below(below)] = [length] * self._below(below)
            self.figures.exited += 1
            said = np.full(self._decoder.spec.vocabulary, -np.inf, np.float32)
            said[: len(logits)] = logits
            return said, Rows(1, None)
        rows = len(pending) + 1
        found = self._pass(np.concatenate([*pending, state], axis=1), below, parts, length, rows, halt)[0]
        self.figures.calls += 1
        self.figures.checked += len(pending)
        came = [*cache.tokens[length - rows + 1 :], token]  # the last row says what follows this one
        self.figures.differed += sum(int(row.argmax()) != then for row, then in zip(found[:-1], came, strict=False))
        pending.clear()
        self._append(token)
        return found[-1], Rows(rows, None)

    def _below(self, parts: int) -> int:
        """Layers of the lowest parts."""
        return self._decoder.parts[parts - 1].last

    def _pass(self, value: Array, first: int, last: int, length: int, rows: int, halt: Halt) -> Array:
        """What these parts give: `value` are the ids (1, T) or hidden states (1, T, d) of the text's last T tokens."""
        lengths = np.array([length], np.int32)
        for place in range(first, last):
            call = self._calls.get((place, value.shape[1]))
            if call is None:
                call = PartCall(self._decoder.parts[place], self._cache.buffers, value.shape[1], rows, self._answers)
                self._calls[place, value.shape[1]] = call
            call.given[...] = value
            value = call(lengths, halt.plain)
        return value

    def _accept(self, token: int) -> None:
        self.figures.accepted += 1
        self._append(token)

    def _append(self, token: int) -> None:
        self._cache.tokens.append(token)
        self._cache.known[: self._layers] = [len(self._cache.tokens)] * self._layers
