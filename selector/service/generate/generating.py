"""`Generating`: the generators of one process, and how a text gets its turn."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import limits

from device_profiles import Profile
from exporter.bundle import Bundle, BundleError
from selector.choose.budget import Budget, BudgetError
from selector.choose.profiles import find_profiles
from selector.service.generate.text import Text
from selector.service.predict.gate import Gate, Overloaded
from selector.service.predict.predictor import SHORTEST_MS, usable_cores
from selector.service.predict.shelf import RUNTIMES, Shelf, Stamp, not_opened
from selector.service.web.metrics import Metrics
from selector.service.web.problems import Problem, refuse_other_metric, without_folder, wrong_field

if TYPE_CHECKING:  # it imports ONNX Runtime, which must not be there before the server forks
    from selector.run.generate import GenerationOptions, Generator
    from selector.run.generate.prompts import Prompt

log = logging.getLogger("sortednet.service")

SLOT_S = 5.0
"""So long a text that has its turn waits for the one before it to give its slot back."""
HISTORY = 300
"""Texts, of each bundle."""
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


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


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
        self._generators: Shelf[Kept] = Shelf(self._open, _retired, alone=options.memory_mb is not None)
        self.history: dict[str, deque[dict[str, Any]]] = {}
        """By bundle: the latest texts, as the dashboard shows them."""
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
        gone: Callable[[], bool] = lambda: False,
    ) -> Text:
        """A text whose first token is there, so that whatever is wrong with the request was told by now. `options`: of a
        `GenerationOptions`, by name; `received`: monotonic seconds; `gone`: whether anybody still waits for it.

        Raises ClientGone where nobody did when its turn came, Overloaded where its turn would not come in time, Problem for a
        wrong request or an unknown device.
        """
        from selector.run.canary import Canary
        from selector.run.decode.decoder import check_prompt

        _check(bundle, budget)
        drawing = self._options(options)
        with ExitStack() as stack, self._counted(bundle):
            kept = stack.enter_context(self._generators.taken(bundle, device))
            try:
                ids = kept.generator.prompts.ids(prompt)
                check_prompt(ids, next(iter(kept.generator.described.specs.values())))
                expected = min(drawing.max_tokens or GUESSED_TOKENS, GUESSED_TOKENS)
                first_ms, until = budget.first_token_ms, time.monotonic() + self.options.wait_seconds
                if first_ms is not None:
                    until = min(until, received + first_ms / 1e3)
                stack.callback(self.show_load)
                stack.enter_context(self.gate.entered(expected, kept.cores, until))
                self.show_load()
                if gone():
                    raise ClientGone
                queued_ms = (time.monotonic() - received) * 1e3
                if first_ms is not None:
                    budget = budget.model_copy(update={"first_token_ms": max(first_ms - queued_ms, SHORTEST_MS)})
                asked = prompt if isinstance(kept.generator, Canary) else ids  # the other version may have another tokenizer
                generation = kept.generator.generate(asked, drawing, budget, wait_seconds=SLOT_S)
                stack.callback(generation.close)
                first = next(generation)
            except (Overloaded, ClientGone):
                raise
            except Exception as error:
                raise _problem(error, bundle, _field_of(prompt)) from None
            text = Text(self._metrics, bundle.name, generation, first, queued_ms, stack.pop_all())
            text.ended = partial(self._keep, bundle.name, kept, budget.token_ms)
            return text

    def _keep(self, bundle: str, kept: Kept, limit_ms: float | None, text: Text) -> None:
        """Of a text that has ended, for the dashboard: as a runtime has its runs, each of one token."""
        runtime, selection, token_ms = kept.generator.runtime, text.selection, text.token_ms
        if token_ms is None:
            return
        battery, controller = runtime.battery(), runtime.controller
        record = {
            "at": time.time(),
            "submodel": selection.submodel,
            "device": selection.device,
            "latency_ms": token_ms,
            "limit_ms": limit_ms,
            "met": None if limit_ms is None else token_ms <= limit_ms,
            "slow_down": 1.0 if controller is None else controller.slow_down(selection.device),
            "battery_percent": None if battery is None else battery.percent,
            "tokens_per_second": 1e3 / token_ms,
        }
        self.history.setdefault(bundle, deque(maxlen=HISTORY)).append(record)

    def warm(self, bundles: Sequence[Bundle]) -> None:
        """Opens of each bundle that generates text what a request without limits gets, and its tokenizer; `warming` is true
        meanwhile. What cannot be opened is said to whoever asks for it."""
        try:
            for bundle in [one for one in bundles if generates(one)][:RUNTIMES]:
                with suppress(Exception), self._generators.taken(bundle, None) as kept:
                    chosen = kept.generator.runtime.select(Budget())
                    kept.generator.runtime.program(chosen.submodel, chosen.device)
                    kept.generator.prompts.detokenizer()
        finally:
            self.warming = False

    def show_load(self) -> None:
        """Of this process."""
        self._metrics.texts(self.gate.running, self.gate.queued)

    def opened(self, bundle: Bundle) -> list[Kept]:
        """The bundle's generators in this process."""
        return self._generators.of(bundle.name)

    def check_tokens(self, asked: int | None, field: str = "options.max_tokens") -> None:
        """Raises Problem 422 where a text, by that field, is to have more than this service allows."""
        most = self.options.max_tokens
        if asked is not None and asked > most:
            raise wrong_field(field, asked, f"allowed are 1 to {most} on this service")

    def _options(self, given: dict[str, Any]) -> GenerationOptions:
        """Raises Problem 422."""
        from selector.run.generate import GenerationOptions
        from selector.run.inputs import InputError

        self.check_tokens(given.get("max_tokens"))
        try:
            return GenerationOptions(**{"max_tokens": self.options.max_tokens, **given})
        except InputError as error:
            field = str(error).partition(" ")[0]
            raise wrong_field(f"options.{field}", given.get(field), str(error), str(error)) from None

    @contextmanager
    def _counted(self, bundle: Bundle) -> Iterator[None]:
        """Who is refused."""
        try:
            yield
        except Overloaded as error:
            self._metrics.text_refused(bundle.name, error.reason)
            raise
        except ClientGone:
            self._metrics.text_refused(bundle.name, "gone")
            raise

    def _open(self, bundle: Bundle, used: Bundle, device: str | None, stamp: Stamp, _: Kept | None) -> Kept:
        from selector.run.generate.canary import opened

        try:
            profiles = find_profiles(used, device) if device or used.devices() else []
            cores = min(profiles[0].device.threads if profiles else self.gate.slots, self.gate.slots)
            slots = max(1, self.gate.slots // max(1, cores))
            more: dict[str, Any] = {"spinning": self.options.spinning, "memory_mb": self.options.memory_mb}
            return Kept(stamp, profiles, opened(bundle, device=device, slots=slots, **more), max(1, cores))
        except (BundleError, BudgetError) as error:
            raise not_opened(error, bundle) from None
        except Exception as error:
            raise _problem(error, bundle) from None


def _retired(_: str, kept: Kept) -> None:
    """Texts that it generates are finished."""
    kept.generator.retire()


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


def _field_of(prompt: Prompt) -> str:
    """That it came in."""
    return "prompt" if isinstance(prompt, str) or not any(isinstance(one, dict) for one in prompt) else "messages"


def _problem(error: Exception, bundle: Bundle, sent: str = "prompt") -> Exception:
    """What to raise in place of an error of the generator; the error itself where nobody can do anything about it. `sent`: the
    field that the prompt came in."""
    from exporter.bundle.session import SessionError
    from selector.run.generate import BusyError, GenerationOptions
    from selector.run.inputs import InputError

    if isinstance(error, InputError):
        said = re.sub(r"^prompt\b", sent, str(error))
        found = re.match(r"[a-z_]+", said)
        field = found[0] if found else sent
        return wrong_field(f"options.{field}" if hasattr(GenerationOptions, field) else field, None, said, said)
    if isinstance(error, BusyError):
        return Overloaded("queue_full", "every slot has a text")
    if isinstance(error, BudgetError):
        return wrong_field("budget", None, without_folder(error, bundle))
    if isinstance(error, BundleError):
        log.error("bundle %s: a text ended before its first token: %s", bundle.name, error)
        return Problem(500, without_folder(error, bundle))
    if isinstance(error, SessionError):
        return Problem(503, without_folder(error, bundle))
    if isinstance(error, ModuleNotFoundError):
        return Problem(501, f"this service cannot read text: {error.name} is missing; install sortednet[text]")
    return error
