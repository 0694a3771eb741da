"""`python -m benchmarks.ship [PART …]`: measures the parts, or all, and writes `results/summary.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.ship import doors, grow, javascript, kills, loadgen, ray_serve, rollbacks, tampered, third_party
from benchmarks.summary import run_parts

PARTS = {
    "kills": kills.measure,
    "tampered": tampered.measure,
    "rollback_runs": rollbacks.measure,
    "grow": grow.measure,
    "doors": doors.measure,
    "loadgen": loadgen.measure,
    "planner": third_party.measure,
    "ray": ray_serve.measure,
    **javascript.PARTS,
}
MODULES = (kills, tampered, rollbacks, grow, doors, loadgen, ray_serve, third_party, javascript)
NOTES = {figure: note for module in MODULES for figure, note in module.NOTES.items()}

if __name__ == "__main__":
    run_parts(Path(__file__).parent / "results", "python -m benchmarks.ship", PARTS, NOTES, sys.argv[1:])
