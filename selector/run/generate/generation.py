"""`Generation`: one text that is being generated, piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from selector.adapt.energy import Energy
from selector.choose.budget import Selection
from selector.run.decode import Sampler, Step
from selector.run.decode.calls import Halt
from selector.run.decode.decoder import Finish
from selector.run.decode.options import GenerationOptions
from selector.run.decode.speculation import Figures
from selector.run.generate.detokenize import Detokenizer, StopStrings

if TYPE_CHECKING:
    from selector.run.generate.choosing import Choice
    from selector.run.generate.slots import Slot


class Piece(NamedTuple):
    """What one token added."""

    text: str  # may be empty: part of a character, or what may be the beginning of a stop string
    tokens: tuple[int, ...]  # the one; none where the text was ended from outside
    submodel: str
    ms: float  # that it took, of the first one with the prompt; what whoever reads does in between is not counted
    finish: Finish | None = None  # why this is the last piece
    logprob: float | None = None  # where the options ask for it
    guessed: bool = False  # it was computed with one before it


class Switch(NamedTuple):
    """Another size in the middle of a text."""

    token: int  # how many were generated before it
    before: str
    after: str
    computed: int  # tokens whose keys and values the other size lacked
    reason: str


class Generation(Iterator[Piece]):
    """Iterate over it for the pieces; the last one has `finish`. `stop` ends it from any thread, within one token, in the
    middle of a call of the graph: a last piece says "stopped". `close` does so without one. Its slot is free then, as it is at
    the end of the text, of a `with` statement, and when nobody has the iterator any more.
    """

    def __init__(
        self,
        slot: Slot,
        release: Callable[[Slot], None],
        choice: Choice,
        ids: Sequence[int],
        options: GenerationOptions,
        detokenizer: Detokenizer | None,
    ) -> None:
        self.prompt_tokens = len(ids)
        self.reused_tokens = 0  # of the prompt, whose keys and values were there
        self.tokens: list[int] = []  # generated so far, one that ends the text included
        self.switches: list[Switch] = []
        self.first_token_ms: float | None = None
        self.finish: Finish | None = None
        self.selections: list[Selection] = [choice.selection]
        """What generated it, the first one first: as many as there were changes, and one."""
        self._ids = list(ids)
        self._later_ms = 0.0
        self._options, self._choice = options, choice
        self._sampler, self._halt = Sampler(options, ids), Halt()
        self._detokenizer, self._stops = detokenizer, StopStrings(options.stop)
        self._steps: Iterator[Step] | None = None
        self._slot: Slot | None = slot
        self._release = release
        self._running, self._freeing = threading.Lock(), threading.Lock()
        self._closed = False

    @property
    def selection(self) -> Selection:
        """What generates now, and why."""
        return self._choice.selection

    @property
    def energy(self) -> Energy:
        """Estimated millijoules of the prompt and the tokens so far, and where the profile has them from."""
        return self._choice.energy if self.tokens else Energy()

    @property
    def guesses(self) -> Figures:
        """How many tokens were guessed, and how many of them came."""
        return self._choice.guessing.figures

    @property
    def tokens_per_second(self) -> float | None:
        """Of those after the first, what changes of the size took included; None before the second."""
        return (len(self.tokens) - 1) / self._later_ms * 1e3 if self._later_ms > 0 else None

    def __next__(self) -> Piece:
        """Raises StopIteration after the last piece, and what opening a sub-model and its graph raise."""
        with self._running:
            if self._closed or self.finish is not None:
                raise StopIteration
            try:
                piece = self._advance()
            except BaseException:
                self._closed = True
                self._free()
                raise
            if piece.finish is not None:
                self.finish = piece.finish
                self._free()
        if self._closed:  # by another thread, meanwhile
            self.close()
            raise StopIteration
        return piece

    def stop(self) -> None:
        """A last piece follows, unless the text is at its end."""
        self._halt.set()

    def close(self) -> None:
        """No further piece."""
        self._closed = True
        self._halt.set()
        if self._running.acquire(blocking=False):  # otherwise the thread that runs frees the slot in a moment
            try:
                self._free()
            finally:
                self._running.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_freeing"):  # in any thread, in the middle of anything: it takes no lock that others hold for long
            self._free(remember=False)

    def _advance(self) -> Piece:
        if self._steps is None:
            self._steps = self._begun()
        step = None if self._halt.is_set else next(self._steps, None)
        submodel = self._choice.selection.submodel
        if step is None:
            return Piece(self._rest(), (), submodel, 0.0, "stopped")
        self.tokens.append(step.token)
        self._ids.append(step.token)
        text, finish = self._text(step.token, step.finish), step.finish
        if self._stops.found:
            finish = "stop"
        if self.first_token_ms is None:
            self.first_token_ms = step.ms
        else:
            self._later_ms += step.ms
        context = len(self._ids) - 1
        self._choice.took(step.ms, context, step.call)
        if finish is None:
            self._choose_again()
        return Piece(text, (step.token,), submodel, step.ms, finish, step.logprob, step.call.tokens == 0)

    def _text(self, token: int, finish: Finish | None) -> str:
        """What the token adds."""
        if self._detokenizer is None:
            return ""
        ends = finish == "stop"  # a token that says so is no text
        text = "" if ends else self._stops.push(self._detokenizer.push(token))
        return text if finish is None else text + self._rest()

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        return self._stops.push(self._detokenizer.finish()) + self._stops.finish()

    def _begun(self) -> Iterator[Step]:
        """Steps of the size that was chosen, from the text as it stands."""
        assert self._slot is not None
        decoder, cache = self._choice.decoder, self._slot.cache(self._choice.selection.submodel)
        if not self.tokens:
            self.reused_tokens = min(cache.known_of(self._ids, decoder.spec.layers), len(self._ids) - 1)
            self._choice.prompt(len(self._ids) - self.reused_tokens)
        else:
            self._choice.prompt(len(self._ids) - cache.known_of(self._ids, decoder.spec.layers))
        speculation = self._choice.speculation
        return decoder.go_on(self._ids, self.prompt_tokens, self._options, cache, self._sampler, self._halt, speculation)

    def _choose_again(self) -> None:
        """Another size for the tokens to come, where one is better now."""
        assert self._slot is not None
        left = None if self._options.max_tokens is None else self._options.max_tokens - len(self.tokens)
        before = self._choice.selection.submodel
        if not self._choice.again(self._ids, left):
            return
        selection = self._choice.selection
        if selection.submodel != before:  # else it is the same one, as another profile has it
            lacking = len(self._ids) - self._slot.known(selection.submodel, self._ids)
            self.switches.append(Switch(len(self.tokens), before, selection.submodel, lacking, selection.reason))
        self.selections.append(selection)
        self._steps = None

    def _free(self, *, remember: bool = True) -> None:
        with self._freeing:
            slot, self._slot, self._steps = self._slot, None, None
        if slot is not None:
            self._choice.guessing.ended(self._choice.speculation, self.tokens if remember else ())
            self._release(slot)
