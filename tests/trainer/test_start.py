"""`train --from`: begins with a trained model, which is measured, sorted and teaches; what does not fit stops it before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.commands import call, refused
from tests.helpers.runs import SETTINGS, equal, train, weights
from trainer import TrainerError
from trainer.data import load_data
from trainer.run import load_run
from trainer.start import Start


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full model, trained by itself."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(folder, options={"epochs": 3})
    return folder


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_it_begins_with_the_trained_model_in_another_order(alone: Path, tmp_path: Path) -> None:
    said: list[str] = []
    nothing = {"lr": 1e-12, "weight_decay": 0.0}  # so that what was loaded is what comes out
    train(tmp_path / "run", start=Start(alone), options=nothing, say=said.append)
    began, given = load_run(tmp_path / "run").nested, load_run(alone).nested
    pixels = load_data("digits").test.batch(torch.arange(64)).inputs
    with torch.no_grad():
        before, now = (nested.eval().full(next(iter(pixels.values()))) for nested in (given, began))
    assert torch.allclose(before, now, atol=1e-4)
    assert not equal(weights(began), weights(given))
    assert all(
        torch.allclose(p.sort().values, q.sort().values, atol=1e-5)
        for p, q in ((weights(n)["norm.weight"] for n in (began, given)),)
    )
    start = record_of(tmp_path / "run")["start"]
    assert start["quality"] == pytest.approx(record_of(alone)["results"]["validation_quality"]["w1.00-d2"], abs=0.02)
    assert (start["sort"], start["sorted_by"], start["not_sorted"]) == ("auto", "l2", {})
    assert start["weights_sha256"] == start["teacher_sha256"]
    assert [line.partition(":")[0] for line in said[:2]] == [str(alone), "The full model before training"]
    assert record_of(tmp_path / "run")["results"]["teacher_passes"] == record_of(tmp_path / "run")["results"]["steps"]


def test_a_resumed_run_has_begun_with_the_same(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not sort again, and its teacher is the same: it ends with the same bits."""
    options = {"epochs": 2, "update": "sorted"}
    train(tmp_path / "whole", start=Start(alone), options=options)
    from trainer import training

    save = training._Training._save

    def saved(self: Any) -> None:
        save(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "_save", saved)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", start=Start(alone), options=options)
    monkeypatch.undo()
    with pytest.raises(TrainerError, match=r"resume: start = .*sort.*magnitude"):
        train(tmp_path / "run", start=Start(alone, sort="magnitude"), options=options, resume=True)
    train(tmp_path / "run", start=Start(alone), options=options, resume=True)
    assert equal(weights(load_run(tmp_path / "whole").nested), weights(load_run(tmp_path / "run").nested))
    assert (
        record_of(tmp_path / "run")["start"]["sorted"] == 3
    )  # of the second stage: its stream, and what lies within its two blocks


