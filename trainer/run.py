"""A run: the folder that `sortednet train` writes and `sortednet export` reads. It can be reopened from what it carries.

run.json                   family and its configuration, data set and split, options, first weights, the folder that relative
                           paths are from, version, results
checkpoint.safetensors     parameters, optimizer state and step, while and after training
log.jsonl                  one line per epoch
model.safetensors          the trained parameters            (written at the end)
calibration.safetensors    BatchNorm statistics per sub-model (written at the end)
targets.safetensors        what the original model answered   (where the data have no targets)
begin.safetensors          what it began with                 (where some of the way may be taken back)
order.safetensors          in which order its units were put  (where a teacher's must be alike)
files/                     what a device needs to prepare inputs (a tokenizer)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import load_parameters, load_tensors, save_tensors
from trainer.family import Family, family_name
from trainer.folder import (
    CALIBRATION_FILE,
    FILES_FOLDER,
    MODEL_FILE,
    check_unaltered,
    read_record,
)
from trainer.nested import NestedModel
from trainer.rebuild import family_of
from trainer.submodel import TrainerError
from trainer.task import Task, own, task_name


@dataclass(frozen=True)
class Run:
    """A finished run, reopened: the calibrated nested model in eval mode and what `run.json` says."""

    nested: NestedModel
    record: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)  # what a device needs to prepare inputs, by file name


def describe_run(
    family: Family, data: Mapping[str, Any], options: Mapping[str, Any], init: Path | None = None
) -> dict[str, Any]:
    """What `run.json` holds from the beginning. Raises TrainerError for what JSON cannot hold, naming its origin."""
    name = type(family).__name__
    with own(f"{name}.config"):
        config = family.config()
    grid = {axis: [list(v) if isinstance(v, tuple) else v for v in values] for axis, values in family.axes.items()}
    return {
        "family": family_name(family),
        "config": _as_json(config, f"{name}.config()"),
        "grid": grid,
        "task": describe_task(family.task),
        "data": dict(data),
        "options": dict(options),
        "init": str(init) if init else None,
        "folder": str(Path.cwd()),
        "torch": torch.__version__,
    }


def describe_task(task: Task) -> dict[str, Any]:
    """As a run and a bundle carry it."""
    with own(f"{type(task).__name__}.config"):
        config = task.config()
    return {"name": task_name(task), "config": _as_json(config, f"{type(task).__name__}.config()")}


def _as_json(value: Any, what: str) -> Any:
    """As it will be when it has been written and read again: tuples are lists then, keys are strings."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TrainerError(f"{what}: {error}; allowed are JSON values") from None


def save_run(folder: Path, nested: NestedModel) -> None:
    """Writes the calibration and the trained parameters beside the record; the latter last: they mark a finished run."""
    statistics = {f"{sub.id}/{name}": t for sub, named in nested.calibration.items() for name, t in named.items()}
    save_tensors(statistics, folder / CALIBRATION_FILE)
    save_tensors({name: p.detach() for name, p in nested.full.named_parameters()}, folder / MODEL_FILE)


def load_run(folder: Path) -> Run:
    """Raises TrainerError when the run is unfinished, damaged, altered or of an unknown family."""
    record = read_record(folder)
    if not (folder / MODEL_FILE).is_file():
        raise TrainerError(f"run {str(folder)!r} is not finished: go on with `sortednet train --resume`")
    check_unaltered(folder, record)
    nested = NestedModel(family_of(record))
    load_parameters(nested, load_tensors(folder / MODEL_FILE)[0], folder / MODEL_FILE)
    statistics, _ = load_tensors(folder / CALIBRATION_FILE)
    by_id = {sub.id: sub for sub in nested.submodels}
    for key, tensor in statistics.items():
        identifier, _, name = key.partition("/")
        if identifier in by_id:
            nested.calibration.setdefault(by_id[identifier], {})[name] = tensor
    files = {path.name: path.read_bytes() for path in sorted((folder / FILES_FOLDER).glob("*")) if path.is_file()}
    return Run(nested.eval(), record, files)
