"""What the benchmark of the demo counts; the demo itself, run by it, keeps what it promises."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.path import demo
from exporter.bundle import Bundle
from tests.helpers.figures import accuracies_of, write_accuracies


def test_of_the_frontier_its_size_its_rise_and_how_far_the_full_model_is_behind(bundle_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_path, tmp_path / "bundle"))
    written = accuracies_of(Bundle(path))
    by_latency = sorted(written, key=written.__getitem__)  # in the fixture's profile the more accurate is the slower
    accuracies = dict(zip(by_latency, (0.8, 0.79, 0.85, 0.9, 0.9, 0.88), strict=True))
    write_accuracies(path, accuracies)
    found = demo.frontier_of(Bundle(path), examples=900)
    assert found.figures == pytest.approx(
        {
            "demo_frontier_size": 3,  # 0.8, 0.85 and the faster of the two with 0.9
            "demo_frontier_points": 10,
            "demo_full_below_best_points": 2,
            "demo_standard_error_points": 1,  # the root of 0.9 × 0.1 / 900
        }
    )
    assert {row["submodel"]: row["quality"] for row in found.rows} == accuracies
    assert sum(bool(row["on_frontier"]) for row in found.rows) == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_ends_with_what_it_promises_and_its_frontier_rises() -> None:
    figures = demo.measure().figures
    assert figures["demo_frontier_points"] >= 3
    assert figures["demo_full_below_best_points"] <= 2 * figures["demo_standard_error_points"]
