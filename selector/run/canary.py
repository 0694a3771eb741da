"""A new version of a bundle on a share of the runs, beside the one before, until it has shown that it is no worse."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from exporter.bundle import Bundle, BundleError
from selector.choose.budget import Budget, BudgetError
from selector.run.results import RunResult
from selector.run.runtime import Runtime
from selector.ship.trial import Comparison, Limits
from selector.ship.versions import end_trial, folder_of, id_of, read_state, rollback

BLOCK = 5
"""Runs on the new version one after the other. The first after a change finds the processor's caches full of the other version,
and is not compared, on either side: of single runs, every tenth, a version that was as good took twice as long."""

log = logging.getLogger("sortednet.canary")


class CanaryRuntime:
    """A `Runtime` of the bundle at `path`. While a version is on trial there (`pull --trial`), it answers a share of the
    runs, and the version before the others. One that fails, takes longer or misses deadlines (`selector.ship.trial.Limits`)
    is taken back: the version before is put in its place, and `reason` says why. One that does not stays, after `limits.runs`
    runs.

    `options` are those of `Runtime`. May be used from several threads. Raises what `Runtime` raises, BudgetError for a share
    that is none.
    """

    def __init__(self, path: str | Path, *, share: float = 0.1, limits: Limits | None = None, **options: Any) -> None:
        if not 0 < share <= 0.5:
            raise BudgetError(f"share = {share!r}: allowed are numbers above 0, and up to 0.5")
        self.path, self.share = Path(path).resolve(), share
        self.reason: str | None = None
        """Why a version was taken back here; None where none was."""
        self._comparison = Comparison(limits or Limits())
        self._calls, self._lock = 0, threading.Lock()
        self._before: Runtime | None = None
        trial = read_state(self.path).trial
        if trial is not None and trial.new == id_of(Bundle(self.path, verify=False)):
            try:
                self._before = Runtime(folder_of(self.path) / trial.previous, **options)
            except BundleError as error:
                log.warning("the version before is gone, there is no trial: %s", error)
        try:
            self._runtime = Runtime(self.path, **options)
        except Exception as error:
            if self._before is None:
                raise
            self._runtime = self._before
            self._take_back(f"cannot be opened: {error}")

    @property
    def trying(self) -> bool:
        """Whether a version is on trial."""
        return self._before is not None

    @property
    def bundle(self) -> Bundle:
        """The version that stays, as far as is known."""
        return (self._before or self._runtime).bundle

    @property
    def canary_runs(self) -> int:
        """On the version that is or was tried."""
        return self._comparison.runs

    def run(self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any], budget: Budget | None = None) -> RunResult:
        """As `Runtime.run`, by one of the two versions."""
        with self._lock:
            before, runtime = self._before, self._runtime
            place = self._calls % round(BLOCK / self.share)
            self._calls += 1
            chosen = place >= round(BLOCK / self.share) - BLOCK
            warm = place not in (0, round(BLOCK / self.share) - BLOCK)
        if before is None:
            return runtime.run(inputs, budget)
        if not chosen:
            result = before.run(inputs, budget)
            self._note(result, budget, new=False, warm=warm)
            return result
        try:
            result = runtime.run(inputs, budget)
        except Exception as error:
            answered = before.run(inputs, budget)  # raises too where it is the caller's mistake
            with self._lock:
                self._comparison.runs += 1
                self._take_back(f"does not run: {error}")
            return answered
        self._note(result, budget, new=True, warm=warm)
        return result

    def close(self) -> None:
        """Of both versions; the trial goes on when it is opened again."""
        for runtime in {self._runtime, self._before} - {None}:
            runtime.close()  # type: ignore[union-attr]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, result: RunResult, budget: Budget | None, *, new: bool, warm: bool) -> None:
        deadline = None if budget is None else budget.run_ms
        with self._lock:
            if self._before is None:
                return
            if warm:
                self._comparison.add(result.selection.submodel, result.latency_ms, new=new, deadline_ms=deadline)
            elif new:
                self._comparison.runs += 1
            if not new:
                return
            if worse := self._comparison.worse:
                self._take_back(worse)
            elif self._comparison.done:
                self._before.close()
                self._before = None
                end_trial(self.path)

    def _take_back(self, reason: str) -> None:
        """Once; the runs go on with the version before, whose sessions are open."""
        before, self._before = self._before, None
        if before is None:
            return
        log.warning("version %s of %s is taken back: %s", id_of(self._runtime.bundle), self.path, reason)
        self.reason = reason
        if self._runtime is not before:
            self._runtime.close()
        self._runtime = before
        try:
            rollback(self.path, id_of(before.bundle), reason=reason)
        except BundleError as error:  # a full disk, another update: it is not used here all the same, and tried again later
            log.warning("%s could not be put back: %s", self.path, error)
