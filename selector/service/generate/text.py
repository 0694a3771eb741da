"""`Text`: one text that a request asked for, from its first token to whatever ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from selector.adapt.energy import Energy
from selector.choose.budget import Selection
from selector.service.web.metrics import Metrics

if TYPE_CHECKING:  # it imports ONNX Runtime, which must not be there before the server forks
    from selector.run.generate import Generation, Piece


class Text(Iterator["Piece"]):
    """One text: iterate over it for the pieces. Its turn is over when it ends, or is closed."""

    def __init__(
        self, metrics: Metrics, bundle: str, generation: Generation, first: Piece, queued_ms: float, turn: ExitStack
    ) -> None:
        self.queued_ms = queued_ms
        self._generation, self._turn = generation, turn
        self._metrics, self._bundle = metrics, bundle
        self._first: Piece | None = first
        self._later_ms, self._later = 0.0, 0
        self._gone = self._failed = False
        self._lock = threading.Lock()
        self._closed = False
        self.ended: Callable[[Text], object] = lambda text: None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        if self._first is not None:
            piece, self._first = self._first, None
            return piece
        try:
            piece = next(self._generation)
        except StopIteration:
            self.close()
            raise
        except BaseException:
            self._failed = True
            self.close()
            raise
        self._later_ms += piece.ms
        self._later += len(piece.tokens)
        return piece

    def gone(self) -> None:
        """Nobody reads it any more."""
        self._gone = True
        self.close()

    def close(self) -> None:
        """Gives its turn to the next one; once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._turn.close()
        generation = self._generation
        ended = "gone" if self._gone else "failed" if self._failed else generation.finish or "gone"
        first_s = None if generation.first_token_ms is None else (self.queued_ms + generation.first_token_ms) / 1e3
        per_second = 1e3 / self.token_ms if self.token_ms else None
        submodel = generation.selection.submodel
        self._metrics.generated(
            self._bundle, submodel, len(generation.tokens), ended, self.queued_ms / 1e3, first_s, per_second
        )
        self._metrics.guessed(self._bundle, generation.guesses.drafted, generation.guesses.accepted)
        self.ended(self)

    @property
    def finish(self) -> str:
        """Why it ended."""
        return self._generation.finish or "stopped"

    @property
    def token_ms(self) -> float | None:
        """The mean, of the tokens after the first; None where there are none."""
        return self._later_ms / self._later if self._later else None

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, of the text, and those of the prompt that were known before."""
        made = self._generation
        return {
            "prompt_tokens": made.prompt_tokens,
            "completion_tokens": len(made.tokens),
            "reused_tokens": made.reused_tokens,
        }

    @property
    def energy(self) -> Energy:
        """Estimated, of the prompt and the text so far."""
        return self._generation.energy

    @property
    def selection(self) -> Selection:
        """What generated last, and why."""
        return self._generation.selection

    def document(self) -> dict[str, Any]:
        """An `EndDocument`, as JSON values."""
        made = self._generation
        return {
            "finish": self.finish,
            "usage": self.usage,
            "selection": made.selection.document(),
            "switches": [switch._asdict() for switch in made.switches],
            "guesses": asdict(made.guesses),
            "first_token_ms": made.first_token_ms or 0.0,
            "token_ms": self.token_ms,
            "queued_ms": self.queued_ms,
            "energy_mj": self.energy.mj,
            "energy_source": self.energy.source,
        }
