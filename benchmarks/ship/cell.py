"""A lithium-ion cell of PyBaMM as the battery of a device, until a battery plan's end or its reserve.

    python -m benchmarks.ship.cell < CASES > ROWS

In an environment that has PyBaMM and this project; documents are JSON. What the device draws is the inferences of the plan, at
their real energy, and a trace of power besides. The cell is PyBaMM's single-particle model with electrolyte, driven by power,
with the electrode area that the case asks for. The operating system shows the cell's own state of charge (the stoichiometry
of its negative electrode between its full and its empty one) in whole per cent, and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.adapt.battery import controlled, once_planned, plan_of
from benchmarks.adapt.battery_world import HOUR, PER_TICK, RESERVE, TICK, TICKS, World
from selector import Budget

NOMINAL_VOLTS = {"Chen2020": 3.63, "Ai2020": 3.7, "Marquis2019": 3.7}
"""As data sheets of these cells say (LG M50; Enertech SPB655060; Kokam SLPB78205130H): what a user takes for the capacity."""
STEP_TICKS = 3
"""Ticks for which the cell sees the mean power of the device."""


class Row(NamedTuple):
    """How one case ended: the time at which the reserve was reached or would be, over that of the plan's end, less one."""

    cell: str
    trace: str
    costs: str
    signed_error: float
    joules: float  # that the cell gave until then
    told_joules: float  # that the plan took it to hold above the reserve
    percents: tuple[float, ...]  # the state of charge, every five minutes


class Cell:
    """State of charge (per cent) and joules of a cell whose data sheet says that it holds so many joules."""

    def __init__(self, parameters: str, joules: float, start: float) -> None:
        import pybamm

        values = pybamm.ParameterValues(parameters)
        values["Power function [W]"] = "[input]"
        values.set_initial_state(start / 100)
        model = pybamm.lithium_ion.SPMe({"operating mode": "power"})
        self._full, self._empty = _stoichiometries(values)
        own = float(values["Nominal cell capacity [A.h]"]) * NOMINAL_VOLTS[parameters] * 3600
        self._share = own / joules  # of what the device draws: its cell has as much less electrode area
        self._simulation = pybamm.Simulation(model, parameter_values=values)
        self.percent, self.given, self.empty = start, 0.0, False

    def draw(self, watts: float, seconds: float) -> None:
        """Raises nothing at the end of the charge: it is `empty` then."""
        import pybamm

        try:
            found = self._simulation.step(seconds, inputs={"Power function [W]": watts * self._share}, save=False)
        except pybamm.SolverError:
            self.empty = True
            return
        self.empty = "event" in found.termination
        here = float(found["Negative electrode stoichiometry"].entries[-1])
        self.percent = 100 * (here - self._empty) / (self._full - self._empty)
        self.given += watts * seconds


def _stoichiometries(values: Any) -> tuple[float, float]:
    """Of the full and of the empty negative electrode."""
    import pybamm

    empty, full, *_ = pybamm.lithium_ion.get_min_max_stoichiometries(values)
    return float(full), float(empty)


def run(case: dict[str, Any]) -> Row:
    """`case`: of `third_party.cases`; with the policy "once" the mix is never planned again, else the real code decides."""
    import numpy as np

    zeros = np.zeros(TICKS)
    world = World(
        start=case["start"],
        scale=np.array(case["scale"]),
        other=np.array(case["other"]),
        calls=np.full(TICKS, float(PER_TICK)),
        charge=zeros,
        told_watts=case["told_watts"],
        mean_mj=case["mean_mj"],
    )
    cell = Cell(case["cell"], world.capacity, case["start"])
    once = case.get("policy") == "once"
    decide = once_planned(world) if once else controlled(world, Budget(plan=plan_of(world)))
    load, seen, percents = 0.0, cell.percent, [cell.percent]
    for tick in range(TICKS):
        energy, _ = decide(tick, PER_TICK, float(np.clip(round(cell.percent), 0, 100)))
        load += world.spent(tick, energy)
        if (tick + 1) % STEP_TICKS:
            continue
        before, seconds = cell.percent, STEP_TICKS * TICK
        cell.draw(load / seconds, seconds)
        load = 0.0
        if (tick + 1) % 30 == 0:
            percents.append(cell.percent)
        if cell.empty or cell.percent <= RESERVE:
            gone = max(before - cell.percent, 1e-9)
            over = tick + 1 - STEP_TICKS * (1 - min(1.0, (before - RESERVE) / gone))
            return _row(case, world, cell, over / TICKS - 1, percents)
        if tick + 1 == TICKS - HOUR:
            seen = cell.percent
    rate = max((seen - cell.percent) / HOUR, 1e-9)
    return _row(case, world, cell, (cell.percent - RESERVE) / rate / TICKS, percents)


def _row(case: dict[str, Any], world: World, cell: Cell, error: float, percents: Sequence[float]) -> Row:
    told = world.capacity * (case["start"] - RESERVE) / 100
    shown = tuple(round(one, 2) for one in percents)
    return Row(case["cell"], case["trace"], case["costs"], error, cell.given, told, shown)


if __name__ == "__main__":
    json.dump([run(case)._asdict() for case in json.load(sys.stdin)], sys.stdout)
