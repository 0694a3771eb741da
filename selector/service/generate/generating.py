"""`Generating`: the generators of one process, and how a text gets its turn."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import limits

from device_profiles import Profile
from exporter.bundle import Bundle, BundleError
from selector.choose.budget import Budget, BudgetError, Selection
from selector.choose.profiles import find_profiles
from selector.service.predict.gate import Gate, Overloaded
from selector.service.predict.predictor import RUNTIMES, SHORTEST_MS, Stamp, stamp_of, usable_cores
from selector.service.web.metrics import Metrics
from selector.service.web.problems import Problem, refuse_other_metric, without_folder, wrong_field

if TYPE_CHECKING:  # it imports ONNX Runtime, which must not be there before the server forks
    from selector.run.generate import Generation, GenerationOptions, Generator, Piece
    from selector.run.generate.prompts import Prompt

SLOT_S = 5.0
"""So long a text that has its turn waits for the one before it to give its slot back."""
GUESSED_TOKENS = 256
"""Of a text of which nobody says how long it may become: for the expected wait."""
_OF_INPUTS = {
    "latency_ms": "is of inputs that are run; allowed are first_token_ms and token_ms",
    "length": "is that of the prompt; allowed is none",
    "prompt_tokens": "are those of the prompt; allowed are none",
    "context": "is that of the prompt and what follows it; allowed is none",
}


@dataclass(frozen=True)
class GenerateOptions:
    """Limits of one worker process."""

    max_tokens: int = 4096  # of one text, where the context allows them; also where a request says none
    body_bytes: int = 2 * 2**20  # of a request
    cores: int | None = None  # that texts may keep busy at once; default: as this process may use
    waiting: int | None = None  # requests in the queue; default: four for each core, at most 64
    wait_seconds: float = 10.0  # at most, for a request without `first_token_ms`
    memory_mb: float | None = None  # of each bundle's open sub-models and all its texts' keys and values together
    spinning: bool | None = None  # of the sessions' idle threads; default: as their profiles were measured
    keys: bool = False  # only with a token of the scope `generate`
    rate: str | None = "600 per minute"  # requests of a token, or without keys of an address; None: any number


class RateError(ValueError):
    """A rate that is none."""

    exit_code = 2


def checked_rate(rate: str) -> str:
    """The rate, such as "600 per minute" or "10/second". Raises RateError."""
    try:
        limits.parse(rate)
    except ValueError:
        raise RateError(f"rate = {rate!r}: allowed is such as '600 per minute' or '10/second'") from None
    return rate


class Kept(NamedTuple):
    """A generator, and what it was opened with."""

    stamp: Stamp
    profiles: list[Profile]
    generator: Generator
    cores: int  # that one text keeps busy


class Generating:
    """Made before the server forks, and used after: a generator is opened when its first request comes."""

    def __init__(self, options: GenerateOptions, metrics: Metrics, workers: int = 1) -> None:
        self.options, self.workers = options, workers
        cores = options.cores or max(1, usable_cores() // workers)
        self.gate = Gate(cores, min(4 * cores, 64) if options.waiting is None else options.waiting)
        self._metrics = metrics
        self._kept: dict[tuple[str, str | None], Kept] = {}
        self._opening = threading.Lock()
        self.warming = False

    @property
    def threads(self) -> int:
        """That a server needs for the texts, those that wait, and some more to refuse others."""
        return self.gate.slots + self.gate.waiting + 4

    def begin(
        self,
        bundle: Bundle,
        device: str | None,
        prompt: Prompt,
        options: dict[str, Any],
        budget: Budget,
        received: float,
    ) -> Text:
        """A text whose first token is there, so that whatever is wrong with the request was told by now. `options`: of a
        `GenerationOptions`, by name; `received`: monotonic seconds.

        Raises Overloaded where its turn would not come in time, Problem for a wrong request or an unknown device.
        """
        from selector.run.decode.decoder import check_prompt

        _check(bundle, budget)
        kept = self._opened(bundle, device)
        drawing = self._options(options)
        try:
            ids = kept.generator.prompts.ids(prompt)
            check_prompt(ids, next(iter(kept.generator.described.specs.values())))
        except Exception as error:
            raise _problem(error, bundle) from None
        first_ms, until = budget.first_token_ms, time.monotonic() + self.options.wait_seconds
        if first_ms is not None:
            until = min(until, received + first_ms / 1e3)
        with ExitStack() as stack:
            try:
                expected = min(drawing.max_tokens or GUESSED_TOKENS, GUESSED_TOKENS)
                stack.callback(self.show_load)
                stack.enter_context(self.gate.entered(expected, kept.cores, until))
                self.show_load()
                queued_ms = (time.monotonic() - received) * 1e3
                if first_ms is not None:
                    budget = budget.model_copy(update={"first_token_ms": max(first_ms - queued_ms, SHORTEST_MS)})
                generation = kept.generator.generate(ids, drawing, budget, wait_seconds=SLOT_S)
                stack.callback(generation.close)
                first = next(generation)
            except Overloaded as error:
                self._metrics.text_refused(bundle.name, error.reason)
                raise
            except Exception as error:
                raise _problem(error, bundle) from None
            return Text(self._metrics, bundle.name, generation, first, queued_ms, stack.pop_all())

    def warm(self, bundles: Sequence[Bundle]) -> None:
        """Opens of each bundle that generates text what a request without limits gets, and its tokenizer; `warming` is true
        meanwhile. What cannot be opened is said to whoever asks for it."""
        try:
            for bundle in [one for one in bundles if generates(one)][:RUNTIMES]:
                with suppress(Exception):
                    generator = self._opened(bundle, None).generator
                    chosen = generator.runtime.select(Budget())
                    generator.runtime.program(chosen.submodel, chosen.device)
                    generator.prompts.detokenizer()
        finally:
            self.warming = False

    def show_load(self) -> None:
        """Of this process."""
        self._metrics.texts(self.gate.running, self.gate.queued)

    def opened(self, bundle: Bundle) -> list[Kept]:
        """The bundle's generators in this process."""
        return [kept for (name, _), kept in list(self._kept.items()) if name == bundle.name]

    def _options(self, given: dict[str, Any]) -> GenerationOptions:
        """Raises Problem 422."""
        from selector.run.generate import GenerationOptions
        from selector.run.inputs import InputError

        most = self.options.max_tokens
        asked = given.get("max_tokens")
        if asked is not None and asked > most:
            raise wrong_field("options.max_tokens", asked, f"allowed are 1 to {most} on this service")
        try:
            return GenerationOptions(**{"max_tokens": most, **given})
        except InputError as error:
            field = str(error).partition(" ")[0]
            raise wrong_field(f"options.{field}", given.get(field), str(error), str(error)) from None

    def _opened(self, bundle: Bundle, device: str | None) -> Kept:
        """Opened at the first call for the bundle and profile, and again when the profile was measured anew. Raises Problem."""
        key, stamp = (bundle.name, device), stamp_of(bundle)
        kept = self._kept.get(key)
        if kept is not None and kept.stamp == stamp:
            return kept
        with self._opening:
            kept = self._kept.get(key)
            if kept is None or kept.stamp != stamp:
                before, kept = kept, self._open(bundle, device, stamp)
                self._kept[key] = kept
                if before is not None:
                    before.generator.close()  # texts that it generates end
            return kept

    def _open(self, bundle: Bundle, device: str | None, stamp: Stamp) -> Kept:
        from selector.run.generate import Generator

        if device is not None and device not in bundle.devices():
            raise Problem(404, f"device {device!r}: no profile; there are {', '.join(bundle.devices()) or 'none'}")
        if (bundle.name, device) not in self._kept and len(self._kept) >= RUNTIMES:
            raise Problem(422, f"this server generates with {RUNTIMES} bundles and devices at most")
        try:
            profiles = find_profiles(bundle, device) if device or bundle.devices() else []
            cores = min(profiles[0].device.threads if profiles else self.gate.slots, self.gate.slots)
            slots = max(1, self.gate.slots // max(1, cores))
            more = {"spinning": self.options.spinning, "memory_mb": self.options.memory_mb}
            return Kept(stamp, profiles, Generator(bundle, device=device, slots=slots, **more), max(1, cores))
        except Exception as error:
            raise _problem(error, bundle, opening=True) from None


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
        self._gone = False
        self._lock = threading.Lock()
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        if self._first is not None:
            piece, self._first = self._first, None
            return piece
        try:
            piece = next(self._generation)
        except BaseException:
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
        ended = "gone" if self._gone else generation.finish or "gone"
        first_s = None if generation.first_token_ms is None else (self.queued_ms + generation.first_token_ms) / 1e3
        per_second = None if self._later_ms <= 0 else 1e3 * self._later / self._later_ms
        submodel = generation.selection.submodel
        self._metrics.generated(
            self._bundle, submodel, len(generation.tokens), ended, self.queued_ms / 1e3, first_s, per_second
        )

    @property
    def finish(self) -> str:
        """Why it ended."""
        return self._generation.finish or "stopped"

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
            "first_token_ms": made.first_token_ms or 0.0,
            "token_ms": self._later_ms / self._later if self._later else None,
            "queued_ms": self.queued_ms,
        }


