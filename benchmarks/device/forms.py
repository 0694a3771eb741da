"""Forms of int8 on kernels that saturate and on those of this processor: accuracy, exactness, latency.

A small ResNet and MobileNetV2 are trained on MNIST's sample of 5,000 (3,250 train, 1,000 test) and exported with weights of 7
bits, which is what we ship, of 8, with signed activations, and with unsigned weights. What ONNX Runtime's kernels answer is
compared with floats (ORT_DISABLE_ALL), in which nothing saturates.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_static

from benchmarks.device import avx2
from benchmarks.device.sessions import ONE_THREAD, Figures
from benchmarks.training.setups import SETUPS
from exporter import export
from exporter.bundle.session import open_session
from trainer import NestedModel, fit
from trainer.data import load_data
from trainer.family import find_family

WORK = Path("build/device/forms")
FAMILIES = {"resnet": 10, "mobilenetv2": 15}  # epochs
FORMS = ("reduced", "full", "signed activations", "unsigned weights")


def measure() -> Figures:
    for name in FAMILIES:
        if not (WORK / name / FORMS[-1]).exists():
            _make(name)
    found = evaluate()
    if avx2.available():
        ran = avx2.run(["-m", "benchmarks.device.forms"], capture_output=True, check=True)
        found |= {f"{key}.avx2": value for key, value in json.loads(ran.stdout).items()}
    return {f"int8_form.{key}": value for key, value in found.items()}


def _make(name: str) -> None:
    data = load_data("mnist")
    settings: dict[str, Any] = {**SETUPS[name].settings, "widths": (0.5, 1.0), "depths": SETUPS[name].settings["depths"][-2:]}
    torch.manual_seed(0)
    nested = NestedModel(find_family(name).for_data(data.spec, **settings))
    fit(nested, data.train, epochs=FAMILIES[name], batch_size=32, augment=data.augment)
    for form in FORMS:
        with _form(form):
            weights: Any = "reduced" if form == "reduced" else "full"
            bundle = export(
                nested,
                WORK / name / form,
                submodels=nested.submodels[-1:],
                int8_calibration=data.train,
                int8_range=weights,
                show_progress=False,
            )
        if form == "unsigned weights":
            graph = bundle.graph_path(bundle.manifest.submodels[1].id)
            graph.write_bytes(_unsigned(graph).SerializeToString())


@contextmanager
def _form(form: str) -> Iterator[None]:
    def quantize(*arguments: Any, **options: Any) -> None:
        kind = QuantType.QInt8 if form == "signed activations" else QuantType.QUInt8
        quantize_static(*arguments, **{**options, "activation_type": kind})

    with patch("exporter.quantize.quantize_static", quantize), patch("exporter.int8.saturates", lambda: False):
        yield


def _unsigned(path: Path) -> onnx.ModelProto:
    """With 128 added to weights and their zero points."""
    model = onnx.load(path)
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        name = node.input[0]
        while name in made_by and made_by[name].op_type in ("Slice", "Transpose", "Concat"):
            name = made_by[name].input[0]
        weights = held.get(name)
        if node.op_type == "DequantizeLinear" and weights is not None and weights.data_type != TensorProto.INT32:
            if weights.data_type == TensorProto.INT8:
                integers = numpy_helper.to_array(weights).astype(np.int16) + 128
                weights.CopyFrom(numpy_helper.from_array(integers.astype(np.uint8), name))
            zero = f"{node.input[2]}.unsigned"
            if zero not in held:
                held[zero] = numpy_helper.from_array(np.full(held[node.input[2]].dims, 128, np.uint8), zero)
                graph.initializer.append(held[zero])
            node.input[2] = zero
    return model


def evaluate(rounds: int = 400) -> Figures:
    """Of each network and form: points of accuracy lost to fp32, the answers' RMS distance from exact ones, and latency
    relative to fp32 (processor time of one thread, the forms take turns)."""
    data = load_data("mnist").test
    batch = data.batch(torch.arange(len(data)))
    (images,), labels = (tensor.numpy() for tensor in batch.inputs.values()), batch.targets.numpy()  # type: ignore[union-attr]
    found: Figures = {}
    random = np.random.default_rng(0)
    for name in FAMILIES:
        graphs = {form: next((WORK / name / form / "models").glob("*-int8.onnx")) for form in FORMS}
        plain = graphs["reduced"].with_name(graphs["reduced"].name.replace("-int8", ""))
        sessions = {"fp32": open_session(plain, ONE_THREAD)} | {f: open_session(p, ONE_THREAD) for f, p in graphs.items()}
        right = {form: float((_answers(s, images).argmax(1) == labels).mean()) for form, s in sessions.items()}
        for form, path in graphs.items():
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            exact = _answers(ort.InferenceSession(str(path), options), images)
            error = _answers(sessions[form], images) - exact
            key = f"{name}.{form.replace(' ', '_')}"
            found[f"points_lost.{key}"] = 100 * (right["fp32"] - right[form])
            found[f"inexact.{key}"] = float(np.sqrt((error**2).mean() / (exact**2).mean()))
        taken: dict[str, list[float]] = {form: [] for form in sessions}
        for _ in range(rounds):
            for form in random.permutation(list(sessions)):  # who runs after whom finds other things in the cache
                taken[form].append(_time(sessions[form], images[:1]))
        medians = {form: float(np.median(times[rounds // 10 :])) for form, times in taken.items()}
        found |= {f"latency.{name}.{form.replace(' ', '_')}": medians[form] / medians["fp32"] for form in graphs}
    return found


def _answers(session: ort.InferenceSession, images: NDArray[Any]) -> NDArray[Any]:
    name = session.get_inputs()[0].name
    parts = (images[start : start + 100] for start in range(0, len(images), 100))
    return np.concatenate([session.run(None, {name: part})[0] for part in parts])


def _time(session: ort.InferenceSession, image: NDArray[Any]) -> float:
    name = session.get_inputs()[0].name
    begun = time.thread_time()
    session.run(None, {name: image})
    return time.thread_time() - begun


if __name__ == "__main__":
    json.dump(evaluate(), sys.stdout)
