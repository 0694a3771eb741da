"""The vectors are what Python's selection says; that JavaScript says the same is in `clients/js/test/vectors.test.js`."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.vectors.write import FOLDER, documents


def same(found: Any, wanted: Any) -> bool:
    """As the vectors' README says: logarithms differ in the last digit from one C library to another."""
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict) and found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, float):
        return isinstance(found, (int, float)) and math.isclose(found, wanted, rel_tol=1e-9)
    return bool(found == wanted)


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return {name: json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in ("selection.json", "feedback.json")}


def test_the_files_are_what_python_says(written: dict[str, Any]) -> None:
    """Else: `python -m tests.vectors.write`, and look at what has changed."""
    said = json.loads(json.dumps(documents()))
    for name, document in written.items():
        for part, wanted in document.items():
            for place, one in enumerate(wanted if isinstance(wanted, list) else [wanted]):
                found = said[name][part][place] if isinstance(wanted, list) else said[name][part]
                assert same(found, one), f"{name}, {part}, {place}"
            assert not isinstance(wanted, list) or len(said[name][part]) == len(wanted)


def test_they_show_what_a_port_may_get_wrong(written: dict[str, Any]) -> None:
    vectors = written["selection.json"]["vectors"]
    selections = [one["selection"] for one in vectors if "selection" in one]
    assert len(vectors) >= 200
    for kind in (
        [one for one in vectors if "error" in one],
        [one for one in selections if not one["feasible"]],
        [one for one in selections if one["stages"]],
        [one for one in selections if one["energy_mj"] is None],
        [one for one in selections if one["reason"].startswith("battery at")],
        [one for one in selections if one["reason"].startswith("low-power mode")],
        [one for one in selections if "for inputs of up to" in one["reason"]],
        [one for one in selections if "in steady work" in one["reason"]],
    ):
        assert len(kind) >= 3
    traces = written["feedback.json"]["traces"]
    assert sum(len({step["selection"]["submodel"] for step in trace["steps"]}) > 2 for trace in traces) >= 4
