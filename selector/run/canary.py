"""A new version of a bundle on a share of the runs, beside the one before, until it has shown that it is no worse."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from numpy.typing import NDArray

from exporter.bundle import Bundle, BundleError
from selector.choose.budget import Budget, BudgetError
from selector.run.results import RunResult
from selector.run.runtime import Runtime
from selector.run.text import Encoded, Texts
from selector.ship.runs import Run, Runs
from selector.ship.standing import opened_or_before
from selector.ship.state import folder_of, id_of, trial_of
from selector.ship.trial import Comparison, Limits
from selector.ship.versions import accept, rollback

BLOCK = 5
"""Runs on the new version one after the other. The first after a change finds the processor's caches full of the other version,
and is not compared, on either side: of single runs, every tenth, a version that was as good took twice as long."""

log = logging.getLogger("sortednet.canary")


class Version(Protocol):
    """An opened version: a `Runtime` or a `Generator`."""

    bundle: Bundle

    def close(self) -> None: ...


V = TypeVar("V", bound=Version)


@dataclass(frozen=True)
class Turn(Generic[V]):
    """A run while a version is on trial, before it has run: by which of the two, and how it counts."""

    version: V
    before: V
    new: bool  # whether it is the one that is tried
    first: bool  # of this process on that version
    warm: bool  # the run before was on that version too
    changed: bool  # that before was on the other one


class Canary(Generic[V]):
    """A bundle's versions while one is on trial. What is not here is asked of the version that answers most runs; `reason` says
    why one was taken back here."""

    def __init__(
        self,
        bundle: str | Path | Bundle,
        opened: Callable[[str | Path | Bundle], V],
        *,
        share: float,
        limits: Limits | None,
        device: Any,
    ) -> None:
        """`opened` opens a version. Raises what it raises where there is no version before, BudgetError for a share that is
        none."""
        if not 0 < share <= 0.5:
            raise BudgetError(f"share = {share!r}: allowed are numbers above 0, and up to 0.5")
        self.path = (bundle.path if isinstance(bundle, Bundle) else Path(bundle)).resolve()
        self.reason: str | None = None
        """Why a version was taken back here; None where none was."""
        self._period = round(BLOCK / share)
        self._comparison, self._runs, self._lock = Comparison(limits or Limits()), Runs(self.path), threading.Lock()
        self._side: bool | None = None  # which version the latest run here was on
        self._ran: set[bool] = set()
        self._before: V | None = None
        self._trial = trial_of(self.path)
        if self._trial is not None:
            try:
                self._before = opened(folder_of(self.path) / self._trial.previous)
            except BundleError as error:
                log.warning("the version before is gone, there is no trial: %s", error)
        if self._before is not None and self._before.bundle.devices() and not _measured(self.path, device):
            log.warning(
                "version %s of %s is not tried yet: this device has not measured it, which `sortednet profile %s` does",
                *(id_of(Bundle(self.path, verify=False)), self.path, self.path),
            )
            self._opened, self._before = self._before, None
            return
        try:
            self._opened = opened(bundle)
        except Exception as error:
            if self._before is None:
                raise
            self._opened = self._before
            self._take_back(f"cannot be opened: {error}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.stays, name)

    @property
    def trying(self) -> bool:
        """Whether a version is on trial."""
        return self._before is not None

    @property
    def canary_runs(self) -> int:
        """On the version that is or was tried."""
        return self._comparison.runs

    @property
    def stays(self) -> V:
        """The version that stays, as far as is known."""
        return self._before or self._opened

    def document(self) -> dict[str, Any]:
        """How the trial goes, as commands print it."""
        state = "trying" if self.trying else "accepted" if self.reason is None else "taken back"
        return {"state": state, "runs": self.canary_runs, "reason": self.reason}

    def close(self) -> None:
        """Of both versions; the trial goes on when it is opened again."""
        for version in {self._opened, self._before} - {None}:
            cast(V, version).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _turn(self) -> Turn[V] | None:
        """Of a run that begins; None where none is on trial."""
        with self._lock:
            if self._before is None:
                return None
            self._count(self._runs.look())
            new = self._runs.count % self._period >= self._period - BLOCK
            first, warm, changed = new not in self._ran, new == self._side, self._side not in (None, new)
            self._side = new
            self._ran.add(new)
            return Turn(self._opened if new else self._before, self._before, new, first, warm, changed)

    def _note(self, turn: Turn[V], submodel: str, latency_ms: float | None, missed: bool | None) -> None:
        """A run that is over. Without a latency it is counted, and not compared."""
        compared = latency_ms is not None and (turn.first or turn.warm)
        done = Run(
            new=turn.new,
            submodel=submodel,
            latency_ms=latency_ms or 0.0,
            missed=missed,
            first=turn.first,
            compared=compared,
        )
        with self._lock:
            if self._before is not None:
                self._count(self._runs.add(done))
                if turn.new:
                    self._judge()

    def _failed(self, error: Exception) -> None:
        """A run of the new version did, which was not the caller's mistake."""
        with self._lock:
            if self._before is not None:
                self._count(self._runs.add(Run(new=True, compared=False)))
                self._take_back(f"does not run: {error}")

    def _retire(self, version: V) -> None:
        """It answers no more runs."""
        version.close()

    def _count(self, runs: list[Run]) -> None:
        for run in runs:
            self._comparison.add(run)

    def _judge(self) -> None:
        """Ends the trial where it is known how it ends."""
        if worse := self._comparison.worse:
            self._take_back(worse)
        elif self._comparison.done and self._before is not None:
            assert self._trial is not None
            log.info("version %s of %s stays, after %d runs on it", self._trial.new, self.path, self.canary_runs)
            before, self._before = self._before, None
            self._retire(before)
            try:
                accept(self.path, self._trial, self._comparison.figures(self._trial.figures))
            except (
                BundleError,
                OSError,
            ) as error:  # another update, a full disk: whoever opens it next notices that it is over
                log.warning("that %s stays could not be written down: %s", self.path, error)

    def _take_back(self, reason: str) -> None:
        """Once; the runs go on with the version before, whose sessions are open."""
        before, self._before = self._before, None
        if before is None or self._trial is None:
            return
        log.warning("version %s of %s is taken back: %s", self._trial.new, self.path, reason)
        self.reason = reason
        if self._opened is not before:
            self._retire(self._opened)
        self._opened = before
        try:
            if trial_of(self.path) == self._trial:  # else another process was first
                figures = self._comparison.figures(self._trial.figures)
                rollback(self.path, id_of(before.bundle), reason=reason, figures=figures)
        except BundleError as error:  # a full disk, another update: it is not used here all the same, and tried again later
            log.warning("%s could not be put back: %s", self.path, error)


