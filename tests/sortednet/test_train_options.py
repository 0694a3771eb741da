"""`sortednet train`: what is learnt, from which data, read how; and what is refused before anything is written."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import sortednet
from tests.helpers.pictures import write_pictures

SMALL = ("--family", "resnet", "--set", "channels=[4]", "--set", "blocks=[1]", "--set", "widths=[1.0]", "--set", "multiple=4")
BRIEF = ("--epochs", "1", "--batch-size", "8")


def call(*arguments: str | Path) -> Result:
    """Runs a command in this process. Any exception but the exit itself is a traceback that a user would see."""
    result = CliRunner().invoke(sortednet.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.replace("│", " ").split())


def test_a_task_with_settings_and_arrays(tmp_path: Path) -> None:
    values = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", image=values.random((60, 1, 8, 8)), targets=values.random(60))
    task = ("--task", "regression", "--task-set", "objective=mae")
    data = ("--data", f"arrays:{tmp_path / 'data.npz'}")
    done = call("train", *SMALL, *data, *task, *BRIEF, "--out", tmp_path / "run", "--json")
    assert json.loads(done.stdout)["metric"] == "r2"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["task"] == {"name": "regression", "config": {"objective": "mae"}}
    assert record["data"]["sizes"] == {"train": 39, "validation": 9, "test": 12}


@pytest.mark.parametrize("kind", ["int64", "bool", "float32"])
def test_several_labels_are_zeros_and_ones_of_any_kind(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0)
    inputs = values.random((60, 3, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "data.npz", input=inputs, targets=(values.random((60, 5)) > 0.5).astype(kind))
    data = ("--data", f"arrays:{tmp_path / 'data.npz'}", "--task", "multi-label")
    done = call("train", *SMALL, *data, *BRIEF, "--out", tmp_path / "run", "--json")
    assert json.loads(done.stdout)["metric"] == "f1"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["classes"] == 5


def test_the_next_commands_can_be_pasted_wherever_things_lie(tmp_path: Path) -> None:
    """The full model, then its sizes; a bundle, which is no place for genai; its profile."""
    values = np.random.default_rng(0)
    np.savez(tmp_path / "the data.npz", image=values.random((60, 1, 8, 8)), targets=values.random(60))
    task = ("--task", "regression", "--task-set", "objective=mae")
    asked = ("train", *SMALL, "--data", f"arrays:{tmp_path / 'the data.npz'}", *task, *BRIEF)

    def following(*arguments: str | Path) -> list[str]:
        """The words of the command that is to be next."""
        said = call(*arguments)
        assert said.exit_code == 0, said.output
        return shlex.split(said.stdout.splitlines()[-1].partition(": sortednet ")[2])

    full, run, bundle = tmp_path / "the full", tmp_path / "the run", tmp_path / "the bundle"
    follows = following(*asked, "--update", "full", "--out", full)
    assert follows[follows.index("--task-set") + 1] == "objective=mae"
    assert follows[-4:] == ["--from", str(full), "--out", "RUN"]
    assert following(*follows[:-1], run, *BRIEF) == ["export", str(run), "--out", "BUNDLE"]
    no_text = refused("export", run, "--out", bundle, "--genai", tmp_path / "genai")
    assert "this run is no language model; onnxruntime-genai opens those alone" in no_text
    assert not bundle.exists()
    assert following("export", run, "--out", bundle) == ["profile", str(bundle)]
    assert following("profile", bundle, "--repeats", "2")[:2] == ["select", str(bundle)]


def test_options_of_the_data_and_how_they_are_read(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", per_class=12)
    options = ("--data-option", "size=[8,12]", "--data-option", "crop=none", "--data-option", "augment=random-resized-crop")
    arguments = ("train", *SMALL, "--data", tmp_path / "photos", *options, *BRIEF)
    reading = ("--workers", "1", "--accelerator", "cpu", "--precision", "bf16")
    call(*arguments, *reading, "--out", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["options"] == {"size": [8, 12], "crop": "none", "augment": "random-resized-crop"}
    assert (record["config"]["input_shape"], record["labels"]) == ([3, 8, 12], ["cat", "dog", "owl"])
    assert {name: record["options"][name] for name in ("workers", "accelerator", "precision")} == {
        "workers": 1,
        "accelerator": "cpu",
        "precision": "bf16",
    }
    assert "resume: data = {" in refused(*arguments[:-6], *BRIEF, "--out", tmp_path / "run", "--resume")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", ""), "data = '': allowed are digits, "),
        (("--out", ""), "Invalid value for '--out': is empty; allowed is the path of a file or folder"),
        (("--task-set", "label_smoothing"), "task-set = 'label_smoothing': write NAME=JSON, for example label_smoothing=0.1"),
        (("--data-option", "size=[64"), "data-option = 'size=[64': write NAME=JSON, for example size=64"),
        (("--data-option", "=3"), "data-option = '=3': write NAME=JSON"),
        (("--set", "channels=[4,"), "set = 'channels=[4,': write NAME=JSON, for example channels=[32,64,128]"),
        (("--data-option", "size=8"), "data 'digits': has no option 'size'; allowed are none"),
        (("--task", "guessing"), "unknown task 'guessing'; known are classification"),
        (("--task-set", "smoothing=0.1"), "task classification has no setting 'smoothing'; allowed are label_smoothing"),
        (("--accelerator", "abacus"), "accelerator = 'abacus': allowed are auto, cpu, cuda, mps"),
        (("--precision", "fp8"), "precision = 'fp8': allowed are fp32, bf16, fp16"),
        (("--workers", "-2"), "workers = -2: allowed are whole numbers from -1"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    usual = {"--data": "digits", "--out": str(tmp_path / "run")}
    given = [part for name, value in usual.items() if name not in arguments for part in (name, value)]
    assert message in refused("train", *SMALL, *given, *arguments, *BRIEF)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_an_accelerator_that_is_not_here_is_refused(tmp_path: Path) -> None:
    asked = ("--accelerator", "cuda", "--out", tmp_path / "run")
    assert "accelerator = 'cuda': torch" in refused("train", *SMALL, "--data", "digits", *BRIEF, *asked)


@pytest.mark.parametrize(
    "arguments", [("export", "run"), ("report", "bundle"), ("pull", "http://127.0.0.1:9")], ids=lambda arguments: arguments[0]
)
def test_an_empty_target_is_refused(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Invalid value for '--out': is empty" in refused(*arguments, "--out", "")
    assert list(tmp_path.iterdir()) == []


def test_a_rule_and_a_source_that_the_familys_module_registers_are_known(tmp_path: Path) -> None:
    (tmp_path / "own_rules.py").write_text(
        "import torch\n"
        "from trainer import Family\n"
        "from trainer.data import Source, load_data, register_source\n"
        "from trainer.updates import UpdateRule, register_rule\n"
        "class Smallest(UpdateRule):\n"
        "    name = 'smallest'\n"
        "    def sample(self, step, seed):\n"
        "        return [self.smallest]\n"
        "register_rule(Smallest)\n"
        "register_source(Source('own-digits', lambda name, rest: load_data('digits')))\n"
        "class Flat(Family):\n"
        "    axes = {'width': (4, 8)}\n"
        "    def build(self, sub):\n"
        "        hidden = torch.nn.Linear(64, sub['width'])\n"
        "        return torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.Linear(sub['width'], 10))\n"
        "    def example_inputs(self, n):\n"
        "        return {'input': torch.rand(n, 1, 8, 8)}\n",
        encoding="utf-8",
    )
    command = ["train", "--family", "own_rules:Flat", "--data", "own-digits", "--update", "smallest", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "sortednet", *command, "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_numbers_for_a_classification_are_told_which_task_they_are_of(tmp_path: Path) -> None:
    """Also where their shape is wrong for it too: that is not what is to be mended."""
    path = tmp_path / "numbers.npz"
    np.savez(path, input=np.zeros((40, 1, 8, 8), np.float32), targets=np.zeros((40, 2), np.float32))
    message = refused("train", "--data", f"arrays:{path}", "--out", tmp_path / "run", *SMALL, *BRIEF)
    assert "targets: dtype float32; allowed are whole numbers" in message
    assert "--task regression" in message
