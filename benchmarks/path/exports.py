"""Export time, bundle size and latency against plain ONNX exports, one per sub-model, of 160 sub-models."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch

from benchmarks.path.found import Found
from exporter import export
from exporter.bundle import Bundle
from exporter.bundle.session import Feed, SessionOptions, open_session, relative_error
from trainer import Family, NestedModel, SubModel, calibrate
from trainer.families import MobileNetV2, ResNet

WIDTHS = tuple(i / 10 for i in range(1, 11))
SAMPLED_DEFAULT_EXPORTS = 8  # torch's default exporter takes 1.5 to 5 s for each
TIMED = 8
ROUNDS = 40


def families() -> dict[str, Family]:
    """160 sub-models each: ten widths by sixteen depths per stage. ResNet 5.3 M parameters, MobileNetV2 2.2 M."""
    resnet = list(product((1, 2), (1, 2), (1, 2, 3, 4)))
    mobilenet = list(product((1,), (1, 2), (3,), (2, 4), (1, 3), (1, 3), (1,)))
    return {
        "resnet": ResNet(channels=(64, 128, 256), blocks=(2, 2, 4), widths=WIDTHS, depths=resnet),
        "mobilenetv2": MobileNetV2(widths=WIDTHS, depths=mobilenet),
    }


def measure() -> Found:
    logging.disable(logging.WARNING)
    found = Found()
    speedups, torchscript, ratios, errors = [], [], [], []
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        for name, family in families().items():
            torch.manual_seed(0)
            nested = NestedModel(family).eval()
            calibrate(nested, [torch.rand(32, 3, 32, 32)])
            assert len(nested.submodels) == 160
            begun = time.perf_counter()
            bundle = export(nested, Path(scratch) / name, show_progress=False)
            ours = time.perf_counter() - begun
            plain = _plain_exports(nested, Path(scratch) / f"{name}-plain")
            default = _default_export_seconds(nested, Path(scratch) / "default.onnx")
            speedups.append(160 * default / ours)
            torchscript.append(plain.seconds / ours)
            largest = plain.folder / f"{family.largest.id}.onnx"
            found.figures |= {
                f"parameters_{name}": sum(p.numel() for p in nested.full.parameters()),
                f"export_seconds_{name}": ours,
                f"export_speedup_{name}": speedups[-1],
                f"export_speedup_torchscript_{name}": torchscript[-1],
                f"bundle_ratio_{name}": bundle.bytes_total / largest.stat().st_size,
                f"bundle_vs_plain_sum_{name}": bundle.bytes_total / plain.bytes_total,
            }
            for sub in nested.submodels[:: len(nested.submodels) // TIMED][:TIMED]:
                row = _compare(bundle, sub, plain.folder)
                ratios.append(row["latency_ratio"])
                errors.append(row["error"])
                found.rows.append({"part": "latency", "family": name, "submodel": sub.id, **row})
    logging.disable(logging.NOTSET)
    found.figures |= {
        "export_speedup": min(speedups),
        "export_speedup_torchscript": min(torchscript),
        "latency_ratio_to_plain": float(np.median(ratios)),
        "latency_ratio_to_plain_min": min(ratios),
        "latency_ratio_to_plain_max": max(ratios),
        "outputs_vs_plain_max_error": max(errors),
    }
    found.notes |= {
        "export_speedup": "the slower of the two families; export with parity check against torch.onnx.export as it is "
        f"called by default, its time per sub-model the mean over {SAMPLED_DEFAULT_EXPORTS} of the 160 spread over the grid",
        "export_speedup_torchscript": "the same against all 160 exports with dynamo=False (deprecated)",
        "latency_ratio_to_plain": f"median over {TIMED} sub-models of each family; each the ratio of medians of "
        f"{ROUNDS} rounds in which the two take turns, 1 thread, batch 1",
        "outputs_vs_plain_max_error": "relative to the largest output; plain exports have BatchNorm folded by torch",
    }
    return found


class _Plain(NamedTuple):
    """What torch.onnx.export (dynamo=False) wrote, once per sub-model."""

    folder: Path
    seconds: float  # with the extraction of the sub-models
    bytes_total: int


def _plain_exports(nested: NestedModel, folder: Path) -> _Plain:
    folder.mkdir()
    inputs = (torch.rand(2, 3, 32, 32),)
    axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
    names = {"input_names": ["input"], "output_names": ["logits"], "dynamic_axes": axes}
    begun = time.perf_counter()
    for sub in nested.submodels:
        torch.onnx.export(nested.extract(sub), inputs, str(folder / f"{sub.id}.onnx"), dynamo=False, **names)  # type: ignore[arg-type]
    seconds = time.perf_counter() - begun
    return _Plain(folder, seconds, sum(path.stat().st_size for path in folder.iterdir()))


def _default_export_seconds(nested: NestedModel, path: Path) -> float:
    """Mean seconds of torch.onnx.export as called by default, for sub-models spread over the grid."""
    inputs = (torch.rand(2, 3, 32, 32),)
    batch = ({0: torch.export.Dim("batch")},)
    sampled = nested.submodels[:: len(nested.submodels) // SAMPLED_DEFAULT_EXPORTS][:SAMPLED_DEFAULT_EXPORTS]
    torch.onnx.export(nested.extract(sampled[0]), inputs, str(path), dynamic_shapes=batch, verbose=False)  # imports
    begun = time.perf_counter()
    for sub in sampled:
        torch.onnx.export(nested.extract(sub), inputs, str(path), dynamic_shapes=batch, verbose=False)
    return (time.perf_counter() - begun) / len(sampled)


def _compare(bundle: Bundle, sub: SubModel, plain: Path) -> dict[str, float]:
    image = {"input": np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)}
    sessions = [open_session(path, SessionOptions(threads=1)) for path in (bundle.graph_path(sub.id), plain / f"{sub.id}.onnx")]
    ours, theirs = (session.run(None, image)[0] for session in sessions)
    taken: list[list[float]] = [[], []]
    for _ in range(5):
        for session in sessions:
            session.run(None, image)
    for number in range(ROUNDS):
        for place in (0, 1) if number % 2 else (1, 0):
            taken[place].append(_milliseconds(sessions[place], image))
    medians = [float(np.median(values)) for values in taken]
    return {
        "ours_ms": round(medians[0], 4),
        "plain_ms": round(medians[1], 4),
        "latency_ratio": medians[0] / medians[1],
        "error": relative_error({"logits": ours}, {"logits": theirs}),
    }


def _milliseconds(session: ort.InferenceSession, feed: Feed) -> float:
    """Mean of enough runs to take about 10 ms."""
    begun = time.perf_counter()
    runs = 0
    while time.perf_counter() - begun < 0.01 or runs < 2:
        session.run(None, feed)
        runs += 1
    return (time.perf_counter() - begun) / runs * 1e3