class CanaryRuntime(Canary[Runtime]):
    """A `Runtime` of the bundle at that path, or of an opened one. While a version is on trial there (`sortednet pull`), it
    answers a share of the runs, and the version before the others. One that fails, takes longer or misses deadlines
    (`selector.ship.trial.Limits`) is taken back: the version before is put in its place, and `reason` says why. One that does
    not stays, after `limits.runs` runs, of all processes that run the bundle so.

    `options` are those of `Runtime`. What else a Runtime has, this has too, of the version that stays as far as is known. May
    be used from several threads. Raises what `Runtime` raises, BudgetError for a share that is none.
    """

    def __init__(
        self, bundle: str | Path | Bundle, *, share: float = 0.1, limits: Limits | None = None, **options: Any
    ) -> None:
        super().__init__(bundle, lambda one: Runtime(one, **options), share=share, limits=limits, device=options.get("device"))

    def run(self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any], budget: Budget | None = None) -> RunResult:
        """As `Runtime.run`, by one of the two versions."""
        return self._ran_by(lambda runtime: runtime.run(inputs, budget), budget)

    def run_text(self, texts: Texts | Encoded, budget: Budget | None = None) -> RunResult:
        """As `Runtime.run_text`, by one of the two versions."""
        return self._ran_by(lambda runtime: runtime.run_text(texts, budget), budget)

    def _ran_by(self, run: Callable[[Runtime], RunResult], budget: Budget | None) -> RunResult:
        turn = self._turn()
        if turn is None:
            return run(self.stays)
        try:
            result = run(turn.version)
        except Exception as error:
            if not turn.new:
                raise
            answered = run(turn.before)  # raises too where it is the caller's mistake
            self._failed(error)
            return answered
        deadline = None if budget is None else budget.run_ms
        missed = None if deadline is None else result.each_ms > deadline
        self._note(turn, result.selection.submodel, result.each_ms, missed)
        return result


def opened(bundle: str | Path | Bundle, **options: Any) -> Runtime:
    """The bundle's runtime, by which a version that is on trial is tried; Runtime's options."""
    if not on_trial(bundle):
        return Runtime(bundle, **options)
    return cast(Runtime, CanaryRuntime(bundle, **options))  # has whatever a Runtime has


def on_trial(bundle: str | Path | Bundle) -> bool:
    """Whether a version is on trial there; one whose manifest is damaged is taken back. Raises BundleError where there is no
    bundle."""
    if isinstance(bundle, Bundle):
        return trial_of(bundle.path) is not None
    opened_or_before(Path(bundle), lambda path: Bundle(path, verify=False))
    return trial_of(Path(bundle)) is not None


def _measured(path: Path, device: str | Path | Sequence[str | Path] | None) -> bool:
    """Whether there is a profile of what lies there now: of these devices, or of any."""
    there = Bundle(path, verify=False).devices()
    wanted = [device] if isinstance(device, str | Path) else list(device or ())
    return all(str(one) in there or Path(one).is_file() for one in wanted) if wanted else bool(there)
