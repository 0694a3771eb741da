"""A run's folder: what may begin in it, how far a run goes on, and what an export notices of it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import trainer.making
from exporter.run import export_run
from tests.helpers.commands import call, refused
from tests.helpers.disks import read_only
from tests.helpers.pulls import contents
from tests.helpers.runs import SETTINGS, log_of, train
from trainer import TrainerError
from trainer.folder import read_record
from trainer.options import FitOptions
from trainer.run import load_run
from trainer.schedule import learning_rate

STEPS = 18  # an epoch of `train`


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch. Tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def more(run: Path, **changes: Any) -> list[str]:
    """Resumes it, and returns what was said."""
    said: list[str] = []
    train(run, resume=True, say=said.append, **changes)
    return said


def test_a_training_that_diverged_leaves_a_folder_that_a_new_one_may_have(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="diverged; try a lower lr"):
        train(tmp_path / "run", options={"lr": 1e30})
    (tmp_path / "run" / "files").mkdir()
    (tmp_path / "run" / "files" / "left.json").write_text("{}")
    train(tmp_path / "run")
    assert load_run(tmp_path / "run").files == {}


@pytest.mark.parametrize("name", ["model.safetensors", "log.jsonl", "files", "checkpoint.safetensors"])
def test_what_no_run_wrote_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(TrainerError, match=f"{name} there is of no run; choose another folder"):
        train(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_nor_is_a_run_json_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"miles": 26}')
    with pytest.raises(TrainerError, match=r"run\.json there is of no run"):
        train(tmp_path)
    assert contents(tmp_path) == {"run.json": b'{"miles": 26}'}


def test_a_read_only_folder_is_told_before_the_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.making, "load_data", lambda *_: pytest.fail("the data were read"))
    read_only(monkeypatch, tmp_path)
    with pytest.raises(TrainerError, match="cannot be written: Read-only file system"):
        train(tmp_path / "run")


def test_a_finished_run_goes_on_to_more_epochs_in_all(run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    (said,) = more(run, options={"epochs": 3})
    assert "Epochs: 3 in all, 1 before. From step 18 on the learning rate is that of a training of 3 epochs" in said
    assert [line["step"] for line in log_of(run)] == [STEPS, 2 * STEPS, 3 * STEPS]
    of_three = FitOptions(epochs=3, batch_size=64, update="full")
    rates = [line["lr"] for line in log_of(run)]
    assert rates[1:] == [learning_rate(of_three, step * STEPS - 1, 3 * STEPS) for step in (2, 3)]
    assert rates[1] > rates[0]  # which the schedule of one epoch had brought down to nearly 0
    record = read_record(run)
    assert (record["options"]["epochs"], record["results"]["steps"]) == (3, 3 * STEPS)
    assert (run / "model.safetensors").read_bytes() != before
    assert more(run, options={"epochs": 3}) == []
    with pytest.raises(TrainerError, match="epochs = 2: the run has begun 3 already; allowed are 3 and more"):
        more(run, options={"epochs": 2})
    assert read_record(run) == record


def test_a_finished_run_stays_exportable_until_it_has_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, before = read_record(run), (run / "model.safetensors").read_bytes()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer.making, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            more(run, options={"epochs": 2})
    assert (run / "model.safetensors").read_bytes() == before
    assert load_run(run).record == {**record, "going_on_to": 2}
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = ["train", "--family", "resnet", "--data", "digits", "--out", run, "--batch-size", "64", "--update", "full"]
    result = call(*command, *settings, "--resume", "--json")  # without a word of epochs: those that were asked for
    assert json.loads(result.stdout)["steps"] == 2 * STEPS
    assert "going_on_to" not in read_record(run)
    assert "epochs = 1: the run has begun 2 already" in refused(*command, *settings, "--resume", "--epochs", "1")


@pytest.mark.parametrize("name", ["model.safetensors", "calibration.safetensors"])
def test_a_byte_that_changed_after_the_training_is_noticed(name: str, run: Path, tmp_path: Path) -> None:
    written = (run / name).read_bytes()
    (run / name).write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    with pytest.raises(TrainerError, match=rf"{name}: was altered \(sha256 .*--resume"):
        export_run(run, tmp_path / "bundle")
    with pytest.raises(TrainerError, match=f"{name}: was altered"):
        train(tmp_path / "next", init=run)
    more(run)
    assert (run / name).read_bytes() == written
    load_run(run)


def test_runs_of_earlier_versions_are_read(run: Path) -> None:
    record = {name: value for name, value in read_record(run).items() if name != "sha256"}
    (run / "run.json").write_text(json.dumps(record))
    assert load_run(run).record == record


def test_what_comes_after_the_last_step_is_seen_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many sub-models the statistics and the scores take longer than a short training."""
    screen = io.StringIO()
    monkeypatch.setattr("trainer.interruption.Console", lambda **_: Console(file=screen, force_terminal=True, width=80))
    train(tmp_path / "run", options={"update": "sorted"}, show_progress=True)
    for word in ("training", "calibrating", "validating", "testing"):
        assert word in screen.getvalue(), word


def test_an_export_looks_at_other_data_before_it_begins(run: Path, bundle_path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", input=np.zeros((100, 1, 9, 9), np.float32), targets=np.arange(100) % 10)
    with pytest.raises(
        TrainerError, match=r"data '.*wide.npz': input 'input' has examples of shape \(1, 9, 9\); the model takes"
    ):
        export_run(run, tmp_path / "bundle", data=f"arrays:{tmp_path / 'wide.npz'}")
    with pytest.raises(TrainerError, match=r"it has no run\.json; it is a bundle, which was exported already"):
        export_run(bundle_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
