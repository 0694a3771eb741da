"""What `make demo` comes to: how many sub-models its frontier has, and how far quality rises along it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from math import sqrt
from pathlib import Path

from benchmarks.path.found import Found
from exporter.bundle import Bundle
from selector import selector_for

ROOT = Path(__file__).parents[2]


def measure() -> Found:
    """Runs the recipe of the Makefile's target with this interpreter's environment, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        run(Path(folder))
        bundle = Bundle(Path(folder) / "bundle")
        found = frontier_of(bundle, bundle.manifest.training["data"]["sizes"]["test"])
        found.figures["demo_seconds"] = time.perf_counter() - begun
        found.notes["demo_seconds"] = "all of make demo but its set-up"
        return found


def run(folder: Path) -> None:
    """Raises CalledProcessError when a command of the demo fails."""
    # -o: the virtual environment is as it should be, whatever make would say.
    command = ["make", "-o", ".venv/.ready", "demo", f"BIN={Path(sys.executable).parent}", f"DEMO={folder}"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "COLUMNS": "100"}, stdout=subprocess.DEVNULL, check=True)


def frontier_of(bundle: Bundle, examples: int) -> Found:
    """The frontier of accuracy over median latency as the selector sees it; accuracies are of so many test examples."""
    selector = selector_for(bundle)
    _, frontier = selector.afforded_by("latency_ms")
    chosen = {candidate.submodel for candidate in frontier}
    best = frontier[-1].quality
    full = max(bundle.submodels.values(), key=lambda entry: entry.params).quality
    assert full is not None
    return Found(
        {
            "demo_frontier_size": len(frontier),
            "demo_frontier_points": 100 * (best - frontier[0].quality),
            "demo_full_below_best_points": 100 * (best - full),
            "demo_standard_error_points": 100 * sqrt(best * (1 - best) / examples),
        },
        {
            "demo_frontier_size": f"of {len(selector.measured)} sub-models, by accuracy over median latency with 1 thread",
            "demo_frontier_points": f"of accuracy on {examples} test examples, from the first of the frontier to its last",
            "demo_full_below_best_points": "how far the full model is behind the most accurate sub-model",
            "demo_standard_error_points": f"binomial, of the best accuracy on {examples} test examples",
        },
        [
            {
                "part": "demo",
                "submodel": candidate.submodel,
                "latency_ms": candidate.latency_ms,
                "quality": candidate.quality,
                "on_frontier": candidate.submodel in chosen,
            }
            for candidate in selector.measured
        ],
    )
