"""Somebody's own code: its exceptions name method, file and line; a family that `config()` does not build again is found."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from trainer import TrainerError
from trainer.making import train_run
from trainer.run import load_run
from trainer.task import own

CODE = """
import torch
from torch import nn
from trainer import Family, Score, Task
from trainer.tasks import Classification

class Network(nn.Module):
    def __init__(self, width, classes, scale):
        super().__init__()
        self.scale = scale
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, classes)
        pass  # network

    def forward(self, x):
        pass  # forward
        return self.last(self.first(self.scale * x.flatten(1)).relu())

class Scorer:
    def __init__(self):
        self.right = self.count = 0

    def add(self, outputs, targets):
        pass  # add
        self.right += (outputs["logits"].argmax(1) == targets).sum()
        self.count += len(targets)

    def value(self):
        quality = self.right / self.count
        pass  # value
        return Score(quality, {"rightness": quality})

class Mine(Task):
    kind, metric, outputs = "mine", "rightness", {"logits": {0: "batch"}}

    def __init__(self, weight=1.0):
        self.weight = weight
        pass  # task

    def loss(self, outputs, targets):
        loss = nn.functional.cross_entropy(outputs["logits"], targets)
        pass  # loss
        return self.weight * loss

    def distil(self, outputs, teacher):
        pass  # distil
        return nn.functional.mse_loss(outputs["logits"], teacher["logits"])

    def check(self, outputs, targets):
        pass  # check

    def scorer(self):
        pass  # scorer
        return Scorer()

    def config(self):
        pass  # settings
        return {"weight": self.weight}

class Own(Family):
    def __init__(self, classes=10, widths=(4, 8), scale=1.0):
        pass  # family
        self.classes, self.scale, self.axes, self.task = classes, scale, {"width": tuple(widths)}, Mine()

    def build(self, sub):
        pass  # build
        return Network(sub["width"], self.classes, self.scale)

    def example_inputs(self, batch_size):
        pass  # example_inputs
        return {"input": torch.rand(batch_size, 1, 8, 8)}

    def fused_blocks(self, sub):
        pass  # fused_blocks
        return {}

    def config(self):
        config = {"classes": self.classes, "scale": self.scale}
        pass  # config
        return config
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes `own_code.py` with other lines in place of those marked; returns the number of each line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def written(**lines: str) -> dict[str, int]:
        found, code = {}, []
        for number, line in enumerate(dedent(CODE).splitlines(), 1):
            place = line.partition("pass  # ")[2]
            found[place] = number
            code.append(line.replace(f"pass  # {place}", lines.get(place, "pass")))
        (tmp_path / "own_code.py").write_text("\n".join(code))
        sys.modules.pop("own_code", None)
        return found

    yield written
    sys.modules.pop("own_code", None)


def train(folder: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"grid": {}, "settings": {}, "show_progress": False, **changes}
    arguments["options"] = {"epochs": 1, "batch_size": 64, "update": "sandwich", **changes.get("options", {})}
    return train_run("own_code:Own", "digits", folder, **arguments)


def test_it_works_as_it_is(write: Any, tmp_path: Path) -> None:
    write()
    assert train(tmp_path / "run")["metric"] == "rightness"
    assert load_run(tmp_path / "run").nested.family.task.kind == "mine"


@pytest.mark.parametrize(
    ("place", "method"),
    [
        ("family", "Own.__init__"),
        ("build", "Own.build"),
        ("network", "Network.__init__"),
        ("example_inputs", "Own.example_inputs"),
        ("fused_blocks", "Own.fused_blocks"),
        ("config", "Own.config"),
        ("forward", "Network.forward"),
        ("task", "Mine.__init__"),
        ("settings", "Mine.config"),
        ("check", "Mine.check"),
        ("loss", "Mine.loss"),
        ("distil", "Mine.distil"),
        ("scorer", "Mine.scorer"),
        ("add", "Scorer.add"),
        ("value", "Scorer.value"),
    ],
)
def test_an_exception_is_told_with_method_file_and_line_before_anything_is_written(
    place: str, method: str, write: Any, tmp_path: Path
) -> None:
    line = write(**{place: "{}['of mine']"})[place]
    with pytest.raises(TrainerError) as caught:
        train(tmp_path / "run")
    file = tmp_path / "own_code.py"
    assert f"KeyError: 'of mine' (in {method}, {file}, line {line})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("place", "code", "method"),
    [
        ("build", "if sub['width'] == 4: raise OSError('no room')", "Own.build"),
        ("forward", "if x.shape[0] == 64 and self.training: raise OSError('no room')", "Network.forward"),
        ("loss", "if len(targets) == 64: raise OSError('no room')", "Mine.loss"),
        ("add", "if len(targets) > 64: raise OSError('no room')", "Scorer.add"),
    ],
)
def test_so_is_one_that_comes_later(place: str, code: str, method: str, write: Any, tmp_path: Path) -> None:
    """At a smaller size, in a step, at the end of an epoch."""
    line = write(**{place: code})[place]
    with pytest.raises(TrainerError, match=rf"OSError: no room \(in {method}, .*own_code.py, line {line}\)"):
        train(tmp_path / "run")


