"""`Predictor`: the runtimes of one process, and how a request gets its turn in time."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from device_profiles import Profile
from exporter.bundle import Bundle, BundleError
from selector.choose.budget import Budget, BudgetError, Selection
from selector.choose.cascades import Cascade, read_cascades
from selector.choose.profiles import find_profiles
from selector.choose.saving import first_feasible
from selector.service.predict.arrays import Array, ShapeLimits
from selector.service.predict.gate import Gate, Overloaded
from selector.service.predict.schemas import PredictQuery
from selector.service.predict.shelf import RUNTIMES, Shelf, Stamp, not_opened
from selector.service.predict.texts import encoded
from selector.service.web.metrics import Metrics
from selector.service.web.problems import Problem, refuse_other_metric, refuse_tokens, without_folder, wrong_field

if TYPE_CHECKING:  # it imports ONNX Runtime, which must not be there before the server forks
    from selector.run import Encoded, RunResult, Runtime, TextReader

GAUGES_S = 1.0  # after so long a run says anew how this process is doing
SHORTEST_MS = 1e-6
READING_S = 0.005  # so much of what a request took before its run is the service's own work, and not waiting
NEAREST_S = 0.1  # so long a request may wait whose deadline nothing meets even without waiting


@dataclass(frozen=True)
class PredictOptions:
    """Limits of one worker process."""

    examples: int = 64  # in one request
    free_axis: int = 4096  # the largest size of any other free axis, such as the length of a text
    body_bytes: int = 16 * 2**20  # of .npy and .npz, also unpacked
    json_bytes: int = 4 * 2**20  # lists of numbers take many times their text in memory
    text_characters: int = 2**18  # of all texts of a request; making tokens of so many takes a quarter of a second
    cores: int | None = None  # that runs may use at once; default: as this process may use
    waiting: int | None = None  # requests in the queue; default: four for each core, at most 64
    wait_seconds: float = 10.0  # at most, for a request without a deadline
    spinning: bool | None = None  # of the sessions' idle threads; default: as their profiles were measured

    @property
    def shapes(self) -> ShapeLimits:
        return ShapeLimits(self.examples, self.free_axis, self.body_bytes)


class Prediction(NamedTuple):
    outputs: Mapping[str, Array]
    selection: Selection
    latency_ms: float
    queued_ms: float
    texts: Encoded | None = None  # where it was of texts
    energy_mj: float | None = None  # of the whole batch, estimated
    energy_source: str = "unknown"


class Kept(NamedTuple):
    """A runtime, and what it was opened with."""

    stamp: Stamp
    profiles: list[Profile]
    cascades: list[Cascade]
    runtime: Runtime

    @property
    def device(self) -> str:
        return self.profiles[0].device.name if self.profiles else ""


class Predictor:
    """Made before the server forks, and used after: a runtime is opened when its first request comes."""

    def __init__(self, options: PredictOptions, metrics: Metrics, workers: int = 1) -> None:
        self.options, self.workers = options, workers
        cores = options.cores or max(1, usable_cores() // workers)
        self.gate = Gate(cores, min(4 * cores, 64) if options.waiting is None else options.waiting)
        self.deadlines: dict[str, Counter[str]] = defaultdict(Counter)  # by bundle: met, missed, refused
        self._metrics = metrics
        self._runtimes: Shelf[Kept] = Shelf(self._open, self._close)
        self._readers: dict[str, tuple[str, TextReader]] = {}  # of the manifest with that hash
        self._gauges_until = 0.0
        self.warming = False

    @property
    def threads(self) -> int:
        """That a server needs so that one is free to refuse, or to answer something else, when all places are taken."""
        return self.gate.slots + self.gate.waiting + 4

    def predict(
        self,
        bundle: Bundle,
        query: PredictQuery,
        inputs: Mapping[str, Array] | Encoded,
        received: float,
        begun: float | None = None,
    ) -> Prediction:
        """Runs what fits the budget less what the request has waited since it was received (monotonic seconds).

        What was done with it since `begun` is no waiting: a deadline that only that made impossible is answered by the
        nearest, as one that nothing meets. Raises Overloaded where that cannot be in time, Problem for wrong inputs or an
        unknown device.
        """
        from selector.run.inputs import InputError, check_inputs

        _refuse_text(bundle)
        try:
            feed = check_inputs(bundle, inputs) if isinstance(inputs, Mapping) else inputs
        except InputError as error:
            raise input_problem(str(error)) from None
        refuse_other_metric(query.budget, bundle.metric)
        refuse_tokens(query.budget, "is of text that is generated, not of inputs that are run; allowed is latency_ms")
        limit = query.budget.latency_ms
        begun = time.monotonic() if begun is None else begun
        try:
            with self._runtimes.taken(bundle, query.device) as kept:
                result, examples, queued_ms = self._in_turn(kept, bundle, query, feed, received, begun)
        except Overloaded as error:
            self.deadlines[bundle.name]["refused"] += 1
            self._metrics.refused(bundle.name, error.reason)
            raise
        self._note(bundle.name, result, examples, queued_ms, limit)
        return Prediction(result.outputs, result.selection, result.latency_ms, queued_ms, result.texts, *result.energy)

    def _in_turn(
        self,
        kept: Kept,
        bundle: Bundle,
        query: PredictQuery,
        feed: dict[str, Array] | Encoded,
        received: float,
        begun: float,
    ) -> tuple[RunResult, int, float]:
        """The result, of how many examples, and how long they waited (ms). Raises Overloaded and Problem."""
        from selector.run.inputs import examples_in

        limit, now = query.budget.latency_ms, time.monotonic()
        lengths = kept.runtime.lengths
        longest = feed if isinstance(feed, Mapping) else feed.rows(feed.batches()[-1])
        query = query.model_copy(update={"budget": lengths.budget(query.budget, lengths.of_feed(longest))})
        cores = kept.profiles[0].device.threads if kept.profiles else self.gate.slots  # that a run keeps busy
        examples = examples_in(bundle, feed) if isinstance(feed, Mapping) else len(feed)
        until = now + self.options.wait_seconds
        if limit is not None:
            reading_ms = min(now - begun, READING_S) * 1e3
            least_ms = _least_ms(kept.runtime, query.budget, examples)
            if least_ms == 0 or limit - reading_ms < least_ms:  # the nearest will do, where it need not wait
                until = min(until, now + NEAREST_S)
            elif now >= received + limit / 1e3:
                raise Overloaded("deadline_passed", "the deadline had passed before the request could be looked at")
            else:  # less what even the fastest takes: to begin later is in vain
                until = min(until, max(received + (limit - least_ms) / 1e3, now + READING_S))
        asked = time.monotonic()
        with self.gate.entered(examples, max(1, cores), until):
            entered = time.monotonic()
            queued_ms = (entered - received) * 1e3
            own_ms = min(entered - begun - (entered - asked), READING_S) * 1e3
            try:
                return self._run(kept.runtime, query, feed, examples, queued_ms, own_ms), examples, queued_ms
            except BudgetError as error:
                raise wrong_field("budget", None, without_folder(error, bundle)) from None

    def encoded(self, bundle: Bundle, texts: Sequence[Any]) -> Encoded:
        """The texts, or pairs of them, for `predict`. Raises Problem."""
        _refuse_text(bundle)
        return encoded(bundle, self._reader, texts, self.options)

    def _reader(self, bundle: Bundle) -> TextReader:
        """One for all runtimes of a bundle: a tokenizer takes tens of megabytes. Raises what `TextReader` raises."""
        from selector.run.text import TextReader

        stamp, kept = self._readers.get(bundle.name, ("", None))
        if kept is None or stamp != bundle.manifest.sha256:
            kept = TextReader(bundle)
            self._readers[bundle.name] = bundle.manifest.sha256, kept
        return kept

    def warm(self, bundles: Sequence[Bundle]) -> None:
        """Opens of each bundle what a request without limits gets, so that the first one does not wait for that; `warming` is
        true meanwhile. What cannot be opened is said to whoever asks for it."""
        from selector.run.inputs import InputError

        try:
            for bundle in [one for one in bundles if one.manifest.decoder is None][:RUNTIMES]:
                with suppress(Problem, BundleError, BudgetError), self._runtimes.taken(bundle, None) as kept:
                    chosen = kept.runtime.select(Budget())
                    kept.runtime.program(chosen.submodel, chosen.device)
                if any(spec.get("kind") == "text" for spec in bundle.manifest.preprocessing.values()):
                    with suppress(InputError, BundleError, ModuleNotFoundError):
                        self._reader(bundle)
        finally:
            self.warming = False

    def opened(self, bundle: Bundle) -> list[Kept]:
        """The bundle's runtimes in this process."""
        return self._runtimes.of(bundle.name)

    def update_gauges(self) -> None:
        """What can change without a request: of this process, whose gauges the other workers show as it left them."""
        self._gauges_until = time.monotonic() + GAUGES_S
        self._metrics.load(self.gate.running, self.gate.queued)
        for name in self._runtimes.bundles():
            runtimes = [kept.runtime for kept in self._runtimes.of(name)]
            pools = [runtime.pool for runtime in runtimes]
            self._metrics.sessions(name, sum(len(p.loaded) for p in pools), sum(p.memory_used_mb for p in pools) * 2**20)
            battery = runtimes[0].battery() if runtimes else None
            if battery is not None:
                self._metrics.battery(name, battery.percent)
            for runtime in runtimes:
                if runtime.controller is not None:
                    for device in runtime.controller.slow_downs:
                        self._metrics.slow_down(name, device, runtime.controller.slow_down(device))

    def _open(self, bundle: Bundle, used: Bundle, device: str | None, stamp: Stamp, kept: Kept | None) -> Kept:
        from exporter.bundle.session import SessionError
        from selector.run.canary import opened

        try:
            cascades = read_cascades(used)
        except BudgetError as error:
            raise Problem(500, f"bundle {bundle.name!r}: {error}") from None
        try:
            profiles = find_profiles(used, device) if device or used.devices() else []
            same = kept is not None and kept.stamp[0] == stamp[0]
            if kept is not None and same and (kept.profiles, kept.cascades) == (profiles, cascades):
                return kept._replace(stamp=stamp)
            return Kept(stamp, profiles, cascades, opened(bundle, device=device, spinning=self.options.spinning))
        except (BundleError, BudgetError) as error:
            raise not_opened(error, bundle) from None
        except SessionError as error:
            raise Problem(503, f"device {device!r}: {error}") from None

    def _close(self, bundle: str, kept: Kept) -> None:
        """Unless what is in its place is the same runtime; its runs in flight finish."""
        runtimes = [other.runtime for other in self._runtimes.of(bundle)]
        if all(runtime is not kept.runtime for runtime in runtimes):
            kept.runtime.close()
        if not runtimes:
            self._metrics.sessions(bundle, 0, 0)

    def _run(
        self,
        runtime: Runtime,
        query: PredictQuery,
        feed: dict[str, Array] | Encoded,
        examples: int,
        queued_ms: float,
        own_ms: float,
    ) -> RunResult:
        """`own_ms` of `queued_ms` are the service's own, and no waiting."""
        from selector.run.inputs import InputError

        asked = query.budget
        budget = _per_example(asked, queued_ms, examples)
        level = None
        tries = [budget]
        if runtime.selector is not None and query.battery is not None:
            level = runtime.selector.policy.level(query.battery)
            tries = [budget] if level is None else runtime.selector.saving(budget, level)
        chosen = {id(one): runtime.select(one) for one in tries}
        fitting = next((one for one in tries if chosen[id(one)].feasible), tries[-1])
        in_time = chosen[id(fitting)].feasible or asked.latency_ms is None
        if (
            not in_time and runtime.select(_per_example(asked, own_ms, examples)).feasible
        ):  # it is the waiting that was too long
            message = f"after {queued_ms:.3g} ms of waiting no sub-model is fast enough for {examples} example(s)"
            raise Overloaded("too_late_to_fit", message, self.gate.expected_wait())
        try:
            result = runtime.run(feed, fitting) if isinstance(feed, Mapping) else runtime.run_text(feed, fitting)
        except InputError as error:
            raise input_problem(str(error)) from None
        if level is None:
            return result
        selection = first_feasible([fitting], budget, level, query.battery, lambda _: result.selection)
        return replace(result, selection=selection)

    def _note(self, bundle: str, result: RunResult, examples: int, queued_ms: float, limit: float | None) -> None:
        met = None if limit is None else queued_ms + result.latency_ms <= limit
        if met is not None:
            self.deadlines[bundle]["met" if met else "missed"] += 1
        self._metrics.ran(bundle, result.selection.submodel, examples, queued_ms / 1e3, result.latency_ms / 1e3, met)
        self._metrics.load(self.gate.running, self.gate.queued)
        if time.monotonic() >= self._gauges_until:
            self.update_gauges()


