"""`Generator`: text from a bundle, by the size that fits what a token may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

from exporter.bundle import Bundle
from selector.choose.budget import Budget, BudgetError, not_a_budget
from selector.run.decode.decoder import check_prompt
from selector.run.decode.drafters import Store
from selector.run.decode.options import GenerationOptions, Mode
from selector.run.generate.choosing import Choice
from selector.run.generate.described import Described
from selector.run.generate.generation import Generation
from selector.run.generate.guessing import Guessing, Lately
from selector.run.generate.prompts import Prompt, Prompts
from selector.run.generate.slots import BusyError, Slot, Slots
from selector.run.inputs import InputError
from selector.run.options import RuntimeOptions
from selector.run.runtime import Runtime

__all__ = ["BusyError", "Generator"]

_NO_LIMITS, _AS_IT_IS = Budget(), GenerationOptions()
_CACHE_SHARE = 0.25
MOST_EARLIER = 2**20


class Generator:
    """A bundle that generates text, on this device: chooses a size for each text and in the middle of it, and learns from what
    tokens take. May be used from several threads at once; `slots` texts are generated at the same time, further ones wait.

    `options` are a `Runtime`'s, each also by its name: device, threads, policy, … `memory_mb` is of the open sub-models and of
    all texts' keys and values together, of which `cache_mb` (default: what a full context of each text takes, but no more than
    a quarter of `memory_mb`). In a `with` statement it is closed at the end.

    `speculative`: which of the bundle's graphs are opened: auto, those that verify guessed tokens where there are some and this
    device computes them exactly; off, the plain ones; ngram, without exits. Each text's options may ask for less.
    `earlier_tokens`: of texts that were generated before, so many are remembered for guessing (0: none), for all who generate.

    Raises BundleError where the bundle generates no text, and what `Runtime` raises.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        options: RuntimeOptions | None = None,
        *,
        slots: int = 1,
        cache_mb: float | None = None,
        speculative: Mode = "auto",
        earlier_tokens: int = 0,
        **named: Any,
    ) -> None:
        if type(slots) is not int or slots < 1:
            raise BudgetError(f"slots = {slots!r}: allowed are whole numbers from 1")
        if isinstance(cache_mb, bool) or not (cache_mb is None or (isinstance(cache_mb, int | float) and 0 < cache_mb < 1e9)):
            raise BudgetError(f"cache_mb = {cache_mb!r}: allowed are finite values above 0, and None")
        if type(earlier_tokens) is not int or not 0 <= earlier_tokens <= MOST_EARLIER:
            raise BudgetError(f"earlier_tokens = {earlier_tokens!r}: allowed are whole numbers from 0 to {MOST_EARLIER}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        verifies = speculative != "off" and any(entry.speculation for entry in self.bundle.submodels.values())
        self.described = Described.of(self.bundle, int(verifies))
        memory_mb = named.get("memory_mb", options.memory_mb if options else None)
        if isinstance(memory_mb, int | float) and memory_mb > 0:
            if cache_mb is None:
                full = max((spec.context + spec.spare) * spec.token_bytes for spec in self.described.specs.values()) / 2**20
                cache_mb = min(slots * full, _CACHE_SHARE * memory_mb)
            if cache_mb >= memory_mb:
                raise BudgetError(f"cache_mb = {cache_mb:g}: allowed is less than memory_mb = {memory_mb:g}")
            named["memory_mb"] = memory_mb - cache_mb
        named["speculative"] = speculative
        named["cache"] = False  # copies of graphs would be as large as the bundle, each
        try:
            self.runtime = Runtime(self.bundle, options, **named)
        except BudgetError as error:
            if not str(error).startswith("memory_mb = ") or cache_mb is None:
                raise
            said = str(error).partition(": ")[2]  # the value there is what was left
            raise BudgetError(f"memory_mb = {memory_mb:g}, of which {cache_mb:g} for keys and values: {said}") from None
        self.prompts = Prompts(self.described)
        self._slots = Slots(self.described, slots, cache_mb)
        self._texts: WeakSet[Generation] = WeakSet()
        self._lately = Lately(Store(earlier_tokens) if earlier_tokens else None)
        self._retired = False

    def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        budget: Budget | None = None,
        *,
        wait_seconds: float | None = None,
    ) -> Generation:
        """Pieces of the text that follows: of a text (`str`), of token ids, or of messages `{"role": …, "content": …}` by the
        bundle's chat template. `budget.first_token_ms` and `token_ms` are limits for this prompt and its context; when nothing
        keeps them the nearest size generates. Waits so long for a slot (None: as long as it takes).

        Raises InputError for a prompt or options that are none, BudgetError as `Runtime.select` does, BusyError where no slot
        becomes free, ModuleNotFoundError where the extra `text` is missing. All before the first piece.
        """
        options, budget = options or _AS_IT_IS, budget or _NO_LIMITS
        if not isinstance(options, GenerationOptions):
            raise InputError(f"options = {options!r}: allowed are GenerationOptions(…)")
        if not isinstance(budget, Budget):
            raise BudgetError(not_a_budget(budget))
        ids = self.prompts.ids(prompt)
        ids = check_prompt(ids, next(iter(self.described.specs.values())))
        if options.stop and not self.prompts.has_text:
            raise InputError("stop: this bundle has no tokenizer; allowed are none")
        detokenizer = self.prompts.detokenizer()
        self._check_guesses(options)
        slot = self._slots.take(ids, wait_seconds)
        try:
            choice = Choice(self.runtime, self.described, budget, ids, slot, Guessing(options, self._lately))
            check_prompt(ids, choice.decoder.spec, slot.most(choice.selection.submodel))
            text = Generation(slot, self._release, choice, ids, options, detokenizer)
        except BaseException:
            self._release(slot)
            raise
        self._texts.add(text)
        return text

    def _check_guesses(self, options: GenerationOptions) -> None:
        """Raises InputError for guesses that no graph of the bundle verifies."""
        opened = self.runtime.options.speculative
        entries = [entry.speculation for entry in self.bundle.submodels.values() if entry.speculation and opened != "off"]
        if options.speculative == "ngram" and not entries:
            raise InputError("speculative = 'ngram': no graph that is open here verifies guesses; allowed are auto, off")
        if any(entry.parts for entry in entries) and opened != "ngram":
            return
        if options.speculative == "exit":
            raise InputError("speculative = 'exit': no graph that is open here has exits; allowed are auto, off, ngram")
        if options.early_exit is not None:
            raise InputError(f"early_exit = {options.early_exit!r}: no graph that is open here has exits; allowed is None")

    @property
    def slots(self) -> int:
        """Texts that can be generated at once."""
        return len(self._slots.all)

    @property
    def free_slots(self) -> int:
        return self._slots.free

    @property
    def cache_used_mb(self) -> float:
        """That keys and values take now."""
        return sum(slot.memory_mb for slot in self._slots.all)

    def rest(self) -> None:
        """Closes every sub-model and forgets what texts are known, as far as none is being generated: it takes no memory until
        there is another one."""
        pool = self.runtime.pool
        most = pool.memory_mb
        pool.limit(0.0)
        pool.limit(most)
        self._slots.forget()

    def retire(self) -> None:
        """Closes it, as soon as no text is being generated."""
        self._retired = True
        if self._slots.free == len(self._slots.all):
            self.runtime.close()

    def _release(self, slot: Slot) -> None:
        self._slots.release(slot)
        if self._retired:
            self.retire()

    def close(self) -> None:
        """Closes every sub-model. Texts that are being generated end as by `Generation.stop`."""
        for text in list(self._texts):
            text.stop()
        self.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
