"""Every example goes the whole path, shortly here and at full length under `make test-slow`."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.bundle import Bundle
from exporter.bundle.verify import self_test
from selector import Budget, Runtime
from trainer import NestedModel, calibrate
from trainer.calibration import calibration_batches
from trainer.data import load_data
from trainer.evaluate import scores_of
from trainer.run import load_run

FOLDER = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Example:
    """A short form of an example, and what its graphs must give for one input."""

    family: str
    outputs: Mapping[str, tuple[int, ...]]
    grid: Mapping[str, Sequence[float]]  # and the full model's values
    data: str = ""  # none: sounds or texts that are made first
    data_options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"


EXAMPLES = {
    "segmentation": Example(
        "segmentation:UNet",
        {"logits": (1, 11, 48, 48)},
        {"width": [0.5], "levels": [1]},
        "segmentation:pictures",
        {"count": 160},
        {"epochs": 3},
        "mean_iou",
    ),
    "detection": Example(
        "detection:Detector",
        {"heatmap": (1, 10, 12, 12), "size": (1, 2, 12, 12), "offset": (1, 2, 12, 12)},
        {"width": [16], "depth": [2]},
        "detection:pictures",
        {"count": 400},
        {"epochs": 3},
        "map_50",
    ),
    "regression": Example(
        "regression:Pose",
        {"rotation": (1, 2), "place": (1, 3)},
        {"width": [8], "depth": [1]},
        "regression:turned",
        {"copies": 1},
        {"epochs": 4, "batch_size": 64},
        "r2",
    ),
    "keywords": Example("keywords:Keywords", {"logits": (1, 10)}, {"width": [16], "layers": [1]}, training={"epochs": 2}),
    "efficientnet": Example(
        "efficientnet:EfficientNet",
        {"logits": (1, 10)},
        {"width": [0.5], "depth": [1]},
        "digits",
        {},
        {"epochs": 2, "optimizer": "sgd", "batch_size": 64},
    ),
    "sentiment": Example(
        "bert",
        {"logits": (1, 2)},
        {"num_hidden_layers": [1], "intermediate_size": [256], "num_attention_heads": [4], "hidden_size": [128]},
        data_options={"tokenizer": "learn"},
        training={"epochs": 6, "batch_size": 16, "lr": 1e-3},
    ),
}
LEAST = {"segmentation": 0.3, "detection": 0.3, "regression": 0.5, "keywords": 0.5, "efficientnet": 0.9, "sentiment": 0.7}
"""What the quality of the full model must reach at full length: far below what it does, far above chance."""


@pytest.fixture(scope="module")
def path() -> Iterator[None]:
    """As `python examples/NAME.py` has it: the examples import each other."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(FOLDER))
        yield


@dataclass(frozen=True)
class Gone:
    """An example that went the whole path."""

    example: Example
    run: Path
    bundle: Bundle
    data: str


@pytest.fixture(scope="module", params=EXAMPLES)
def gone(request: pytest.FixtureRequest, path: None, tmp_path_factory: pytest.TempPathFactory) -> Gone:
    from whole_path import whole_path

    example, out = EXAMPLES[request.param], tmp_path_factory.mktemp(request.param)
    data = example.data or (written(tmp_path_factory) if example.family == "bert" else spoken(tmp_path_factory))
    training = {"batch_size": 32, "optimizer": "adamw", "workers": 0, **example.training}
    bundle = whole_path(example.family, data, out, grid=example.grid, data_options=example.data_options, **training)
    return Gone(example, out / "run", bundle, data)


def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    from sentiment import write_reviews

    folder = tmp_path_factory.mktemp("reviews")
    write_reviews(folder, 400)
    return f"text-folder:{folder}"


