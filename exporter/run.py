"""Exports a finished run: the trained model, its data set's test split, its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.bundle import Bundle
from exporter.bundle.manifest import INT8_SUFFIX, Int8Range
from exporter.place import check_target, source_of
from exporter.writer import ExportError, export
from trainer.data.dataset import DataSet, Examples
from trainer.data.sources import load_data
from trainer.run import Run, load_run
from trainer.start import check_same_vocabulary, data_options_of
from trainer.submodel import TrainerError
from trainer.targets import run_data
from trainer.task import Score


@dataclass(frozen=True)
class _Measured:
    """Where the qualities of a bundle come from: the test split, or what the run recorded of it."""

    data: DataSet | None
    test: Examples | None
    recorded: Mapping[str, Score]
    why: str  # recorded ones are used; empty where none are


def export_run(
    folder: Path,
    out: Path,
    submodels: Sequence[str] | None = None,
    *,
    int8: bool = False,
    int8_range: Int8Range = "reduced",
    data: str | None = None,
    overwrite: bool = False,
    say: Any = lambda text: None,
) -> Bundle:
    """Writes the bundle of a run, with int8 sub-models too if asked, their weights in this range.

    The score of every graph is measured on the test split of the run's data set, or of `data` if given. Where the run's data
    are large (not hashed as a whole) or no longer there, what the run recorded in torch is used, and `say` is told.
    What stands at `out` is treated as `exporter.export` says, and looked at before the data are read.
    Raises ExportError for a sub-model that the run does not have or where something at `out` would be lost, BundleError when
    it cannot be written, TrainerError when the run cannot be opened or its data
    set is no longer split as it was for training.
    """
    run = load_run(folder)
    by_id = {sub.id: sub for sub in run.nested.submodels}
    for name in submodels or ():
        if name not in by_id:
            raise ExportError(f"sub-model {name!r} is not in this run; it has {', '.join(by_id)}")
    training = {key: run.record[key] for key in ("config", "data", "options", "results") if key in run.record}
    ids = list(submodels or by_id)
    check_target(
        out,
        source_of(run.nested, training),
        [*ids, *(f"{name}{INT8_SUFFIX}" for name in ids if int8)],
        needed=sum(p.numel() * p.element_size() for p in run.nested.full.parameters()),
        overwrite=overwrite,
    )
    measured = _measured(run, data, folder)
    if measured.why:
        say(f"Quality is what the run measured in torch: {measured.why}; --data SOURCE measures it on the graphs.")
    if int8 and measured.data is None:
        raise ExportError(f"int8: needs training data for the ranges of activations; {measured.why}; give --data SOURCE")
    return export(
        run.nested,
        out,
        test_data=measured.test,
        scores={by_id[name]: score for name, score in measured.recorded.items() if name in by_id},
        int8_calibration=measured.data.train if int8 and measured.data else None,
        int8_range=int8_range,
        submodels=[by_id[name] for name in submodels] if submodels else None,
        training=training,
        overwrite=overwrite,
        files=run.files or (measured.data.files if measured.data else {}),
        labels=run.record.get("labels") or (measured.data.labels if measured.data else ()),
        preprocessing=run.record.get("preprocessing") or (measured.data.preprocessing if measured.data else {}),
    )


def _measured(run: Run, data: str | None, folder: Path) -> _Measured:
    record = run.record["data"]
    options = record.get("options")
    if data is not None:  # other texts are read with the run's own tokenizer
        loaded = load_data(data, options if data == record["name"] else data_options_of(None, data, {}, folder))
        check_same_vocabulary(folder, loaded)
        return _Measured(loaded, loaded.test, {}, "")
    recorded = {
        name: Score(one["quality"], one["metrics"]) for name, one in run.record.get("results", {}).get("test", {}).items()
    }
    try:
        begun_in = run.record.get("folder")  # runs of earlier versions do not say
        loaded = load_data(record["name"], options, Path(begun_in) if begun_in else None)
    except TrainerError as error:
        if not recorded:
            raise
        return _Measured(None, None, recorded, f"its data are not at hand ({error})")
    if loaded.record != record:
        raise TrainerError(f"data set {loaded.name!r} has changed since the training: it was split or read otherwise")
    loaded = run_data(folder, loaded)
    if "content_sha256" not in record and {sub.id for sub in run.nested.submodels} <= recorded.keys():
        return _Measured(loaded, None, recorded, "its data are large")
    return _Measured(loaded, loaded.test, {}, "")
