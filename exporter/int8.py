"""The int8 sub-models of a bundle that is being written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import onnxruntime as ort
import torch
from torch import Tensor

from exporter.bundle import MODELS_FOLDER, BundleError
from exporter.bundle.manifest import INT8_SUFFIX, Int8Range
from exporter.bundle.saturation import saturates
from exporter.bundle.session import SessionOptions, open_session, rms_error, run_session
from exporter.document import score_fields
from exporter.scoring import as_feed
from exporter.selftest import ExportError, Outputs
from exporter.weights import INT8_WEIGHTS_FILE
from trainer.data.dataset import Examples
from trainer.data.loading import batches_of
from trainer.macs import LayerShape
from trainer.nested import NestedModel
from trainer.submodel import SubModel, TrainerError
from trainer.task import Score, where

INT8_SELFTEST_TOLERANCE = 0.01
"""How far int8 answers may be off those of the exporting machine, or farther off fp32 than these (`exporter.bundle.verify`)."""
INT8_BOUND = 0.5
"""How far off its fp32 graph's an int8 graph's outputs may be (`int8_error`): with half of it noise it is another network."""
_EXAMPLES, _BATCH = 512, 64  # of training data, for the ranges of activations


@dataclass(frozen=True)
class Int8:
    """That int8 sub-models are wanted. `calibration`: training data; `weights`: the range of their integers."""

    calibration: Examples
    weights: Int8Range


def int8_wanted(nested: NestedModel, calibration: Examples | None, weights: str) -> Int8 | None:
    """Raises ExportError for a range that is none, that this machine cannot export, or that nothing is written in; and for a
    network of other numbers than float32, which ONNX Runtime's quantizer leaves as they are."""
    if weights not in get_args(Int8Range):
        raise ExportError(f"int8_range = {weights!r}; allowed are {', '.join(get_args(Int8Range))}")
    if calibration is None:
        if weights != "reduced":
            raise ExportError(f"int8_range = {weights!r}: no int8 sub-models are asked for (`--int8`, or int8_calibration)")
        return None
    for name, parameter in nested.full.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ExportError(f"int8: parameter {name!r} holds {kind}; allowed are networks whose parameters are float32")
    if weights == "full" and saturates():
        raise ExportError(
            "int8_range = 'full': sums of 8-bit weights saturate in this processor's kernels (no VNNI), so that what is "
            "measured here would be wrong; allowed is 'reduced' (7 bits), at the same speed"
        )
    return Int8(calibration, "full" if weights == "full" else "reduced")


def int8_entries(
    nested: NestedModel,
    models: Path,
    entries: Mapping[SubModel, Mapping[str, Any]],
    answers: Callable[[str], Outputs],
    int8: Int8,
    inputs: Outputs,
    layers: dict[LayerShape, int],
    score: Callable[[ort.InferenceSession], Score | None],
) -> Iterator[tuple[dict[str, Any], Outputs]]:
    """Writes an int8 graph beside each fp32 graph of `entries`: its entry, and what it answers here to `inputs`.

    `answers`: those of an fp32 sub-model. `layers`: all that were seen, numbered; new ones are added. Raises ExportError for
    a graph whose answers have little to do with its fp32 graph's, and for one that cannot be written or does not run.
    """
    from exporter.quantize import Quantizer

    batches = batches_of(int8.calibration, _BATCH, _spread(len(int8.calibration), _EXAMPLES), workers=0)  # as scores are
    feeds = [as_feed(batch.inputs, nested.input_names) for batch in batches]
    graphs = {sub: models.parent / entry["graph"] for sub, entry in entries.items()}
    with _refused("int8"), (models / INT8_WEIGHTS_FILE).open("wb") as file:
        quantizer = Quantizer(nested, graphs, feeds, file, int8.weights)
    for sub, entry in entries.items():
        name = f"{entry['id']}{INT8_SUFFIX}"
        path = models / f"{name}.onnx"
        with _refused(f"sub-model {name}"):
            quantizer.write(sub, path)
            session = open_session(path, SessionOptions(threads=1, spinning=False))
            outputs = run_session(session, inputs)
        error = rms_error(outputs, answers(entry["id"]))
        if not error <= INT8_BOUND:
            raise ExportError(
                f"sub-model {name}: the outputs of its int8 graph are {error:.0%} off those of the fp32 graph (RMS, on the "
                f"self-test's inputs); allowed is {INT8_BOUND:.0%}: the training data given for int8 are not like what the "
                "network is asked, or 8 bits are too few for it"
            )
        own = {
            "id": name,
            "graph": f"{MODELS_FOLDER}/{name}.onnx",
            "precision": "int8",
            "int8_error": error,
            "layers": [(layers.setdefault(shape, len(layers)), n) for shape, n in _int8_layers(entry, list(layers))],
        }
        yield {**entry, **own, **score_fields(score(session))}, outputs


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """What ONNX Runtime and its quantizer raise, which have no type of their own, as an ExportError."""
    try:
        yield
    except (BundleError, TrainerError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ExportError(f"{what}: no int8 graph can be written of this network: {where(error)}") from error


def _int8_layers(entry: Mapping[str, Any], shapes: Sequence[LayerShape]) -> list[tuple[LayerShape, int]]:
    return [(shapes[index]._replace(kind=f"{shapes[index].kind}, int8"), count) for index, count in entry["layers"]]


def _spread(count: int, wanted: int) -> Tensor:
    """So many indices at most, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, wanted)).long()
