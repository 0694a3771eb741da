"""How long a nested model over Hugging Face modules takes to build: MiniLM's size, 48 sub-models."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.path.found import Found
from tests.helpers.hugging_face import MiniLM
from trainer import NestedModel

TIMES = 5


def measure() -> Found:
    """Processor time, so that a busy machine does not change it; the first build, which imports, is not counted."""
    family = MiniLM()
    family.build(family.smallest)
    taken = []
    for _ in range(TIMES):
        begun = time.process_time()
        built = len(NestedModel(family).submodels)
        taken.append(time.process_time() - begun)
        assert built == 48
    rows: list[dict[str, object]] = [{"part": "hugging face", "built": 48, "seconds": round(seconds, 3)} for seconds in taken]
    note = (
        f"median of {TIMES}, processor time: the full model and 48 sub-models of MiniLM's size (6 depths, 4 widths of the "
        "layers between, 2 counts of heads)"
    )
    return Found({"hf_build_48_s": float(np.median(taken))}, {"hf_build_48_s": note}, rows)
