"""Real conditions that a benchmark makes on purpose: competing processes, and a quota of the processor for itself.

A quota needs a control group (version 1 or 2) that may be written, which is to say root; where that is refused PermissionError
says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

SPINNING = "while True: pass"
COPYING = "import numpy as np\na = np.zeros(2**24)\nb = np.ones(2**24)\nwhile True: np.copyto(a, b)"
"""128 MB to and fro: takes the caches and the memory's bandwidth."""


class Competitors:
    """Processes that stand still until they are told to run. Use as a context manager."""

    def __init__(self, program: str, count: int) -> None:
        self._processes = [
            subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(count)
        ]
        self.set(0)

    def set(self, running: int) -> None:
        """So many run, the others stand still."""
        if running > len(self._processes):
            raise ValueError(f"running = {running}: there are {len(self._processes)}")
        for place, process in enumerate(self._processes):
            process.send_signal(signal.SIGCONT if place < running else signal.SIGSTOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


class Quota:
    """A control group that gives its members a share of one core. Use as a context manager; members must have left or ended.

    Raises PermissionError where control groups may not be made.
    """

    def __init__(self, period_us: int = 100_000) -> None:
        self.period_us = period_us
        first = Path("/sys/fs/cgroup/cpu")
        self._v1 = first.is_dir()
        self._root = first if self._v1 else Path("/sys/fs/cgroup")
        self._group = self._root / f"sortednet-{os.getpid()}"
        self._group.mkdir()
        if self._v1:
            (self._group / "cpu.cfs_period_us").write_text(str(period_us))

    def set(self, percent: int | None) -> None:
        """Of one core; None: as much as there is."""
        quota = -1 if percent is None else self.period_us * percent // 100
        if self._v1:
            (self._group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self._group / "cpu.max").write_text(f"{'max' if quota < 0 else quota} {self.period_us}")

    def join(self) -> None:
        """The calling process becomes a member."""
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        """The calling process is no member any more."""
        (self._root / "cgroup.procs").write_text(str(os.getpid()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._group.rmdir()
