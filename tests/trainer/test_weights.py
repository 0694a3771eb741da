"""Weights that somebody has trained: read from every form in which they come, or refused in one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer import NestedModel, TrainerError, calibrate
from trainer.families import ResNet
from trainer.folder import write_record
from trainer.run import describe_run, save_run
from trainer.weights import load_weights, preprocessing_of, read_weights


def network(seed: int, classes: int = 10) -> NestedModel:
    torch.manual_seed(seed)
    family = ResNet(channels=(4, 8), blocks=(1, 1), widths=(0.5, 1.0), classes=classes, input_shape=(1, 8, 8))
    nested = NestedModel(family)
    calibrate(nested, [torch.rand(16, 1, 8, 8)], [family.largest])
    return nested.eval()


def state_of(nested: NestedModel) -> dict[str, Tensor]:
    """As `state_dict` of the module that somebody has trained, its statistics included."""
    return {name: t.clone() for name, t in nested.extract(nested.family.largest).state_dict().items()}


def as_safetensors(folder: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, folder / "w.safetensors")
    return folder / "w.safetensors"


def as_pth(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, folder / "w.pth")
    return folder / "w.pth"


def as_checkpoint(folder: Path, state: dict[str, Tensor]) -> Path:
    """As a script for several GPUs saves it, beside the optimizer."""
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}, "ema": {"a": torch.ones(1)}}, folder / "w.pt")
    return folder / "w.pt"


def as_folder(folder: Path, state: dict[str, Tensor]) -> Path:
    save_file({f"model.{name}": tensor for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def as_parts(folder: Path, state: dict[str, Tensor]) -> Path:
    """A folder with weights in two files and an index."""
    names = list(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def as_halves(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, folder / "w.pth")
    return folder / "w.pth"


FORMS = (as_safetensors, as_pth, as_checkpoint, as_folder, as_parts, as_halves)


@pytest.mark.parametrize("write", FORMS)
def test_every_form_answers_as_what_was_saved(write: Callable[[Path, dict[str, Tensor]], Path], tmp_path: Path) -> None:
    trained, nested = network(1), network(2)
    loaded = load_weights(nested, read_weights(write(tmp_path, state_of(trained))))
    pixels = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        wanted, found = (model.outputs(pixels)["logits"] for model in (trained, nested))
    halves = write is as_halves
    assert torch.allclose(found, wanted, atol=1e-2 if halves else 1e-6)
    assert loaded.parameters == sum(p.numel() for p in nested.full.parameters())
    assert loaded.prefix == {as_checkpoint: "module.", as_folder: "model."}.get(write, "")
    assert loaded.converted == ("float16" if halves else "")
    assert not loaded.anew
    assert not loaded.left_over


def test_a_run_is_read_too(tmp_path: Path) -> None:
    trained, nested = network(1), network(2)
    write_record(tmp_path, describe_run(trained.family, {"name": "digits"}, {}, None))
    save_run(tmp_path, trained)
    load_weights(nested, read_weights(tmp_path))
    assert all(torch.equal(p, q) for p, q in zip(nested.full.parameters(), trained.full.parameters(), strict=True))


def test_a_head_of_another_number_of_classes_is_begun_anew_and_said(tmp_path: Path) -> None:
    trained, nested = network(1, classes=10), network(2, classes=3)
    initial = nested.full.get_parameter("classifier.weight").clone()
    state = {**state_of(trained), "auxiliary.weight": torch.ones(2)}
    loaded = load_weights(nested, read_weights(as_pth(tmp_path, state)), outputs=3)
    assert loaded.anew == ["classifier.weight", "classifier.bias"]
    assert loaded.left_over == ["auxiliary.weight"]
    assert "begun anew, not there or of other classes: classifier.weight, classifier.bias; left over: auxiliary.weight" in str(
        loaded
    )
    assert torch.equal(nested.full.get_parameter("classifier.weight"), initial)
    assert torch.equal(nested.full.get_parameter("stem.weight"), trained.full.get_parameter("stem.weight"))
    headless = {name: tensor for name, tensor in state_of(trained).items() if not name.startswith("classifier")}
    assert load_weights(nested, read_weights(as_pth(tmp_path, headless)), outputs=3).anew == loaded.anew


@pytest.mark.parametrize(
    ("labels", "of_run", "done"),
    [
        (("cat", "dog", "cow"), True, "kept"),
        (("cow", "cat", "dog"), True, "ordered"),
        (("cat", "dog", "owl"), True, "anew"),
        (("cat", "dog", "cow"), False, "kept"),
        (("cow", "cat", "dog"), False, "ordered"),
        (("cat", "dog", "owl"), False, "said"),
    ],
)
def test_a_head_answers_in_the_order_of_the_datas_classes_or_says_that_it_does_not(
    labels: Sequence[str], of_run: bool, done: str, tmp_path: Path
) -> None:
    """Their number alone does not tell: its first output need not be the first class. A checkpoint may name its own anew."""
    trained, nested = network(1, classes=3), network(2, classes=3)
    known = ["cat", "dog", "cow"]
    initial = nested.full.get_parameter("classifier.weight").clone()
    if of_run:
        write_record(tmp_path, {**describe_run(trained.family, {"name": "pets"}, {}, None), "labels": known})
        save_run(tmp_path, trained)
    else:
        as_folder(tmp_path, state_of(trained))
        (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(n): name for n, name in enumerate(known)}}))
    loaded = load_weights(nested, read_weights(tmp_path), 3, labels)
    assert loaded.anew == (["classifier.weight", "classifier.bias"] if done == "anew" else [])
    nested.calibration.update(trained.calibration)  # which a run has beside its weights
    pixels = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        wanted, found = (model.outputs(pixels)["logits"] for model in (trained, nested))
    if done == "anew":
        assert torch.equal(nested.full.get_parameter("classifier.weight"), initial)
    else:
        places = [known.index(label) for label in labels] if done == "ordered" else [0, 1, 2]
        torch.testing.assert_close(found, wanted[:, places])
    notes = {
        "ordered": "the weights' classes are cat, dog, cow: the head was put in the order of the data's",
        "said": "the weights' classes are cat, dog, cow: the head begins with what it has learnt of those, in this order",
    }
    assert [kind for kind, note in notes.items() if note in str(loaded)] == [done] * (done in notes)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"id2label": {"1": "b", "0": "a", "10": "c"}}, ("a", "b", "c")),
        ({"label_names": ["a", "b"]}, ("a", "b")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ()),
        ({"id2label": {"a": "0"}}, ()),
        ({}, ()),
    ],
)
def test_names_of_classes_are_read_from_a_checkpoint(said: dict[str, Any], found: Sequence[str], tmp_path: Path) -> None:
    as_folder(tmp_path, state_of(network(1)))
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert read_weights(tmp_path).labels == found


class _Runs:
    """What a pickle would call."""

    def __reduce__(self) -> Any:
        return print, ("code has run",)


def pickled(folder: Path, state: dict[str, Tensor]) -> Path:
    (folder / "w.pth").write_bytes(pickle.dumps({"state_dict": state, "args": _Runs()}))
    return folder / "w.pth"


def saved_with_code(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"state_dict": state, "args": _Runs()}, folder / "w.pth")
    return folder / "w.pth"


def cut_off(folder: Path, state: dict[str, Tensor]) -> Path:
    path = as_pth(folder, state)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def changed(**tensors: Any) -> Callable[[Path, dict[str, Tensor]], Path]:
    """None: left out."""

    def write(folder: Path, state: dict[str, Tensor]) -> Path:
        changes = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        return as_pth(folder, {n: t for n, t in {**state, **changes}.items() if t is not None})

    return write


def indexed(weight_map: Any) -> Callable[[Path, dict[str, Tensor]], Path]:
    def write(folder: Path, state: dict[str, Tensor]) -> Path:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    return write


def emptied(path: Path) -> Path:
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (pickled, "holds Python objects beside tensors.*allowed is a state dict"),
        (saved_with_code, "holds Python objects beside tensors.*allowed is a state dict"),
        (cut_off, "is damaged"),
        (indexed({"stem.weight": "../w.safetensors"}), "is damaged: its weight_map names no files beside it"),
        (indexed(["w.safetensors"]), "is damaged: its weight_map names no files beside it"),
        (indexed({"stem.weight": 3}), "is damaged: its weight_map names no files beside it"),
        (lambda folder, state: emptied(folder / "w.pth"), "is damaged: EOFError"),
        (lambda folder, state: Path("bert-base-uncased"), "hf download bert-base-uncased --local-dir FOLDER"),
        (lambda folder, state: folder, "a folder without weights; allowed are folders with model.safetensors or"),
        (lambda folder, state: folder / "none.pth", "none.pth does not exist"),
        (lambda folder, state: folder / "w.onnx", "allowed are a run, a folder with weights, or a file .safetensors, .pth"),
        (changed(stem__weight=None), r"network: parameter 'stem.weight' is missing, this model needs \(4, 1, 3, 3\); it has"),
        (changed(stem__weight=torch.ones(4, 1, 5, 5)), r"another network: parameter 'stem.weight' is of shape \(4, 1, 5, 5\)"),
        (changed(stem__weight=torch.full((4, 1, 3, 3), torch.nan)), "'stem.weight' has a value that is no finite number"),
        (changed(stem__weight=torch.ones(4, 1, 3, 3, dtype=torch.int8)), "'stem.weight' is quantised .*fp32, bf16 or fp16"),
        (changed(stem__weight=torch.ones(4, 1, 3, 3, dtype=torch.int32)), r"'stem.weight' is of whole numbers \(torch.int32\)"),
        (changed(stem__weight=torch.ones(4, 1, 3, 3, dtype=torch.bool)), r"'stem.weight' is of whole numbers \(torch.bool\)"),
        (changed(stem__weight=torch.full((4, 1, 3, 3), 1e300, dtype=torch.double)), "value that is no finite number in fp32"),
        (changed(stem__weight=torch.ones(4, 1, 3, 3, device="meta")), "'stem.weight' has a shape and no numbers .*allowed are"),
        (changed(classifier__weight=torch.ones(10, 8).to_sparse()), r"'classifier.weight' is not dense \(torch.sparse_coo\)"),
        (changed(stem__weight=torch.ones(4, 1, 3, 3, dtype=torch.complex64)), "is of complex numbers"),
        (changed(classifier__weight=torch.ones(10, 9)), r"parameter 'classifier.weight' is of shape \(10, 9\)"),
        (changed(normalize__mean=torch.ones(1, 1, 1)), "the buffer 'normalize.mean' has other values than this model's"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_over_is_refused(
    write: Callable[[Path, dict[str, Tensor]], Path], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nested = network(2)
    was = {name: t.clone() for name, t in nested.full.state_dict().items()}
    with pytest.raises(TrainerError, match=message):
        load_weights(nested, read_weights(write(tmp_path, state_of(network(1)))), outputs=10)
    assert "code has run" not in capsys.readouterr().out
    assert all(torch.equal(t, was[name]) for name, t in nested.full.state_dict().items())


@pytest.mark.parametrize(
    ("file", "said", "found"),
    [
        (
            "config.json",
            {
                "architecture": "mobilenetv2_100",
                "pretrained_cfg": {
                    "input_size": [3, 224, 224],
                    "crop_pct": 0.875,
                    "interpolation": "bicubic",
                    "mean": [0.5, 0.5, 0.5],
                    "std": [0.2, 0.2, 0.2],
                },
            },
            {
                "mean": [0.5] * 3,
                "std": [0.2] * 3,
                "interpolation": "bicubic",
                "size": [224, 224],
                "resize": 256,
                "crop": "center",
            },
        ),
        (
            "preprocessor_config.json",
            {
                "image_mean": [0.1],
                "image_std": [0.3],
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 192},
                "resample": 2,
            },
            {"mean": [0.1], "std": [0.3], "size": [224, 192], "resize": 256, "crop": "center", "interpolation": "bilinear"},
        ),
        (
            "preprocessor_config.json",
            {"do_normalize": False, "image_mean": [0.1], "size": 96},
            {"mean": [0.0], "std": [1.0], "size": [96, 96], "crop": "none"},
        ),
        ("config.json", {"model_type": "bert"}, {}),
    ],
)
def test_what_a_checkpoint_says_of_its_pictures_is_read(
    file: str, said: dict[str, Any], found: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / file).write_text(json.dumps(said))
    assert preprocessing_of(tmp_path) == found


@pytest.mark.parametrize(
    ("file", "said", "message"),
    [
        (
            "config.json",
            {"mean": "grey", "std": [1]},
            r"config.json: pretrained_cfg.mean = 'grey': allowed are finite numbers$",
        ),
        ("config.json", {"mean": [0.5], "std": [0.0]}, r"pretrained_cfg.std = \[0.0\]: allowed are finite numbers above 0"),
        ("config.json", {"mean": [0.5], "std": [None]}, r"pretrained_cfg.std = \[None\]: allowed are finite numbers above 0"),
        ("config.json", {"input_size": 224}, "pretrained_cfg.input_size = 224: allowed are 3 finite numbers above 0"),
        ("config.json", {"input_size": [3, 8, 8], "crop_pct": "all"}, "pretrained_cfg.crop_pct = 'all': allowed are finite"),
        ("preprocessor_config.json", {"image_std": []}, r"preprocessor_config.json: image_std = \[\]: allowed are finite"),
        (
            "preprocessor_config.json",
            {"size": {"height": "x", "width": 3}},
            r"size = \['x', 3\]: allowed are finite numbers above",
        ),
        ("preprocessor_config.json", {"do_center_crop": True, "crop_size": -3}, r"crop_size = \[-3, -3\]: allowed are finite"),
    ],
)
def test_what_cannot_be_of_pictures_is_refused_by_its_field(
    file: str, said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(json.dumps({"pretrained_cfg": said} if file == "config.json" else said))
    with pytest.raises(TrainerError, match=message):
        preprocessing_of(tmp_path)
