"""Large batches keep the limit of memory: in parts, with the same outputs, and nothing is held after them."""

from __future__ import annotations

import json
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle import Bundle
from selector import Budget, Runtime
from selector.choose.cascades import Cascade
from selector.run.program import divisible, examples_within
from tests.helpers.cascades import CHEAP, with_cascade

__all__ = ["with_cascade"]

EXAMPLES = 2000
MEMORY = """
import json, sys
import numpy as np
from device_profiles.host import private_memory_mb
from selector import Budget, Runtime
runtime = Runtime(sys.argv[1], sensors=False, battery=lambda: None, feedback=False, threads=1)
images = np.zeros((4000, 1, 8, 8), np.float32)
found = []
for budget in (Budget(), Budget(memory_mb=6.0), Budget()):
    runtime.run({"input": images[:1]}, budget)
    before = private_memory_mb()
    outputs = runtime.run({"input": images}, budget).outputs
    found.append(private_memory_mb() - before)
print(json.dumps(found[1:]))
"""


class Watched:
    """A program that says how many examples each of its calls had."""

    def __init__(self, program: Any) -> None:
        self.program, self.sizes, self.shrunk = program, [], []

    def run(self, feed: Any, *, shrink: bool = False) -> Any:
        self.sizes.append(len(feed["input"]))
        self.shrunk.append(shrink)
        return self.program.run(feed, shrink=shrink)


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(1).random((EXAMPLES, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize(("limit", "most"), [(6.0, 1), (30.0, 2), (None, EXAMPLES)])
def test_a_batch_is_computed_in_parts_that_keep_the_limit(
    bundle_path: Path, images: Any, limit: float | None, most: int
) -> None:
    """The largest takes 6 MB by the profile: half of what would fit is taken."""
    runtime = Runtime(bundle_path, sensors=False, battery=lambda: None, feedback=False)
    budget = Budget(memory_mb=limit)
    name = runtime.select(budget).submodel
    whole = runtime.program(name).run({"input": images[:100]}).outputs["logits"]
    watched = Watched(runtime.program(name))
    runtime.pool._sessions[name, runtime.select(budget).device] = watched
    result = runtime.run({"input": images[:100]}, budget)
    assert (result.selection.submodel, max(watched.sizes), sum(watched.sizes)) == (name, min(most, 100), 100)
    np.testing.assert_allclose(result.outputs["logits"], whole, rtol=1e-4, atol=1e-5)
    assert watched.shrunk == [False] * (len(watched.sizes) - 1) + [limit is not None]
    runtime.close()


def test_a_cascade_too_and_a_limit_of_the_sessions(with_cascade: tuple[Bundle, Cascade], images: Any) -> None:
    bundle, cascade = with_cascade
    free, bound = (Runtime(bundle, sensors=False, battery=lambda: None, memory_mb=memory) for memory in (None, 40.0))
    wanted, found = (runtime.run({"input": images[:50]}, CHEAP) for runtime in (free, bound))
    assert found.selection.submodel == wanted.selection.submodel == cascade.id
    np.testing.assert_allclose(found.outputs["logits"], wanted.outputs["logits"], rtol=1e-4, atol=1e-5)
    for runtime in (free, bound):
        runtime.close()


def test_what_a_large_batch_needed_is_given_back(bundle_path: Path) -> None:
    """In a process of its own, whose memory nothing else changes."""
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, str(bundle_path)], capture_output=True, text=True, timeout=120, check=True
    )
    within, without = json.loads(ran.stdout)
    assert within < 6 < without


@pytest.mark.parametrize(("limit", "memory", "most"), [(inf, 1.0, None), (4.0, 0.25, 8), (1.0, 4.0, 1), (5.0, 0.0, None)])
def test_how_many_examples_keep_a_limit(limit: float, memory: float, most: int | None) -> None:
    assert examples_within(limit, memory) == most


def test_only_what_has_one_free_first_axis_is_divided(bundle_path: Path) -> None:
    bundle = Bundle(bundle_path)
    assert divisible(bundle)
    (output,) = bundle.manifest.outputs
    bundle.manifest = bundle.manifest.model_copy(
        update={"outputs": [output.model_copy(update={"shape": ("other", *output.shape[1:])})]}
    )
    assert not divisible(bundle)
