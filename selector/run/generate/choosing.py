"""`Choice`: which size generates a text now, and whether another one pays for the tokens to come.

Changing the size costs the keys and values that the other one lacks. Where only depth differs a smaller one lacks none: its
layers are the lower ones of the larger. Any other computes the whole text again, which is some tokens' time for each hundred
that are there. So another size is taken where that wait is short, measured by what is left of the text, and the rest with it is
within the limit; or else the best that lacks nothing and keeps the limit; or, where none does, what comes to the end first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from device_profiles.lengths import bucket
from exporter.bundle import BundleError
from exporter.bundle.session import SessionError
from selector.adapt.energy import NONE_YET, added
from selector.choose.budget import Budget, Selection
from selector.choose.candidates import Key
from selector.choose.clock import seconds
from selector.run.decode import Decoder
from selector.run.decode.decoder import Rows
from selector.run.decode.opening import DecodingProgram
from selector.run.decode.speculation import Speculation
from selector.run.generate.described import Described
from selector.run.generate.guessing import Guessing
from selector.run.generate.slots import Slot
from selector.run.inputs import InputError
from selector.run.program import GraphProgram, Program
from selector.run.runtime import Runtime

log = logging.getLogger("sortednet.generate")

HORIZON = 128
"""Tokens that are taken to be left where nobody says how many."""
WAIT, WAIT_SHARE = 5, 0.1
"""Tokens' time, and share of that of those to come, in which nothing is said for another size's keys and values."""
EVERY = 4
"""Tokens between two looks whether another size is better now."""
PLANNED = 64
"""Tokens between two choices by a battery plan, which mixes sizes: each change costs."""


class Choice:
    """Of one text."""

    def __init__(
        self,
        runtime: Runtime,
        described: Described,
        budget: Budget,
        ids: Sequence[int],
        slot: Slot,
        guessing: Guessing,
    ) -> None:
        """`ids`: of the prompt. Raises what `Runtime.choose` raises."""
        self._runtime, self._described, self.guessing = runtime, described, guessing
        self._budget, self._slot = budget, slot
        self._knows_tokens = bool(runtime.candidates.contexts)
        self._prompt_tokens: int | None = None
        self._stays = False
        self._ahead = budget.run_ms is not None or budget.plan is not None
        """Without a limit the size hardly ever changes, and each that is open holds its weights once more."""
        self._latest_ms = 0.0
        selection, program = self._first(ids, len(ids) - slot.longest(ids))
        if slot.known(selection.submodel, ids) < slot.longest(ids):  # it is another one that has the prompt's beginning
            selection, program = self._first(ids, len(ids))
        self.selection: Selection = selection
        self.decoder, self.speculation = self._opened(selection.submodel, program)
        self.energy = NONE_YET
        """Estimated, of what was generated so far and its prompt."""
        self._later: tuple[int, Budget] = 0, budget
        self._in_time = self._first_tokens_within(len(ids) - slot.known(selection.submodel, ids))

    def _first(self, ids: Sequence[int], computed: int) -> tuple[Selection, Program]:
        budget = self._budget
        if self._knows_tokens:
            budget = budget.model_copy(update={"prompt_tokens": max(1, computed), "context": len(ids)})
        return self.guessing.choose(self._runtime, budget, self._with_room(len(ids)), ahead=self._ahead)

    def _with_room(self, tokens: int) -> list[Key] | None:
        """What has memory for the keys and values of so many and of those to come; of none has, for these. None: any."""
        keys = [offer.key for offer in self._runtime.candidates]
        for needed in (tokens + min(self.guessing.most_tokens or HORIZON, HORIZON), tokens + 1):
            found = [key for key in keys if key[0] not in self._described.specs or self._slot.most(key[0]) >= needed]
            if found:
                return found if len(found) < len(keys) else None
        return None

    def _first_tokens_within(self, computed: int) -> list[Key] | None:
        """What is no larger than the limit of the first token allowed: when that is there, nothing else makes the text larger.
        None where there is no such limit."""
        limit = self._budget.first_token_ms
        if limit is None:
            return None
        curves = self._runtime.candidates.decoding
        first = self.selection.submodel, self.selection.device
        return [key for key, its in curves.items() if key == first or its.prefill.at(max(1, computed)) <= limit]

    def prompt(self, computed: int) -> None:
        """So many tokens are computed before the next one: its time is no token's."""
        self._prompt_tokens = computed

    def took(self, ms: float, context: int, call: Rows) -> None:
        """A token took so long, with so many before it. Where several were computed at once, the size learns from what one of
        them would have taken."""
        controller, computed = self._runtime.controller, self._prompt_tokens
        known = call.tokens > 0 and call.worth is not None
        if known:
            ms /= call.worth or 1.0
            self._latest_ms = ms / self.guessing.gain_of(self.selection.submodel)
        self._prompt_tokens = None
        key = self.selection.submodel, self.selection.device
        length = context if self._knows_tokens else None
        worth = 1.0
        curves = self._runtime.candidates.decoding.get(key)
        if computed is not None and computed > 1 and curves is not None:
            worth += curves.prompt_worth(computed)
        self.energy = added(self.energy, self._runtime.energies.of(key, worth, length, lasts=self._budget.lasts))
        if controller is None:
            return
        with self._runtime.learning:
            controller.spent(self.selection, worth, length)
            if computed is None and known and self._runtime.options.feedback:
                controller.observe(self.selection, ms, seconds(), length=length)

    def again(self, ids: Sequence[int], left: int | None) -> bool:
        """Chooses for the rest of a text of these tokens; whether it is another size now. `left`: tokens to come at most."""
        if self._runtime.controller is None or self._stays or not self._due(len(ids)):
            return False
        try:
            budget = self._budget_at(len(ids))
            wanted, program = self.guessing.choose(self._runtime, budget, self._in_time, ahead=self._ahead)
            if self._goes_on(wanted):
                return False
            if len(ids) - self._slot.known(wanted.submodel, ids) > 1:
                wanted, program = self._worth_it(wanted, program, ids, HORIZON if left is None else left)
            if self._goes_on(wanted):
                return False
            to_come = len(ids) + (HORIZON if left is None else left)
            if self._slot.most(wanted.submodel) < min(to_come, self._slot.most(self.selection.submodel)):
                return False  # its larger keys and values would end the text
            decoder, speculation = self._opened(wanted.submodel, program)
        except (BundleError, SessionError, InputError, MemoryError) as error:  # of the other one: no reason to end the text
            log.warning("%s goes on: %s", self.selection.submodel, error)
            self._stays = True
            return False
        if self.speculation is not None:
            self.speculation.end()
        self.selection, self.decoder, self.speculation = wanted, decoder, speculation
        return True

    def _goes_on(self, wanted: Selection) -> bool:
        """Whether it is the present one, in the same profile: then it is the selection, for what it says of this moment."""
        same = (wanted.submodel, wanted.device) == (self.selection.submodel, self.selection.device)
        if same:
            self.selection = wanted
        return same

    def _opened(self, submodel: str, program: Program) -> tuple[Decoder, Speculation | None]:
        """Of a sub-model that is open: what generates, and what guesses."""
        assert isinstance(program, GraphProgram)
        spec = self._described.specs[submodel]
        guesses = program if isinstance(program, DecodingProgram) else None
        decoder = guesses.decoder(spec) if guesses else Decoder(program.session, spec)
        self._described.prove(submodel, decoder)
        return decoder, self.guessing.begun(submodel, guesses) if guesses else None

    def _due(self, tokens: int) -> bool:
        """Whether it is time to look: at once after a token that took too long, for a choice takes as long as a hundredth of a
        token of a small model."""
        if self._budget.plan is not None:
            return tokens % PLANNED == 0
        limit = self._budget.run_ms
        return tokens % EVERY == 0 or (limit is not None and self._latest_ms > limit)

    def _budget_at(self, tokens: int) -> Budget:
        """Of one further token; the same object as long as it is the same, which the controller knows again."""
        end = bucket(tokens) if self._knows_tokens else 1
        if self._later[0] != end:
            changed = {"first_token_ms": None, "prompt_tokens": None}
            at = {"context": end} if self._knows_tokens else {}
            self._later = end, self._budget.model_copy(update={**changed, **at})
        return self._later[1]

    def _worth_it(self, wanted: Selection, program: Program, ids: Sequence[int], left: int) -> tuple[Selection, Program]:
        """This one, which lacks keys and values, or the best of those that lack none."""
        curves = self._runtime.candidates.decoding.get((wanted.submodel, wanted.device))
        limit, controller = self._budget.run_ms, self._runtime.controller
        if curves is None or controller is None or wanted.latency_ms is None or limit is None:
            return wanted, program
        lacking = len(ids) - self._slot.known(wanted.submodel, ids)
        wait = controller.slow_down(wanted.device) * curves.prefill.at(lacking)
        total = wait + left * wanted.latency_ms
        if wait <= max(WAIT, WAIT_SHARE * left) * limit and total <= left * limit:
            return wanted, program
        free, its = self._runtime.choose(self._budget_at(len(ids)), self._lacking_nothing(ids), ahead=self._ahead)
        if free.feasible or free.latency_ms is None or left * free.latency_ms <= total:
            return free, its
        return wanted, program

    def _lacking_nothing(self, ids: Sequence[int]) -> list[Key]:
        """The present one, and those whose layers are the lower ones of one that has all of the text but its last token."""
        keys = self._in_time or [offer.key for offer in self._runtime.candidates]
        return [key for key in keys if key[0] in self._described.specs and self._slot.known(key[0], ids) >= len(ids) - 1]
