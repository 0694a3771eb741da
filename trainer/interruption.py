"""A training that people watch and stop: its progress, its log, and the signals that end it between two steps."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingInterrupted(Exception):
    """Training was stopped by a signal after writing a checkpoint; `--resume` goes on from there."""

    exit_code = 130


def drop_log_after(path: Path, step: int) -> None:
    """Keeps the lines up to that step; a line that a kill has left half-written is none."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except json.JSONDecodeError:
            continue
    path.write_text("".join(kept), encoding="utf-8")


def progress_bar(show: bool, transient: bool = False) -> Progress:
    """`transient`: it is gone when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not show, transient=transient)


@contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; the training then stops between two steps. A second one stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    previous = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