def generates(bundle: Bundle) -> bool:
    """Whether its sub-models generate text."""
    return bundle.manifest.decoder is not None


def _check(bundle: Bundle, budget: Budget) -> None:
    """Raises Problem 422 where the bundle generates no text, or the budget is none of a text."""
    if not generates(bundle):
        kind = bundle.manifest.task.kind
        raise wrong_field("bundle", bundle.name, f"generates no text, its task is {kind}; POST /v1/predict runs inputs")
    refuse_other_metric(budget, bundle.metric)
    for name, why in _OF_INPUTS.items():
        if (value := getattr(budget, name)) is not None:
            raise wrong_field(f"budget.{name}", value, why, f"budget.{name}: {why}")


def _problem(error: Exception, bundle: Bundle, *, opening: bool = False) -> Exception:
    """What to raise in place of an error of the generator; the error itself where nobody can do anything about it."""
    from exporter.bundle.session import SessionError
    from selector.run.generate import BusyError
    from selector.run.inputs import InputError

    if isinstance(error, InputError):
        field = re.match(r"[a-z_]+", str(error))
        return wrong_field(field[0] if field else "prompt", None, str(error), str(error))
    if isinstance(error, BusyError):
        return Overloaded("queue_full", "every slot has a text")
    if isinstance(error, BudgetError) and not opening:
        return wrong_field("budget", None, without_folder(error, bundle))
    if isinstance(error, BundleError | BudgetError):
        return Problem(404 if opening else 500, without_folder(error, bundle))
    if isinstance(error, SessionError):
        return Problem(503, without_folder(error, bundle))
    if isinstance(error, ModuleNotFoundError):
        return Problem(501, f"this service cannot read text: {error.name} is missing; install sortednet[text]")
    return error