def test_a_run_that_ended_before_its_first_checkpoint_begins_with_the_weights_again(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    train(tmp_path / "whole", start=Start(alone))
    monkeypatch.setattr("trainer.making.fit", ended)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", start=Start(alone))
    monkeypatch.undo()
    train(tmp_path / "run", start=Start(alone), resume=True)
    assert equal(weights(load_run(tmp_path / "whole").nested), weights(load_run(tmp_path / "run").nested))


def test_a_teacher_may_be_of_another_architecture_or_none(alone: Path, tmp_path: Path) -> None:
    train(tmp_path / "other", settings={**SETTINGS, "channels": [8], "blocks": [1], "depths": [1]})
    results = train(tmp_path / "run", start=Start(None, str(tmp_path / "other")))
    assert results["teacher_passes"] == results["steps"]
    assert set(record_of(tmp_path / "run")["start"]) == {"teacher", "teacher_sha256"}
    assert train(tmp_path / "untaught", start=Start(alone, "none"))["teacher_passes"] == 0


def test_what_a_checkpoint_says_of_pictures_is_taken_over_where_nobody_says_otherwise(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(drawn.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "data" / label / f"{i}.png")
    settings = {**SETTINGS, "channels": [4, 8]}
    data = f"image-folder:{tmp_path / 'data'}"
    train(tmp_path / "plain", data=data, settings=settings, data_options={"size": 16}, options={"batch_size": 8})
    full = load_run(tmp_path / "plain").nested
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    torch.save(full.extract(full.family.largest).state_dict(), folder / "pytorch_model.bin")
    cfg = {
        "input_size": [3, 16, 16],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.1],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
    }
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("normalize.")}  # theirs is in the config
    torch.save(state, folder / "pytorch_model.bin")
    train(tmp_path / "run", data=data, settings=settings, start=Start(folder), options={"batch_size": 8})
    record = record_of(tmp_path / "run")
    assert record["config"]["mean"] == [0.5, 0.4, 0.3]
    assert {name: record["data"]["options"][name] for name in ("size", "resize", "interpolation")} == {
        "size": [16, 16],
        "resize": 20,
        "interpolation": "bicubic",
    }
    train(
        tmp_path / "other",
        data=data,
        settings=settings,
        start=Start(folder),
        data_options={"resize": 16},
        options={"batch_size": 8},
    )
    assert record_of(tmp_path / "other")["data"]["options"]["resize"] == 16


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (["--expect-quality", "0.999"], r"expect_quality = 0.999: the weights reach 0\.\d+ on the validation split"),
        (["--expect-quality", "7"], "expect_quality = 7.0: allowed are values from 0 to 1"),
        (["--sort", "luck"], "sort = 'luck': allowed are auto, taylor, saliency, magnitude, l2, none"),
        (["--teacher", ""], "teacher = '': allowed are weights, or none"),
        (["--teacher", "nowhere"], "error: teacher = 'nowhere': there is no such file or folder; allowed are a run"),
        (
            ["--teacher-hidden", "1"],
            r"teacher_hidden: layer 2 gives \(2, 4, 4, 4\), the teacher's layer 2 \(2, 8, 4, 4\); allowed",
        ),
        (
            ["--teacher-views", "1000000"],
            "teacher_views: [0-9]+ MiB of answers cannot be remembered; allowed are up to 256 MiB",
        ),
        (["--teacher", "some/model"], "such file or folder; .*; of the hub: hf download some/model --local-dir FOLDER"),
        (["--set", "blocks=[2,2]", "--from", "RUN"], "is of another network: parameter"),
        (["--init", "RUN"], "init: the weights of --from go into the same places; allowed is one of the two"),
        (["--temperature", "0"], "temperature = 0: allowed are numbers above 0"),
    ],
)
def test_wrong_beginnings_stop_it_before_the_work(start: Sequence[str], message: str, alone: Path, tmp_path: Path) -> None:
    import re

    arguments = ["train", "--family", "resnet", "--data", "digits", "--epochs", "1", "--out", str(tmp_path / "run")]
    if "--from" not in start:
        arguments += ["--set", "blocks=[1,2]", "--from", "RUN"]
    arguments += ["--set", "channels=[4,8]", "--set", "widths=[0.5,1.0]", "--set", "depths=[1,2]", *start]
    arguments = [str(alone) if argument == "RUN" else argument for argument in arguments]
    result = call(*arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr.splitlines()[-1])
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--sort", "magnitude"], "sort = 'magnitude': it is the order of the weights of --from, and there are none"),
        (["--temperature", "2"], "temperature = 2.0: there is no teacher; allowed is 1"),
        (["--teacher-share", "0.5"], "teacher_share = 0.5: there is no teacher; allowed is 1"),
    ],
)
def test_an_option_without_effect_is_refused(option: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused("train", "--family", "resnet", "--data", "digits", "--out", str(tmp_path / "run"), *option)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_refused_before_anything_is_written(alone: Path, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "three.npz", input=pictures, targets=np.arange(60) % 3)
    command = ["train", "--family", "resnet", "--data", f"arrays:{tmp_path / 'three.npz'}", "--out", tmp_path / "run"]
    command += ["--set", "channels=[4,8]", "--set", "blocks=[1,2]", "--set", "widths=[0.5,1.0]", "--set", "depths=[1,2]"]
    assert r"'logits' has shape (2, 10), the model's (2, 3); of other classes" in refused(*command, "--from", alone)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("batch_size", "note"), [(512, "in 2 steps each of the 4 sizes was computed 0.5 times: "), (64, "")])
def test_sizes_that_were_hardly_computed_are_told(batch_size: int, note: str, tmp_path: Path) -> None:
    said = call(
        *("train", "--family", "resnet", "--data", "digits", "--epochs", 1, "--batch-size", batch_size),
        *("--set", "channels=[4,8]", "--set", "blocks=[1,2]", "--set", "widths=[0.5,1.0]", "--set", "depths=[1,2]"),
        *("--out", tmp_path / "run"),
    )
    assert note in said.stderr
    assert ("note:" in said.stderr) == bool(note)


def test_expected_quality_needs_weights(tmp_path: Path) -> None:
    arguments = ["train", "--family", "resnet", "--data", "digits", "--out", str(tmp_path / "run"), "--expect-quality", "0.5"]
    assert "it is the quality of the weights of --from, and there are none" in refused(*arguments)


def test_the_full_model_alone_has_no_teacher_and_is_what_all_sizes_begin_with(alone: Path, tmp_path: Path) -> None:
    """Of sizes that no step computed nothing is measured, and no units are sorted that will be when it teaches."""
    command = ["train", "--family", "resnet", "--data", "digits", "--epochs", "1", "--from", alone, "--out", tmp_path / "full"]
    command += ["--set", "channels=[4,8]", "--set", "blocks=[1,2]", "--set", "widths=[0.5,1.0]", "--set", "depths=[1,2]"]
    said = call(*command, "--grid", "depth=1,2", "--update", "full").stdout
    assert "Trained the full model alone in" in said
    assert "Next, all its sizes: sortednet train --family resnet --data digits --set 'channels=[4,8]' --set" in said
    assert f" --grid depth=1,2 --from {tmp_path / 'full'} --out RUN" in said
    results = record_of(tmp_path / "full")["results"]
    assert (list(results["validation_quality"]), list(results["test"])) == (["w1.00-d2"], ["w1.00-d2"])
    assert results["teacher_passes"] == 0
    start = record_of(tmp_path / "full")["start"]
    assert ("teacher" in start, start["sort"], "sorted" in start) == (False, "none", False)
