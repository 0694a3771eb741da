"""Exports a finished run: the trained model, its data set's test split, its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.bundle import CANARY_FILE, Bundle
from exporter.bundle.manifest import Int8Range
from exporter.canary import canary_file
from exporter.decoder import PRECISIONS
from exporter.decoder.export import DecodingOptions, export_decoder, is_decoder
from exporter.decoder.genai import check_genai, write_genai
from exporter.decoder.write import identifier
from exporter.place import check_target, source_of
from exporter.writer import ExportError, export
from trainer.compatibility import check_inputs
from trainer.data.dataset import DataSet, Examples
from trainer.data.sources import load_data
from trainer.data.splits import as_recorded
from trainer.run import Run, load_run
from trainer.start import check_same_classes, check_same_vocabulary, data_options_of
from trainer.submodel import TrainerError
from trainer.targets import run_data
from trainer.task import Score

OF_DECODERS = "; others are those of language models (family llama)"


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
    precisions: Sequence[str] = (),
    decoding: DecodingOptions | None = None,
    data: str | None = None,
    canary: int = 0,
    genai: Path | None = None,
    overwrite: bool = False,
    say: Any = lambda text: None,
) -> Bundle:
    """Writes the bundle of a run, with int8 sub-models too if asked, their weights in this range. `precisions`: the same by
    name, and those of a language model (`exporter.decoder.PRECISIONS`); `decoding`: what else such a one may be asked for.
    `canary`: labelled examples of the test split that come with the bundle (`exporter.canary`). `genai`: a folder that each
    size of a language model is put into too (`exporter.decoder.genai`).

    The score of every graph is measured on the test split of the run's data set, or of `data` if given. Where the run's data
    are large (not hashed as a whole) or no longer there, what the run recorded in torch is used, and `say` is told.
    What stands at `out` is treated as `exporter.export` says, and looked at before the data are read.
    Raises ExportError for a sub-model or a precision that the run does not have or where something at `out` would be lost,
    BundleError when it cannot be written, TrainerError when the run cannot be opened or its data
    set is no longer split as it was for training.
    """
    run = load_run(folder)
    by_id = {sub.id: sub for sub in run.nested.submodels}
    for name in submodels or ():
        if name not in by_id:
            raise ExportError(f"sub-model {name!r} is not in this run; it has {', '.join(by_id)}")
    wanted = _wanted(run, precisions, decoding, int8=int8)
    int8 = "int8" in wanted
    training = {key: run.record[key] for key in ("config", "data", "options", "results") if key in run.record}
    ids = [identifier(name, precision) for precision in wanted for name in submodels or by_id]
    if genai is not None:
        if not is_decoder(run.nested):
            raise ExportError(f"genai = {str(genai)!r}: this run is no language model; onnxruntime-genai opens those alone")
        check_genai(genai, ids, overwrite=overwrite)
    check_target(
        out,
        source_of(run.nested, training),
        ids,
        needed=sum(p.numel() * p.element_size() for p in run.nested.full.parameters()),
        overwrite=overwrite,
    )
    measured = _measured(run, data, folder)
    if measured.why:
        say(f"Quality is what the run measured in torch: {measured.why}; --data SOURCE measures it on the graphs.")
    files = run.files or (measured.data.files if measured.data else {})
    if canary:
        files = {**files, CANARY_FILE: canary_file(run.nested, measured.test, canary)}
    preprocessing = run.record.get("preprocessing") or (measured.data.preprocessing if measured.data else {})
    scores = {by_id[name]: score for name, score in measured.recorded.items() if name in by_id}
    chosen = [by_id[name] for name in submodels] if submodels else None
    if is_decoder(run.nested):
        bundle = export_decoder(
            run.nested,
            out,
            test_data=measured.test,
            scores=scores,
            precisions=wanted,
            options=decoding or DecodingOptions(),
            submodels=chosen,
            training=training,
            files=files,
            preprocessing=preprocessing,
            overwrite=overwrite,
        )
        if genai is not None:
            for name in bundle.submodels:
                write_genai(bundle, name, genai / name, overwrite=overwrite)
        return bundle
    if int8 and measured.data is None:
        raise ExportError(f"int8: needs training data for the ranges of activations; {measured.why}; give --data SOURCE")
    return export(
        run.nested,
        out,
        test_data=measured.test,
        scores=scores,
        int8_calibration=measured.data.train if int8 and measured.data else None,
        int8_range=int8_range,
        submodels=chosen,
        training=training,
        overwrite=overwrite,
        files=files,
        labels=run.record.get("labels") or (measured.data.labels if measured.data else ()),
        preprocessing=preprocessing,
    )


def _wanted(run: Run, precisions: Sequence[str], decoding: DecodingOptions | None, *, int8: bool) -> list[str]:
    """The precisions that are asked for, once each. Raises ExportError for one that this family has not."""
    decodes = is_decoder(run.nested)
    allowed = PRECISIONS if decodes else ("fp32", "int8")
    wanted = list(dict.fromkeys([*(precisions or ("fp32",)), *(["int8"] if int8 else [])]))
    for precision in wanted:
        if precision not in allowed:
            raise ExportError(f"precision {precision!r}: allowed are {', '.join(allowed)}{'' if decodes else OF_DECODERS}")
    if not decodes and "fp32" not in wanted:
        raise ExportError("precisions: without fp32; int8 sub-models are written beside those in fp32: fp32,int8")
    if not decodes and decoding not in (None, DecodingOptions()):
        raise ExportError(
            "segments, head_bits, quality_tokens, speculation, exits: this run is no language model; allowed are their defaults"
        )
    return wanted


def _measured(run: Run, data: str | None, folder: Path) -> _Measured:
    record = run.record["data"]
    options = record.get("options")
    if data is not None:  # other texts are read with the run's own tokenizer
        needed = run.nested.family.task.data_options
        loaded = load_data(data, options if data == record["name"] else data_options_of(None, data, {}, folder, needed))
        check_same_vocabulary(folder, loaded)
        if run.nested.family.task.logits:  # others, such as embedding, ask for no classes
            check_same_classes(run.record.get("labels") or (), folder, loaded)
        check_inputs(run.nested, loaded.test, f"data {data!r}")
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
    if as_recorded(loaded.record, record) != record:
        raise TrainerError(f"data set {loaded.name!r} has changed since the training: it was split or read otherwise")
    loaded = run_data(folder, loaded)
    if "content_sha256" not in record and {sub.id for sub in run.nested.submodels} <= recorded.keys():
        return _Measured(loaded, None, recorded, "its data are large")
    return _Measured(loaded, loaded.test, {}, "")
