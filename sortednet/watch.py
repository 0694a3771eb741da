"""`sortednet run --watch`: runs an input again and again and shows what is chosen, why, and how the device is doing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from statistics import quantiles
from threading import TIMEOUT_MAX
from typing import Any

from numpy.typing import NDArray
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from selector.adapt.sensors import Sensors
from selector.choose.budget import Budget, BudgetError, Selection
from selector.run.results import RunRecord
from selector.run.runtime import Runtime

SHOWN = 200  # runs that the figures are of


def watch(
    runtime: Runtime,
    inputs: Mapping[str, NDArray[Any]] | NDArray[Any],
    budget: Budget,
    *,
    rate: float | None = None,
    seconds: float | None = None,
    console: Console | None = None,
) -> Sequence[RunRecord]:
    """Runs `rate` times a second (None: as often as possible) for so long, or until Ctrl-C. Returns the history.

    Raises BudgetError for a rate or seconds that are not above 0, and what `Runtime.run` raises.
    """
    for name, value in (("rate", rate), ("seconds", seconds)):
        if value is not None and not value > 0:
            raise BudgetError(f"{name} = {value}: allowed are values above 0")
    own = None if runtime.sensors.sensors else Sensors()
    sensors = own or runtime.sensors
    sensors.start()
    begun = time.monotonic()
    try:
        with Live(console=console, refresh_per_second=4) as live:
            shown_at, count = 0.0, 0
            while not count or seconds is None or time.monotonic() - begun < seconds:
                result = runtime.run(inputs, budget)
                count += 1
                now = time.monotonic()
                if now - shown_at > 0.25:
                    live.update(picture(runtime.history, result.selection, sensors.shown()))
                    shown_at = now
                if rate is not None:
                    end = inf if seconds is None else begun + seconds
                    time.sleep(min(max(0.0, min(begun + count / rate, end) - now), TIMEOUT_MAX))
            live.update(picture(runtime.history, result.selection, sensors.shown()))
    except KeyboardInterrupt:
        pass
    finally:
        if own:
            own.stop()
    return runtime.history


def picture(history: Sequence[RunRecord], selection: Selection, readings: Mapping[str, str]) -> Group:
    """What is on the screen: the choice, the latest runs, the sensors."""
    recent = list(history)[-SHOWN:]
    latencies = sorted(record.latency_ms for record in recent)
    table = Table.grid(padding=(0, 3))
    table.add_row("sub-model", Text(f"{selection.submodel}  on {selection.device}", style="bold"))
    table.add_row("why", selection.reason)
    if len(latencies) > 1:
        cuts = quantiles(latencies, n=100, method="inclusive")
        table.add_row("latency", f"p50 {cuts[49]:.3f} ms, p99 {cuts[98]:.3f} ms over {len(recent)} runs")
    limited = [record for record in recent if record.limit_ms is not None]
    if limited:
        table.add_row("deadlines met", f"{sum(record.met for record in limited) / len(limited):.1%}")
    if recent:
        table.add_row("slow-down", f"{recent[-1].slow_down:.2f} times the profile")
        often = Counter(record.submodel for record in recent).most_common(4)
        table.add_row("chosen lately", ", ".join(f"{name} {times}" for name, times in often))
    known = [f"{name.replace('_', ' ')} {text}" for name, text in readings.items()]
    table.add_row("sensors", ", ".join(known) or "none")
    return Group(table)