def spoken(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("espeakng_loader")
    from speech import write_speech

    folder = tmp_path_factory.mktemp("speech")
    write_speech(folder)
    return f"audio-folder:{folder}"


def test_it_learns(gone: Gone) -> None:
    """The full model is better on the test split than an untrained one."""
    run = load_run(gone.run)
    data = load_data(gone.data, gone.example.data_options)
    family = run.nested.family
    torch.manual_seed(1)
    untrained = NestedModel(family).eval()
    calibrate(untrained, list(calibration_batches(data.train, limit=1)), [family.largest])
    (before,) = scores_of(untrained, [family.largest], data.test).values()
    (after,) = scores_of(run.nested, [family.largest], data.test).values()
    assert after.quality > before.quality
    assert gone.bundle.metric == gone.example.metric
    assert gone.bundle.submodels[family.largest.id].metrics[gone.example.metric] == pytest.approx(after.quality, abs=0.02)


def test_every_size_is_verified_and_runs_within_its_budget(gone: Gone) -> None:
    bundle = gone.bundle
    assert self_test(bundle).submodels == len(bundle.submodels) == len(load_run(gone.run).nested.submodels)
    inputs = {name: array[:1] for name, array in bundle.selftest_inputs.items()}
    profile = bundle.profile("here")
    with_runtime = Runtime(bundle, sensors=False, cache=False, feedback=False, load_ahead=False)
    for name, costs in profile.submodels.items():
        ran = with_runtime.run(inputs, Budget(latency_ms=costs.latency_ms.p50))
        assert ran.selection.feasible
        assert {output: array.shape for output, array in ran.outputs.items()} == gone.example.outputs
        assert bundle.submodels[ran.selection.submodel].quality >= bundle.submodels[name].quality  # type: ignore[operator]
    with_runtime.close()


def test_one_graph_is_traced_for_all_widths_of_a_depth(gone: Gone) -> None:
    """No network turns its width into a constant that the export would have to trace anew for each size."""
    topologies: dict[Any, set[str]] = {}
    for entry in gone.bundle.submodels.values():
        (depth,) = (value for axis, value in entry.axes.items() if axis in ("depth", "levels", "layers", "num_hidden_layers"))
        topologies.setdefault(depth, set()).add(entry.topology)
    assert all(len(found) == 1 for found in topologies.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_fits_on_a_few_screens(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 150


def test_pictures_of_another_size_go_through_the_u_net(path: None, tmp_path: Path) -> None:
    from segmentation import UNet

    from exporter import export

    torch.manual_seed(0)
    nested = NestedModel(UNet().with_grid({"width": [0.5, 1.0], "levels": [3]})).eval()
    calibrate(nested, [torch.rand(4, 1, 48, 48)])
    bundle = export(nested, tmp_path / "bundle", show_progress=False)
    picture = torch.rand(2, 1, 32, 56)
    with_runtime = Runtime(bundle, sensors=False, cache=False)
    with torch.no_grad():
        wanted = nested.outputs(picture)["logits"].numpy()
    got = with_runtime.program(nested.family.largest.id).run({"picture": picture.numpy()}).outputs["logits"]
    np.testing.assert_allclose(got, wanted, atol=1e-4 * float(np.abs(wanted).max()))
    with_runtime.close()


def perfect(boxes: torch.Tensor, labels: torch.Tensor, cell: int, cells: int) -> dict[str, np.ndarray[Any, Any]]:
    """What a detector that is always right gives for these targets."""
    count = len(boxes)
    heat = np.full((count, 10, cells, cells), -10.0, dtype=np.float32)
    size, offset = np.zeros((2, count, 2, cells, cells), dtype=np.float32)
    for picture in range(count):
        for box, label in zip(boxes[picture].numpy() / cell, labels[picture].tolist(), strict=True):
            if label >= 0:
                centre, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
                x, y = int(centre[0]), int(centre[1])
                heat[picture, label, y, x] = 10
                size[picture, :, y, x], offset[picture, :, y, x] = extent, centre - (x, y)
    return {"heatmap": heat, "size": size, "offset": offset}


def test_average_precision_of_a_detector_that_is_right_misses_and_invents(path: None) -> None:
    from boxes import boxes_of
    from detection import CELL, Detection
    from pasted import SIDE, pasted

    pictures = pasted(40)["test"]
    targets = {"boxes": pictures.boxes, "labels": pictures.labels}
    arrays = {name: tensor.numpy() for name, tensor in targets.items()}
    outputs = perfect(pictures.boxes, pictures.labels, CELL, SIDE // CELL)
    task = Detection()

    def quality(given: Mapping[str, np.ndarray[Any, Any]]) -> float:
        scorer = task.scorer()
        scorer.add(given, arrays)
        return scorer.value().quality

    assert quality(outputs) == pytest.approx(1)
    found = boxes_of(outputs, CELL)
    assert len(found.boxes) == int((pictures.labels >= 0).sum())
    np.testing.assert_allclose(np.sort(found.boxes, 0), np.sort(pictures.boxes[pictures.labels >= 0].numpy(), 0), atol=1e-4)
    assert quality({**outputs, "size": outputs["size"] / 2}) == 0  # boxes a quarter as large overlap by a quarter
    blank = {**outputs, "heatmap": np.full_like(outputs["heatmap"], -10)}
    assert quality(blank) == 0
    surest = outputs["heatmap"].copy()
    surest[:, :, 0, 0] = 20  # a box in each picture and class that is not there, before all others
    assert 0 < quality({**outputs, "heatmap": surest}) < 0.9
    as_tensors = [{name: torch.from_numpy(array) for name, array in given.items()} for given in (outputs, blank)]
    right, wrong = (float(task.loss(given, targets)) for given in as_tensors)
    assert right < 0.01 < wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["boxes"], "allowed are 'boxes'"),
        (lambda t: {**t, "boxes": t["boxes"][..., :3]}, "shape .*allowed is"),
        (lambda t: {**t, "labels": t["labels"].float()}, "whole numbers"),
        (lambda t: {**t, "labels": t["labels"] + 10}, "from -1, no box, to 9"),
        (lambda t: {**t, "boxes": 10 * t["boxes"]}, "within the picture"),
        (lambda t: {**t, "boxes": t["boxes"].flip(-1)}, "left < right"),
    ],
)
def test_targets_that_are_no_boxes_are_refused(path: None, change: Callable[[Any], Any], message: str) -> None:
    from detection import Detection

    from trainer import TrainerError

    outputs = {"heatmap": torch.zeros(2, 10, 12, 12)}
    targets = {"boxes": torch.tensor([[[4.0, 4, 20, 30]], [[0, 0, 48, 48]]]), "labels": torch.tensor([[3], [9]])}
    Detection().check(outputs, targets)
    with pytest.raises(TrainerError, match=message):
        Detection().check(outputs, change(targets))


@pytest.mark.parametrize(
    ("name", "arguments", "code", "said"),
    [
        *((name, ["--help"], 0, "Usage:") for name in (*EXAMPLES, "own_weights", "speech")),
        ("regression", ["--epochs", "3"], 2, "No such option: --epochs"),
        ("sentiment", ["nowhere"], 2, "error: text folder 'nowhere' does not exist; expected is one folder per class"),
        ("sentiment", ["texts", "nowhere"], 2, "error: weights = 'nowhere': there is no such file or folder"),
    ],
)
def test_its_script_says_what_it_takes_and_what_is_wrong(
    path: None,
    name: str,
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert ended.value.code == code
    assert said in "".join(capsys.readouterr())


def script(*command: str) -> str:
    environment = {**os.environ, "GOMP_SPINCOUNT": "5000"}
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_command_line_trains_and_exports_one(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "sortednet"]
    train = ["train", "--family", "regression:Pose", "--data", "regression:turned", "--data-option", "copies=1"]
    script(*program, *train, "--epochs", "1", "--grid", "width=8", "--grid", "depth=1", "--out", str(tmp_path / "run"))
    script(*program, "export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle"), "--submodels", "w8-d1")
    assert "w8-d1" in script(*program, "inspect", str(tmp_path / "bundle"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", EXAMPLES)
def test_at_full_length(name: str) -> None:
    if name == "keywords":
        pytest.importorskip("espeakng_loader")
    found = re.search(r"^the bundle: (.*),", script(sys.executable, f"{name}.py"), re.MULTILINE)
    assert found
    bundle = Bundle(found[1])
    qualities = [entry.quality for entry in bundle.submodels.values() if entry.quality is not None]
    assert qualities[-1] > LEAST[name]
    assert min(qualities) > LEAST[name] / 2


def test_a_network_of_ones_own_becomes_elastic(path: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from own_weights import main, train_alone

    weights = tmp_path / "alone.pth"
    train_alone(weights, epochs=2)
    bundle = main(weights, epochs=1, grid={"width": [0.5], "hidden": [64]})
    said = capsys.readouterr().out
    assert "Sorted 4 groups of units by l2" in said
    assert "Not sorted" not in said
    assert self_test(bundle).submodels == len(bundle.submodels) == 4
    assert len({entry.topology for entry in bundle.submodels.values()}) == 1


@pytest.mark.parametrize("gone", ["sentiment"], indirect=True)
def test_texts_are_answered_by_the_names_of_their_folders(gone: Gone, capsys: pytest.CaptureFixture[str]) -> None:
    from sentiment import ASKED, answer

    answer(gone.bundle)
    said = capsys.readouterr().out
    assert [said.count(f"%  {text}\n") for text in ASKED] == [2] * len(ASKED)
    assert said.count("pleased") + said.count("annoyed") == 2 * len(ASKED)
