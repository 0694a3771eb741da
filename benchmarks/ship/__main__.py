"""`python -m benchmarks.ship [PART …]`: measures the parts, or all, and writes `results/summary.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.ship import doors, grow, javascript, kills, loadgen, rollbacks, tampered
from benchmarks.summary import run_parts

PARTS = {
    "kills": kills.measure,
    "tampered": tampered.measure,
    "rollback_runs": rollbacks.measure,
    "grow": grow.measure,
    "doors": doors.measure,
    "loadgen": loadgen.measure,
    **javascript.PARTS,
}
NOTES = {**kills.NOTES, **tampered.NOTES, **rollbacks.NOTES, **grow.NOTES, **doors.NOTES, **loadgen.NOTES, **javascript.NOTES}

if __name__ == "__main__":
    run_parts(Path(__file__).parent / "results", "python -m benchmarks.ship", PARTS, NOTES, sys.argv[1:])
