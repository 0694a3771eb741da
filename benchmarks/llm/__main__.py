"""`make bench-llm`: measures decoding, and writes `results/`. `python -m benchmarks.llm PART…` for some.

The run is build/llm/run, or else sizes cut from the original (`benchmarks.llm.measured`). `genai` and `llamacpp` install
what they compare with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.llm import greedy, rates, scores, sizes, switching
from benchmarks.llm.peers import versions
from benchmarks.summary import add_to_summary, run_parts

COMMAND = "make bench-llm"
RESULTS = Path(__file__).parent / "results"
PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "genai": rates.of_genai,
    "llamacpp": rates.of_llamacpp,
    "sizes": sizes.measure,
    "span": sizes.span,
    "greedy": greedy.measure,
    "switch": switching.step,
    "reuse": switching.reuse,
    "perplexity": rates.perplexities,
}
NOTES = {**rates.NOTES, **scores.NOTES, **sizes.NOTES, **greedy.NOTES, **switching.NOTES}


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    run_parts(RESULTS, COMMAND, PARTS, NOTES, sys.argv[1:])
    add_to_summary(RESULTS, COMMAND, {}, {f"version of {name}": version for name, version in versions().items()})


if __name__ == "__main__":
    main()
