"""Opens a sub-model in ONNX Runtime: the one place that decides how, for export, verification, profiling and running."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Feed = Mapping[str, NDArray[Any]]


def open_session(graph: str | Path, *, threads: int = 0, spinning: bool = True) -> ort.InferenceSession:
    """A session on the CPU with all graph optimizations.

    `threads`: 0 lets ONNX Runtime take one per physical core. `spinning=False` lets idle threads sleep: slower by some
    microseconds per operator, but other work beside it (torch, another session) keeps its cores.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def run_session(session: ort.InferenceSession, inputs: Feed) -> dict[str, NDArray[Any]]:
    """Outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def relative_error(outputs: Feed, expected: Feed) -> float:
    """The largest difference of any output, relative to the largest magnitude of that output; inf when shapes differ."""
    worst = 0.0
    for name, wanted in expected.items():
        got = outputs.get(name)
        if got is None or got.shape != wanted.shape:
            return float("inf")
        difference = np.abs(got.astype(np.float64) - wanted).max(initial=0.0)
        scale = np.abs(wanted).max(initial=0.0)
        error = float(difference / scale) if scale else float(difference)
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst
