"""The manifest of a bundle that is being written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from exporter.bundle import (
    CASCADES_FILE,
    MANIFEST_FILE,
    MODELS_FOLDER,
    PROFILES_FOLDER,
    SELFTEST_FILE,
    SIGNATURE_FILE,
    SIGNED_FILE,
)
from exporter.bundle.manifest import Manifest, inside, sealed
from exporter.bundle.written import WRITTEN_FILE
from exporter.described import describe_graphs
from exporter.selftest import ExportError
from exporter.template import dynamic_axes
from trainer.family import family_name
from trainer.nested import NestedModel
from trainer.task import Score, Task, task_name

_OWN_NAMES = {
    *(MANIFEST_FILE, MODELS_FOLDER, SELFTEST_FILE, SIGNED_FILE, SIGNATURE_FILE),
    *(PROFILES_FOLDER, CASCADES_FILE, WRITTEN_FILE),
}
_LONGEST_NAME = 255  # bytes


def write_manifest(folder: Path, document: Mapping[str, Any]) -> Manifest:
    """The manifest of the files in the folder, whose graphs then say what they are; `document` has all fields but those that
    follow from the files."""
    describe_graphs(folder, document)
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _file_entry(path) for path in written}
    versions = {module.__name__: str(module.__version__) for module in (torch, onnx, ort)}
    whole = {**document, "files": files, "created_with": versions}
    text = json.dumps(sealed(json.loads(json.dumps(whole))), indent=1)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return Manifest.model_validate_json(text)


def check_files(files: Mapping[str, bytes]) -> None:
    """What else a device needs, by plain names. Raises ExportError for a name that a file cannot have everywhere, or that a
    bundle uses itself."""
    for name in files:
        try:
            fits = 0 < len(name.encode()) <= _LONGEST_NAME and PurePath(inside(name)).name == name
        except ValueError:
            fits = False
        if not fits or name.casefold() in _OWN_NAMES:
            raise ExportError(f"files: {name!r}; allowed are plain file names that the bundle does not use itself")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Those that `check_files` takes."""
    for name, content in files.items():
        (folder / name).write_bytes(content)


def network_fields(nested: NestedModel, outputs: Mapping[str, NDArray[Any]], labels: tuple[str, ...]) -> dict[str, Any]:
    """What the manifest says of the family: axes, task, inputs and outputs. `outputs`: of any sub-model, for their shapes."""
    family = nested.family
    inputs = family.example_inputs(1)
    free = dynamic_axes(nested, inputs)
    task = family.task
    described = {"kind": task.kind, "metric": task.metric, "name": task_name(task), "config": task.config()}
    return {
        "family": family_name(family),
        "axes": {name: [list(v) if isinstance(v, tuple) else v for v in values] for name, values in family.axes.items()},
        "task": {**described, "labels": list(labels)},
        "inputs": [_tensor_spec(name, t.numpy(), free.get(name, {})) for name, t in inputs.items()],
        "outputs": [_tensor_spec(name, array, {**free[name]} | _sized(task, name, array)) for name, array in outputs.items()],
    }


def _sized(task: Task, output: str, array: NDArray[Any]) -> dict[int, str]:
    """The axis of an output that is shorter in smaller sub-models, with a name."""
    return {array.ndim - 1: "dimensions"} if output in task.prefixes else {}


def score_fields(score: Score | None) -> dict[str, Any]:
    """What a sub-model's entry says of its score."""
    if score is None:
        return {"quality": None, "metrics": {}}
    return {"quality": score.quality, "metrics": dict(score.metrics)}


def _tensor_spec(name: str, array: NDArray[Any], free: Mapping[int, str]) -> dict[str, Any]:
    shape: list[int | str] = [free.get(axis, size) for axis, size in enumerate(array.shape)]
    return {"name": name, "dtype": array.dtype.name, "shape": shape}


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
