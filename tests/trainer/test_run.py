"""A run: the folder that `sortednet train` writes; processes that are stopped, killed and resumed; what is refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from exporter.run import export_run
from tests.helpers.runs import SETTINGS, equal, log_of, train
from tests.helpers.texts import write_texts
from trainer import TrainerError
from trainer.data import DataSet
from trainer.evaluate import scores_of
from trainer.folder import read_record
from trainer.making import train_run
from trainer.run import load_run

WHOLE = {"epochs": 4, "batch_size": 32, "update": "sorted"}  # 36 steps an epoch


# `sortednet train`, but that its 41st step begins when a signal has come: in the middle of the second epoch on any machine.
HELD = """
import os, pathlib, signal, sys
import sortednet
from trainer.updates import RULES
reads, writes = os.pipe()
os.set_blocking(writes, False)
signal.set_wakeup_fd(writes)
sample = RULES["sorted"].sample
def held(rule, step, seed):
    if step == 40:
        pathlib.Path("held").touch()
        os.read(reads, 1)
    return sample(rule, step, seed)
RULES["sorted"].sample = held
sortednet.app()
"""


def start(out: Path, *more: str, program: Sequence[str] = ("-m", "sortednet")) -> subprocess.Popen[str]:
    command = [sys.executable, *program, "train", "--family", "resnet", "--data", "digits", "--out", out.name, *more]
    command += [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command += ["--epochs", "4", "--batch-size", "32", "--threads", "1", "--json"]
    return subprocess.Popen(command, cwd=out.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stopped(out: Path, stop: signal.Signals) -> tuple[int, str]:
    """Trains in a process of its own until it gets the signal, within an epoch; its exit code and messages."""
    process = start(out, program=("-c", HELD))
    while not (out.parent / "held").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(stop)
    _, messages = process.communicate()
    return process.returncode, messages


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted. Tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(run, options=WHOLE, threads=1)
    return run


def check_same_run(run: Path, wanted: Path) -> None:
    for name in ("model.safetensors", "calibration.safetensors"):
        assert equal(load_file(run / name), load_file(wanted / name))
    assert [line["step"] for line in log_of(run)] == [line["step"] for line in log_of(wanted)] == [36, 72, 108, 144]
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in wanted.iterdir())


def test_an_interrupted_process_says_how_to_go_on_and_does_so_to_the_bit(whole: Path, tmp_path: Path) -> None:
    code, messages = stopped(tmp_path / "run", signal.SIGINT)
    assert code == 130
    assert re.search(r"error: stopped after step \d+ of 144; .*--resume", messages)
    assert "Traceback" not in messages
    with pytest.raises(TrainerError, match=r"not finished: go on with .*--resume"):
        load_run(tmp_path / "run")
    process = start(tmp_path / "run", "--resume")
    out, messages = process.communicate()
    assert process.returncode == 0, messages
    assert json.loads(out)["steps"] == 144
    check_same_run(tmp_path / "run", whole)


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(whole: Path, tmp_path: Path) -> None:
    assert stopped(tmp_path / "run", signal.SIGKILL)[0] == -signal.SIGKILL
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", framework="pt") as checkpoint:
        assert json.loads(checkpoint.metadata()["state"])["step"] in (36, 72, 108)
        assert {key.partition("/")[0] for key in checkpoint.keys()} == {"model", "optimizer"}  # noqa: SIM118
    train(tmp_path / "run", options=WHOLE, threads=1, resume=True)
    check_same_run(tmp_path / "run", whole)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    train(tmp_path)
    for name in ("checkpoint.safetensors", "model.safetensors"):  # killed between the first line of the log and these
        (tmp_path / name).unlink()
    train(tmp_path, resume=True)
    assert [line["step"] for line in log_of(tmp_path)] == [18]


def test_a_finished_run_can_be_reopened_and_is_not_overwritten(digits: DataSet, tmp_path: Path) -> None:
    summary = train(tmp_path / "run", options={"update": "sorted"})
    run = load_run(tmp_path / "run")
    assert [sub.id for sub in run.nested.submodels] == ["w0.50-d1", "w0.50-d2", "w1.00-d1", "w1.00-d2"]
    assert not any(run.nested.needs_calibration(sub) for sub in run.nested.submodels)
    again = scores_of(run.nested, run.nested.submodels, digits.validation)
    assert {sub.id: round(score.quality, 6) for sub, score in again.items()} == summary["validation_accuracy"]
    assert run.record["data"]["split_sha256"] == digits.record["split_sha256"]
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(TrainerError, match="already holds a run; go on with --resume or choose another folder"):
        train(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path)
    before = load_file(tmp_path / "model.safetensors")
    summary = train(tmp_path, resume=True)
    assert equal(load_file(tmp_path / "model.safetensors"), before)
    json.dumps([summary, read_record(tmp_path)], allow_nan=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": {"lr": 0.05}}, "'lr': 0.05"),
        ({"options": {"seed": 3}}, "'seed': 3"),
        ({"settings": {**SETTINGS, "multiple": 2}}, "'multiple': 2"),
        ({"grid": {"width": [0.75]}}, r"width.*0\.75"),
        ({"family": "mobilenetv2", "settings": {}}, "family = mobilenetv2"),
        ({"data": "mnist"}, "mnist|input_shape"),
    ],
    ids=str,
)
def test_a_run_is_not_resumed_as_another(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(TrainerError, match=f"resume: .*{named}"):
        train(tmp_path, resume=True, **change)
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": {"update": "random"}}, "update = 'random'"),
        ({"options": {"epochs": 0}}, "epochs = 0"),
        ({"grid": {"width": [2.0]}}, "axis 'width' = 2.00"),
        ({"settings": {"girth": 2}}, "'girth'"),
        ({"family": "vgg"}, "'vgg'"),
        ({"data": "imagenet"}, "'imagenet'"),
        ({"init": Path("nowhere.safetensors")}, r"nowhere\.safetensors does not exist"),
        ({"threads": -1}, "threads = -1"),
        ({"threads": 100_000}, "threads = 100000: allowed are whole numbers from 0 .* to"),
    ],
    ids=str,
)
def test_wrong_input_is_refused_and_leaves_no_run(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=named):
        train(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("blocked", [True, False])
def test_an_out_that_is_no_folder_is_an_error(blocked: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a run")
    with pytest.raises(TrainerError, match=r"out = .*cannot be written"):
        train(tmp_path / "file" / "run" if blocked else tmp_path / "file")
    assert (tmp_path / "file").read_text() == "not a run"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {**SETTINGS, "classes": 5}}, r"label \d at position \d+; allowed are 0 to 4"),
        (
            {"settings": {**SETTINGS, "input_shape": [3, 8, 8], "mean": [], "std": []}},
            r"shape \(1, 8, 8\); the model takes \(3, 8, 8\)",
        ),
        (
            {"settings": {**SETTINGS, "channels": ["a", "b"]}},
            r"channels = .*: allowed is a list of numbers, for example \[32, 64, 128\]",
        ),
        ({"options": {"seed": 10**30}}, "seed = "),
        ({"grid": {"depth": [(1, 2, 3)]}}, "axis 'depth' = 1x2x3"),
    ],
    ids=str,
)
def test_data_and_model_that_do_not_fit_are_refused_before_a_run_begins(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match=named):
        train(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_a_text_folder_that_has_changed_is_not_exported(tmp_path: Path) -> None:
    """Not even when it is split as before: its tokenizer would give other ids than those trained on."""
    write_texts(tmp_path / "texts")
    run = tmp_path / "run"
    train_run(
        "tests.helpers.user_families:TextEncoder",
        f"text-folder:{tmp_path / 'texts'}",
        run,
        grid={},
        settings={},
        show_progress=False,
        options={"epochs": 1, "batch_size": 8, "optimizer": "adamw"},
    )
    assert export_run(run, tmp_path / "bundle").bytes_total > 0
    (tmp_path / "texts" / "bread" / "0.txt").write_text("bread of another kind altogether")
    with pytest.raises(TrainerError, match="has changed since the training"):
        export_run(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_init_starts_from_the_weights_of_a_run(tmp_path: Path) -> None:
    train(tmp_path / "first")
    before = load_file(tmp_path / "first" / "model.safetensors")
    for source in (tmp_path / "first", tmp_path / "first" / "model.safetensors"):
        out = tmp_path / f"from {source.name}"
        train(out, init=source, options={"lr": 1e-30, "seed": 5})  # steps too small to change a weight
        assert equal(load_file(out / "model.safetensors"), before)
    with pytest.raises(TrainerError, match=r"first.*parameter 'stem\.weight' is of shape .*; this model needs"):
        train(tmp_path / "other", init=tmp_path / "first", settings={**SETTINGS, "channels": [12, 16]})


def test_init_takes_the_place_of_a_class_or_word_for_no_other(tmp_path: Path) -> None:
    def trained(name: str, classes: dict[str, str], init: Path | None = None, **options: str) -> Path:
        for label, text in classes.items():
            (tmp_path / f"{name} texts" / label).mkdir(parents=True)
            for i in range(12):
                (tmp_path / f"{name} texts" / label / f"{i}.txt").write_text(f"{text} {i}")
        train_run(
            "tests.helpers.user_families:TextEncoder",
            f"text-folder:{tmp_path / f'{name} texts'}",
            tmp_path / name,
            grid={},
            settings={},
            show_progress=False,
            init=init,
            data_options=options,
            options={"epochs": 1, "batch_size": 8, "optimizer": "adamw"},
        )
        return tmp_path / name

    first = trained("first", {"bread": "warm bread of", "soup": "hot soup of"})
    words = str(first / "files" / "tokenizer.json")
    trained("again", {"bread": "warm bread of", "soup": "hot soup of"}, init=first)
    with pytest.raises(
        TrainerError, match=r"its classes are broth, loaf; allowed are those of .*first, in this order: bread, soup; or --from"
    ):
        trained("renamed", {"loaf": "warm bread of", "broth": "hot soup of"}, init=first, tokenizer=words)
    with pytest.raises(TrainerError, match=r"are read with another vocabulary than .*first"):
        trained("others", {"bread": "dark rye of", "soup": "cold stew of"}, init=first)
    assert not (tmp_path / "renamed").exists()
    assert not (tmp_path / "others").exists()


def test_init_takes_a_state_dict_as_torch_saves_it(tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.rand(4)}, tmp_path / "weights.pth")
    with pytest.raises(TrainerError, match=r"weights\.pth: parameter 'stem\.weight' is of shape \(4,\); this model needs"):
        train(tmp_path / "run", init=tmp_path / "weights.pth")
    assert not (tmp_path / "run").exists()


def test_init_belongs_to_a_run_that_is_resumed(tmp_path: Path) -> None:
    """Killed before its first checkpoint and resumed without, it would begin with other weights and say nothing."""
    train(tmp_path / "first")
    train(tmp_path / "run", init=tmp_path / "first")
    with pytest.raises(TrainerError, match="resume: init = None"):
        train(tmp_path / "run", resume=True)