def test_a_size_that_is_built_and_does_not_run_is_refused_with_its_axis(write: Any, tmp_path: Path) -> None:
    """And the data are not blamed, which the full model takes."""
    write(forward="x = x[:, :, : self.last.in_features]")
    with pytest.raises(
        TrainerError, match=r"^Own: does not run with width alone smaller .*: w4: RuntimeError: .*--grid width=8$"
    ):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_torch_itself_is_not_blamed(write: Any, tmp_path: Path) -> None:
    line = write(forward="x = x[:, :, :7]")["forward"] + 1
    with pytest.raises(
        TrainerError, match=rf"RuntimeError: mat1 and mat2 .*\(in Network.forward, .*own_code.py, line {line}\)"
    ):
        train(tmp_path / "run")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"loss": "loss = loss.item()"}, "task mine: loss: is a float; allowed is a scalar tensor"),
        ({"loss": "loss = loss[None]"}, r"task mine: loss: is a tensor of shape \(1,\); allowed is a scalar tensor"),
        ({"value": "quality = 33.7"}, "task mine: scorer: quality = 33.7; allowed are values from 0 to 1"),
        ({"value": "return Score(quality, {'accuracy': 1.0})"}, "metrics accuracy; allowed are those with .* own, rightness"),
    ],
)
def test_a_task_that_answers_wrong_is_told(lines: dict[str, str], message: str, write: Any, tmp_path: Path) -> None:
    write(**lines)
    with pytest.raises(TrainerError, match=message):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_without_distillation_is_refused_by_a_rule_that_needs_it(write: Any, tmp_path: Path) -> None:
    write(distil="return super().distil(outputs, teacher)")
    with pytest.raises(TrainerError, match=r"task mine: it has no distillation .* update = 'sandwich' and a teacher need"):
        train(tmp_path / "run")
    train(tmp_path / "run", options={"update": "sorted"})


REMEDY = r"config\(\) must return every argument that changes the network"


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (
            {"config": "config = {}"},
            {"classes": 12},
            r"Own.config\(\) = {} builds another network: parameter 'last.weight' is \(10, 8\), in the one to train \(12, 8\); "
            + REMEDY,
        ),
        ({"config": "config['depth'] = 3"}, {}, r"Own.config\(\) does not build the family again: .*TypeError.* 'depth'"),
        (
            {"config": "config['of'] = {1, 2}"},
            {},
            r"Own.config\(\): Object of type set is not JSON .*; allowed are JSON values",
        ),
        ({"config": "config['of'] = float('nan')"}, {}, r"Own.config\(\): .*; allowed are JSON values"),
        ({"config": "config = 3"}, {}, r"Own.config\(\) does not build the family again"),
        (
            {"network": "self.register_buffer('noise', torch.rand(3))"},
            {},
            r"buffer 'noise' has other values \(a random one must follow from a seed\); " + REMEDY,
        ),
        (
            {"config": "del config['scale']"},
            {"scale": 2.0},
            "with the same parameters its output 'logits' is another; " + REMEDY,
        ),
        (
            {"settings": "return {'weights': 1}"},
            {},
            r"Own.config\(\) .*again: task mine has no setting 'weights'; allowed are weight",
        ),
    ],
    ids=["size", "unknown", "no JSON", "no number", "no mapping", "random buffer", "another function", "task"],
)
def test_a_family_that_its_configuration_does_not_build_again_is_found_before_training(
    lines: dict[str, str], settings: dict[str, Any], message: str, write: Any, tmp_path: Path
) -> None:
    write(**lines)
    with pytest.raises(TrainerError, match=message):
        train(tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_a_configuration_is_what_json_makes_of_it(write: Any, tmp_path: Path) -> None:
    """A tuple comes back as a list: that is no other run."""
    write(config="config['widths'] = self.axes['width']")
    train(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["widths"] == [4, 8]
    train(tmp_path / "run", resume=True)
    assert [sub.id for sub in load_run(tmp_path / "run").nested.submodels] == ["w4", "w8"]


def test_what_it_says_in_several_lines_is_said_in_one() -> None:
    with pytest.raises(TrainerError, match=r"^config: ValueError: field 'size': expected int \(in test_what"), own("config"):
        raise ValueError("field 'size':\n    expected int")
