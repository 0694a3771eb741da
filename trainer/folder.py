"""A run's folder: whether a training may begin there or go on, and whether its files are those that were written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device_profiles.atomic import check_writable
from trainer.checkpoint import CHECKPOINT_FILE, read_state, replacing, writing
from trainer.hold import BEGIN_FILE
from trainer.options import FitOptions
from trainer.submodel import TrainerError
from trainer.training import LOG_FILE

RUN_FILE = "run.json"
MODEL_FILE = "model.safetensors"
CALIBRATION_FILE = "calibration.safetensors"
FILES_FOLDER = "files"
TARGETS_FILE = "targets.safetensors"  # of what it is measured by, where the data have none
ORDER_FILE = "order.safetensors"  # of units, where its teacher's must be alike

Record = Mapping[str, Any]
"""What `run.json` says."""


def write_record(folder: Path, record: Record) -> None:
    """Raises TrainerError when the folder cannot be written to."""
    with replacing(folder / RUN_FILE) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Raises TrainerError when the folder holds no run."""
    path = folder / RUN_FILE
    if not path.is_file():
        bundle = (folder / "manifest.json").is_file()  # as `exporter.bundle` writes it
        how = "it is a bundle, which was exported already" if bundle else "make one with `sortednet train`"
        raise TrainerError(f"{str(folder)!r} is no run: it has no {RUN_FILE}; {how}")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TrainerError(f"{path} is damaged: {error}") from None
    return record


def check_folder(folder: Path, *, resume: bool) -> None:
    """Looks before the work whether the folder can be written to and, for a new run, whether anything in it would be lost:
    a run that has a checkpoint, or files that no run wrote. Raises TrainerError."""
    with writing(folder):
        check_writable(folder)
    if resume:
        return
    own = (MODEL_FILE, CHECKPOINT_FILE, CALIBRATION_FILE, LOG_FILE, FILES_FOLDER, TARGETS_FILE, ORDER_FILE, BEGIN_FILE)
    there = [name for name in own if (folder / name).exists()]
    if not (folder / RUN_FILE).exists():
        if there:
            raise TrainerError(f"out = {str(folder)!r}: {there[0]} there is of no run; choose another folder")
        return
    if there[:1] in ([MODEL_FILE], [CHECKPOINT_FILE]):
        raise TrainerError(f"out = {str(folder)!r}: already holds a run; go on with --resume or choose another folder")
    record = read_record(folder)
    if not isinstance(record, dict) or not {"family", "options"} <= set(record):
        raise TrainerError(f"out = {str(folder)!r}: {RUN_FILE} there is of no run; choose another folder")


def clear(folder: Path) -> None:
    """Removes what a run left that ended before its first checkpoint."""
    shutil.rmtree(folder / FILES_FOLDER, ignore_errors=True)
    for name in (CALIBRATION_FILE, TARGETS_FILE, ORDER_FILE):
        (folder / name).unlink(missing_ok=True)


def epochs_of(record: Record) -> int:
    """Up to how many epochs in all a run goes that is resumed without a word of it."""
    asked: int = record.get("going_on_to") or {**vars(FitOptions()), **record.get("options", {})}["epochs"]
    return asked


def check_epochs(folder: Path, record: Record, epochs: int) -> str:
    """What becomes of the learning rate when the run is resumed up to so many epochs in all, in words; empty where they are as
    many as before. Raises TrainerError for fewer than it has begun."""
    before = {**vars(FitOptions()), **record.get("options", {})}["epochs"]
    if epochs == before or not (folder / CHECKPOINT_FILE).exists():
        return ""
    state = read_state(folder / CHECKPOINT_FILE)
    done = -(-state["step"] // state["steps_per_epoch"]) if "steps_per_epoch" in state else 0
    if epochs < done:
        raise TrainerError(f"epochs = {epochs}: the run has begun {done} already; allowed are {done} and more, in all")
    return (
        f"Epochs: {epochs} in all, {before} before. From step {state['step']} on the learning rate is that of a training of "
        f"{epochs} epochs, and falls to 0 by their end; the result is not quite that of {epochs} from the start."
    )


def hashes_of(folder: Path) -> dict[str, str]:
    """By name, of what an export reads of a finished run."""
    paths = [
        *(folder / name for name in (MODEL_FILE, CALIBRATION_FILE, TARGETS_FILE)),
        *sorted((folder / FILES_FOLDER).glob("*")),
    ]
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in paths if path.is_file()}


def check_unaltered(folder: Path, record: Record) -> None:
    """Raises TrainerError naming the first file that is not the one that the training wrote; runs of earlier versions say
    nothing of that."""
    for name, written in record.get("sha256", {}).items():
        found = _sha256(folder / name) if (folder / name).is_file() else None
        if found != written:
            what = "is missing" if found is None else f"was altered (sha256 {found[:12]}…, written was {written[:12]}…)"
            raise TrainerError(
                f"{folder / name}: {what}; the command that trained it, with --resume, writes it again from the checkpoint"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