def input_problem(message: str, name: str | None = None) -> Problem:
    """Of inputs that the bundle does not take. The message names the input, and so does the field where `name` is known."""
    return wrong_field("inputs" if name is None else f"inputs.{name}", None, message, message)


def _refuse_text(bundle: Bundle) -> None:
    """Raises Problem 422 where the bundle generates text."""
    if bundle.manifest.decoder is not None:
        raise wrong_field("bundle", bundle.name, "generates text: POST /v1/generate; allowed are bundles that run inputs")


def _least_ms(runtime: Runtime, budget: Budget, examples: int) -> float:
    """What the fastest sub-model that keeps the budget takes for so many examples; 0 where none does even without waiting:
    that is answered by the nearest."""
    assert budget.latency_ms is not None
    if runtime.selector is None:
        return 0.0
    fastest = runtime.select(_per_example(budget, 0.0, examples).model_copy(update={"objective": "latency"}))
    return (fastest.latency_ms or 0.0) * examples if fastest.feasible else 0.0


def _per_example(budget: Budget, queued_ms: float, examples: int) -> Budget:
    """A profile is of single examples, so the rest of the request's time is shared among them. That a batch takes less than its
    examples one by one is learnt from the runs."""
    if budget.latency_ms is None:
        return budget
    left = budget.latency_ms - queued_ms
    return budget.model_copy(update={"latency_ms": max(left / examples, SHORTEST_MS)})


def usable_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
