"""`Guessing`: what guesses the tokens of one text, and what that makes of a choice between sizes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from selector.choose.budget import Budget, Selection
from selector.choose.candidates import Key
from selector.run.decode.adaptive import Adaptive
from selector.run.decode.drafters import Store
from selector.run.decode.opening import DecodingProgram
from selector.run.decode.options import GenerationOptions
from selector.run.decode.speculation import Figures, Speculation
from selector.run.program import Program
from selector.run.runtime import Runtime

_STEPS = 20
"""Of the gain, in one: a budget is the same object as long as it is the same, which the controller knows again."""


@dataclass
class Lately:
    """What texts of late have shown, for those to come. `store`: the texts themselves, where they are remembered."""

    store: Store | None = None
    adaptive: Adaptive | None = None  # of the size that guessed last


class Guessing:
    """Of one text, whichever sizes generate it."""

    def __init__(self, options: GenerationOptions, lately: Lately | None = None) -> None:
        self.figures = Figures(options.speculative)
        self._options, self._lately = options, lately or Lately()
        self._submodels: frozenset[str] = frozenset()
        self._budgets: dict[tuple[int, int], tuple[Budget, Budget]] = {}

    def begun(self, submodel: str, program: DecodingProgram) -> Speculation | None:
        """What guesses while this size generates; None where nothing does."""
        self.figures.problem = program.problem
        verifier, options = program.verifier, self._options
        if verifier is None or (options.speculative == "off" and options.early_exit is None):
            return None
        if options.early_exit is not None and verifier.head is None:
            return None
        self._lately.adaptive = verifier.adaptive
        return Speculation(
            verifier.adaptive,
            "exit" if options.early_exit is not None else options.speculative,
            figures=self.figures,
            head=verifier.head,
            store=self._lately.store,
            early_exit=options.early_exit,
        )

    @property
    def most_tokens(self) -> int | None:
        """That the text may have, behind its prompt; None where nobody says."""
        return self._options.max_tokens

    def gain_of(self, submodel: str) -> float:
        """Tokens of late, for the cost of one, where this size's graphs verify guesses: it is the text that decides, not the
        size."""
        return self.gain if submodel in self._submodels else 1.0

    @property
    def gain(self) -> float:
        """Tokens of late, for the cost of one."""
        found = 1.0 if self._lately.adaptive is None else self._lately.adaptive.gain
        return max(1.0, int(found * _STEPS) / _STEPS)

    def choose(
        self, runtime: Runtime, budget: Budget, among: Collection[Key] | None, *, ahead: bool
    ) -> tuple[Selection, Program]:
        """As `Runtime.choose`; a size whose graphs verify guesses has as much more time for a token as these brought of late:
        it is on one frontier with those that have none."""
        if not self._submodels and self._options.speculative != "off":
            entries = runtime.bundle.submodels.items()
            opened = runtime.options.speculative != "off"
            self._submodels = frozenset(name for name, entry in entries if entry.speculation is not None and opened)
        if budget.token_ms is None or self.gain <= 1 or not self._submodels or runtime.controller is None:
            return runtime.choose(budget, among, ahead=ahead)
        keys = [offer.key for offer in runtime.candidates] if among is None else list(among)
        faster = [key for key in keys if key[0] in self._submodels]
        others = [key for key in keys if key[0] not in self._submodels]
        if not faster:
            return runtime.choose(budget, among, ahead=ahead)
        longer = self._longer(budget)
        found = runtime.select(longer, faster)
        if others:
            other = runtime.select(budget, others)
            if _rank(other) >= _rank(found):
                return runtime.choose(budget, others, ahead=ahead)
        selection, program = runtime.choose(longer, faster, ahead=ahead)
        return selection._replace(reason=f"{selection.reason}; guesses bring {self.gain:.2f} tokens for one of late"), program

    def ended(self, speculation: Speculation | None, tokens: Sequence[int]) -> None:
        """The text, with these tokens generated."""
        if speculation is not None:
            speculation.end()
        if self._lately.store is not None and tokens:
            self._lately.store.add(tokens)

    def _longer(self, budget: Budget) -> Budget:
        key = id(budget), round(self.gain * _STEPS)
        if key not in self._budgets:
            assert budget.token_ms is not None
            longer = budget.model_copy(update={"token_ms": budget.token_ms * self.gain})
            self._budgets = {key: (budget, longer)}  # the first one too, so that its identity stays its own
        return self._budgets[key][1]


def _rank(selection: Selection) -> tuple[bool, float, float]:
    latency = selection.latency_ms if selection.latency_ms is not None else 0.0
    return selection.feasible, selection.quality or 0.0, -latency
