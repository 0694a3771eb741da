"""MLPerf's LoadGen takes a Runtime for a system under test, and calls the run valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.bundle import Bundle
from selector import Budget, Runtime
from tests.helpers.runtimes import runtime_of


def test_loadgen_calls_a_run_of_a_runtime_valid(bundle: Bundle, images: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    from benchmarks.ship.loadgen import QUERIES, valid_single_stream

    inputs = {bundle.manifest.inputs[0].name: images[:1]}
    asked: list[int] = []
    runtime: Runtime
    with runtime_of(bundle.path) as runtime:

        def run(sample: int) -> None:
            runtime.run(inputs, Budget(objective="latency"))
            asked.append(sample)

        assert valid_single_stream(run, tmp_path / "logs")
    assert len(asked) >= QUERIES
    assert "SingleStream" in (tmp_path / "logs" / "mlperf_log_summary.txt").read_text()


def test_loadgen_calls_too_few_answers_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlperf_loadgen")
    from benchmarks.ship import loadgen

    monkeypatch.setattr(loadgen, "QUERIES", 2)  # of which no percentile can be told
    assert not loadgen.valid_single_stream(lambda sample: None, tmp_path / "logs")
