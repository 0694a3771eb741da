"""The JavaScript client: whether it answers the vectors as Python does, and what a selection takes there (needs node).

`python -m benchmarks.ship.javascript` measures these parts alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.summary import run_parts

NOTES = {
    "vectors": "queries of tests/vectors/selection.json that Python's Selector answered",
    "differing": "of these, those that clients/js answers otherwise: a member, a word, a number by more than 1e-9",
    "feedback_steps": "choices of tests/vectors/feedback.json, each after what the runs before took",
    "feedback_differing": "of these, those that clients/js makes otherwise",
    "js_select_us": "one Selector.select in node, mean over all vectors without an error, of each the least of 9 batches",
    "js_choose_us": "one Controller.choose and observe in node, mean over the steps of all traces, of each the least of 9",
}
HARNESS = Path(__file__).with_name("javascript.mjs")


def asked(part: str) -> dict[str, Any]:
    """What the harness prints. Raises RuntimeError where there is no node, or it fails."""
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("no node found: apt-get install nodejs")
    ran = subprocess.run([node, str(HARNESS), part], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{HARNESS.name} {part}: {ran.stderr}")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def vectors() -> dict[str, float]:
    """How many there are, and how many differ."""
    return asked("vectors")


def select() -> dict[str, float]:
    """Microseconds of a choice."""
    return asked("select")


PARTS = {"vectors": vectors, "js_select_us": select}

if __name__ == "__main__":
    run_parts(Path(__file__).parent / "results", "python -m benchmarks.ship", PARTS, NOTES, sys.argv[1:])
