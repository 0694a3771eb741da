"""Exports a finished run: the trained model, its data set's test split, its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporter.bundle import Bundle
from exporter.writer import ExportError, export
from trainer.data import load_data
from trainer.run import load_run
from trainer.submodel import TrainerError


def export_run(folder: Path, out: Path, submodels: Sequence[str] | None = None, *, int8: bool = False) -> Bundle:
    """Writes the bundle of a run, with int8 sub-models too if asked.

    Raises ExportError for a sub-model that the run does not have, TrainerError when the run cannot be opened or its data
    set is no longer split as it was for training.
    """
    run = load_run(folder)
    by_id = {sub.id: sub for sub in run.nested.submodels}
    for name in submodels or ():
        if name not in by_id:
            raise ExportError(f"sub-model {name!r} is not in this run; it has {', '.join(by_id)}")
    data = load_data(run.record["data"]["name"])
    if data.record != run.record["data"]:
        raise TrainerError(f"data set {data.name!r} has changed since the training: it was split or read otherwise")
    training = {key: run.record[key] for key in ("data", "options", "results") if key in run.record}
    chosen = [by_id[name] for name in submodels] if submodels else None
    return export(
        run.nested,
        out,
        test_data=data.test,
        int8_calibration=data.train if int8 else None,
        submodels=chosen,
        training=training,
        files=data.files,
    )
