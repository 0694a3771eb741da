"""`Runtime`: keeps the sessions of a bundle, runs the sub-model that fits each call, and says which it was."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property, reduce
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, NoReturn, Self

from numpy.typing import NDArray

from device_profiles import Profile
from exporter.bundle import Bundle, BundleError
from selector.adapt.battery_reader import BatteryReader
from selector.adapt.controller import Controller
from selector.adapt.energy import Energies, Energy, added
from selector.adapt.memory import MemoryGuard, default_reserve_mb
from selector.adapt.quiet import pooled
from selector.adapt.sensors import Sensors, shared_sensors
from selector.choose.battery import Battery
from selector.choose.budget import Budget, BudgetError, Selection, not_a_budget
from selector.choose.candidates import Candidates, Key
from selector.choose.cascades import read_cascades
from selector.choose.clock import seconds
from selector.choose.lengths import LengthAxis, Lengths
from selector.choose.metrics import metric_name
from selector.choose.profiles import Device, find_profiles
from selector.choose.reasons import best
from selector.choose.selector import Selector
from selector.run.inputs import InputCheck, InputError, examples_in
from selector.run.opening import NOT_MEASURED, memory_of, opener
from selector.run.options import RuntimeOptions
from selector.run.pool import SessionPool
from selector.run.program import Part, Program, Ran, divisible, examples_within, run_in_parts
from selector.run.results import RunRecord, RunResult
from selector.run.text import Encoded, TextReader, Texts, joined, of_tokens

log = logging.getLogger("sortednet.runtime")

Array = NDArray[Any]
HISTORY = 1000
_NO_LIMITS, _MOST_ACCURATE = Budget(), Budget(objective="accuracy")


class Runtime:
    """A bundle on this device: chooses for every run, opens what it chose, and learns from what the run took.

    `options` are described in `RuntimeOptions`; each may be given by its name instead (`Runtime(bundle, memory_mb=50)`), or
    beside them. `history` holds the latest HISTORY runs. A runtime may be used from several threads at once. In a `with`
    statement it is closed at the end.

    Raises BundleError when the bundle is damaged or has no such profile, BudgetError when it is not clear which of
    several profiles is meant, nothing fits `memory_mb` or `cascades.json` is damaged, SessionError for an execution provider
    that is not here.
    """

    def __init__(self, bundle: str | Path | Bundle, options: RuntimeOptions | None = None, **named: Any) -> None:
        if not isinstance(options, RuntimeOptions | None):
            raise BudgetError(f"options = {options!r}: allowed are RuntimeOptions(…), or each option by its name")
        if not isinstance(bundle, str | Path | Bundle):
            raise BundleError(f"bundle = {bundle!r}: allowed are the path of its folder and a Bundle")
        self.options = options = replace(options or RuntimeOptions(), **named)
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        cascades = read_cascades(self.bundle) if options.cascades else []
        profiles = self._profiles(options.device)
        if options.feedback:
            profiles = [pooled(profile) for profile in profiles]
        self.candidates = Candidates.of(self.bundle, profiles, cascades)
        self._first_device = profiles[0].device.name if profiles else NOT_MEASURED
        self._memory = memory_of(self.bundle, profiles, cascades)
        measured = {(name, profile.device.name) for profile in profiles for name in profile.submodels}
        measured |= {offer.key for offer in self.candidates}
        self._fitting = self._within(options.memory_mb, measured or self._memory)
        self.selector = self._selector()
        self.controller = Controller(self.selector, profiles, feedback=options.feedback) if self.selector else None
        self.history: deque[RunRecord] = deque(maxlen=HISTORY)
        self.check_inputs = InputCheck(self.bundle)
        self.energies = Energies(profiles)
        self._divisible = divisible(self.bundle)
        self.lengths = Lengths(LengthAxis.of(self.bundle) if any(profile.length for profile in profiles) else None)
        self.learning = threading.Lock()  # held by whoever asks or tells the controller
        self._ran: weakref.WeakSet[Program] = weakref.WeakSet()
        opened = opener(self.bundle, profiles, cascades, options)
        self.pool: SessionPool[Key] = SessionPool(opened, self._memory.__getitem__, options.memory_mb)
        self._latest: Key | None = None
        self._battery_reader = BatteryReader(options.battery)
        self._battery: Battery | None = None  # as the latest choice went by it
        self._allowed = self._fitting
        self._least_mb = min(self._memory[key] for key in self._fitting)
        sensors = options.sensors
        self.sensors = sensors if isinstance(sensors, Sensors) else shared_sensors() if sensors else Sensors([])
        reserve = default_reserve_mb() if options.memory_reserve_mb is None else options.memory_reserve_mb
        self._guard = MemoryGuard(min(options.memory_mb or inf, sum(self._memory.values())), reserve)
        self._unwatch = _after_readings(self.sensors, self)
        self.sensors.start()

    def run(self, inputs: Mapping[str, Array] | Array, budget: Budget | None = None) -> RunResult:
        """Chooses a sub-model for the budget and runs it; when nothing fits, the nearest one runs. Of a batch the budget is
        each example's: a profile is of single ones. Where it knows lengths, the inputs' own counts, not the budget's.

        Raises InputError naming the input when it does not fit the graph, BudgetError when a limit is given and this
        device has not been measured, BundleError when the graph cannot be opened.
        """
        if budget is not None and not isinstance(budget, Budget):
            raise BudgetError(not_a_budget(budget))
        feed = self.check_inputs(inputs)
        budget = self.lengths.budget(budget or _NO_LIMITS, self.lengths.of_feed(feed))
        selection, program = self.choose(budget)
        outputs, elapsed, energy = self._compute(program, selection, feed, budget)
        return RunResult(outputs, selection, elapsed, self.bundle.manifest.task, None, energy, examples_in(self.bundle, feed))

    def run_text(self, texts: Texts | Encoded, budget: Budget | None = None) -> RunResult:
        """Runs one text, several, or several pairs (each a tuple of two) by the one sub-model that fits the budget, in batches
        of like length; the outputs are in the order of the texts. What an output says of tokens is 0 behind a text's end.

        Raises what `run` raises, InputError also naming a text that cannot be one, and ModuleNotFoundError where the library
        `tokenizers` is not installed (the extra `text`).
        """
        if budget is not None and not isinstance(budget, Budget):
            raise BudgetError(not_a_budget(budget))
        encoded = texts if isinstance(texts, Encoded) else self.texts.encode(texts)
        batches = encoded.batches()[::-1] if self._divisible else [list(range(len(encoded)))]
        longest = self.check_inputs(encoded.rows(batches[0]))  # what fits it fits all
        budget = self.lengths.budget(budget or _NO_LIMITS, self.lengths.of_feed(longest))
        selection, program = self.choose(budget)
        feeds = chain([longest], map(encoded.rows, batches[1:]))
        ran = [self._compute(program, selection, feed, budget) for feed in feeds]
        outputs = joined(encoded, zip(batches, (found for found, _, _ in ran), strict=True), of_tokens(self.bundle))
        took, energy = sum(took for _, took, _ in ran), reduce(added, (energy for _, _, energy in ran))
        return RunResult(outputs, selection, took, self.bundle.manifest.task, encoded, energy, len(encoded))

    @cached_property
    def texts(self) -> TextReader:
        """Makes inputs of texts; opened when it is first needed. Raises what `TextReader` raises."""
        return TextReader(self.bundle)

    def select(self, budget: Budget, among: Collection[Key] | None = None) -> Selection:
        """The best for the budget now, of these where they are given, whether it is open or not. Raises BudgetError where there
        is no profile, or no accuracy is known, and the budget has limits."""
        if not isinstance(budget, Budget):
            raise BudgetError(not_a_budget(budget))
        if self.controller is not None:
            battery = self.battery()
            with self.learning:
                chosen = self.controller.choose(budget, seconds(), battery, among=among)
            if self._fitting is self._allowed:
                return chosen
            reason = f"{chosen.reason}; the device is short of memory: at most {self.pool.memory_mb:.3g} MB"
            return chosen._replace(reason=reason)
        budget.check(self.bundle.metric)
        # REST has a class of its own, which equals none of these
        if Budget(**{**dict(budget), "length": None, "sustained": False}) in (_NO_LIMITS, _MOST_ACCURATE):
            return self._best()
        if all(quality is None for quality in self.bundle.qualities.values()):
            raise BudgetError(f"no {metric_name(self.bundle.metric)} is known for any sub-model: export with test data")
        raise BudgetError(f"this device has not been measured: run `sortednet profile {self.bundle.path}` first")

    def battery(self) -> Battery | None:
        """The battery's state, at most half a minute old; None also where reading it fails."""
        self._battery = self._battery_reader.latest()
        return self._battery

    def program(self, submodel: str, device: str | None = None) -> Program:
        """What runs the sub-model or cascade, as for that profile (default: the first), opened now if it is not open.

        Raises BundleError for one that is not in the bundle or cannot be opened, BudgetError for a profile that this
        runtime does not go by.
        """
        key = (submodel, self._first_device if device is None else device)
        if key not in self._memory:
            if submodel not in {name for name, _ in self._memory}:
                self.bundle.submodel(submodel)  # says what there is
            known = ", ".join(dict.fromkeys(other for _, other in self._memory if other))
            raise BudgetError(f"device = {device!r}: allowed is {known or 'none, because nothing was measured'}")
        program: Program = self.pool.load(key)
        return program

    def close(self) -> None:
        """Closes every session. The sensors go on: others may read them too."""
        self._unwatch()
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        path = str(self.bundle.path)
        raise TypeError(
            f"a Runtime holds open sessions and cannot be pickled or copied; open Runtime({path!r}) in each process"
        )

    def choose(self, budget: Budget, among: Collection[Key] | None = None, *, ahead: bool = True) -> tuple[Selection, Program]:
        """What runs next within the budget, and what runs it. Without `ahead` its neighbours are not opened too. Raises what
        `select` and `program` raise."""
        wanted = self.select(budget, among)
        key = (wanted.submodel, wanted.device)
        program = self.pool.get(key)
        if program is not None:
            if key != self._latest:
                self._latest = key
                if ahead:
                    self._open_neighbours(key)
            return wanted, program
        # once: the sensors' thread may close sessions at any time
        loaded = self.pool.loaded if among is None else [one for one in self.pool.loaded if one in among]
        if self.options.load_ahead and self.controller is not None and loaded:
            with self.learning:
                instead = self.controller.choose(budget, seconds(), self._battery, among=loaded)
            open_key = (instead.submodel, instead.device)
            program = self.pool.get(open_key) if instead.feasible else None
            if program is not None and self.pool.fit_together(key, open_key):
                self.pool.load_ahead([key], keep=(open_key,))
                return instead._replace(reason=f"{instead.reason} that is open; {wanted.submodel} is being opened"), program
        self._latest = key
        program = self.pool.load(key)
        if ahead:
            self._open_neighbours(key)
        return wanted, program

    def _compute(
        self, program: Program, selection: Selection, feed: Mapping[str, Array], budget: Budget
    ) -> tuple[dict[str, Array], float, Energy]:
        """The outputs, how long they took (ms) and of the battery; the run is noted. Raises InputError."""
        begun = time.perf_counter()
        try:
            examples = examples_in(self.bundle, feed)
            batch = examples != 1
            ran = self._run_batch(program, selection, feed, budget, examples) if batch else program.run(feed)
        except Exception as error:  # ONNX Runtime has one exception type per status code
            raise InputError(f"input: {selection.submodel} cannot compute it: {error}") from error
        elapsed, length = (time.perf_counter() - begun) * 1e3, self.lengths.of_feed(feed)
        energy = self.energies.of_run(ran.seen, selection.device, examples, length, lasts=budget.lasts)
        self._note(selection, program, ran.parts[0], elapsed, budget, examples, length, energy)
        return ran.outputs, elapsed, energy

    def _run_batch(
        self, program: Program, selection: Selection, feed: Mapping[str, Array], budget: Budget, examples: int
    ) -> Ran:
        """Within the memory of the budget and of the sessions: in parts, where the bundle's axes let it be."""
        own = self._memory[selection.submodel, selection.device]
        left = self.pool.memory_mb - (self.pool.memory_used_mb - own if self.pool.memory_mb < inf else 0.0)
        most = examples_within(max(own, min(left, budget.memory_mb or inf)), own)
        if most is None:
            return program.run(feed)
        return run_in_parts(program, feed, examples, most if self._divisible else examples)

    def _note(
        self,
        selection: Selection,
        program: Program,
        first: Part,
        elapsed: float,
        budget: Budget,
        examples: int,
        length: int | None,
        energy: Energy,
    ) -> None:
        """Keeps the run in the history and learns from its first part: what the others take depends on the examples."""
        controller, slow_down = self.controller, 1.0
        if controller is not None:
            with self.learning:  # runs may come from several threads
                controller.spent(selection, examples, length)
                if self.options.feedback:
                    if program not in self._ran:  # its first run also sets its memory up, which says nothing of the device
                        self._ran.add(program)
                    else:
                        taken = first.latency_ms / examples
                        controller.observe(selection, taken, seconds(), ran=first.submodel, length=length)
            slow_down = controller.slow_down(selection.device)
        battery, limit, latency_ms = self._battery, budget.run_ms, elapsed / examples
        percent, each = None if battery is None else battery.percent, None if energy.mj is None else energy.mj / examples
        chosen, why, fits = (selection.submodel, selection.device), selection.reason, selection.feasible
        self.history.append(RunRecord(time.time(), *chosen, latency_ms, limit, slow_down, percent, why, each, fits))

    def bound_memory(self, now: float) -> None:
        """Holds the sessions to what the device's memory allows now; the sensors' thread calls it after its readings."""
        available, pressure = (self.sensors.value(name, now) for name in ("memory_available", "memory_pressure"))
        limit = self._guard.update(self.pool.memory_used_mb, available, pressure, now)
        if limit >= self._guard.most_mb:
            limit = self.options.memory_mb or inf
        limit = max(limit, self._least_mb)
        if limit == self.pool.memory_mb:
            return
        self.pool.limit(limit)
        fitting = {key for key in self._allowed if self._memory[key] <= limit}
        if fitting == self._fitting:
            return
        log.info("memory: %s MB available, sessions may take %.3g MB, %d sub-models fit", available, limit, len(fitting))
        self._fitting = self._allowed if fitting == self._allowed else fitting
        selector = self._selector() if self.controller is not None else None
        if selector is not None and self.controller is not None:  # None: of those that fit no quality is known
            self.selector = selector
            self.controller.use(selector)

    def _open_neighbours(self, key: Key) -> None:
        if self.options.load_ahead and self.selector is not None:
            self.pool.load_ahead(self.selector.neighbours(key), keep=(key,))

    def _profiles(self, device: Device) -> list[Profile]:
        if not device and not self.bundle.devices():
            return []
        return find_profiles(self.bundle, device)

    def _within(self, memory_mb: float | None, candidates: Collection[Key]) -> Collection[Key]:
        """Those of the candidates that can be opened within the memory."""
        fitting = {key for key in candidates if memory_mb is None or self._memory[key] <= memory_mb}
        if not fitting:
            least = min(self._memory[key] for key in candidates)
            raise BudgetError(f"memory_mb = {memory_mb:g}: no sub-model fits; the smallest takes {least:.3g} MB")
        return fitting

    def _selector(self) -> Selector | None:
        """Of those that fit; None where there is nothing to go by."""
        fitting = self.candidates.among(self._fitting)
        return Selector(fitting, policy=self.options.policy) if fitting else None

    def _best(self) -> Selection:
        """Of all that fit, where nothing was measured; of two devices the first."""
        bundle, known = self.bundle, self.bundle.submodels
        fitting = [(known[name], device) for name, device in self._memory if name in known and (name, device) in self._fitting]
        chosen, device = max(fitting, key=lambda one: (bundle.qualities[one[0].id] or 0.0, one[0].macs))
        reason = f"{best(bundle.metric)} of all (not measured here)"
        quality = bundle.qualities[chosen.id]
        return Selection(chosen.id, True, quality, None, None, None, reason, device, bundle.metric)


def _after_readings(sensors: Sensors, runtime: Runtime) -> Callable[[], object]:
    """Bounds the runtime's memory after each reading, for as long as it lives or until what this returns is called."""
    reference = weakref.ref(runtime)

    def told(now: float) -> None:
        alive = reference()
        if alive is not None:
            alive.bound_memory(now)

    sensors.after.append(told)
    finalizer = weakref.finalize(runtime, sensors.after.remove, told)
    finalizer.atexit = False
    return finalizer
