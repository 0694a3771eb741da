"""What BERT-base costs: 12 layers of 768, random weights, 48 sub-models."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.text.bundles import CLASSES, TOKENS, Made, exported_by_torch, family_of, of_shape
from benchmarks.text.data import WORK
from benchmarks.text.graphs import size_over_torch
from benchmarks.text.timing import Figures, texts, times_as_fast
from exporter.bundle.session import SessionOptions, open_session
from trainer import NestedModel, Samples
from trainer.training import fit

NAME = "bert-base"
LENGTH, RUNS = 128, 5
STEPS, BATCH = 3, 8

NOTES = {
    "base.build_s": "processor time of the nested model and its 48 sub-models, random weights, without the imports",
    "base.export_s": f"wall time of the export of all 48, each compared with torch on texts of up to {2 * TOKENS} tokens",
    "base.bundle_ratio": "bytes of the bundle over one torch.onnx.export of the full model",
    "base.mac_span": "multiply-accumulates of the largest over the smallest sub-model",
    "base.full_ms": f"processor time of the full model, batch 1, {LENGTH} tokens, 1 thread; smallest_ms: of the smallest",
    "base.speed_ratio_torch": "tokens per second of the full model over torch.onnx.export's, the two take turns",
    "base.step_ratio": f"processor time of a training step with the usual update rule over one of the full model alone, "
    f"{BATCH} texts of {TOKENS} tokens, means of {STEPS}",
}


def measure() -> Figures:
    family_of(NAME).build(family_of(NAME).smallest)  # imports
    begun = time.process_time()
    built = len(NestedModel(family_of(NAME)).submodels)
    seconds = time.process_time() - begun
    shutil.rmtree(WORK / "shapes" / NAME, ignore_errors=True)
    begun = time.perf_counter()
    made = of_shape(NAME)
    exported = time.perf_counter() - begun
    macs = [entry.macs for entry in made.bundle.manifest.submodels]
    smallest, largest = (list(made.sizes())[place] for place in (0, -1))
    return {
        "base.submodels": float(built),
        "base.parameters": float(sum(p.numel() for p in made.nested.full.parameters())),
        "base.build_s": seconds,
        "base.export_s": exported,
        "base.bundle_mb": made.bundle.bytes_total / 2**20,
        "base.bundle_ratio": size_over_torch(made),
        "base.mac_span": max(macs) / min(macs),
        "base.full_ms": milliseconds(made, largest),
        "base.smallest_ms": milliseconds(made, smallest),
        "base.speed_ratio_torch": over_torch(made),
        "base.step_ratio": step_ratio(made),
    }


def milliseconds(made: Made, name: str) -> float:
    session, feed = open_session(made.bundle.graph_path(name), SessionOptions(threads=1)), texts(1, LENGTH, 0, made.vocabulary)
    session.run(None, feed)
    taken = []
    for _ in range(RUNS):
        begun = time.thread_time()
        session.run(None, feed)
        taken.append(time.thread_time() - begun)
    return 1e3 * float(np.median(taken))


def over_torch(made: Made) -> float:
    with tempfile.TemporaryDirectory() as folder:
        plain = exported_by_torch(made.nested, made.nested.family.largest, Path(folder) / "full.onnx")
        full = made.bundle.graph_path(list(made.sizes())[-1])
        ours, theirs = (open_session(path, SessionOptions(threads=1)) for path in (full, plain))
        feed = texts(1, LENGTH, 0, made.vocabulary)
        return times_as_fast(lambda: ours.run(None, feed), lambda: theirs.run(None, feed), RUNS)


def step_ratio(made: Made) -> float:
    arrays = texts(STEPS * BATCH, TOKENS, 0, made.vocabulary)
    examples = Samples({name: torch.from_numpy(array) for name, array in arrays.items()}, torch.arange(STEPS * BATCH) % CLASSES)

    def seconds(**how: str) -> float:
        options: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "lr": 1e-5, **how}
        begun = time.process_time()
        fit(made.nested, examples, show_progress=False, **options)
        return time.process_time() - begun

    seconds()  # primitives are created once per process
    return seconds() / seconds(update="full")
