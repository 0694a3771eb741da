"""`make bench-text`: measures graphs, lengths, installs and cascades of the language half, and writes `results/`.

`python -m benchmarks.text PART…` for some. The bundles come from the nested runs that the experiments of
`python -m benchmarks.text.accuracy` leave in build/text/runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.device.install import installed, megabytes
from benchmarks.summary import run_parts
from benchmarks.text import cascades, graphs, lengths, rival, shape

RESULTS = Path(__file__).parent / "results"


def install() -> dict[str, float]:
    with installed("text") as python:
        return {"install_mb": megabytes(python)}


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "parity": graphs.parity,
    "bundle": graphs.bundle_ratio,
    "speed": graphs.speed,
    "optimum": rival.measure,
    "lengths": lengths.measure,
    "cascades": cascades.measure,
    "base": shape.measure,
    "install": install,
}
NOTES = {
    **graphs.NOTES,
    **rival.NOTES,
    **lengths.NOTES,
    **cascades.NOTES,
    **shape.NOTES,
    "install_mb": "site-packages of a fresh environment with sortednet[text]",
}


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    run_parts(RESULTS, "make bench-text; python -m benchmarks.text.accuracy", PARTS, NOTES, sys.argv[1:])


if __name__ == "__main__":
    main()
